"""Population-based training of schedules (Jaderberg et al. 2017, "Population Based Training of Neural Networks").

Members of a population train side by side. After every so many epochs a member that stands in the bottom quarter of
those that have come so far is stopped, and a fork takes its place: it goes on from the state that a member of the top
quarter had there (exploit), with values moved a little (explore). A lineage of forks is one run whose values change on
the way, so what is found is a schedule, which a run from the beginning repeats.

Members do not wait for one another: each is compared with those that have come to that epoch before it. Who is
stopped, from whom a fork goes on and with which values are functions of the seed and of what was told.
"""

import random
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdtune.experiment.midway import SMALLEST, continued, value_in
from kdtune.experiment.space import NESTED, Parameter, active
from kdtune.tuning.samplers import draws
from kdtune.tuning.stoppers import Ranking
from kdtune.tuning.study import Fork, Seen

FACTORS = (0.8, 1.2)  # a value is multiplied by one of them,
RESAMPLED = 0.25  # or drawn anew with this probability (both as in the paper's appendix)


@dataclass
class Stage:
    """Where members are compared."""

    values: Ranking = field(default_factory=Ranking)  # of all that have come
    going: list["Arrival"] = field(default_factory=list)  # those that went on from here, the best first


@dataclass(frozen=True)
class Arrival:
    """A member at a stage, as it was then."""

    seen: Seen
    values: tuple[float, ...]
    place: int  # in the order of arrivals


class Population:
    """A stopper whose trials are members; its forks are members too."""

    def __init__(
        self, parameters: Sequence[Parameter], ready: Sequence[int], epochs: int, members: int, seed: int
    ) -> None:
        """`ready` are the epochs after which members are compared, `epochs` those of a run."""
        self.parameters = parameters
        self.ready = ready
        self.stages = {epoch: Stage() for epoch in ready}
        self.epochs = epochs
        self.members = members
        self.seed = seed
        self.reached: dict[int, int] = {}  # by number: the last epoch at which the member was compared

    def judge(self, seen: Seen) -> bool:
        stage = self.stages.get(seen.epoch)
        if stage is None or seen.epoch <= self.reached.get(seen.number, 0):
            return False
        self.reached[seen.number] = seen.epoch
        value = seen.values[-1]
        stage.values.add(value)
        # among equals none is the worst
        if len(stage.values) >= SMALLEST and len(stage.values) - stage.values.above(value) <= len(stage.values) // 4:
            return True
        if seen.status != "diverged":
            arrival = Arrival(seen, tuple(seen.values), len(stage.values))
            insort(stage.going, arrival, key=lambda one: (-one.values[-1], one.place))
        return False

    def fork(self, seen: Seen) -> Fork:
        """From a member of the top quarter at the stopped one's epoch. One that was stopped there, when fewer had come,
        has no state and is none of them."""
        stage = self.stages[seen.epoch]
        quarter = len(stage.values) // 4
        best = [one for one in stage.going[:quarter] if stage.values.above(one.values[-1]) < quarter]
        source = random.Random(f"fork {self.seed} {seen.number} {seen.epoch}")
        parent = source.choice(best)
        values = explored(self.parameters, parent.seen.config, source)
        config = continued(parent.seen.config, values, seen.epoch, self.epochs)
        return Fork((parent.seen.number, seen.epoch), config, parent.values)

    def wanted(self) -> set[tuple[int, int]]:
        return {(one.seen.number, epoch) for epoch, stage in self.stages.items() for one in self._candidates(stage)}

    def _candidates(self, stage: Stage) -> list[Arrival]:
        """Who may be in the top quarter of all members: each member, or the fork in its place, comes by but once."""
        return stage.going[: self.members // 4] if len(stage.values) < self.members else []


def explored(parameters: Sequence[Parameter], config: Mapping[str, Any], source: random.Random) -> dict[str, float]:
    """Other values near those of a configuration, one for each searched path and within its range."""
    anew = active(parameters, draws(parameters, source), None)
    return {path: _moved(parameters, path, value_in(config, path), anew[path], source) for path in anew}


def _moved(parameters: Sequence[Parameter], path: str, value: Any, anew: float, source: random.Random) -> float:
    """`value` a little higher or lower, or `anew`, as an option of a choice always is. `Any`: an option is text where
    YAML takes 1e-2 for that."""
    resampled, factor = source.random() < RESAMPLED, source.choice(FACTORS)
    ranges = [one for one in parameters if one.path == path and one.kind != "choice" and one.encode(value) is not None]
    constants = [option for one in parameters if one.path == path for option in one.options if option is not NESTED]
    if resampled or not ranges or value in constants:
        return float(anew)
    (within, *_) = ranges
    moved = min(max(value * factor, within.low), within.high)
    return float(round(moved) if within.kind == "integer" else moved)
