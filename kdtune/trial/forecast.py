"""What an experiment's caches will cost and save, before anything is trained, built or written.

    for forecast in forecasts(experiment, dataset, device): print(forecast.seconds(cached=True))

One forecast for each assistant that has a search of its own, then one for the experiment itself.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kdtune.cache import Estimate, Speed, views_that_fit
from kdtune.data import Dataset
from kdtune.errors import CacheError
from kdtune.experiment import Experiment, row
from kdtune.experiment.chain import assistant, searched_assistants
from kdtune.records import ALONE
from kdtune.teacher import Teacher
from kdtune.trial.caches import longest, storage_of, unopened, views_needed
from kdtune.trial.speed import measure, untrained
from kdtune.trial.teachers import kept_already


@dataclass(frozen=True)
class Planned:
    """One teacher's cache."""

    model: str
    kept: bool  # whether the teacher is there already
    estimate: Estimate
    speed: Speed


@dataclass(frozen=True)
class Run:
    """Trainings of a search or of its final stage that are alike."""

    teacher: str | None  # None: alone; a teacher without a cache is a group of peers
    epochs: int
    count: int
    whole: bool  # on the validation images too


@dataclass(frozen=True)
class Forecast:
    experiment: Experiment
    caches: dict[str, Planned]  # by name of the teacher
    wanted: int  # view columns
    free: int | None  # bytes
    slots: int  # trials at a time
    problem: str  # why the caches cannot be had, or nothing

    @property
    def storage(self) -> str:
        return storage_of(self.experiment)

    @property
    def epochs(self) -> int:
        return longest(self.experiment)

    def seconds(self, *, cached: bool) -> float:
        """Of the search and its final stage, every run at full length; building beforehand included if `cached`.

        Peers are left out: they ask no teacher.
        """
        building = sum(one.estimate.seconds_to_build(one.speed) for one in self.caches.values())
        running = sum(run.count * self._of(run, cached) for run in self._runs())
        return (building if cached else 0.0) + running / self.slots

    def _of(self, run: Run, cached: bool) -> float:
        if run.teacher is not None and run.teacher not in self.caches:
            return 0.0
        planned = self.caches[run.teacher] if run.teacher else next(iter(self.caches.values()))
        images = planned.estimate.identity.rows if run.whole else planned.estimate.images
        speed = planned.speed.cached if cached or run.teacher is None else planned.speed.live
        return run.epochs * images / speed

    def _runs(self) -> Iterator[Run]:
        one, seeds = self.experiment, self.experiment.final.seeds
        slowest = min(self.caches, key=lambda name: self.caches[name].speed.live)
        yield Run(slowest, self.epochs, one.search.trials, whole=False)
        yield Run(slowest, self.epochs, seeds, whole=True)
        for name in one.final.baselines:
            yield Run(None if name == ALONE else slowest, self.epochs, seeds, whole=True)
        for changes in one.final.rows.values():
            changed, alone = row(one, changes)
            yield Run(None if alone else changed.teacher_name, changed.train.epochs, seeds, whole=True)


def forecasts(experiment: Experiment, dataset: Dataset, device: torch.device) -> Iterator[Forecast]:
    """`dataset` on the device; assistants whose search has run already are settled in `experiment`."""
    kept = kept_already(experiment, dataset)
    for name in searched_assistants(experiment):
        yield _forecast(assistant(experiment, name), dataset, device, kept)
    yield _forecast(experiment, dataset, device, kept)


def _forecast(experiment: Experiment, dataset: Dataset, device: torch.device, kept: dict[str, Teacher]) -> Forecast:
    wanted, caches = views_needed(experiment), unopened(experiment, dataset, kept)
    views, problem = wanted, ""
    try:
        auto = experiment.data.views == "auto"
        views = views_that_fit(wanted, list(caches.values()), fewer_will_do=auto) if caches else wanted
    except CacheError as error:
        problem = str(error)
    images = len(dataset.training_indices(experiment.data, whole=False, labelled_only=False))
    planned = {}
    for name, cache in caches.items():
        there = sum(view < views for view in cache.columns())
        estimate = Estimate(cache.manifest.identity, views, there, longest(experiment), images)
        speed = measure(experiment, dataset, untrained(experiment, name, dataset, device), device)
        planned[name] = Planned(cache.manifest.teacher_model, name in kept, estimate, speed)
    free = next(iter(caches.values())).store.free() if caches else None
    return Forecast(experiment, planned, wanted, free, _slots(experiment, device), problem)


def _slots(experiment: Experiment, device: torch.device) -> int:
    """Trials that this machine runs at a time."""
    resources = experiment.resources
    fit = int((os.cpu_count() or 1) / resources.cpus_per_worker)
    if device.type == "cuda":
        fit = min(fit, int(1 / (resources.share_of_a_gpu or 1.0)) * torch.cuda.device_count())
    return max(1, fit)
