"""What a trial's process can tell of its node: that it is about to be taken away, or that something on it fails.

SHOULD_CHECKPOINT: due or draining()
with held_back(): ...                     # around what may meet a full disk or a storage that is out of reach
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray._private.state import state

from kdtune.errors import CacheError, DataError, StorageError, WorkersLostError

LOOK_EVERY_S = 1.0
HOLD_S = 20.0
# What fails on one node and may do on another; a process whose GPU has failed is of no use any more.
OF_A_MACHINE = (torch.AcceleratorError, OSError, CacheError, DataError, StorageError, WorkersLostError)

_seen: tuple[float, frozenset[str]] = (float("-inf"), frozenset())


def draining(*nodes: str) -> bool:
    """Whether one of `nodes` (ids as hex), or this process's own, has notice: of a spot market, or to be scaled down.

    The cluster is asked once in LOOK_EVERY_S at most, so that this may be called as often as one likes.
    """
    global _seen
    if time.monotonic() - _seen[0] > LOOK_EVERY_S:
        # Ray has no public way; Ray Train's own preemption watcher asks like this
        _seen = (time.monotonic(), frozenset(state.get_draining_nodes()))
    return not _seen[1].isdisjoint(nodes or (ray.get_runtime_context().get_node_id(),))


@contextmanager
def held_back() -> Iterator[None]:
    """Errors that a machine can have leave only after HOLD_S, where there are other machines.

    A node with a full disk would otherwise take up one trial after the other, and fail them all while healthy nodes are
    busy; and a storage that is out of reach would see all retries at once.
    """
    try:
        yield
    except OF_A_MACHINE:
        nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
        if sum(node["Alive"] for node in nodes) > 1:
            time.sleep(HOLD_S)
        raise
