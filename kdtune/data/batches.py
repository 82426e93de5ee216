"""Batches: shuffled indices, views of their images and normalisation, on the device.

    for batch in batches(dataset, config, dataset.fit, size=128, column=3, seed=0, epoch=17): ...

The order of an epoch is a function of `(seed, epoch)` alone, so a resumed run sees what an uninterrupted one sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdtune.data.datasets import Dataset
from kdtune.data.reading import read
from kdtune.data.views import stream
from kdtune.experiment import Data

ORDER = 0  # this stream of (seed, epoch)
SMALLEST_BATCH = 2  # BatchNorm cannot train on one image


@dataclass(frozen=True)
class Batch:
    """Images as a network takes them, on the device."""

    images: Tensor  # [B, C, H, W] float32, normalised
    labels: Tensor  # [B] int64, -1 where there is none that a student may use
    indices: Tensor  # [B] int64, into the training images
    column: int  # the view column that the images come from


def steps_an_epoch(count: int, size: int) -> int:
    """Batches that `count` images make; a last batch too small to train on is left out."""
    whole, rest = divmod(count, size)
    return whole + (rest >= SMALLEST_BATCH)


def batches(
    dataset: Dataset, config: Data, indices: Tensor, *, size: int, column: int, seed: int, epoch: int
) -> Iterator[Batch]:
    """One shuffled epoch over `indices` [F], augmented as view `column`."""
    generator = torch.Generator().manual_seed(stream(seed, epoch, ORDER))
    order = indices[torch.randperm(len(indices), generator=generator).to(indices.device)]
    chunks = torch.split(order, size)[: steps_an_epoch(len(order), size)]
    for chosen, views in zip(chunks, read(dataset.images, chunks, column, config), strict=True):
        yield Batch(dataset.normalise(views), dataset.given[chosen], chosen, column)
