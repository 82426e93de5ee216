"""Distillation: `distill(student, ...)` is a generator that yields one `EpochRecord` an epoch.

A plain run iterates it, a Tune trial calls `next()`; stopping early is no longer asking.

    student = logit_student(experiment, dataset, Cached(cache), seed=0, device=device)
    for record in distill(student, experiment, dataset, seed=0): print(record.val_accuracy)
"""

from collections.abc import Iterator

from kdtune.data import Dataset
from kdtune.distill.feature_losses import FEATURE_LOSSES
from kdtune.distill.logit_losses import LOGIT_LOSSES
from kdtune.distill.objective import Cached, Distillation, Live, TeacherAnswers
from kdtune.distill.peers import peer_student
from kdtune.distill.students import Student, feature_student, logit_student, student_alone, tap_teacher
from kdtune.distill.taps import check_features
from kdtune.experiment import Experiment
from kdtune.ranks import ALONE, Ranks
from kdtune.records import EpochRecord
from kdtune.training import train


def distill(
    student: Student,
    experiment: Experiment,
    dataset: Dataset,
    *,
    seed: int,
    whole: bool = False,
    alone: bool = False,
    ranks: Ranks = ALONE,
) -> Iterator[EpochRecord]:
    """Trains `student` from where its state stands, a record an epoch.

    `whole` trains on the validation images too and measures nothing: the final stage. `alone` leaves out images
    without a label, from which a student without a teacher learns nothing. All `ranks` call it alike.
    """
    indices = dataset.training_indices(experiment.data, whole=whole, labelled_only=alone)
    return train(
        student.state,
        student.objective,
        dataset,
        experiment.data,
        experiment.train,
        indices,
        seed=seed,
        views=experiment.views,
        validate=not whole,
        ranks=ranks,
    )


__all__ = [
    "FEATURE_LOSSES",
    "LOGIT_LOSSES",
    "Cached",
    "Distillation",
    "Live",
    "Student",
    "TeacherAnswers",
    "check_features",
    "distill",
    "feature_student",
    "logit_student",
    "peer_student",
    "student_alone",
    "tap_teacher",
]
