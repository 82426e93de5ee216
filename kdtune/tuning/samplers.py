"""Who proposes configurations. Adding one: a class with `propose`, and a line in `make_sampler`."""

import math
import random
from collections.abc import Sequence

from kdtune.experiment.space import Parameter
from kdtune.tuning.study import Sample, Seen


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


class Random:
    def __init__(self, parameters: Sequence[Parameter], seed: int) -> None:
        self.parameters = parameters
        self.seed = seed

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample:
        return draws(self.parameters, random.Random(f"{self.seed} {number}"))
