"""What all trials of a run share: data set, teacher and cache, made once and described as `Materials`.

materials = prepare(experiment, device, Silent())
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from kdtune.cache import Identity, LogitCache, build, identify
from kdtune.data import Dataset, load_dataset
from kdtune.experiment import Experiment
from kdtune.experiment.space import parse
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher, obtain


class Progress(Protocol):
    """What `prepare` tells whoever watches."""

    def dataset_ready(self, dataset: Dataset) -> None: ...
    def teacher_epoch(self, record: EpochRecord) -> None: ...
    def teacher_ready(self, teacher: Teacher, dataset: Dataset) -> None: ...
    def cache_column(self, done: int, views: int) -> None: ...
    def cache_ready(self, cache: LogitCache) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def dataset_ready(self, dataset: Dataset) -> None:
        """Nobody watches."""

    def teacher_epoch(self, record: EpochRecord) -> None:
        """Nobody watches."""

    def teacher_ready(self, teacher: Teacher, dataset: Dataset) -> None:
        """Nobody watches."""

    def cache_column(self, done: int, views: int) -> None:
        """Nobody watches."""

    def cache_ready(self, cache: LogitCache) -> None:
        """Nobody watches."""


@dataclass(frozen=True)
class Materials:
    """What all trials of a search share; small but for the data set, and picklable."""

    dataset: Dataset  # on the CPU
    teacher: Teacher
    cache: str  # folder


def prepare(experiment: Experiment, device: torch.device, progress: Progress, *, recheck: bool = False) -> Materials:
    """Loads the data, obtains the teacher, opens or builds the cache. Raises KdtuneError for what a user can mend."""
    dataset = load_dataset(experiment.data)
    progress.dataset_ready(dataset)
    on_device = dataset.to(device)
    teacher = obtain(experiment, on_device, device, progress.teacher_epoch)
    progress.teacher_ready(teacher, dataset)
    network = teacher.load(device)
    identity = identify(dataset, experiment.data, teacher)
    folder = cache_folder(experiment, identity)
    cache = build(
        folder,
        identity,
        views_needed(experiment),
        teacher,
        on_device,
        experiment.data,
        network,
        progress.cache_column,
        recheck=recheck,
    )
    cache.check_rows(network, on_device, experiment.data)
    progress.cache_ready(cache)
    return Materials(dataset, teacher, str(folder))


def cache_folder(experiment: Experiment, identity: Identity) -> Path:
    """Where a cache lives: beside the runs, so that every search with the same identity shares it."""
    return Path(experiment.storage).resolve() / ".caches" / identity.key


def views_needed(experiment: Experiment) -> int:
    """View columns of the experiment and of every trial that its space can propose."""
    parameters, _ = parse(experiment.search.space)
    lengths = [p for p in parameters if p.path == "train.epochs"]
    searched = [n for p in lengths for n in (p.high, *p.options) if isinstance(n, int | float)]
    epochs = int(max(experiment.train.epochs, *searched, 0))
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": epochs})}).views
