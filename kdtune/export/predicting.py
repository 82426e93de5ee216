"""A student's answers to image files of any size and mode, prepared as its training images were.

    for one in predict(open_student(folder), [Path("photo.jpg"), Path("more/")], top=3):
        print(one.image, one.ranked or one.error)

Photographs are turned upright as their EXIF orientation says. What is no image is answered with an error of its own.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdtune.data import images_below, prepare
from kdtune.errors import DataError
from kdtune.export.opening import Opened

BATCH = 64  # files that are decoded and answered together


@dataclass(frozen=True)
class Prediction:
    """`ranked`: the most probable classes and their probabilities; empty where `error` says why there are none."""

    image: Path
    ranked: tuple[tuple[str, float], ...] = ()
    error: str = ""


def predict(student: Opened, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """A prediction for each file, in the order given; of a folder for every image below it."""
    found = [one for path in paths for one in _files(path)]
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(found), BATCH):
            some = found[start : start + BATCH]
            yield from _answered(student, some, list(pool.map(lambda one: _prepared(student, one), some)), top)


def _files(path: Path) -> list[Path | Prediction]:
    if not path.is_dir():
        return [path]
    try:
        below = images_below(path)
    except DataError as error:
        return [Prediction(path, error=str(error))]
    return list(below) or [Prediction(path, error=f"{path}: no images in this folder")]


def _prepared(student: Opened, one: Path | Prediction) -> Tensor | Prediction:
    if isinstance(one, Prediction):
        return one
    try:
        return prepare(one, student.image_shape, student.resize, upright=True)
    except DataError as error:
        return Prediction(one, error=str(error))


def _answered(
    student: Opened, some: Sequence[Path | Prediction], images: Sequence[Tensor | Prediction], top: int
) -> Iterator[Prediction]:
    pixels = [image for image in images if isinstance(image, Tensor)]
    with torch.inference_mode():
        chances = student.answers(torch.stack(pixels)).softmax(dim=1) if pixels else torch.empty(0)  # [B, classes]
    rows = iter(chances)
    for path, image in zip(some, images, strict=True):
        if isinstance(image, Prediction):
            yield image
            continue
        best = next(rows).topk(min(top, len(student.classes)))
        names = [student.classes[k] for k in best.indices.tolist()]
        assert isinstance(path, Path)
        yield Prediction(path, tuple(zip(names, best.values.tolist(), strict=True)))
