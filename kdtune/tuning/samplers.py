"""Who proposes configurations without learning, and what those that learn share.

Adding one: a class with `propose`, and a line in `making.SAMPLERS`.
"""

import math
import random
from collections.abc import Iterator, Sequence

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


class Learning:
    """Random until `startup_of` trials have been proposed, here or in former searches; then what `promising` finds that
    no trial of this search has had: all have one seed, so a repetition would come to the same."""

    def __init__(
        self, parameters: Sequence[Parameter], seed: int, *, trials: int, epochs: int, base: Experiment | None = None
    ) -> None:
        """`trials` and `epochs` are those planned, of the search and of a trial; `base` answers conditions on what is
        not searched."""
        self.parameters = parameters
        self.seed = seed
        self.epochs = epochs
        self.base = base
        self.startup = startup_of(parameters, trials)

    def promising(self, number: int, trials: Sequence[Seen], source: random.Random) -> Iterator[Sample]:
        """Proposals, the best first. At least one of the trials has told of an epoch."""
        raise NotImplementedError

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample:
        source = random.Random(f"{self.seed} {number}")
        former = sum(seen.run is not None for seen in trials)
        if former + number >= self.startup and any(seen.values for seen in trials):
            for proposal in self.promising(number, trials, source):
                if self._is_new(proposal, trials):
                    return proposal
        for _ in range(MOST_DRAWS):  # where they find none that is new, the space may have no other
            sample = draws(self.parameters, source)
            if self._is_new(sample, trials):
                break
        return sample

    def _is_new(self, sample: Sample, trials: Sequence[Seen]) -> bool:
        codes = encoded(self.parameters, active(self.parameters, sample, self.base))
        return all(seen.sample != codes for seen in trials if seen.run is None)


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
