"""Trials that train at the same time, each in a process of its own as in a search, an epoch whenever they are told.

    with Together(partial(epochs_of, experiment, materials, device, threads=1)) as trials:
        trials.grow(4)
        trials.epoch()              # returns once each of the four has done one

`best_number` finds how many of them a device takes: twice as many as long as they train faster together and fit.
"""

import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.trial.bench import Bench
from kdtune.trial.materials import Materials

FRESH = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
GAIN = 1.1  # twice as many trials are worth it from here on
FULL = 0.9  # of a GPU's memory: the probe saw a piece of an epoch, not a run
REPEATS = 3
Act = Callable[[], Any]  # what a process does and answers


@dataclass(frozen=True)
class Epoch:
    """What a process says of its device after an epoch: bytes free and in all, or 0 of 0 on a CPU."""

    free: int
    total: int


class Together:
    """Processes that have called `start()` and do what it gave whenever they are told."""

    def __init__(self, start: Callable[[], Act]) -> None:
        """`start` is pickled: a function of a module, or a `partial` of one."""
        self.start = start
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []  # as the context's Process is typed

    def grow(self, count: int) -> None:
        """So many processes; returns once all can begin. Raises RunError where one fails."""
        new = range(len(self.pipes), count)
        for _ in new:
            mine, theirs = FRESH.Pipe()
            process = FRESH.Process(target=_serve, args=(theirs, self.start), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        for number in new:
            _answer(self.pipes[number])

    def epoch(self) -> list[Any]:
        """What each of them answers. Raises RunError where one fails."""
        for pipe in self.pipes:
            pipe.send(None)
        return [_answer(pipe) for pipe in self.pipes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join()


def _answer(pipe: Connection) -> Any:
    try:
        told, what = pipe.recv()
    except EOFError:
        raise RunError("a process that trains beside others has died; too little memory?") from None
    if not told:
        raise RunError(f"a process that trains beside others failed:\n{what}")
    return what


def _serve(pipe: Connection, start: Callable[[], Act]) -> None:
    try:
        act = start()
        pipe.send((True, None))
        while True:
            pipe.recv()
            pipe.send((True, act()))
    except EOFError:
        return  # nobody asks any more
    except Exception:  # noqa: BLE001  # whatever it is: whoever started this process is told
        pipe.send((False, traceback.format_exc()))


def epochs_of(experiment: Experiment, materials: Materials, device: torch.device, *, threads: int) -> Act:
    """A trial's epochs, one a call; it must have as many as will be asked for."""
    torch.set_num_threads(threads)
    trial = Bench(materials, device).start(experiment, seed=0)
    next(trial.records)  # memory is allocated, kernels are chosen

    def act() -> Epoch:
        next(trial.records)
        return Epoch(*torch.cuda.mem_get_info(device)) if device.type == "cuda" else Epoch(0, 0)

    return act


def best_number(trials: Together, most: int) -> dict[int, float]:
    """Epochs a second of 1, 2, 4, ... trials together, as far as it is worth trying; the fastest is the best number.

    Ends at `most`, where twice as many gain less than a tenth, and where they would not fit into the memory.
    """
    rates: dict[int, float] = {}
    number = 1
    while number <= most:
        try:
            trials.grow(number)
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                said = trials.epoch()
                times.append(time.perf_counter() - began)
        except RunError:  # out of memory, most likely; but one trial alone has to fit
            if number == 1:
                raise
            break
        rates[number] = number / statistics.median(times)
        used = max((one.total - one.free) / one.total if one.total else 0.0 for one in said)
        if 2 * used > FULL or (number > 1 and rates[number] < GAIN * rates[number // 2]):
            break
        number *= 2
    return rates
