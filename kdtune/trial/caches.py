"""The caches of an experiment: where they lie, how many columns they may have, who computes them.

A column is computed when a trial first needs it, in the trial's own process and on its device, so that trials begin
at once, and several compute several columns side by side.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from kdtune.cache import (
    Answers,
    Identity,
    LogitCache,
    Place,
    begin_cache,
    below,
    describe,
    identify,
    views_that_fit,
)
from kdtune.data import Dataset
from kdtune.experiment import Experiment
from kdtune.experiment.chain import configurations
from kdtune.experiment.space import parse
from kdtune.teacher import Teacher


def begin_caches(
    experiment: Experiment,
    teachers: Mapping[str, Teacher],
    dataset: Dataset,
    device: torch.device,
    columns: int | None = None,
) -> dict[str, LogitCache]:
    """A cache for each of the teachers from which students learn, with `columns` columns, or as many as fit.

    Raises CacheError where the disk cannot hold them.
    """
    caches = {}
    for name, teacher in teachers.items():
        identity = identify(dataset, experiment.data, teacher, experiment.cache)
        answers = answers_of(teacher, dataset, experiment, device)
        manifest = describe(identity, dataset, teacher)
        wanted = columns or views_needed(experiment)
        caches[name] = begin_cache(place_of(experiment, identity), manifest, views=wanted, teacher=answers)
    if caches and columns is None:
        auto = experiment.data.views == "auto"
        fitting = views_that_fit(views_needed(experiment), list(caches.values()), fewer_will_do=auto)
        for cache in caches.values():
            cache.views = fitting
    return caches


def answers_of(teacher: Teacher, dataset: Dataset, experiment: Experiment, device: torch.device) -> Answers:
    """A kept teacher, asked about the experiment's views; `dataset` on the device."""
    return Answers(lambda: teacher.load(device), dataset, experiment.data)


def storage_of(experiment: Experiment) -> str:
    """Where all caches of the experiment's storage lie: a folder or a URI."""
    return experiment.cache.storage or below(experiment.storage, ".caches")


def place_of(experiment: Experiment, identity: Identity) -> Place:
    """Where one cache lies: every search with the same identity shares it."""
    copies = experiment.cache.copies and str(Path(experiment.cache.copies).absolute())  # the same for every process
    return Place(below(storage_of(experiment), identity.key), copies)


def longest(experiment: Experiment) -> int:
    """Epochs of the longest trial or row that the experiment may run."""
    parameters, _ = parse(experiment.search.space)
    lengths = [p for p in parameters if p.path == "train.epochs"]
    searched = [n for p in lengths for n in (p.high, *p.options) if isinstance(n, int | float)]
    rows = [one.train.epochs for one in configurations(experiment)]
    return int(max(*rows, *searched, 0))


def views_needed(experiment: Experiment) -> int:
    """View columns of the experiment and of every trial and row that it may run."""
    epochs = longest(experiment)
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": epochs})}).views
