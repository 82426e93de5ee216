"""placeholder until the branch lands"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Top(NamedTuple):
    values: Tensor
    classes: Tensor
    rest: Tensor


def largest(logits: Tensor, k: int) -> Top:
    values, classes = logits.topk(k, dim=1)
    rest = logits.scatter(1, classes, -torch.inf).logsumexp(dim=1)
    return Top(values.half(), classes.to(torch.int16), rest)


def dense(top: Top, classes: int) -> Tensor:
    fill = (top.rest - math.log(classes - top.values.shape[1]))[:, None].expand(-1, classes)
    return fill.contiguous().scatter_(1, top.classes.long(), top.values.float())
