"""Feature losses once more, in plain Python floats and loops: what the real ones are held against."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor


def maps(seed: int, channels: int = 3, height: int = 4, width: int = 4, images: int = 3) -> Tensor:
    return torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(seed))


def hint_by_hand(student: Tensor, teacher: Tensor) -> float:
    pairs: list[tuple[float, float]] = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return math.fsum((a - b) ** 2 for a, b in pairs) / math.fsum(b**2 for _, b in pairs)


def attention_by_hand(student: Tensor, teacher: Tensor) -> float:
    """1 - cosine of the maps of channel-mean squares, mean over images."""
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        a, b = (
            [
                sum(channel[y][x] ** 2 for channel in image) / len(image)
                for y in range(len(image[0]))
                for x in range(len(image[0][0]))
            ]
            for image in (mine, theirs)
        )
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        total += 1 - dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
    return total / len(student)


def huber(one: float, other: float) -> float:
    difference = abs(one - other)
    return difference**2 / 2 if difference < 1 else difference - 0.5


def vectors_of(features: Tensor) -> list[list[float]]:
    """Each image's features averaged over their places, if they have places."""
    vectors: list[list[float]] = (features.flatten(2).double().mean(2) if features.ndim == 4 else features).tolist()
    return vectors


def rkd_distance_by_hand(student: Tensor, teacher: Tensor) -> float:
    sides = []
    for vectors in (vectors_of(student), vectors_of(teacher)):
        pairs = itertools.product(vectors, repeat=2)
        distances = [math.dist(a, b) for a, b in pairs]
        mean = sum(distances) / (len(vectors) * (len(vectors) - 1))
        sides.append([distance / mean for distance in distances])
    return sum(huber(a, b) for a, b in zip(*sides, strict=True)) / len(sides[0])


def rkd_angle_by_hand(student: Tensor, teacher: Tensor) -> float:
    sides = []
    for vectors in (vectors_of(student), vectors_of(teacher)):
        sides.append([cosine_at(*triple) for triple in itertools.product(vectors, repeat=3)])
    return sum(huber(a, b) for a, b in zip(*sides, strict=True)) / len(sides[0])


def cosine_at(corner: list[float], one: list[float], other: list[float]) -> float:
    """0 where one of the two lies in the corner itself."""
    lengths = math.dist(corner, one) * math.dist(corner, other)
    dot = sum((a - c) * (b - c) for a, b, c in zip(one, other, corner, strict=True))
    return dot / lengths if lengths > 0 else 0.0


def rkd_by_hand(student: Tensor, teacher: Tensor) -> float:
    return rkd_distance_by_hand(student, teacher) + 2 * rkd_angle_by_hand(student, teacher)


BY_HAND: dict[str, Callable[[Tensor, Tensor], float]] = {
    "hint": hint_by_hand,
    "attention": attention_by_hand,
    "rkd": rkd_by_hand,
    "rkd-distance": rkd_distance_by_hand,
    "rkd-angle": rkd_angle_by_hand,
}
