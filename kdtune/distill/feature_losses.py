"""Losses between features of student and teacher: maps [B, C, H, W], or vectors [B, C]; B images, C channels.

Each gives a number on a *normalised* scale: the size of the activations does not change it, so that `feature_weight`
need not know the network. 0 for equal features; what features cost that have nothing to do with each other (the last
stages of trained ResNets and CNNs on different digits, 128 images a batch, 64 channels) was measured:

    hint          1 where the projected side says nothing, about which unrelated features begin
    attention     0.02 to 0.12, at most 1: attention maps are never negative
    rkd-distance  0.06 to 0.08, and 0.02 to 0.03 between a new student and its teacher
    rkd-angle     0.07 to 0.08, and 0.02 to 0.04
    rkd           0.2, and 0.06 to 0.1

So the weight that gives a term the share of `hint`'s is about 10 times as large for `attention`, 5 to 10 times for
`rkd`. The paper's weights of 25 and 50 for distance and angle are a feature_weight of 25 for `rkd` here; the 100 of
published FitNets is on a mean squared error that is not divided.

`hint` and `attention` compare every tap; where maps differ in size the larger one is average-pooled to the smaller.
The relational losses compare the last tap alone, pooled to one vector an image, and need no equal numbers of channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COINCIDING = 1e-6  # of the mean distance: two images this close have no direction from one to the other


def hint(guess: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the target's mean square: guessing zeros costs exactly 1.

    The guess is the side that has been projected to the other's channels: the student's features (Romero et al. 2015,
    "FitNets: Hints for Thin Deep Nets"; the division is ours), or the teacher's. Projecting the teacher, the division
    by the *student's* mean square, with its gradient, keeps the trivial ways out closed: a projector that shrinks says
    nothing and costs 1, student and projector that shrink together change nothing, and the best projector leaves the
    share of the student's features that the teacher does not explain.
    """
    return _ratio(*_errors(guess, target))


def _errors(guess: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error [B] and mean square of the target [B], an image each."""
    guess, target = _same_size(guess.float(), target.float())
    errors, squares = (guess - target).square(), target.square()
    return errors.flatten(start_dim=1).mean(dim=1), squares.flatten(start_dim=1).mean(dim=1)


def _ratio(errors: Tensor, squares: Tensor) -> Tensor:
    return errors.mean() / squares.mean().clamp_min(1e-12)


def attention(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Half the squared distance between L2-normalised attention maps (channel mean of squares): 1 - their cosine.

    Needs no projection, channels may differ. Zagoruyko & Komodakis 2017, "Paying More Attention to Attention".
    """
    (differences,) = _attention_differences(student_features, teacher_features)
    return differences.mean()


def _attention_differences(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor]:
    student, teacher = _same_size(student_features.float(), teacher_features.float())
    return ((_attention_map(student) - _attention_map(teacher)).square().sum(dim=1) / 2,)  # [B]


def rkd_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs of images, each divided by the batch's mean distance.

    Park et al. 2019, "Relational Knowledge Distillation". The mean is over all B * B pairs, as in public code.
    """
    student, teacher = _distances(_pooled(student_features)), _distances(_pooled(teacher_features))
    return F.smooth_l1_loss(student, teacher)


def rkd_angle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles of all triples of images; takes B * B * B numbers of memory.

    Park et al. 2019, as above. Images whose features coincide have no angle: 0, without a gradient.
    """
    student, teacher = _angles(_pooled(student_features)), _angles(_pooled(teacher_features))
    return F.smooth_l1_loss(student, teacher)


def rkd(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Distances plus twice the angles: the paper's 25 to 50."""
    return rkd_distance(student_features, teacher_features) + 2 * rkd_angle(student_features, teacher_features)


def _attention_map(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(dim=1).flatten(start_dim=1), dim=1)  # [B, H * W]


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim == 2:
        return student, teacher
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return _pool(student, height, width), _pool(teacher, height, width)


def _pool(features: Tensor, height: int, width: int) -> Tensor:
    return features if features.shape[2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))


def _both_pooled(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    return _pooled(student_features), _pooled(teacher_features)


def _pooled(features: Tensor) -> Tensor:
    """One vector an image: [B, C]."""
    features = features.float()
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


def _distances(vectors: Tensor) -> Tensor:
    """[B, B], divided by the mean over pairs of two images; 0 without a gradient where two coincide."""
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")  # products would cancel
    return distances / _mean_distance(distances)


def _mean_distance(distances: Tensor) -> Tensor:
    count = len(distances)
    return (distances.sum() / max(1, count * (count - 1))).clamp_min(1e-12)


def _angles(vectors: Tensor) -> Tensor:
    """[B, B, B]: cosine of the angle at image i between the directions to j and k."""
    offsets = vectors.unsqueeze(0) - vectors.unsqueeze(1)  # [B, B, C]
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances.detach() > COINCIDING * _mean_distance(distances.detach())
    lengths = torch.where(apart, distances, 1.0).unsqueeze(2)
    directions = torch.where(apart.unsqueeze(2), offsets / lengths, 0.0)
    return directions @ directions.transpose(1, 2)


@dataclass(frozen=True)
class FeatureLoss:
    """A loss, and how it is used: what each image says for itself, then what comes of all images of a batch.

    Between the two the processes that share a batch exchange numbers or vectors, instead of feature maps.
    """

    of_images: Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # (student's, teacher's); hint: (projected, other)
    of_batch: Callable[..., Tensor]  # of what of_images gives, each [B, ...], the loss
    ranks: tuple[int, ...]  # of one image's features: 3 for maps, 1 for vectors
    projected: bool = False  # a trainable projector takes one side's channels to the other's
    last_tap_only: bool = False  # each side is pooled to vectors, so that maps and vectors may meet

    def function(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        return self.of_batch(*self.of_images(student_features, teacher_features))


FEATURE_LOSSES: dict[str, FeatureLoss] = {
    "hint": FeatureLoss(_errors, _ratio, ranks=(1, 3), projected=True),
    "attention": FeatureLoss(_attention_differences, torch.mean, ranks=(3,)),
    "rkd": FeatureLoss(_both_pooled, rkd, ranks=(1, 3), last_tap_only=True),
    "rkd-distance": FeatureLoss(_both_pooled, rkd_distance, ranks=(1, 3), last_tap_only=True),
    "rkd-angle": FeatureLoss(_both_pooled, rkd_angle, ranks=(1, 3), last_tap_only=True),
}
