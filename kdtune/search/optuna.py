"""Optuna's samplers (Akiba et al. 2019), through Ray Tune's own wrapper of them: `search.sampler: optuna`.

Optuna keeps a study of its own, whose generators move with every proposal. A new process makes them move again: it asks
for every trial anew, in order, and tells what came of it. So a search goes on exactly where one trial ran at a time; of
several at once Optuna learns the same, but in another order. It sees a flat space, in which a label that is inactive
lies in the middle, and one value a trial: what the trial reached, or would have reached had it not been stopped.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdtune.errors import ExperimentError, Problem
from kdtune.experiment import Experiment
from kdtune.experiment.search import OptunaName
from kdtune.experiment.space import Parameter, active, encoded, parse
from kdtune.tuning.curves import within_memory
from kdtune.tuning.making import first_points
from kdtune.tuning.merit import merit
from kdtune.tuning.samplers import clipped
from kdtune.tuning.study import Sample, Seen

if TYPE_CHECKING:  # Tune takes seconds to import, and only who asks for Optuna waits for it
    from ray.tune.search.optuna import OptunaSearch

VALUE = "val_accuracy"
NEEDED = {"cmaes": "cmaes"}  # packages that Optuna itself does not bring


class OptunaSampler:
    def __init__(
        self,
        parameters: Sequence[Parameter],
        searcher: "OptunaSearch",
        *,
        epochs: int,
        base: Experiment | None = None,
    ) -> None:
        """`searcher` is fresh, over `distributions(parameters)`, and knows the search's first points."""
        self.parameters = parameters
        self.searcher = searcher
        self.epochs = epochs
        self.base = base
        self.asked: dict[int, Sample] = {}
        self.told: set[int] = set()

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample:
        if not self.asked:
            self._tell_former([seen for seen in trials if seen.run is not None and seen.values])
        for place, seen in enumerate(trials):
            if seen.run is not None:
                continue
            self._ask(seen.number)
            if seen.ended and seen.number not in self.told:
                self._tell(seen, trials[: place + 1])
        return self._ask(number)

    def _tell_former(self, trials: Sequence[Seen]) -> None:
        """Trials of former searches, on the scale of the largest of them."""
        if trials:
            for seen, value in zip(trials, merit(trials, self.epochs).values.tolist(), strict=True):
                self.searcher.add_evaluated_point(self._full(seen.sample), value)

    def _ask(self, number: int) -> Sample:
        if number not in self.asked:
            drawn = self.searcher.suggest(str(number))
            assert drawn is not None  # spaces have no end
            self.asked[number] = {p.label: clipped(p, drawn[p.label]) for p in self.parameters}
        return self.asked[number]

    def _tell(self, seen: Seen, so_far: Sequence[Seen]) -> None:
        """What a trial came to, as it was known when it ended."""
        self.told.add(seen.number)
        value = None
        if seen.values:
            known = [one for one in within_memory(so_far) if one.values]
            value = float(merit(known, self.epochs).values[-1])
        ran_as_asked = seen.sample == self._active(self.asked[seen.number])
        if value is None or not ran_as_asked:
            self.searcher.on_trial_complete(str(seen.number), error=True)
        else:
            self.searcher.on_trial_complete(str(seen.number), {VALUE: value})
        if value is not None and not ran_as_asked:  # a search of several at once, taken up by a new process
            self.searcher.add_evaluated_point(self._full(seen.sample), value)

    def _full(self, sample: Sample) -> dict[str, float]:
        return {p.label: sample.get(p.label, p.middle()) for p in self.parameters}

    def _active(self, sample: Sample) -> Mapping[str, float]:
        return encoded(self.parameters, active(self.parameters, sample, self.base))


def optuna_sampler_of(experiment: Experiment) -> OptunaSampler | None:
    """For `make_study(..., sampler=...)`; None where the experiment asks for another. Raises ExperimentError where a
    package is missing."""
    search = experiment.search
    if search.sampler != "optuna":
        return None
    name = search.optuna_sampler or "tpe"
    missing = [package for package in ("optuna", NEEDED.get(name)) if package and not importlib.util.find_spec(package)]
    if missing:
        wanted = f"Optuna's {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        raise ExperimentError(experiment.name, [Problem("search.sampler", wanted)])
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it prints every study that begins
    parameters, _ = parse(search.space)
    searcher = OptunaSearch(
        distributions(parameters),
        metric=VALUE,
        mode="max",
        points_to_evaluate=first_points(parameters, experiment),
        sampler=_samplers()[name](search.seed),
    )
    return OptunaSampler(parameters, searcher, epochs=experiment.train.epochs, base=experiment)


def _samplers() -> dict[OptunaName, Callable[[int], Any]]:  # Optuna may be missing
    from optuna import samplers

    return {
        "tpe": lambda seed: samplers.TPESampler(seed=seed),
        "gp": lambda seed: samplers.GPSampler(seed=seed),
        "cmaes": lambda seed: samplers.CmaEsSampler(seed=seed),
        "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed),
        "qmc": lambda seed: samplers.QMCSampler(seed=seed, scramble=True),
        "random": lambda seed: samplers.RandomSampler(seed=seed),
    }


def distributions(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The flat space in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(parameter: Parameter) -> Any:
        if parameter.kind == "choice":
            return CategoricalDistribution(tuple(range(len(parameter.options))))
        if parameter.kind == "integer":
            return IntDistribution(int(parameter.low), int(parameter.high))
        return FloatDistribution(parameter.low, parameter.high, log=parameter.kind == "loguniform")

    return {parameter.label: one(parameter) for parameter in parameters}
