"""One configuration in, epoch records out: what runs wherever a student is trained.

A process turns `Materials` into a `Bench` once, and the bench starts one `Trial` after another.

    trial = Bench(materials, device).start(experiment, seed=0)
    for record in trial.records: print(record.epoch, record.val_accuracy)
"""

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
from kdtune.trial.materials import Materials


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
    """One student in training. Between two records it can be saved, and loaded into an equal trial."""

    def __init__(self, student: Student, experiment: Experiment, dataset: Dataset, *, seed: int, whole: bool) -> None:
        self.student = student
        self._arguments = (experiment, dataset, seed, whole)
        self.records = self._records()

    def _records(self) -> Iterator[EpochRecord]:
        experiment, dataset, seed, whole = self._arguments
        return distill(self.student, experiment, dataset, seed=seed, whole=whole)

    def save(self, path: Path) -> None:
        """State after the last record: whole or absent."""
        beside = path.with_suffix(".part")
        torch.save(self.student.state.state_dict(), beside)
        beside.replace(path)

    def load(self, path: Path) -> None:
        """Continues where a saved trial of the same configuration and seed stood."""
        device = next(self.student.network.parameters()).device
        self.student.state.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        self.records = self._records()
