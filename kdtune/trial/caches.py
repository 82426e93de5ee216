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
    describe,
    identify,
    store_at,
    views_that_fit,
)
from kdtune.data import Dataset
from kdtune.experiment import Experiment
from kdtune.experiment.chain import configurations, teachers_of_students
from kdtune.experiment.space import parse
from kdtune.storage import below
from kdtune.teacher import Teacher
from kdtune.trial.teachers import kept_already


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


def check_room(experiment: Experiment, dataset: Dataset) -> None:
    """Raises CacheError where the disk cannot hold the caches: before a teacher is trained for them."""
    caches = unopened(experiment, dataset, kept_already(experiment, dataset))
    if caches:
        auto = experiment.data.views == "auto"
        views_that_fit(views_needed(experiment), list(caches.values()), fewer_will_do=auto)


def unopened(experiment: Experiment, dataset: Dataset, kept: Mapping[str, Teacher]) -> dict[str, LogitCache]:
    """The caches of teachers from which students learn, to be looked at, begun or not: nothing is written.

    For a teacher that is not `kept` yet one stands in: a cache of its own cannot be there either.
    """
    caches = {}
    for name in teachers_of_students(experiment):
        if not experiment.all_teachers[name].peers:
            teacher = kept.get(name) or _stand_in(experiment, name, dataset)
            identity = identify(dataset, experiment.data, teacher, experiment.cache)
            store = store_at(place_of(experiment, identity).address)
            caches[name] = LogitCache(store, describe(identity, dataset, teacher), None, 0, None)
    return caches


def _stand_in(experiment: Experiment, name: str, dataset: Dataset) -> Teacher:
    model = experiment.all_teachers[name].named
    return Teacher("", model, dataset.shape, len(dataset.classes), f"not yet: {name}", 0.0, trained_here=True)


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
