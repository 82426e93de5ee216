"""Which features are compared: the taps of student and teacher, and whether they fit each other.

    check_features(experiment, dataset.shape)     # before anything starts; raises ExperimentError

Taps are those that the experiment names, or else the network's own stages. Where neither side names any, stages are
paired from the output back, and what one of the two has more is left out: what lies nearest to the logits matters
most.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from kdtune.distill.feature_losses import FEATURE_LOSSES
from kdtune.errors import ExperimentError, Problem, nearest
from kdtune.experiment import Experiment, Student, Teacher
from kdtune.models import Tapped, build_model

Shape = tuple[int, ...]
ANY_CLASSES = 2  # their number does not decide whether shapes fit


def taps_of(network: nn.Module) -> tuple[str, ...]:
    """The network's own stages; empty where it names none."""
    taps = getattr(network, "taps", ())
    assert isinstance(taps, tuple)
    return taps


def check_features(experiment: Experiment, image_shape: tuple[int, int, int]) -> None:
    """Raises ExperimentError where the feature loss cannot compare the taps; nothing is computed, only shapes are.

    Asks about this one configuration, and nothing where its feature_weight is 0 throughout.
    """
    if experiment.distill.feature_weight.is_zero:
        return
    student, teacher = experiment.student, experiment.own_teacher
    problems: list[Problem] = []
    mine = _taps(student, "student", image_shape, problems)
    theirs = _taps(teacher, _place(experiment), image_shape, problems)
    if not problems:
        problems += _counts(experiment, mine, theirs)
    if not problems:
        problems += _mismatches(experiment, mine, theirs, image_shape)
    if problems:
        raise ExperimentError(experiment.name, problems)


def _place(experiment: Experiment) -> str:
    """Where the experiment file describes its teacher."""
    return f"teachers.{experiment.teacher}" if isinstance(experiment.teacher, str) else "teacher"


def _taps(
    section: Student | Teacher, place: str, image_shape: tuple[int, int, int], problems: list[Problem]
) -> tuple[str, ...]:
    """The taps of one side; adds to `problems` those that its network lacks."""
    assert section.model is not None  # a teacher without a model has no feature_weight
    with torch.device("meta"):
        network = build_model(section.model, image_shape, ANY_CLASSES, options=section.options)
    modules = [name for name, _ in network.named_modules() if name]
    stages = ", ".join(name for name, _ in network.named_children())
    taps = section.taps or taps_of(network)
    if not taps:
        problems.append(
            Problem(f"{place}.taps", f"{section.model} names no stages of its own; choose among its modules: {stages}")
        )
    for tap in taps:
        if tap not in modules:
            problems.append(
                Problem(
                    f"{place}.taps",
                    f"{section.model} has no module {tap!r}.{nearest(tap, modules)} Its top-level modules: {stages}",
                )
            )
    return taps


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


def _mismatches(
    experiment: Experiment, mine: tuple[str, ...], theirs: tuple[str, ...], image_shape: tuple[int, int, int]
) -> Iterator[Problem]:
    """Pairs of taps whose shapes the loss cannot compare."""
    name = experiment.distill.feature_loss
    loss = FEATURE_LOSSES[name]
    count = 1 if loss.last_tap_only else min(len(mine), len(theirs))
    mine, theirs = mine[-count:], theirs[-count:]
    try:
        my_shapes = shapes_of(experiment.student, mine, image_shape, ANY_CLASSES)
        their_shapes = shapes_of(experiment.own_teacher, theirs, image_shape, ANY_CLASSES)
    except (KeyError, AttributeError):  # a module that forward leaves out, or whose output is no tensor
        yield Problem("distill.feature_loss", _no_tensor(experiment, mine, theirs))
        return
    for my_tap, my_shape, their_tap, their_shape in zip(mine, my_shapes, theirs, their_shapes, strict=True):
        fits = len(my_shape) in loss.ranks and len(their_shape) in loss.ranks
        if not fits or (len(my_shape) != len(their_shape) and not loss.last_tap_only):
            yield Problem(
                "distill.feature_loss",
                f"{name} cannot compare student tap {my_tap} {list(my_shape)} with teacher tap {their_tap} "
                f"{list(their_shape)}: {_wanted(loss.ranks, alike=not loss.last_tap_only)}; choose other taps",
            )


def _no_tensor(experiment: Experiment, mine: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    return (
        f"a tap of {experiment.student.model} ({', '.join(mine)}) or {experiment.own_teacher.model} "
        f"({', '.join(theirs)}) gives no tensor when the network runs; choose modules whose output is one tensor"
    )


def _wanted(ranks: Sequence[int], *, alike: bool) -> str:
    if 1 not in ranks:
        return "it takes maps [channels, height, width]"
    kinds = "maps [channels, height, width] {} vectors [channels]"
    return f"it takes two {kinds.format('or two')}" if alike else f"it takes {kinds.format('and')}"


def shapes_of(
    section: Student | Teacher, taps: tuple[str, ...], image_shape: tuple[int, int, int], classes: int
) -> list[Shape]:
    """Shape of each tap's output for one image (C, H, W), found on the meta device; a tap may be the logits."""
    assert section.model is not None  # a teacher without a model has no feature_weight
    with torch.device("meta"), torch.no_grad():
        network = build_model(section.model, image_shape, classes, section.options)
        _, features = Tapped(network, taps).eval()(torch.empty((1, *image_shape)))
    return [tuple(feature.shape[1:]) for feature in features]
