"""Trials that train at the same time, each in a process of its own as in a search, an epoch whenever they are told.

    with Together(partial(epochs_of, experiment, materials, device, threads=1)) as trials:
        trials.grow(4)
        trials.epoch()              # returns once each of the four has done one

`rates_of` tries how many of them a device takes: twice as many as long as they train faster together and fit.
"""

import multiprocessing
import pickle
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.training import evaluation_batch
from kdtune.trial.bench import Bench
from kdtune.trial.materials import Materials

FRESH = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
GAIN = 1.1  # twice as many trials are worth it from here on
FULL = 0.9  # of a GPU's memory: what is tried is a piece of an epoch, not a run
CONTEXT = 600 << 20  # bytes of a GPU that a process takes besides torch's own
REPEATS = 3
LEAVES_S = 10.0
Act = Callable[[], Any]  # what a process does and answers


@dataclass(frozen=True)
class Memory:
    """Of a GPU after an epoch, in bytes: free, in all, and what this trial has taken at most. Zeros on a CPU."""

    free: int = 0
    total: int = 0
    own: int = 0


class Together:
    """Processes that have called `start()` and do what it gave whenever they are told."""

    def __init__(self, start: Callable[[], Act]) -> None:
        """`start` is pickled: a function of a module, or a `partial` of one."""
        self.start = pickle.dumps(start)  # as bytes: torch would move its tensors to /dev/shm, often 64 MB
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []  # as the context's Process is typed

    def grow(self, count: int) -> None:
        """So many processes; returns once all can begin. Raises RunError where one fails."""
        new = range(len(self.pipes), count)
        for _ in new:
            mine, theirs = FRESH.Pipe()
            # no daemon: those may not have processes of their own, as decode images
            process = FRESH.Process(target=_serve, args=(theirs, self.start))
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        for number in new:
            self._answer(number)

    def epoch(self) -> list[Any]:
        """What each of them answers. Raises RunError where one fails."""
        for number, pipe in enumerate(self.pipes):
            try:
                pipe.send(None)
            except OSError:
                self._answer(number)  # its last words, or that it has died
        return [self._answer(number) for number in range(len(self.pipes))]

    def _answer(self, number: int) -> Any:
        try:
            told, what = self.pipes[number].recv()
        except (EOFError, OSError):
            raise RunError("a process that trains beside others has died; too little memory?") from None
        if not told:
            raise RunError(f"a process that trains beside others failed:\n{what}")
        return what

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Those that wait end by themselves; those that do not are ended."""
        for pipe in self.pipes:
            pipe.close()
        if error is not None:
            for process in self.processes:
                process.terminate()
        for process in self.processes:
            process.join(LEAVES_S)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(pipe: Connection, start: bytes) -> None:
    try:
        act = pickle.loads(start)()
        pipe.send((True, None))
        while True:
            pipe.recv()
            pipe.send((True, act()))
    except (EOFError, ConnectionError):
        return  # nobody asks any more
    except Exception:  # noqa: BLE001  # whatever it is: whoever started this process is told
        pipe.send((False, traceback.format_exc()))


def epochs_of(experiment: Experiment, materials: Materials, device: torch.device, *, threads: int) -> Act:
    """A trial's epochs, one a call; it must have as many as will be asked for."""
    torch.set_num_threads(threads)
    bench = Bench(materials, device)
    trial = bench.start(experiment, seed=0)
    if trial.cache is not None and trial.cache.teacher is not None:  # who in a search computes what is missing
        labels = bench.dataset.labels
        next(
            trial.cache.teacher.to(0, torch.arange(evaluation_batch(bench.dataset), device=labels.device) % len(labels))
        )
    next(trial.records)  # memory is allocated, kernels are chosen

    def act() -> Memory:
        next(trial.records)
        if device.type != "cuda":
            return Memory()
        return Memory(*torch.cuda.mem_get_info(device), torch.cuda.max_memory_reserved(device) + CONTEXT)

    return act


def rates_of(trials: Together, most: int) -> dict[int, float]:
    """Epochs a second of 1, 2, 4, ... trials together, as far as it is worth trying.

    Ends at `most`, where twice as many gain less than a tenth, and where they do not fit into the memory.
    """
    rates: dict[int, float] = {}
    number = 1
    while number <= most:
        try:
            trials.grow(number)
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                told = trials.epoch()
                times.append(time.perf_counter() - began)
        except RunError:  # out of memory, most likely; but one trial alone has to fit
            if number == 1:
                raise
            break
        used, room = _used(told)
        if number > 1 and used > room:
            break
        rates[number] = number / statistics.median(times)
        if best_of(rates) != number or used + number * max(one.own for one in told) > room:
            break
        number *= 2
    return rates


def _used(told: list[Memory]) -> tuple[int, float]:
    """Bytes of the GPU that are taken, by others too, and that may be."""
    return max(one.total - one.free for one in told), FULL * told[0].total


def best_of(rates: Mapping[int, float]) -> int:
    """The largest number that was worth it: each step to twice as many gained a tenth."""
    best = 1
    for number, rate in rates.items():
        if number > 1 and rate >= GAIN * rates[best]:
            best = number
    return best
