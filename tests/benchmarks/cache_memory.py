"""A cache of 2 GB as processes see it: opening, resident memory, the copies on a node, a lookup, bytes on the disk.

Its columns are written by kdtune's own writer from a network that has its answers ready; opening and memory are
measured in processes that are new, with the files in the page cache (warm) and out of it (cold). A cache is open when
a lookup can be made in its first column; the others are mapped when they are asked for.
"""

import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtune.cache import Answers, LogitCache, Place, begin_cache, describe, identify, open_cache
from kdtune.data import Dataset, Images
from kdtune.experiment import Data
from kdtune.teacher import Teacher
from tests.benchmarks.timing import Clock, row

ROWS, CLASSES, VIEWS = 62_500, 1000, 16  # 2 GB
LOOKUP = 512
PROCESSES, SHARED = 4, 2  # processes that read the same columns
FRESH = multiprocessing.get_context("forkserver")  # a process that has this module's imports, and nothing else
FRESH.set_forkserver_preload([__name__])
Result = tuple[list[dict[str, Any]], dict[str, float]]


class Ready(nn.Module):
    """A network that answers at once; what it says does not matter here."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("answers", torch.randn(1024, classes))

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.get_buffer("answers")[: len(images)]
        return answers


def measure(folder: Path, clock: Clock) -> Result:
    """Of a cache of 2 GB below `folder`, and of one as of CIFAR-10 for the bytes."""
    size = 2 * ROWS * CLASSES * VIEWS
    if shutil.disk_usage(folder).free < 2 * size:
        raise OSError(f"{folder} has too little space for a cache of {size / 1e9:.1f} GB; set TMPDIR")
    place, build_s = written(folder / "large", ROWS, CLASSES, VIEWS)
    cold = [fresh(opened, place, drop=True) for _ in range(3)]
    warm = [fresh(opened, place) for _ in range(5)]
    resident = fresh(read_columns, place)
    copies = shared(place)
    lookups = looked_up(place, clock)
    small, _ = written(folder / "small", 50_000, 10, 4)
    bytes_over = bytes_of(small) / (2 * 50_000 * 10 * 4)
    rows = [
        row("2 GB: written and hashed", [size / 1e9 / build_s], "GB/s"),
        row("2 GB: opened, cold", [1e3 * one["opened"] for one in cold], "ms", "< 50"),
        row("2 GB: all columns opened, cold", [1e3 * one["all"] for one in cold], "ms"),
        row("2 GB: opened, warm", [1e3 * one["opened"] for one in warm], "ms", "< 50"),
        row("2 GB: all columns opened, warm", [1e3 * one["all"] for one in warm], "ms", "< 50"),
        row("2 GB: a column's first use, hashed", [1e3 * one["ensured"] for one in warm], "ms"),
        row("2 GB: resident once opened", [one["resident"] / 1e6 for one in warm], "MB"),
        row("resident / read, one column", [resident["resident"] / resident["read"]], "", "~1"),
        row(f"copies of what {PROCESSES} processes read", [copies], "", "1"),
        row(f"lookup of {LOOKUP} of {CLASSES} classes", [1e3 * one for one in lookups], "ms"),
        row("bytes / N V C 2, CIFAR-10", [bytes_over], "", "<= 1.01"),
        row("bytes / N V C 2, 2 GB", [bytes_of(place) / size], "", "<= 1.01"),
    ]
    return rows, {
        "bytes_over_ideal": bytes_over,
        "open_ms": 1e3 * max(statistics.median(one["opened"] for one in some) for some in (cold, warm)),
        "resident_share": resident["resident"] / resident["read"],
        "copies_a_node": copies,
        "lookup_ms": 1e3 * statistics.median(lookups),
    }


def written(folder: Path, rows: int, classes: int, views: int) -> tuple[Place, float]:
    """A whole cache, and the seconds that its columns took."""
    labels = torch.arange(rows) % classes
    images = torch.zeros(rows, 1, 4, 4, dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    few = torch.arange(8)
    test = Images(images[:8], labels[:8])
    dataset = Dataset("digits", names, images, labels, labels, test, labels, few, (0.5,), (0.5,), "none")
    teacher = Teacher(str(folder), "ready", (1, 4, 4), classes, "none", 0.0, trained_here=False)
    data = Data(dataset="digits", augment="crop-flip")
    place = Place(str(folder))
    manifest = describe(identify(dataset, data, teacher), dataset, teacher)
    cache = begin_cache(place, manifest, views=views, teacher=Answers(lambda: Ready(classes), dataset, data))
    began = time.perf_counter()
    for view in range(views):
        cache.ensure(view)
    return place, time.perf_counter() - began


def fresh(act: Callable[[Place], dict[str, float]], place: Place, *, drop: bool = False) -> dict[str, float]:
    """What `act` returns in a new process; with `drop` the cache's files are out of the page cache before."""
    if drop:
        for file in Path(place.address).glob("*.*"):
            with file.open("rb") as content:
                os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
        return pool.submit(act, place).result()


