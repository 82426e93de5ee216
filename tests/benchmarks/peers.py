"""kdtune against the same work written the usual way: resnet56 teaches resnet20, CIFAR-100's shape, batches of 128.

The usual loop (`usual.py`) trains one student with all threads of torch and its own processes that load; kdtune as many
at once as a search does, one a core or one on a GPU, from the cache. Validation is on as many
images in both. `epochs_an_hour_ratio` is kdtune's epochs an hour over the usual loop's, steps and validation;
`with_cache_computed` charges kdtune with a column of the cache for every epoch, shared by `TRIALS` trials, as in a
search with as many views as epochs. Rounds are interleaved, and the clock is the wall's.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdtune.models import build_model
from kdtune.training import default_device
from kdtune.trial.together import Together, epochs_of
from tests.benchmarks.making import (
    BATCH,
    CLASSES,
    SHAPE,
    STUDENT,
    TEACHERS,
    bench_of,
    experiment_in,
    random_images,
    untrained,
)
from tests.benchmarks.timing import row
from tests.benchmarks.usual import UsualLoop

TRIALS = 20  # that share a cache
TARGETS = {"cpu": 3, "cuda": 5}
IMAGES = {"cpu": 1024, "cuda": 40_960}
Result = tuple[list[dict[str, Any]], dict[str, float]]


def measure(repeats: int = 7, images: int | None = None) -> Result:
    """epochs an hour of kdtune over those of the usual loop with a live teacher, resnet56 -> resnet20"""
    device = default_device()
    count = (images or IMAGES[device.type]) // BATCH * BATCH
    together = 1 if device.type == "cuda" else len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        times = _times(Path(folder), device, repeats, count, together)
    return _told(times, together, TARGETS[device.type])


def _times(folder: Path, device: torch.device, repeats: int, count: int, together: int) -> dict[str, list[float]]:
    """Wall seconds of an epoch of each, and of a column of the cache."""
    dataset = random_images(count, validation=count // 9)
    teacher = untrained(TEACHERS[0], dataset, folder / "teacher")
    experiment = experiment_in(folder, repeats + 2)
    bench = bench_of(experiment, dataset, teacher, device)
    cache = bench.cache(experiment)
    usual = UsualLoop(
        build_model(STUDENT, SHAPE, CLASSES),
        build_model(TEACHERS[0], SHAPE, CLASSES),
        dataset.pixels.permute(0, 2, 3, 1).contiguous().numpy(),
        dataset.labels.tolist(),
        count // 9,
        BATCH,
        device,
    )
    everything = torch.arange(len(dataset.labels), device=device)
    materials = replace(bench.materials, dataset=dataset)
    with Together(partial(epochs_of, experiment, materials, device, threads=1)) as trials:
        trials.grow(together)
        acts: dict[str, Callable[[], object]] = {
            "usual": usual.epoch,
            "kdtune": trials.epoch,
            "column": lambda: list(cache.teacher.to(0, everything)) if cache.teacher else None,
        }
        times: dict[str, list[float]] = {name: [] for name in acts}
        for turn in range(repeats + 1):
            for name, act in acts.items():
                began = time.perf_counter()
                act()
                if turn:
                    times[name].append(time.perf_counter() - began)
    return times


def _told(times: dict[str, list[float]], together: int, target: int) -> Result:
    usual, kdtune, column = times["usual"], [seconds / together for seconds in times["kdtune"]], times["column"]
    ratio = [theirs / mine for theirs, mine in zip(usual, kdtune, strict=True)]
    charged = [u / (k + c / TRIALS) for u, k, c in zip(usual, kdtune, column, strict=True)]
    rows = [
        row("usual loop, live teacher: an epoch", usual, "s"),
        row(f"kdtune, {together} at once: an epoch of one, its share of the time", kdtune, "s"),
        row("a column of the cache", column, "s"),
        row("epochs an hour, kdtune / usual", ratio, "", f">= {target}"),
        row(f"the same, columns computed for {TRIALS} trials", charged, ""),
    ]
    return rows, {
        "epochs_an_hour_ratio": statistics.median(ratio),
        "epochs_an_hour_ratio_with_cache_computed": statistics.median(charged),
    }
