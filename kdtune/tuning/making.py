"""The study of an experiment: its sampler, its stopper, the points that it begins with."""

from collections.abc import Callable, Sequence

from kdtune.experiment import Experiment
from kdtune.experiment.objective import TEXTBOOK
from kdtune.experiment.sampling import grid
from kdtune.experiment.space import Parameter, full_point, parse
from kdtune.experiment.stopping import ready_epochs
from kdtune.tuning.gaussian import GaussianProcess
from kdtune.tuning.pareto import Fronts
from kdtune.tuning.population import Population
from kdtune.tuning.rungs import brackets_of_search, longest_grace
from kdtune.tuning.samplers import Grid, Random, Turns
from kdtune.tuning.stoppers import Asha, Median, Never, Ranking
from kdtune.tuning.study import Budget, Sampler, Seen, Stopper, Study
from kdtune.tuning.tpe import TreeParzen

SAMPLERS: dict[str, Callable[[Experiment, Sequence[Parameter]], Sampler]] = {
    "hyperopt+gp": lambda experiment, parameters: Turns(
        _tree_parzen(experiment, parameters),
        *[_gaussian_process(experiment, parameters)] * 2,  # of three trials, two are its
    ),
    "hyperopt": lambda experiment, parameters: _tree_parzen(experiment, parameters),
    "gp": lambda experiment, parameters: _gaussian_process(experiment, parameters),
    "random": lambda experiment, parameters: Random(parameters, experiment.search.seed),
    "grid": lambda experiment, parameters: Grid(
        list(grid(parameters, experiment.search.values_of_a_range, experiment)), experiment.search.seed
    ),
}
STOPPERS: dict[str, Callable[[Experiment], Stopper]] = {
    "asha": lambda experiment: _asha(experiment),
    "hyperband": lambda experiment: _asha(experiment),
    "median": lambda experiment: Median(longest_grace(experiment)),
    "population": lambda experiment: _population(experiment),
    "none": lambda experiment: Never(),
}


def _tree_parzen(experiment: Experiment, parameters: Sequence[Parameter]) -> Sampler:
    search, epochs = experiment.search, experiment.train.epochs
    return TreeParzen(parameters, search.seed, trials=search.trials, epochs=epochs, base=experiment)


def _gaussian_process(experiment: Experiment, parameters: Sequence[Parameter]) -> Sampler:
    search, epochs = experiment.search, experiment.train.epochs
    return GaussianProcess(parameters, search.seed, trials=search.trials, epochs=epochs, base=experiment)


def make_study(
    experiment: Experiment, *, gpus: float = 0.0, known: Sequence[Seen] = (), sampler: Sampler | None = None
) -> Study:
    """A fresh study; `gpus` are those that a trial holds, `known` the trials of former searches, `sampler` is one that
    a room above has made."""
    search = experiment.search
    parameters, _ = parse(search.space)
    return Study(
        parameters,
        sampler or SAMPLERS[search.sampler](experiment, parameters),
        STOPPERS[search.stopper.kind](experiment),
        Budget(search.trials, **search.budget.model_dump()),
        points=first_points(parameters, experiment) if search.sampler != "grid" else [],  # a grid has its own
        known=known,
        base=experiment,
        gpus=gpus,
    )


def _asha(experiment: Experiment) -> Asha:
    brackets, dealt = brackets_of_search(experiment)
    search = experiment.search
    ranking = Ranking if search.second_objective is None else Fronts
    return Asha(brackets, search.stopper.reduction_factor, shares=dealt, seed=search.seed, ranking=ranking)


def _population(experiment: Experiment) -> Population:
    search, epochs = experiment.search, experiment.train.epochs
    parameters, _ = parse(search.space)
    ready = ready_epochs(experiment.grace_epochs, epochs)
    return Population(parameters, ready, epochs, search.trials, search.seed)


def first_points(parameters: Sequence[Parameter], experiment: Experiment) -> list[dict[str, float]]:
    """Textbook KD where the space holds it, then the experiment's points, without repeats."""
    points: list[dict[str, float]] = []
    for point in (textbook_point(parameters), *experiment.search.points):
        try:
            full = full_point(parameters, point, experiment)
        except ValueError:  # only textbook KD can lie outside: the experiment's points were checked on loading
            continue
        if full not in points:
            points.append(full)
    return points


def textbook_point(parameters: Sequence[Parameter]) -> dict[str, object]:
    """Textbook KD in the space's own paths: a schedule may be searched whole or field by field."""
    point: dict[str, object] = {}
    for parameter in parameters:
        section, _, rest = parameter.path.partition(".")
        name, _, part = rest.partition(".")
        if section != "distill" or name not in TEXTBOOK:
            continue
        if part == "":
            point[parameter.path] = TEXTBOOK[name]
        elif part == "kind":
            point[parameter.path] = "fixed"
        elif part == "start":
            point[parameter.path] = TEXTBOOK[name]
    return point
