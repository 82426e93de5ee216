"""What the benchmarks of the cache share: a clock that other people's work does not move, and rows of a table."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Clock:
    """Seconds that something takes on a device.

    On a GPU, of the wall, the device idle before and after. On a CPU, those that this process computed, on one core as
    a trial has it: what else runs on the machine does not count, and what waits for a disk neither.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cpu":
            torch.set_num_threads(1)

    def __call__(self, act: Callable[[], object]) -> float:
        self._settle()
        now = time.process_time if self.device.type == "cpu" else time.perf_counter
        began = now()
        act()
        self._settle()
        return now() - began

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def row(what: str, values: Sequence[float], unit: str, target: str = "") -> dict[str, Any]:
    """One line of the table: median and range."""
    return {
        "what": what,
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "unit": unit,
        "target": target,
    }
