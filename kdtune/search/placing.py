"""How trials fit into a cluster: what is refused, and how many run at once.

slots = place(experiment.resources, [Node(cpus=8, gpus=1, count=4)])     # slots.concurrent trials fit at once
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdtune.errors import RunError
from kdtune.experiment import Resources

A_BYTE = 1.0


@dataclass(frozen=True)
class Node:
    """Machines that are alike: `count` of them, those that the cluster may still grow to included."""

    cpus: float
    gpus: float
    count: int = 1


@dataclass(frozen=True)
class Slots:
    """What each worker of a trial holds, how many workers a trial has, and how many trials fit at once."""

    cpus: float
    gpus: float
    concurrent: int
    workers: int = 1

    @property
    def request(self) -> dict[str, float]:
        """What Tune reserves for a trial. Ray Train reserves for several workers itself: a share of a CPU that the
        trial held beside them could be the one that they lack, and Tune refuses to reserve nothing at all."""
        return {"cpu": self.cpus, "gpu": self.gpus} if self.workers == 1 else {"cpu": 0, "memory": A_BYTE}

    @property
    def device(self) -> torch.device:
        """Asked for, not found: a trial without a GPU must not creep onto one that others have asked for."""
        return torch.device("cuda" if self.gpus else "cpu")

    @property
    def threads(self) -> int:
        """Threads for one worker's share of the cores: two trials on two cores must not fight over four."""
        return max(1, int(self.cpus))


def place(resources: Resources, nodes: Sequence[Node]) -> Slots:
    """How trials fit. Raises RunError where not even one does, saying what is asked and what there is."""
    found = any(node.gpus for node in nodes)
    gpus = resources.share_of_a_gpu if found or resources.gpus_per_worker != "auto" else 0.0
    workers = sum(node.count * _workers_on(node, resources.cpus_per_worker, gpus) for node in nodes)
    concurrent = workers // resources.workers_per_trial
    if not concurrent:
        asked = f"a trial asks for {resources.cpus_per_worker:g} CPUs and {gpus:g} GPUs"
        if resources.workers_per_trial > 1:
            asked = (
                f"a trial asks for {resources.workers_per_trial} workers of {resources.cpus_per_worker:g} CPUs and "
                f"{gpus:g} GPUs each, of which {workers} fit"
            )
        there = " and ".join(f"{node.count} x {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in nodes) or "nothing"
        raise RunError(
            f"{asked}; there is {there}. Lower resources.cpus_per_worker, resources.gpus_per_worker or "
            f"resources.workers_per_trial"
        )
    return Slots(resources.cpus_per_worker, gpus, concurrent, resources.workers_per_trial)


def _workers_on(node: Node, cpus: float, gpus: float) -> int:
    """Workers that fit on one machine; a worker's fraction of a GPU lies within one GPU."""
    fits = [int(node.cpus / cpus + 1e-9)]
    if gpus:
        fits.append(int(1 / gpus + 1e-9) * int(node.gpus))
    return min(fits)
