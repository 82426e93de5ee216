"""Which features are compared: the taps of student and teacher, and whether they fit each other.

    check_features(experiment, dataset.shape)     # before anything starts; raises ExperimentError

Taps are those that the experiment names, or else the network's own stages. Where neither side names any, stages are
paired from the output back, and what one of the two has more is left out: what lies nearest to the logits matters
most.
"""

from collections.abc import Iterator, Sequence

from kdtune.distill.feature_losses import FEATURE_LOSSES
from kdtune.errors import ExperimentError, ModelError, Problem
from kdtune.experiment import Experiment, Student, Teacher
from kdtune.models import stages, tap_shapes

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # of each tap's output for one image, in the order of the taps


def check_features(experiment: Experiment, image_shape: tuple[int, int, int], classes: int) -> None:
    """Raises ExperimentError where the feature loss cannot compare the taps; nothing is computed, only shapes are.

    Asks about this one configuration, and nothing where its feature_weight is 0 throughout.
    """
    if experiment.distill.feature_weight.is_zero:
        return
    problems: list[Problem] = []
    sides: list[Shapes] = []
    for section, place in ((experiment.student, "student"), (experiment.own_teacher, _place(experiment))):
        try:
            sides.append(shapes_of(section, image_shape, classes))
        except ModelError as error:
            problems.append(Problem(f"{place}.taps", str(error)))
    if not problems:
        problems += _counts(experiment, *map(tuple, sides))
    if not problems:
        problems += _mismatches(experiment, *sides)
    if problems:
        raise ExperimentError(experiment.name, problems)


def shapes_of(section: Student | Teacher, image_shape: tuple[int, int, int], classes: int) -> Shapes:
    """The taps of one side with their shapes: those that the experiment names, or the network's own."""
    assert section.model is not None  # a teacher without a model has no feature_weight
    taps = section.taps or stages(section.model, image_shape, section.options, classes)
    return dict(zip(taps, tap_shapes(section.model, taps, image_shape, section.options, classes), strict=True))


def pairs_of(mine: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Taps that are compared with each other, counted from the output."""
    count = min(len(mine), len(theirs))
    return list(zip(mine[-count:], theirs[-count:], strict=True))


def _place(experiment: Experiment) -> str:
    """Where the experiment file describes its teacher."""
    return f"teachers.{experiment.teacher}" if isinstance(experiment.teacher, str) else "teacher"


def _counts(experiment: Experiment, mine: tuple[str, ...], theirs: tuple[str, ...]) -> Iterator[Problem]:
    """Taps that are named must all have a partner."""
    student, teacher = experiment.student.taps is not None, experiment.own_teacher.taps is not None
    if (
        (student and len(mine) > len(theirs))
        or (teacher and len(theirs) > len(mine))
        or (student and teacher and len(mine) != len(theirs))
    ):
        yield Problem(
            "student.taps" if student else f"{_place(experiment)}.taps",
            f"each tap needs a partner, but the student has {len(mine)} ({', '.join(mine)}) and the teacher "
            f"{len(theirs)} ({', '.join(theirs)}); name as many taps on both sides",
        )


def _mismatches(experiment: Experiment, mine: Shapes, theirs: Shapes) -> Iterator[Problem]:
    """Pairs of taps whose shapes the loss cannot compare."""
    name = experiment.distill.feature_loss
    loss = FEATURE_LOSSES[name]
    for my_tap, their_tap in pairs_of(tuple(mine), tuple(theirs))[-1 if loss.last_tap_only else 0 :]:
        my_shape, their_shape = mine[my_tap], theirs[their_tap]
        fits = len(my_shape) in loss.ranks and len(their_shape) in loss.ranks
        if not fits or (len(my_shape) != len(their_shape) and not loss.last_tap_only):
            yield Problem(
                "distill.feature_loss",
                f"{name} cannot compare student tap {my_tap} {list(my_shape)} with teacher tap {their_tap} "
                f"{list(their_shape)}: {_wanted(loss.ranks, alike=not loss.last_tap_only)}; choose other taps",
            )


def _wanted(ranks: Sequence[int], *, alike: bool) -> str:
    if 1 not in ranks:
        return "it takes maps [channels, height, width]"
    kinds = "maps [channels, height, width] {} vectors [channels]"
    return f"it takes two {kinds.format('or two')}" if alike else f"it takes {kinds.format('and')}"
