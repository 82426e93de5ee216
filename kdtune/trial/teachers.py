"""All teachers of an experiment, in the order in which they can be had; assistants are trained here.

    teachers = obtain(experiment, dataset, device, on_epoch)      # name -> Teacher; dataset on the device

An assistant is a student that becomes a teacher: it learns from its own teacher, live, on views that the experiment's
students do not see, and never from the validation images. Mirzadeh et al. 2020, "Improved Knowledge Distillation via
Teacher Assistant"; with its own size over generations it is Furlanello et al. 2018, "Born-Again Neural Networks".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kdtune.data import Dataset
from kdtune.distill import Live, Student, feature_student, logit_student, tap_teacher
from kdtune.errors import TeacherError
from kdtune.experiment import Experiment
from kdtune.experiment import Teacher as Section
from kdtune.experiment.chain import assistant, in_order, next_generation
from kdtune.models import Tapped
from kdtune.records import EpochRecord
from kdtune.storage import Mirror, below, in_step, is_uri
from kdtune.teacher import (
    TEACHERS,
    Plan,
    Teacher,
    brought_along,
    check_it_has_learned,
    diverged,
    ensemble,
    find,
    keep,
    own_seed,
    own_views,
    recipe,
    store_of,
    trained,
)
from kdtune.trial.running import Trial

OnEpoch = Callable[[str, EpochRecord], None]


def obtain(experiment: Experiment, dataset: Dataset, device: torch.device, on_epoch: OnEpoch) -> dict[str, Teacher]:
    """Every teacher that the experiment needs: found, loaded or trained (`on_epoch(name, record)` hears of epochs).

    Raises TeacherError where a checkpoint does not fit or a teacher is no better than chance.
    """

    def make(name: str, plan: Plan) -> Teacher:
        with _there_too(experiment, plan):
            teacher = plan.obtain()
        check_it_has_learned(teacher, dataset, section_of(experiment, name))
        return teacher

    return _Teachers(experiment, dataset, device, on_epoch, make).all()


def locate(experiment: Experiment, dataset: Dataset) -> dict[str, Teacher]:
    """Every teacher that the experiment needs, kept already; trains and measures nothing. Raises TeacherError."""

    def look(name: str, plan: Plan) -> Teacher:
        teacher = _kept(experiment, plan)
        if teacher is None:
            store = store_of(experiment)
            raise TeacherError(f"the experiment's teacher {name!r} is not in {store} yet; `kdtune teacher` makes it")
        return teacher

    return _Teachers(experiment, dataset, torch.device("cpu"), lambda name, record: None, look).all()


def kept_already(experiment: Experiment, dataset: Dataset) -> dict[str, Teacher]:
    """Like `locate`, without those that are not kept yet, and assistants whose own search has not run."""

    def look(name: str, plan: Plan) -> Teacher:
        teacher = _kept(experiment, plan)
        if teacher is None:
            raise _NotKeptError
        return teacher

    return _Teachers(experiment, dataset, torch.device("cpu"), lambda name, record: None, look).some()


@contextmanager
def _there_too(experiment: Experiment, plan: Plan) -> Iterator[None]:
    """On an object store a teacher lies as well, its unfinished training included: any machine goes on with it."""
    if not is_uri(experiment.storage):
        yield
        return
    with in_step(_address(experiment, plan), plan.folder):
        yield


def _kept(experiment: Experiment, plan: Plan) -> Teacher | None:
    if is_uri(experiment.storage):
        Mirror(_address(experiment, plan), plan.folder).pull()
    return find(plan.folder)


def _address(experiment: Experiment, plan: Plan) -> str:
    return below(below(experiment.storage, TEACHERS), plan.folder.name)


class _NotKeptError(Exception):
    """A teacher is not there yet."""


def section_of(experiment: Experiment, name: str) -> str:
    """Where the experiment file describes a teacher."""
    return f"teachers.{name}" if name in experiment.teachers else name


class _Teachers:
    """One walk over the teachers of an experiment; `settle` makes or finds each one."""

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        device: torch.device,
        on_epoch: OnEpoch,
        settle: Callable[[str, Plan], Teacher],
    ) -> None:
        self.experiment, self.dataset, self.device = experiment, dataset, device
        self.on_epoch, self.settle = on_epoch, settle
        self.store = store_of(experiment)
        self.known: dict[str, Teacher] = {}

    def all(self) -> dict[str, Teacher]:
        for name in in_order(self.experiment):
            self.known[name] = self._settled(name)
        return self.known

    def some(self) -> dict[str, Teacher]:
        """Those for which `settle` does not raise _NotKeptError, and all on whom they depend."""
        for name in in_order(self.experiment):
            config = self.experiment.all_teachers[name]
            if config.search is None and all(other in self.known for other in config.depends_on):
                with suppress(_NotKeptError):
                    self.known[name] = self._settled(name)
        return self.known

    def _settled(self, name: str) -> Teacher:
        config = self.experiment.all_teachers[name]
        if config.weights is not None or config.ensemble:
            return self.settle(name, self._plan(name, config))
        return self._generations(name, config)

    def _plan(self, name: str, config: Section) -> Plan:
        """Of a teacher that is not trained here."""
        rest = (self.experiment.data, self.dataset, self.store, self.device)
        if config.ensemble:
            return ensemble([self.known[member] for member in config.ensemble], *rest)
        return brought_along(section_of(self.experiment, name), config, *rest)

    def _generations(self, name: str, config: Section) -> Teacher:
        """The network, or the last of those that teach each other, each from new weights."""
        above = self.known[config.taught_by] if config.taught_by else None
        made: list[Teacher] = []
        for k in range(config.generations):
            label = name if config.generations == 1 else f"{name}, generation {k + 1}"
            one = config.model_copy(update={"seed": config.seed + k, "generations": 1})
            above = self.settle(name, self._one(name, label, one, above, by_itself=k > 0))
            made.append(above)
        return replace(made[-1], seconds=_sum([teacher.seconds for teacher in made]))

    def _one(self, name: str, label: str, config: Section, above: Teacher | None, *, by_itself: bool) -> Plan:
        data, dataset, device = self.experiment.data, self.dataset, self.device
        hear = partial(self.on_epoch, label)
        if above is None:
            return trained(config, data, dataset, self.store, device, hear)
        experiment = (next_generation if by_itself else assistant)(self.experiment, name)
        folder = self.store / recipe(config, data, dataset, above, experiment.own_teacher.taps)
        return Plan(folder, lambda folder: _train(config, experiment, dataset, device, above, folder, hear))


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _train(
    config: Section,
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    teacher: Teacher,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> Teacher:
    """An assistant, trained from a live teacher; a resumed run takes up where it stopped."""
    assert config.model is not None
    experiment = experiment.model_copy(update={"data": own_views(experiment.data, teacher.depth + 1)})
    known = dataset if config.labels == "kept" else dataset.with_all_labels()
    seed = own_seed(config)
    student = _student(experiment, known, teacher, seed, device)
    trial = Trial(student, experiment, known, seed=seed)
    unfinished = folder / "training.pt"
    for record in trial.resumable(unfinished):
        on_epoch(record)
        if record.diverged:
            raise diverged(config, record)
        if record.epoch == config.stop_at:
            break
    depth, seconds = teacher.depth + 1, sum(record.seconds + record.waited for record in trial.history)
    kept = keep(student.network, config.model, config.options, dataset, folder, depth=depth, seconds=seconds)
    unfinished.unlink(missing_ok=True)
    return kept


def _student(experiment: Experiment, dataset: Dataset, teacher: Teacher, seed: int, device: torch.device) -> Student:
    network = teacher.load(device)
    if experiment.distill.feature_weight.is_zero:
        return logit_student(experiment, dataset, Live(Tapped(network, ())), seed, device)
    return feature_student(experiment, dataset, tap_teacher(experiment, network), seed, device)
