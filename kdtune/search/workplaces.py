"""Where a process starts trials: a bench in itself, or a group of workers.

Nothing of Tune is imported here: it is a second of every process that does not need it.
"""

from typing import TYPE_CHECKING, Any

import ray
import torch

from kdtune.search.placing import Slots
from kdtune.trial import Bench

if TYPE_CHECKING:
    from kdtune.search.group import Group


def workplace(materials: Any, slots: Slots) -> "Bench | Group":
    """`materials` is a reference."""
    if slots.workers > 1:
        from kdtune.search.group import Group  # Ray Train is a tenth of the imports of those who need none

        return Group(materials, slots)
    torch.set_num_threads(slots.threads)
    return Bench(ray.get(materials), slots.device)


def whereabouts(place: "Bench | Group") -> tuple[tuple[str, ...], int]:
    """Of a group, the ids of all nodes that it needs, and how often workers were lost; of a bench there is nothing."""
    return ((), 0) if isinstance(place, Bench) else place.whereabouts()


def arrive(place: "Bench | Group") -> None:
    """Returns once the workplace can begin."""
    if not isinstance(place, Bench):
        place.wait()


def leave(place: "Bench | Group") -> None:
    """What the workplace holds besides this process is free afterwards."""
    if not isinstance(place, Bench):
        place.end()
