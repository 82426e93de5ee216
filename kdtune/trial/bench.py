"""One configuration in, epoch records out: what runs wherever a student is trained.

A process turns `Materials` into a `Bench` once, and the bench starts one `Trial` after another.

    trial = Bench(materials, device).start(experiment, seed=0)
    for record in trial.records: print(record.epoch, record.val_accuracy)
"""

import torch

from kdtune.cache import LogitCache, open_cache
from kdtune.distill import (
    Cached,
    feature_student,
    logit_student,
    peer_student,
    student_alone,
    tap_teacher,
)
from kdtune.experiment import Experiment
from kdtune.models import Tapped
from kdtune.ranks import ALONE, Ranks
from kdtune.trial.caches import answers_of
from kdtune.trial.materials import Materials
from kdtune.trial.running import Trial


class Bench:
    """Materials laid out in one process, on one device; caches are opened and teachers loaded when needed.

    Of several `ranks` each has one, and all start the same trials.
    """

    def __init__(self, materials: Materials, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.materials = materials
        self.device = device
        self.ranks = ranks
        self.dataset = materials.dataset.to(device)
        self._caches: dict[str, LogitCache] = {}
        self._teachers: dict[tuple[str, tuple[str, ...] | None], Tapped] = {}

    def cache(self, experiment: Experiment) -> LogitCache:
        """Of the experiment's teacher, who computes what is missing; opened once."""
        name = experiment.teacher_name
        if name not in self._caches:
            answers = answers_of(self.materials.teachers[name], self.dataset, experiment, self.device)
            place, columns = self.materials.caches[name], self.materials.columns
            self._caches[name] = open_cache(place, views=columns, teacher=answers, patient=True)
        return self._caches[name]

    def tapped_teacher(self, experiment: Experiment) -> Tapped:
        """The live teacher; loaded once for all trials with the same taps."""
        name = experiment.teacher_name
        key = (name, experiment.own_teacher.taps)
        if key not in self._teachers:
            self._teachers[key] = tap_teacher(experiment, self.materials.teachers[name].load(self.device))
        return self._teachers[key]

    def start(self, experiment: Experiment, *, seed: int, alone: bool = False, whole: bool = False) -> Trial:
        """A trial of the experiment's `distill` section; `alone` without a teacher, `whole` as `distill` says."""
        dataset, device = self.dataset, self.device
        cache: LogitCache | None = None
        if experiment.views > self.materials.columns:  # more than the disk holds: every student sees as many
            data = experiment.data.model_copy(update={"views": self.materials.columns})
            experiment = experiment.model_copy(update={"data": data})
        if alone:
            student = student_alone(experiment, dataset, seed, device)
        elif experiment.own_teacher.peers:
            student = peer_student(experiment, dataset, seed, device)
        elif experiment.distill.feature_weight.is_zero:
            cache = self.cache(experiment)
            student = logit_student(experiment, dataset, Cached(cache), seed, device)
        else:
            student = feature_student(experiment, dataset, self.tapped_teacher(experiment), seed, device)
        return Trial(student, experiment, dataset, seed=seed, whole=whole, alone=alone, ranks=self.ranks, cache=cache)
