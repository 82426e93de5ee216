"""The k largest logits of an image instead of all: 804 bytes at 200 of 1000 classes, where all of them take 2000.

In go logits [B, C]; out comes what is kept, and later the logits again. B images, C classes, k of them kept.

    top = largest(logits, 200)             # values and classes [B, 200], and the others' log-sum-exp [B]
    logits = dense(top, classes=1000)      # [B, 1000] float32: the kept ones, and one number for all others

The others share their probability evenly, and what comes out are logits, so that it can be used at any temperature.
That probability is exact at temperature 1; above, it comes out too large, and what told the others apart is gone.
`python -m tests.benchmarks top-k` measures what that does to the losses. A kept logit takes 4 bytes, so that from half
of the classes on whole logits in float16 are both smaller and better.
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
