"""Work of the driver's that a slot of the cluster does: a cluster's head has no GPU, and few cores and little memory.

materials = prepare_away(experiment, slots, watch, columns)      # like `kdtune.trial.prepare`, `watch` hears of it here

The task is a generator: what it tells crosses one by one, its result last. A node that is lost is replaced a few times,
and what was kept (teachers, unfinished training, columns) is found again.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch

from kdtune.cache import LogitCache, Place, open_cache
from kdtune.data import Dataset, Images
from kdtune.errors import KdtuneError, RunError
from kdtune.experiment import Experiment
from kdtune.records import EpochRecord
from kdtune.report import summarise
from kdtune.search.crew import ARRIVES_S, NOBODY_COMES
from kdtune.search.placing import Slots
from kdtune.teacher import Teacher
from kdtune.trial import Found, Materials, Progress, prepare

log = logging.getLogger(__name__)

TRIES = 4
WORDS_APART_S = 0.5  # between two words about files read
BEGUN, DONE, FAILED = "begun", "done", "failed"

Work = Callable[[Progress, torch.device], Any]  # any picklable result


def prepare_away(experiment: Experiment, slots: Slots, watch: Progress, columns: int | None) -> Materials:
    """`prepare` on a slot. The materials carry their teachers' weights: no node need see where they are kept."""
    materials: Materials = _on_slot(partial(_prepare, experiment, columns), slots, watch)
    return materials


def summarise_away(
    experiment: Experiment,
    winner: Experiment,
    lines: Sequence[Mapping[str, Any]],
    materials: Materials,
    found: Found | None,
    slots: Slots,
    watch: Progress,
) -> dict[str, Any]:
    """`summarise` on a slot: teachers read the test set there, and latencies are those of its device."""
    work = partial(_summarise, experiment, winner, list(lines), materials, found)
    summary: dict[str, Any] = _on_slot(work, slots, watch)
    return summary


def _prepare(experiment: Experiment, columns: int | None, progress: Progress, device: torch.device) -> Materials:
    materials = prepare(experiment, device, progress, columns=columns)
    return replace(materials, teachers={name: teacher.carried() for name, teacher in materials.teachers.items()})


def _summarise(
    experiment: Experiment,
    winner: Experiment,
    lines: Sequence[Mapping[str, Any]],
    materials: Materials,
    found: Found | None,
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    return summarise(experiment, winner, lines, materials, found, device)


def _on_slot(work: Work, slots: Slots, watch: Progress) -> Any:
    """The result of `work`. Raises its KdtuneError or OSError as it was raised there."""
    task: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus, max_retries=0, num_returns="streaming")(_told)
    lost: Exception | None = None
    for _ in range(TRIES):
        try:
            return _heard(_begun(task.remote(work, slots.device, slots.threads)), watch)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            log.warning("a node or process was lost, and its work is taken up by another: %s", error)
            lost = error
    raise RunError(f"{TRIES} nodes or processes were lost one after the other: {lost}\nThe same command goes on")


def _told(work: Work, device: torch.device, threads: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What `work` tells, and then its end; it runs in a thread, since it calls and a generator is asked."""
    said: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    unexpected: list[BaseException] = []

    def run() -> None:
        torch.set_num_threads(threads)  # which OpenMP keeps for each thread
        try:
            said.put((DONE, (work(Telling(said), device),)))
        except (KdtuneError, OSError) as error:
            said.put((FAILED, (error,)))
        except BaseException as error:  # noqa: BLE001  # raised again below, in the task's own thread
            unexpected.append(error)
            said.put((FAILED, ()))

    threading.Thread(target=run, daemon=True).start()
    yield BEGUN, ()
    while True:
        name, given = said.get()
        if unexpected:
            raise unexpected[0]
        yield name, given
        if name in (DONE, FAILED):
            return


def _begun(told: Any) -> Iterator[Any]:
    """What a task tells, once it has a place. Raises RunError where it does not come to one."""
    if not ray.wait([told], num_returns=1, timeout=ARRIVES_S)[0]:
        ray.cancel(told)
        raise RunError(NOBODY_COMES)
    return iter(told)


def _heard(told: Iterator[Any], watch: Progress) -> Any:
    for reference in told:
        name, given = ray.get(reference)
        if name == BEGUN:
            continue
        if name == DONE:
            return given[0]
        if name == FAILED:
            raise given[0]
        if name == "cache_ready":
            watch.cache_ready(_cache(*given))
        else:
            getattr(watch, name)(*given)
    raise AssertionError("the task ended without a word")


class Telling:
    """Progress as it leaves a task: small and picklable, so without pixels."""

    def __init__(self, said: "queue.SimpleQueue[tuple[str, tuple[Any, ...]]]") -> None:
        self.said = said
        self.due = 0.0

    def files_read(self, done: int, total: int) -> None:
        if done in (0, total) or time.monotonic() >= self.due:
            self.due = time.monotonic() + WORDS_APART_S
            self.said.put(("files_read", (done, total)))

    def dataset_ready(self, dataset: Dataset) -> None:
        self.said.put(("dataset_ready", (_without_pixels(dataset),)))

    def teacher_epoch(self, name: str, record: EpochRecord) -> None:
        self.said.put(("teacher_epoch", (name, record)))

    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None:
        self.said.put(("teacher_ready", (name, teacher, _without_pixels(dataset))))

    def cache_column(self, done: int, views: int) -> None:
        self.said.put(("cache_column", (done, views)))

    def cache_ready(self, cache: LogitCache) -> None:
        found = {name: getattr(cache, name) for name in FOUND}
        self.said.put(("cache_ready", (cache.store.address, cache.views, found)))


FOUND = ("wanted", "mended", "rows_checked")  # what the process that began a cache has found out about it


def _cache(address: str, views: int, found: Mapping[str, Any]) -> LogitCache:
    """A cache as the process saw it that began it."""
    cache = open_cache(Place(address, None), views=views)
    for name, value in found.items():
        setattr(cache, name, value)
    return cache


def _without_pixels(dataset: Dataset) -> Dataset:
    none = torch.empty((0, *dataset.shape), dtype=torch.uint8)
    return replace(dataset, images=none, test=Images(none, dataset.test.labels))
