"""Who proposes configurations without learning, and what all samplers share.

Adding one: a class with `propose`, and a line in `making.SAMPLERS`.
"""

import math
import random
from collections.abc import Sequence

from kdtune.experiment import Experiment
from kdtune.experiment.space import Parameter, active, encoded
from kdtune.tuning.study import Sample, Sampler, Seen

MOST_DRAWS = 100


def draws(parameters: Sequence[Parameter], source: random.Random) -> dict[str, float]:
    """A sample of every label, each from its own distribution."""
    return {parameter.label: _draw(parameter, source) for parameter in parameters}


def _draw(parameter: Parameter, source: random.Random) -> float:
    if parameter.kind == "choice":
        return source.randrange(len(parameter.options))
    if parameter.kind == "integer":
        return source.randint(int(parameter.low), int(parameter.high))
    if parameter.kind == "loguniform":
        low, high = math.log(parameter.low), math.log(parameter.high)
        return min(max(math.exp(source.uniform(low, high)), parameter.low), parameter.high)
    return source.uniform(parameter.low, parameter.high)


def clipped(parameter: Parameter, drawn: float) -> float:
    """A number that was computed, as a value of the distribution: rounding may have carried it over an end."""
    if parameter.kind == "choice":
        return int(drawn)
    inside = min(max(drawn, parameter.low), parameter.high)
    return round(inside) if parameter.kind == "integer" else inside


def startup_of(parameters: Sequence[Parameter], trials: int) -> int:
    """Random trials before a model learns: of a short search not more than a third."""
    return min(max(10, 2 * len(parameters)), max(1, trials // 3))


def starts_up(number: int, trials: Sequence[Seen], startup: int) -> bool:
    """Whether it is too early to learn; trials of former searches count as if they had been of this one."""
    former = sum(seen.run is not None for seen in trials)
    return former + number < startup or not any(seen.values for seen in trials)


def is_new(parameters: Sequence[Parameter], sample: Sample, trials: Sequence[Seen], base: Experiment | None) -> bool:
    """Whether no trial of this search has had the configuration: all have one seed, so it would come to the same."""
    codes = encoded(parameters, active(parameters, sample, base))
    return all(seen.sample != codes for seen in trials if seen.run is None)


def new_draws(
    parameters: Sequence[Parameter], source: random.Random, trials: Sequence[Seen], base: Experiment | None
) -> dict[str, float]:
    """A random sample that no trial has had, unless MOST_DRAWS find none: then the space may have no other."""
    for _ in range(MOST_DRAWS):
        sample = draws(parameters, source)
        if is_new(parameters, sample, trials, base):
            break
    return sample


class Random:
    """Each trial from the distributions alone."""

    def __init__(self, parameters: Sequence[Parameter], seed: int) -> None:
        self.parameters = parameters
        self.seed = seed

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample:
        return draws(self.parameters, random.Random(f"{self.seed} {number}"))


class Grid:
    """Samples one after the other, in an order of the seed; None after the last."""

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self.samples = random.Random(seed).sample(samples, len(samples))

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample | None:
        return self.samples[number] if number < len(self.samples) else None


class Turns:
    """Several samplers by turns: where one of them is led astray, the others are not."""

    def __init__(self, *samplers: Sampler) -> None:
        self.samplers = samplers

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample | None:
        return self.samplers[number % len(self.samplers)].propose(number, trials)
