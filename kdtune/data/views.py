"""Views: the augmentation of image `i` in view column `v` is a pure function of `(view_seed, v, i)`.

Random numbers come from a counter-based hash in 64-bit integer arithmetic (the finaliser of SplitMix64, Steele et
al. 2014), which is exact on every device: CPU and GPU, any batch, any worker and any order get the same view. That
is what lets a cache of a teacher's logits stand in for the teacher.

    view = augment(images[indices], indices, column, config)    # uint8 [B, C, H, W], same shape

Random resized crops are of image files (`images.py`); what they draw and where they cut is here.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.experiment import Data


def _signed(constant: int) -> int:
    """A 64-bit constant as the signed integer that torch's int64 holds."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)
WORD = (1 << 64) - 1

DOWN, RIGHT, FLIP = 0, 1, 2  # draws of one view
BITS = 31  # of a drawn number: times 32 random bits it still fits int64
TRIES = 10
ASPECT = (3 / 4, 4 / 3)  # width / height of a random resized crop


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _mix_integer(x: int) -> int:
    """`_mix` of one unsigned integer, without a tensor: a key costs the device nothing."""
    x = ((x ^ (x >> 30)) * MIX_1) & WORD
    x = ((x ^ (x >> 27)) * MIX_2) & WORD
    return x ^ (x >> 31)


def stream(*parts: int) -> int:
    """A seed in 64 bits for a generator of random numbers: other whole numbers, or in another order, another stream.

    Every bit depends on every part, since torch's generator for the CPU reads only the lower 32 of a seed: a sum of
    shifted parts would lose the upper ones.
    """
    key = 0
    for part in parts:  # mixed one after the other: a sum would make (1, 0) the same as (0, 1)
        key = _mix_integer((key + (part + 1) * GOLDEN) & WORD)
    return key


def random_integers(seed: int, column: int, indices: Tensor, draw: int, bound: int) -> Tensor:
    """Integers [B] in 0..bound-1, one an image; `draw` tells several numbers of one view apart.

    Uses the top 32 bits, scaled: the bias is below bound / 2^32.
    """
    key = stream(seed, column, draw)
    bits = _mix((indices + 1) * GOLDEN ^ _signed(key))
    return (_shift_right(_mix(bits + _signed(key)), 32) * bound) >> 32


def augment(images: Tensor, indices: Tensor, column: int, config: Data) -> Tensor:
    """View `column` of uint8 images [B, C, H, W] with data-set indices [B]; the same shape and type.

    `crop` pads by `crop_padding` black pixels and cuts the original size out at random; `flip` mirrors half.
    """
    _, channels, height, width = images.shape
    if config.augment == "none":
        return images
    seed = config.view_seed
    columns = torch.arange(width, device=images.device).expand(len(images), width)  # [B, W]
    if "flip" in config.augment:
        flipped = flips(indices, column, config)  # [B]
        columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    if "crop" in config.augment:
        pad = config.crop_padding
        padded = F.pad(images, (pad, pad, pad, pad))
        down = random_integers(seed, column, indices, DOWN, 2 * pad + 1)
        columns = columns + random_integers(seed, column, indices, RIGHT, 2 * pad + 1)[:, None]
        # whole rows first: they are copied as blocks of memory, and no pixel needs a number of its own
        tops = torch.arange(len(images) * channels, device=images.device).view(-1, channels) * (height + 2 * pad)
        rows = (tops + down[:, None])[:, :, None] + torch.arange(height, device=images.device)  # [B, C, H]
        images = padded.flatten(end_dim=2).index_select(0, rows.flatten()).view(-1, channels, height, padded.shape[3])
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def flips(indices: Tensor, column: int, config: Data) -> Tensor:
    """Which views [B] are mirrored: half of them, where the augmentation flips at all."""
    if not config.augment.endswith("flip"):
        return torch.zeros(len(indices), dtype=torch.bool, device=indices.device)
    return random_integers(config.view_seed, column, indices, FLIP, 2).bool()


def crop_numbers(indices: Tensor, column: int, config: Data) -> Tensor:
    """What `crop_box` draws from, [B, 2 + 2 * TRIES] in 0..2^31-1: the place, then area and aspect of every try."""
    draws = (DOWN, RIGHT, *range(FLIP + 1, FLIP + 1 + 2 * TRIES))
    return torch.stack([random_integers(config.view_seed, column, indices, draw, 1 << BITS) for draw in draws], dim=1)


def crop_box(numbers: Sequence[int], width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random resized crop, as torchvision's `RandomResizedCrop` draws it.

    A share of the area within `scale` and an aspect within `ASPECT` are tried up to ten times until they fit into
    the image; else it is the largest centred crop of an allowed aspect.
    """
    down, right, *tries = numbers
    for area, aspect in zip(tries[::2], tries[1::2], strict=True):
        target = width * height * _between(area, scale)
        ratio = math.exp(_between(aspect, (math.log(ASPECT[0]), math.log(ASPECT[1]))))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = right * (width - w + 1) >> BITS, down * (height - h + 1) >> BITS
            return left, top, left + w, top + h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _between(number: int, ends: tuple[float, float]) -> float:
    return ends[0] + (ends[1] - ends[0]) * number / (1 << BITS)
