"""Waiting for a condition instead of for a time."""

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], seconds: float, otherwise: Callable[[], str]) -> float:
    """Asks five times a second; how many seconds it took. AssertionError saying `otherwise` when it takes longer."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"{otherwise()}\n(waited {seconds:.0f} s)"
        time.sleep(0.2)
    return time.monotonic() - began