def opened(place: Place) -> dict[str, float]:
    """Seconds until the first column can be read, then until all can be; and to use one as a trial does."""
    times = [time.perf_counter()]
    cache = open_cache(place)
    cache.column(0)
    times.append(time.perf_counter())
    for view in range(VIEWS):
        cache.column(view)
    times.append(time.perf_counter())
    resident = mapped("Rss")
    times.append(time.perf_counter())
    cache.ensure(0)
    times.append(time.perf_counter())
    return {
        "opened": times[1] - times[0],
        "all": times[2] - times[0],
        "ensured": times[4] - times[3],
        "resident": resident,
    }


def read_columns(place: Place, count: int = 1) -> dict[str, float]:
    """Reads the first `count` columns whole, with all of them open; bytes read, and those that are resident."""
    cache = open_cache(place)
    for view in range(VIEWS):
        cache.column(view)
    parts = [part for view in range(count) for part in cache.column(view).parts]
    for part in parts:
        part.view(torch.int64).max()
    return {"read": sum(part.nbytes for part in parts), "resident": mapped("Rss"), "share": mapped("Pss")}


def mapped(field: str) -> float:
    """Bytes of the columns that this process has mapped: resident (Rss), or its share of those (Pss)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name:
            inside = line.endswith(".arrow")
        elif inside and name == f"{field}:":
            total += 1024 * int(values[0])
    return float(total)


def shared(place: Place) -> float:
    """Processes that have read the same columns: the sum of their shares of memory over the bytes read."""
    barrier, answers = FRESH.Barrier(PROCESSES), FRESH.Queue()
    workers = [FRESH.Process(target=share, args=(place, barrier, answers)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(one["share"] for one in told) / told[0]["read"])


def share(place: Place, barrier: Barrier, answers: "Queue[dict[str, float]]") -> None:
    cache = open_cache(place)
    parts = [part for view in range(SHARED) for part in cache.column(view).parts]
    for part in parts:
        part.view(torch.int64).max()
    barrier.wait()
    answers.put({"read": sum(part.nbytes for part in parts), "share": mapped("Pss")})
    barrier.wait()  # nobody lets go before everybody has looked


def looked_up(place: Place, clock: Clock) -> list[float]:
    """Seconds of a batch of random rows, from a column that is in use."""
    cache: LogitCache = open_cache(place)
    indices = [torch.randperm(ROWS)[:LOOKUP].to(clock.device) for _ in range(50)]
    for batch in indices:
        cache.teacher_logits(0, batch)
    return [clock(partial(cache.teacher_logits, 0, batch)) for batch in indices]


def bytes_of(place: Place) -> int:
    return sum(file.stat().st_size for file in Path(place.address).rglob("*") if file.is_file())
