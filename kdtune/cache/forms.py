"""What a cache keeps of an image's logits where 1000 classes in float16 are too much: eight bits each, or the largest.

In go logits [B, C]; out comes what is kept, and later the logits again. B images, C classes, k of them kept.

    eight = in_steps(logits)               # one byte a class: 1008 bytes of 1000 classes, where float16 takes 2000
    top = largest(logits, 200)             # 804 bytes: the largest ones, and what the others sum to
    logits = dense(top, classes=1000)      # [B, 1000] float32, as `eight.logits()` is

Eight bits serve every temperature. Of the k largest, the others share their probability evenly: it is exact at
temperature 1, and above it comes out a little too large, since the others were not equal. `python -m tests.benchmarks
top-k` measures what both do to the losses.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Top(NamedTuple):
    """The largest logits, largest first, so that a smaller k is the first columns (and a larger rest)."""

    values: Tensor  # [B, k] float16
    classes: Tensor  # [B, k] int16
    rest: Tensor  # [B] float32, log-sum-exp of all other logits


def largest(logits: Tensor, k: int) -> Top:
    """The `k` largest of `logits` [B, C], float32. Which of two equal ones is the k-th is left to the device,
    so that a second answer of a teacher is to be compared at the classes of the first.

    `rest` is that of the other logits themselves: the difference between the log-sum-exp of all and that of the
    kept ones would be rounding errors alone where the teacher is certain.
    """
    assert 0 < k < logits.shape[1], f"{k} of {logits.shape[1]} classes leave no rest"
    assert logits.shape[1] - 1 <= torch.iinfo(torch.int16).max, f"{logits.shape[1]} classes do not fit int16"
    values, classes = logits.topk(k, dim=1)
    rest = logits.scatter(1, classes, -math.inf).logsumexp(dim=1)
    return Top(values.half(), classes.short(), rest)


def dense(top: Top, classes: int) -> Tensor:
    """Logits [B, C] float32 of all `classes`, on the device of `top`."""
    others = top.rest - math.log(classes - top.classes.shape[1])  # [B]
    logits = others.unsqueeze(1).repeat(1, classes)
    return logits.scatter_(1, top.classes.long(), top.values.float())


class Eight(NamedTuple):
    """Every logit as one of 256 even steps between the image's least and largest."""

    codes: Tensor  # [B, C] uint8
    least: Tensor  # [B] float32
    step: Tensor  # [B] float32, the distance of two codes

    def logits(self) -> Tensor:
        """Logits [B, C] float32, on the device of the codes."""
        return torch.addcmul(self.least.unsqueeze(1), self.codes.float(), self.step.unsqueeze(1))


def in_steps(logits: Tensor) -> Eight:
    """`logits` [B, C], float32, within half a step each; the least and the largest as they are."""
    least, most = logits.aminmax(dim=1, keepdim=True)
    step = (most - least) / 255
    codes = ((logits - least) / step.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return Eight(codes.clamp(0, 255).to(torch.uint8), least.squeeze(1), step.squeeze(1))
