"""Trials that train at the same time, each in a process of its own as in a search, an epoch whenever they are told.

with Together(2, experiment, materials, device, threads=1) as trials:
    trials.epoch()              # returns once each of the two has done one
"""

import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import torch

from kdtune.experiment import Experiment
from kdtune.trial import Bench, Materials

FRESH = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process


class Together:
    """`count` processes, each with one trial of `experiment`, which has as many epochs as will be asked for."""

    def __init__(
        self, count: int, experiment: Experiment, materials: Materials, device: torch.device, *, threads: int
    ) -> None:
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(count):
            mine, theirs = FRESH.Pipe()
            process = FRESH.Process(target=_work, args=(theirs, experiment, materials, device, threads), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()  # it can begin; EOFError where it has died

    def epoch(self) -> None:
        """An epoch of every trial."""
        for pipe in self.pipes:
            pipe.send(None)
        for pipe in self.pipes:
            pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join()


def _work(pipe: Connection, experiment: Experiment, materials: Materials, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    trial = Bench(materials, device).start(experiment, seed=0)
    next(trial.records)  # memory is allocated, kernels are chosen
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        next(trial.records)
        pipe.send(None)
