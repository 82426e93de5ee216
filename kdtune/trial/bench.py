"""One configuration in, epoch records out: what runs wherever a student is trained.

A process turns `Materials` into a `Bench` once, and the bench starts one `Trial` after another.

    trial = Bench(materials, device).start(experiment, seed=0)
    for record in trial.records: print(record.epoch, record.val_accuracy)
"""

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from kdtune.cache import LogitCache, open_cache
from kdtune.data import Dataset
from kdtune.distill import Student, distill, feature_student, from_cache, logit_student, student_alone, tap_teacher
from kdtune.experiment import Experiment
from kdtune.models import Tapped
from kdtune.records import EpochRecord
from kdtune.training import load_state, save_state
from kdtune.trial.materials import Materials

SAVE_EVERY_S = 30.0


class Bench:
    """Materials laid out in one process, on one device; the cache is opened and the teacher loaded when needed."""

    def __init__(self, materials: Materials, device: torch.device) -> None:
        self.materials = materials
        self.device = device
        self.dataset = materials.dataset.to(device)
        self._teacher: Tapped | None = None

    @cached_property
    def cache(self) -> LogitCache:
        return open_cache(Path(self.materials.cache))

    def tapped_teacher(self, experiment: Experiment) -> Tapped:
        """The live teacher; loaded once, since all trials of a search have the same two architectures."""
        if self._teacher is None:
            self._teacher = tap_teacher(experiment, self.materials.teacher.load(self.device))
        return self._teacher

    def start(self, experiment: Experiment, *, seed: int, alone: bool = False, whole: bool = False) -> "Trial":
        """A trial of the experiment's `distill` section; `alone` without a teacher, `whole` as `distill` says."""
        if alone:
            student = student_alone(experiment, self.dataset, seed, self.device)
        elif experiment.distill.feature_weight.is_zero:
            student = logit_student(experiment, self.dataset, from_cache(self.cache), seed, self.device)
        else:
            student = feature_student(experiment, self.dataset, self.tapped_teacher(experiment), seed, self.device)
        return Trial(student, experiment, self.dataset, seed=seed, whole=whole)


class Trial:
    """One student in training. Between two records it can be saved, and loaded into an equal trial.

    `records` yields what is still to come, `history` holds what has been, a loaded trial's past included.
    """

    def __init__(self, student: Student, experiment: Experiment, dataset: Dataset, *, seed: int, whole: bool) -> None:
        self.student = student
        self.history: list[EpochRecord] = []
        self._arguments = (experiment, dataset, seed, whole)
        self.records = self._records()

    def _records(self) -> Iterator[EpochRecord]:
        experiment, dataset, seed, whole = self._arguments
        for record in distill(self.student, experiment, dataset, seed=seed, whole=whole):
            self.history.append(record)
            yield record

    def save(self, path: Path) -> None:
        """State after the last record: whole or absent."""
        history = [record.to_json() for record in self.history]
        save_state(path, {"training": self.student.state.state_dict(), "history": history})

    def load(self, path: Path) -> None:
        """Continues where a saved trial of the same configuration and seed stood."""
        saved = load_state(path, next(self.student.network.parameters()).device)
        self.student.state.load_state_dict(saved["training"])
        self.history = [EpochRecord.from_json(line) for line in saved["history"]]
        self.records = self._records()

    def resumable(self, path: Path) -> Iterator[EpochRecord]:
        """The records still to come, from where `path` says; saved there every half a minute and at the end."""
        if path.exists():
            self.load(path)
            if self.history and self.history[-1].last:  # diverged runs end before their last epoch
                return
        saved = time.monotonic()
        for record in self.records:
            yield record
            if record.last or time.monotonic() - saved > SAVE_EVERY_S:
                self.save(path)
                saved = time.monotonic()
