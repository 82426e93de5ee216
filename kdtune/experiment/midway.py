"""What a population changes while its students train: values of schedules, and nothing else that a network, its
optimiser or its data were made for.

    search:
      stopper: {kind: population, grace_epochs: 5}
      space:   {distill.temperature: {loguniform: [1, 20]}, distill.alpha: {uniform: [0.2, 0.99]}}

What is found is a schedule, `{kind: piecewise, ...}`: `continued` makes it, and a run from the beginning repeats it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kdtune import schedules
from kdtune.errors import Problem
from kdtune.experiment.models import Experiment
from kdtune.experiment.space import NESTED, Parameter, look_up
from kdtune.experiment.stopping import ready_epochs

CHANGING = ("distill.temperature", "distill.alpha", "distill.feature_weight")
SMALLEST, LARGEST = 4, 100_000  # members: of fewer there is no quarter; what comes after has its own numbers


def schedule_of(path: str) -> str:
    """`distill.alpha.start` and `distill.alpha` -> `distill.alpha`."""
    return path.removesuffix(".start")


def value_in(config: Mapping[str, Any], path: str) -> Any:
    """What a searched path stands at in a trial's configuration; `Any`: its last value, or an option of a choice."""
    schedule = config.get(schedule_of(path))
    return schedule["values"][-1] if isinstance(schedule, Mapping) else config[path]


def continued(config: Mapping[str, Any], values: Mapping[str, float], epoch: int, epochs: int) -> dict[str, Any]:
    """The configuration of a trial that has been that of `config` for `epoch` epochs and takes `values` from there on.

    `values` holds a number for each searched path. `Any`: schedules as an experiment file has them.
    """
    changed: dict[str, Any] = {}
    for path, value in values.items():
        schedule = config.get(schedule_of(path))
        past = schedule if isinstance(schedule, Mapping) else {"start": config[path], "values": [], "milestones": []}
        changed[schedule_of(path)] = {
            "kind": "piecewise",
            "start": past["start"],
            "values": [*past["values"], value],
            "milestones": [*past["milestones"], schedules.progress_of(epoch, epochs)],
        }
    return changed


def check_population(parameters: Sequence[Parameter], experiment: Experiment) -> list[Problem]:
    """What a population cannot search, in an otherwise valid experiment."""
    problems = [Problem(f"search.space.{one.path}", why) for one in parameters if (why := _refusal(one, experiment))]
    paths = [schedule_of(path) for path in dict.fromkeys(parameter.path for parameter in parameters)]
    twice = [path for path in CHANGING if paths.count(path) > 1]
    problems += [Problem(f"search.space.{path}", f"is searched twice, as {path} and {path}.start") for path in twice]
    if not SMALLEST <= experiment.search.trials <= LARGEST:
        problems.append(Problem("search.trials", f"a population has {SMALLEST} to {LARGEST:,} members, given "
                                                 f"{experiment.search.trials}"))  # fmt: skip
    epochs = experiment.train.epochs
    if not ready_epochs(experiment.grace_epochs, epochs):
        problems.append(
            Problem(
                "search.stopper",
                f"members would be compared after every {experiment.grace_epochs} of {epochs} epochs (grace_epochs), "
                f"with no such stretch left to go on: give at most half of train.epochs",
            )
        )
    return list(dict.fromkeys(problems))


def _refusal(parameter: Parameter, experiment: Experiment) -> str | None:
    path = schedule_of(parameter.path)
    if path not in CHANGING:
        return f"cannot change in mid-training, as a population has it: it searches {', '.join(CHANGING)} only"
    if parameter.when:
        return "`when` decides before a run what is searched, a population changes values in mid-training: leave it out"
    if parameter.path != path and look_up(experiment, f"{path}.kind") != "fixed":
        return f"is the start of a schedule; a population makes the schedule itself: give {path} a number"
    if path == "distill.temperature" and experiment.distill.learned_temperature is not None:
        return "a learned temperature has no schedule: leave out learned_temperature, or temperature from the space"
    if path == "distill.feature_weight":
        ends = [option for option in parameter.options if option is not NESTED] or [parameter.low]
        others = parameter.kind != "choice" or len(parameter.options) > 1
        if others and any(float(str(end)) == 0 for end in ends):
            return "the feature loss cannot be turned on or off in mid-training: search above 0, or leave it at 0"
    return None
