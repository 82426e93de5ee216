"""Losses between feature maps of student [B, S, h, w] and teacher [B, C, H, W].

Each gives a number on a *normalised* scale, which neither the size of the activations nor the shape of the maps
changes: 0 for equal features, and for `hint` 1 for a student that predicts nothing. `attention` is at most 1, and
about 0.1 to 0.2 for unrelated images, since attention maps are never negative. Where the maps differ in size the
larger one is average-pooled to the smaller.

`FEATURE_LOSSES` maps a name to (loss, whether the student's channels are first projected to the teacher's).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def hint(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error over the teacher's mean square: predicting zeros costs exactly 1.

    The student's features [B, C, h, w] have been projected to the teacher's channels by a 1x1 convolution.
    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets"; the division is ours.
    """
    student, teacher = _same_size(student_features.float(), teacher_features.float())
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def attention(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Half the squared distance between L2-normalised attention maps (channel mean of squares): 1 - their cosine.

    Needs no projection, channels may differ. Zagoruyko & Komodakis 2017, "Paying More Attention to Attention".
    """
    student, teacher = _same_size(student_features.float(), teacher_features.float())
    return (_attention_map(student) - _attention_map(teacher)).square().sum(dim=1).mean() / 2


def _attention_map(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(dim=1).flatten(start_dim=1), dim=1)  # [B, H * W]


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return _pool(student, height, width), _pool(teacher, height, width)


def _pool(features: Tensor, height: int, width: int) -> Tensor:
    return features if features.shape[2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))


FEATURE_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "hint": (hint, True),
    "attention": (attention, False),
}
