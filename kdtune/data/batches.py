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
from kdtune.ranks import ALONE, SMALLEST_PART, Ranks

ORDER = 0  # this stream of (seed, epoch)


@dataclass(frozen=True)
class Batch:
    """Images as a network takes them, on the device; of several processes each has its part of them."""

    images: Tensor  # [B, C, H, W] float32, normalised
    labels: Tensor  # [B] int64, -1 where there is none that a student may use
    indices: Tensor  # [B] int64, into the training images
    column: int  # the view column that the images come from
    ranks: Ranks = ALONE  # who has the other parts, if it is one
    total: int = 0  # images of all parts together

    def gather(self, part: Tensor) -> Tensor:
        """What holds for this part's images, [B, ...], for those of all parts: what losses are computed on."""
        return self.ranks.gather(part, self.total)


def steps_an_epoch(count: int, size: int) -> int:
    """Batches that `count` images make; a last batch too small to train on is left out."""
    whole, rest = divmod(count, size)
    return whole + (rest >= SMALLEST_PART)


def batches(
    dataset: Dataset,
    config: Data,
    indices: Tensor,
    *,
    size: int,
    column: int,
    seed: int,
    epoch: int,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """One shuffled epoch over `indices` [F], augmented as view `column`; `size` images a batch over all `ranks`."""
    generator = torch.Generator().manual_seed(stream(seed, epoch, ORDER))
    order = indices[torch.randperm(len(indices), generator=generator).to(indices.device)]
    whole = torch.split(order, size)[: steps_an_epoch(len(order), size)]
    mine = [ranks.part(chunk) if ranks.divides(len(chunk)) else chunk for chunk in whole]
    for chunk, chosen, views in zip(whole, mine, read(dataset.images, mine, column, config), strict=True):
        sharing = ranks if ranks.divides(len(chunk)) else ALONE
        labels = dataset.given.index_select(0, chosen)
        yield Batch(dataset.normalise(views), labels, chosen, column, sharing, len(chunk))
