"""Trials as a Tune class trainable whose process is reused from trial to trial.

The class API is synchronous: `step()` is `next()` on the trial's generator of epoch records, and a stop is simply
not calling it again. Of one worker, the trial runs in this very process, which keeps its bench: data on the device,
cache mapped, teacher loaded. Of several, the process keeps their group.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from kdtune.experiment import Experiment, with_values
from kdtune.experiment.space import active, parse
from kdtune.records import write_bytes
from kdtune.search.notice import draining, held_back
from kdtune.search.placing import Slots
from kdtune.trial import Bench

if TYPE_CHECKING:
    from kdtune.search.group import Group

SAVE_EVERY_S = 30.0
STATE = "trial.pt"  # in a checkpoint


class StudentTrial(tune.Trainable):
    """config is a flat sample of the space; results hold `val_accuracy`, `epoch` and the `record`."""

    def setup(  # type: ignore[override]  # with_parameters adds the other arguments
        self, config: dict[str, Any], experiment: Experiment, materials: tuple[Any], slots: Slots
    ) -> None:
        """`materials` holds a reference to what is in Ray's object store."""
        self.experiment = experiment
        self.parameters, _ = parse(experiment.search.space)
        with held_back():
            self.place = workplace(materials[0], slots)
        self.losses = 0  # of workers, as told so far
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.trial.stop()
        del self.trial  # its memory, before another takes as much
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        values = active(self.parameters, config, self.experiment)
        with held_back():
            self.trial = self.place.start(with_values(self.experiment, values), seed=self.experiment.search.seed)
        self.saved = time.monotonic()

    def step(self) -> dict[str, Any]:
        with held_back():
            record = next(self.trial.records)
        nodes, losses = whereabouts(self.place)
        due = not record.last and (time.monotonic() - self.saved > SAVE_EVERY_S or draining(*nodes))
        if due:
            self.saved = time.monotonic()
        lost, self.losses = losses - self.losses, losses
        return {
            # a diverged trial is as bad as can be, in a number that sampler and scheduler understand
            "val_accuracy": 0.0 if record.diverged else record.val_accuracy,
            "epoch": record.epoch,
            "record": record.to_json(),
            "lost": lost,  # how often workers were, since the last result
            "done": record.last,
            SHOULD_CHECKPOINT: due,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        write_bytes(Path(checkpoint_dir) / STATE, self.trial.state())

    def load_checkpoint(self, checkpoint: Any) -> None:  # Tune hands the folder over as a string
        self.trial.restore((Path(checkpoint) / STATE).read_bytes())

    def cleanup(self) -> None:
        leave(self.place)


def workplace(materials: Any, slots: Slots) -> "Bench | Group":
    """Where a process starts trials: in itself, or with a group of workers. `materials` is a reference."""
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
