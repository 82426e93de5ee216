"""How temperature, alpha and feature_weight change while a student trains: plain functions, numbers in, one out.

`progress` is the share of the planned run that lies behind, 0 in the first epoch and 1 in the last. A value
holds for a whole epoch, so what is logged is exactly what was used. Because progress refers to the *planned*
length, a stopped, resumed or promoted trial keeps its schedule.

    >>> cosine(0.5, start=4.0, end=2.0)
    3.0
    >>> exponential(1.0, start=8.0, end=1.0)
    1.0
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any


def progress_of(epoch: int, epochs: int) -> float:
    """Progress of 0-based `epoch` in a run of `epochs`; a run of one epoch stays at 0."""
    return epoch / (epochs - 1) if epochs > 1 else 0.0


def fixed(progress: float, *, start: float) -> float:
    return start


def linear(progress: float, *, start: float, end: float) -> float:
    return start + (end - start) * progress


def cosine(progress: float, *, start: float, end: float) -> float:
    """Half a cosine from start to end: slow, fast, slow (Loshchilov & Hutter 2017, without restarts)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def exponential(progress: float, *, start: float, end: float) -> float:
    """Equal ratios in equal times. Both ends must be positive."""
    return float(start * (end / start) ** progress)


def decay(epoch: int, *, start: float, rate: float, floor: float) -> float:
    """The per-epoch form of the exponential: `max(floor, start * rate ** epoch)`, epoch counted from 0."""
    return max(floor, start * rate**epoch)


def step(progress: float, *, start: float, factor: float, milestones: Sequence[float]) -> float:
    """`start`, multiplied by `factor` at each milestone (a share of the run) that has been reached."""
    return start * factor ** sum(progress >= milestone for milestone in milestones)


def warmup(progress: float, *, start: float, end: float, warmup: float) -> float:
    """Straight from start to end over the first `warmup` share of the run, then held at end."""
    return linear(min(progress / warmup, 1.0), start=start, end=end)


def piecewise(progress: float, *, start: float, values: Sequence[float], milestones: Sequence[float]) -> float:
    """`start`, and from each milestone (a share of the run, ascending) on the value that stands beside it."""
    return (start, *values)[bisect_right(milestones, progress)]


# The parameters of each kind, by the functions' own names. `exponential` has a second form, `decay`.
SCHEDULES: dict[str, Callable[..., float]] = {
    "fixed": fixed,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
    "warmup": warmup,
    "piecewise": piecewise,
}


def value(kind: str, epoch: int, epochs: int, **parameters: Any) -> float:
    """Value of a schedule in 0-based `epoch` of `epochs`; parameters are those of the kind's function.

    Typed `Any` because the kinds take numbers and lists; `experiment.Schedule` has validated them.
    """
    if kind == "exponential" and "rate" in parameters:
        return decay(epoch, **parameters)
    return SCHEDULES[kind](progress_of(epoch, epochs), **parameters)
