"""What all trials of a run share: data set, teachers and their caches, made once and described as `Materials`.

materials = prepare(experiment, device, Silent())
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from kdtune.cache import LogitCache, Place, check_saves
from kdtune.data import Dataset, load_dataset
from kdtune.distill import check_features
from kdtune.errors import ExperimentError, Problem
from kdtune.experiment import Experiment
from kdtune.experiment.chain import BEFORE, assistant, configurations, in_order, next_generation, teachers_of_students
from kdtune.models import check_model
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher
from kdtune.trial.caches import begin_caches, check_room, place_of, views_needed
from kdtune.trial.teachers import obtain, section_of


class Progress(Protocol):
    """What `prepare` tells whoever watches."""

    def files_read(self, done: int, total: int) -> None: ...
    def dataset_ready(self, dataset: Dataset) -> None: ...
    def teacher_epoch(self, name: str, record: EpochRecord) -> None: ...
    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None: ...
    def cache_column(self, done: int, views: int) -> None: ...
    def cache_ready(self, cache: LogitCache) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def files_read(self, done: int, total: int) -> None:
        """Nobody watches."""

    def dataset_ready(self, dataset: Dataset) -> None:
        """Nobody watches."""

    def teacher_epoch(self, name: str, record: EpochRecord) -> None:
        """Nobody watches."""

    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None:
        """Nobody watches."""

    def cache_column(self, done: int, views: int) -> None:
        """Nobody watches."""

    def cache_ready(self, cache: LogitCache) -> None:
        """Nobody watches."""


@dataclass(frozen=True)
class Materials:
    """What all trials of a search share; small but for the data set, and picklable."""

    dataset: Dataset  # on the CPU
    teachers: Mapping[str, Teacher]  # by name, those that only teach assistants included
    caches: Mapping[str, Place]  # by name of a teacher from which students learn
    columns: int  # that a cache may come to have: views of an image


def prepare(
    experiment: Experiment,
    device: torch.device,
    progress: Progress,
    *,
    columns: int | None = None,
    complete: bool = False,
) -> Materials:
    """Loads the data, obtains the teachers, begins their caches. Raises KdtuneError for what a user can mend.

    What can be checked without the data's pixels or a teacher's weights is checked first. `columns` is how many a run
    that is taken up again has begun with. A cache has its first column afterwards, the others come when a trial needs
    them; or all of them, whole in every byte, with `complete`.
    """
    dataset = load_dataset(experiment.data, progress.files_read)
    progress.dataset_ready(dataset)
    check_saves(experiment.cache, dataset)
    check_networks(experiment, dataset)
    if columns is None:
        check_room(experiment, dataset)
    on_device = dataset.to(device)
    teachers = obtain(experiment, on_device, device, progress.teacher_epoch)
    for name, teacher in teachers.items():
        progress.teacher_ready(name, teacher, dataset)
    learned_from = {name: teachers[name] for name in teachers_of_students(experiment) if name in teachers}
    caches = begin_caches(experiment, learned_from, on_device, device, columns)
    for cache in caches.values():
        cache.check_rows()
        for view in range(cache.views if complete else 1):
            if complete or not cache.columns():
                progress.cache_column(view, cache.views)
            cache.ensure(view)
        progress.cache_ready(cache)
    places = {name: place_of(experiment, cache.manifest.identity) for name, cache in caches.items()}
    views = max((cache.views for cache in caches.values()), default=views_needed(experiment))
    return Materials(dataset, teachers, places, views)


def check_networks(experiment: Experiment, dataset: Dataset) -> None:
    """Raises KdtuneError where a model cannot be built for the data, or features cannot be matched."""
    shape, classes = dataset.shape, len(dataset.classes)
    teachers = experiment.all_teachers
    every = configurations(experiment)
    models = [(one.student.model, one.student.options) for one in every]
    models += [(config.model, config.options) for config in teachers.values() if config.model]
    models += [(model, {}) for config in teachers.values() for model in config.peers or ()]
    for k, (model, options) in enumerate(models):
        if (model, options) not in models[:k]:
            check_model(model, shape, classes, options)
    for one in {_what_features_need(one): one for one in every}.values():
        check_features(one, shape, classes)
    for name in in_order(experiment):
        try:
            if teachers[name].taught_by:
                check_networks(assistant(experiment, name), dataset)
            if teachers[name].generations > 1:
                check_features(next_generation(experiment, name), shape, classes)
        except ExperimentError as error:
            problems = [_in_section(section_of(experiment, name), problem) for problem in error.problems]
            raise ExperimentError(experiment.name, list(dict.fromkeys(problems))) from error


def _in_section(section: str, problem: Problem) -> Problem:
    """A problem of an assistant's own experiment, by its path in the file."""
    places = {"student.": f"{section}.", f"teachers.{BEFORE}.": f"{section}.", "distill.": f"{section}.distill."}
    for prefix, place in places.items():
        if problem.path.startswith(prefix):
            return Problem(place + problem.path.removeprefix(prefix), problem.message)
    return problem


def _what_features_need(experiment: Experiment) -> tuple[str, ...]:
    """Configurations that agree in this are alike to `check_features`: hundreds of corners of a search are few."""
    distill = experiment.distill
    return (
        experiment.student.model_dump_json(),
        experiment.teacher_name,
        "" if distill.feature_weight.is_zero else distill.feature_loss,
    )
