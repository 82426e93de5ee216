"""Trying a written student against the one it came from: the same answers, and how fast.

expected = in_batches(student, images, chunk)                 # logits, at several batch sizes
largest_difference(answers, images, expected, chunk)
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kdtune.export.formats import Answers

BATCH_SIZES = (1, 2, 3, 5)  # tried one after the other; then the rest of the images
LATENCY_RUNS, LATENCY_WARMUP, LATENCY_SECONDS = 50, 5, 3.0


def _chunks(images: Tensor, chunk: int) -> Iterator[Tensor]:
    """The images in batches of growing sizes; of few images only the first sizes."""
    start = 0
    for size in BATCH_SIZES:
        yield images[start : start + size]
        start += size
        if start >= len(images):
            return
    yield from torch.split(images[start:], chunk)


@torch.inference_mode()
def in_batches(answers: Answers, images: Tensor, chunk: int) -> Tensor:
    """Logits [B, classes] for uint8 images [B, C, H, W], at several batch sizes, `chunk` the largest but for 5."""
    return torch.cat([answers(some) for some in _chunks(images, chunk)])


def largest_difference(answers: Answers, images: Tensor, expected: Tensor, chunk: int) -> float:
    """Of logits from `expected` [B, classes], which `in_batches` gave of the student; NaN where one is no number.

    Raises ValueError where there are not as many.
    """
    found = in_batches(answers, images, chunk)
    if found.shape != expected.shape:
        raise ValueError(f"it gives {list(found.shape)} logits for {list(expected.shape)}")
    return (found - expected).abs().max().item()


@torch.inference_mode()
def predictions(answers: Answers, images: Tensor, chunk: int) -> Tensor:
    """The most probable class [N] of uint8 images [N, C, H, W]."""
    return torch.cat([answers(some).argmax(1) for some in torch.split(images, chunk)])


@contextmanager
def one_thread() -> Iterator[None]:
    """What is opened and run within takes one thread of the CPU, as in the results table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def median_ms(answers: Answers, image: Tensor) -> float:
    """Milliseconds for one uint8 image [1, C, H, W]; at most LATENCY_SECONDS are spent on finding out."""
    times: list[float] = []
    until = time.perf_counter() + LATENCY_SECONDS
    for run in range(LATENCY_WARMUP + LATENCY_RUNS):
        if run > LATENCY_WARMUP and time.perf_counter() > until:
            break
        began = time.perf_counter()
        answers(image)
        times.append(time.perf_counter() - began)
    return statistics.median(times[LATENCY_WARMUP:]) * 1000
