"""What belongs to a sampler: the grid of a space, and settings that do not go together.

    samples = list(grid(parameters, points=5, base=experiment))

A grid has every option of every choice with each of a few values of every range, evenly spaced in its own scale, both
ends among them. Where a label is inactive it does not multiply: a decay rate has its values only with the schedule that
decays.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from kdtune.errors import Problem
from kdtune.experiment.models import Experiment
from kdtune.experiment.space import Parameter, active, conditions_first, parse

COUNTED = 100_000  # combinations, before a grid is called larger than that


def grid(parameters: Sequence[Parameter], points: int, base: Experiment | None) -> Iterator[dict[str, float]]:
    """A sample of every label for each combination; `base` answers conditions on what is not searched."""
    return _combined({}, conditions_first(parameters), 0, points, base)


def _combined(
    chosen: Mapping[str, float], parameters: Sequence[Parameter], place: int, points: int, base: Experiment | None
) -> Iterator[dict[str, float]]:
    """What follows from values for the first `place` parameters."""
    if place == len(parameters):
        yield dict(chosen)
        return
    parameter = parameters[place]
    matters = _is_active(parameter, parameters[:place], chosen, base)
    for value in values_of(parameter, points) if matters else [parameter.middle()]:
        yield from _combined({**chosen, parameter.label: value}, parameters, place + 1, points, base)


def _is_active(
    parameter: Parameter, before: Sequence[Parameter], chosen: Mapping[str, float], base: Experiment | None
) -> bool:
    """Whether a value of the parameter means anything, given values for those `before` it."""
    if parameter.option_of is not None and chosen[parameter.option_of] != parameter.option:
        return False
    plain = replace(parameter, kind="uniform", option_of=None)  # stands for any value of it
    others = [other for other in before if other.path != parameter.path]
    return parameter.path in active([*others, plain], {**chosen, parameter.label: 0.0}, base)


def values_of(parameter: Parameter, points: int) -> list[float]:
    """Every option, or `points` values from end to end; of whole numbers none twice."""
    if parameter.kind == "choice":
        return list(range(len(parameter.options)))
    low, high = parameter.low, parameter.high
    shares = [k / (points - 1) for k in range(1, points - 1)]
    if parameter.kind == "loguniform":
        between = [math.exp((1 - share) * math.log(low) + share * math.log(high)) for share in shares]
    else:
        between = [(1 - share) * low + share * high for share in shares]
    values = [low, *between, high]
    return list(dict.fromkeys(map(round, values))) if parameter.kind == "integer" else values


def sampler_problems(experiment: Experiment) -> list[Problem]:
    """Settings of one sampler beside another, and a grid that has no place among the trials."""
    search = experiment.search
    problems = []
    if search.optuna_sampler is not None and search.sampler != "optuna":
        problems.append(Problem("search.optuna_sampler", f"needs search.sampler optuna, given {search.sampler}"))
    if search.sampler != "grid":
        if search.grid_points is not None:
            problems.append(Problem("search.grid_points", f"needs search.sampler grid, given {search.sampler}"))
        return problems
    if search.points:
        problems.append(Problem("search.points", "a grid has its own points; remove them or take another sampler"))
    parameters, _ = parse(search.space)
    size = sum(1 for _ in islice(grid(parameters, search.values_of_a_range, experiment), COUNTED))
    if parameters and size > search.trials:
        shown = f"{size:,} combinations" if size < COUNTED else f"{COUNTED:,} combinations or more"
        problems.append(
            Problem(
                "search.trials",
                f"is {search.trials}, but the grid has {shown} with {search.values_of_a_range} values of each range; "
                "raise it, lower search.grid_points or narrow search.space",
            )
        )
    return problems
