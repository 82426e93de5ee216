"""The students that an objective trains: alone, from logits, or from logits and features.

Students of one seed start from the same weights, whatever teaches them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdtune.data import Dataset
from kdtune.distill.feature_losses import FEATURE_LOSSES
from kdtune.distill.objective import Distillation, Live, Outputs, TeacherAnswers
from kdtune.distill.taps import Shape, pairs_of, shapes_of
from kdtune.distill.temperature import TrainedTemperature
from kdtune.experiment import Distill, Experiment
from kdtune.models import Tapped, build_model, stages_of
from kdtune.training import CrossEntropy, Objective, TrainingState, new_state


class Learner(nn.Module):
    """A student with all that is trained beside it: projectors, and a temperature that is learned.

    They train with the student and are part of its resume state, and never of the export. Projectors take the
    student's channels to the teacher's, one a tap; or the teacher's to the student's, and then the learner gives
    their weights away: whatever is trained passes through its forward, as a wrapper such as DDP expects.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: tuple[str, ...] = (),
        projectors: list[nn.Module] | None = None,
        *,
        project_teacher: bool = False,
        temperature: TrainedTemperature | None = None,
    ) -> None:
        super().__init__()
        self.tapped = Tapped(student, taps)
        self.projectors = nn.ModuleList(projectors or [])
        self.project_teacher = project_teacher
        self.temperature = temperature

    def forward(self, images: Tensor) -> Outputs:
        logits, features = self.tapped(images)
        projections: tuple[Tensor, ...] = ()
        if self.project_teacher:
            projections = tuple(_weight(projector) for projector in self.projectors)
        elif len(self.projectors) > 0:
            features = tuple(p(f) for p, f in zip(self.projectors, features, strict=True))
        return Outputs(logits, features, projections, None if self.temperature is None else self.temperature())


@dataclass
class Student:
    """A student about to be trained, or in training."""

    network: nn.Module
    state: TrainingState
    objective: Objective


def student_alone(experiment: Experiment, dataset: Dataset, seed: int, device: torch.device) -> Student:
    """A student that never meets a teacher: the baseline."""
    network = new_network(experiment, dataset, seed)
    return Student(network, new_state(network, experiment.train, device), CrossEntropy())


def logit_student(
    experiment: Experiment, dataset: Dataset, teacher: TeacherAnswers, seed: int, device: torch.device
) -> Student:
    """A student that learns from logits alone; feature_weight is 0 throughout."""
    network = new_network(experiment, dataset, seed)
    temperature = _temperature(experiment.distill)
    learner = network if temperature is None else Learner(network, temperature=temperature)
    objective = Distillation(experiment.distill, teacher, temperature)
    return Student(network, new_state(learner, experiment.train, device), objective)


def feature_student(
    experiment: Experiment, dataset: Dataset, teacher: Tapped, seed: int, device: torch.device
) -> Student:
    """A student that also learns from the feature maps of the live teacher, as `tap_teacher` made it.

    `check_features` has said beforehand whether the taps fit.
    """
    network = new_network(experiment, dataset, seed)
    shape, classes = dataset.shape, len(dataset.classes)
    mine, theirs = (shapes_of(section, shape, classes) for section in (experiment.student, experiment.own_teacher))
    pairs = pairs_of(tuple(mine), tuple(theirs))
    temperature = _temperature(experiment.distill)
    learner = Learner(
        network,
        tuple(tap for tap, _ in pairs),
        _projectors(experiment.distill, [(mine[tap], theirs[other]) for tap, other in pairs]),
        project_teacher=_projects_teacher(experiment.distill),
        temperature=temperature,
    )
    objective = Distillation(experiment.distill, Live(teacher), temperature)
    return Student(network, new_state(learner, experiment.train, device), objective)


def tap_teacher(experiment: Experiment, network: nn.Module) -> Tapped:
    """The teacher with its taps: those of the experiment, or its own."""
    return Tapped(network, experiment.own_teacher.taps or stages_of(network))


def new_network(experiment: Experiment, dataset: Dataset, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # before anything else is built: every trial of a seed starts from the same weights
    student = experiment.student
    return build_model(student.model, dataset.shape, len(dataset.classes), student.options)


def _temperature(config: Distill) -> TrainedTemperature | None:
    learned = config.learned_temperature
    return None if learned is None else TrainedTemperature(learned, config.temperature.start)


def _projects_teacher(config: Distill) -> bool:
    return FEATURE_LOSSES[config.feature_loss].projected and config.feature_projection == "teacher"


def _projectors(config: Distill, pairs: list[tuple[Shape, Shape]]) -> list[nn.Module]:
    """One for each pair of student's and teacher's shapes, or none where the loss needs none."""
    if not FEATURE_LOSSES[config.feature_loss].projected:
        return []
    if _projects_teacher(config):
        return [_projector(theirs, mine) for mine, theirs in pairs]
    return [_projector(mine, theirs) for mine, theirs in pairs]


def _projector(given: Shape, wanted: Shape) -> nn.Module:
    """From the channels of one shape [C, H, W] or [C] to those of another."""
    if len(given) == 3:
        return nn.Conv2d(given[0], wanted[0], 1, bias=False)
    return nn.Linear(given[0], wanted[0], bias=False)


def _weight(projector: nn.Module) -> Tensor:
    weight = projector.weight
    assert isinstance(weight, Tensor)
    return weight
