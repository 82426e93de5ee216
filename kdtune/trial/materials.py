"""What all trials of a run share: data set, teachers and their caches, made once and described as `Materials`.

materials = prepare(experiment, device, Silent())
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from kdtune.cache import Identity, LogitCache, build, identify
from kdtune.data import Dataset, load_dataset
from kdtune.distill import check_features
from kdtune.errors import ExperimentError, Problem
from kdtune.experiment import Experiment
from kdtune.experiment.chain import BEFORE, assistant, configurations, in_order, next_generation, teachers_of_students
from kdtune.experiment.space import parse
from kdtune.models import check_model
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher
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
    caches: Mapping[str, str]  # folders, by name of a teacher from which students learn


def prepare(experiment: Experiment, device: torch.device, progress: Progress, *, recheck: bool = False) -> Materials:
    """Loads the data, obtains the teachers, opens or builds their caches. Raises KdtuneError for what a user can mend.

    What can be checked without the data's pixels or a teacher's weights is checked first.
    """
    dataset = load_dataset(experiment.data, progress.files_read)
    progress.dataset_ready(dataset)
    check_networks(experiment, dataset)
    on_device = dataset.to(device)
    teachers = obtain(experiment, on_device, device, progress.teacher_epoch)
    for name, teacher in teachers.items():
        progress.teacher_ready(name, teacher, dataset)
    caches: dict[str, str] = {}
    for name in teachers_of_students(experiment):
        if name in teachers:  # peers are none
            caches[name] = _cache(experiment, teachers[name], on_device, device, progress, recheck=recheck)
    return Materials(dataset, teachers, caches)


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


def _cache(
    experiment: Experiment,
    teacher: Teacher,
    dataset: Dataset,
    device: torch.device,
    progress: Progress,
    *,
    recheck: bool,
) -> str:
    """Folder of a teacher's cache, built as far as it was not and checked against the teacher."""
    network = teacher.load(device)
    identity = identify(dataset, experiment.data, teacher)
    folder = cache_folder(experiment, identity)
    cache = build(
        folder,
        identity,
        views_needed(experiment),
        teacher,
        dataset,
        experiment.data,
        network,
        progress.cache_column,
        recheck=recheck,
    )
    cache.check_rows(network, dataset, experiment.data)
    progress.cache_ready(cache)
    return str(folder)


def cache_folder(experiment: Experiment, identity: Identity) -> Path:
    """Where a cache lives: beside the runs, so that every search with the same identity shares it."""
    return Path(experiment.storage).resolve() / ".caches" / identity.key


def views_needed(experiment: Experiment) -> int:
    """View columns of the experiment and of every trial and row that it may run."""
    parameters, _ = parse(experiment.search.space)
    lengths = [p for p in parameters if p.path == "train.epochs"]
    searched = [n for p in lengths for n in (p.high, *p.options) if isinstance(n, int | float)]
    rows = [one.train.epochs for one in configurations(experiment)]
    epochs = int(max(*rows, *searched, 0))
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": epochs})}).views
