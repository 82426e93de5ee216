"""Trials an hour where 1, 2, 4 or 8 small students train at the same time on one device, or on the cores of one CPU.

Each is a process, as in a search: resnet8 on CIFAR-100's shape, from the cache. On a CPU every trial has its share of
the cores as threads, and one where there are more trials than cores. An epoch of each number of trials is a round's
part, and the clock is the wall's. `trials_an_hour_K` is over one trial at a time, and `best_together` the fewest trials
that come within 5% of the most.
"""

import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdtune.training import default_device
from kdtune.trial.together import Together, epochs_of
from tests.benchmarks.making import BATCH, bench_of, experiment_in, random_images, untrained
from tests.benchmarks.timing import row

STUDENT, TEACHER = "resnet8", "resnet8"
NUMBERS = (1, 2, 4, 8)
IMAGES = {"cpu": 512, "cuda": 40_960}
CLOSE = 0.95
Result = tuple[list[dict[str, Any]], dict[str, float]]


def measure(repeats: int = 7, images: int | None = None) -> Result:
    """trials an hour of 1, 2, 4 and 8 small students that share a GPU, or the cores of a CPU"""
    device = default_device()
    count = (images or IMAGES[device.type]) // BATCH * BATCH
    with tempfile.TemporaryDirectory() as folder:
        times = _times(Path(folder), device, repeats, count)
    # of one trial's epochs, as if all trials had as many
    rates = {
        number: [number * alone / together for together, alone in zip(times[number], times[1], strict=True)]
        for number in NUMBERS
    }
    rows = [row(f"{number} at once: an epoch of all", times[number], "s") for number in NUMBERS]
    rows += [row(f"{number} at once: trials an hour / one at a time", rates[number], "") for number in NUMBERS[1:]]
    medians = {number: statistics.median(rate) for number, rate in rates.items()}
    best = min(number for number in NUMBERS if medians[number] >= CLOSE * max(medians.values()))
    return rows, {f"trials_an_hour_{number}": medians[number] for number in NUMBERS[1:]} | {"best_together": best}


def _times(folder: Path, device: torch.device, repeats: int, count: int) -> dict[int, list[float]]:
    """Wall seconds in which so many trials do an epoch each."""
    dataset = random_images(count, validation=count // 9)
    teacher = untrained(TEACHER, dataset, folder / "teacher")
    experiment = experiment_in(folder, repeats + 2, student=STUDENT, teacher={"model": TEACHER})
    materials = replace(bench_of(experiment, dataset, teacher, device).materials, dataset=dataset)
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        trials = {}
        for number in NUMBERS:
            start = partial(epochs_of, experiment, materials, device, threads=max(1, cores // number))
            trials[number] = stack.enter_context(Together(start))
            trials[number].grow(number)
        times: dict[int, list[float]] = {number: [] for number in NUMBERS}
        for turn in range(repeats + 1):
            for number in NUMBERS:
                began = time.perf_counter()
                trials[number].epoch()
                if turn:
                    times[number].append(time.perf_counter() - began)
    return times
