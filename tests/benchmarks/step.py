"""A whole epoch of kdtune against a bare loop of forward, backward and optimiser step on a batch that is at hand.

The epoch is a trial's own, distilled from a cache: order, augmentation, lookup, objective, schedules, logging and
validation on a ninth of as many images (a tenth of the training set) included. The floor trains the same network with
the same optimiser, precision and memory layout on one batch that lies on the device, as often. `epoch_over_floor` is
the worst of the networks. What validation must cost is measured beside it: the same floor with the bare answers to
the validation images added, a batch that is at hand too (`with_bare_validation`).
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.data import Dataset
from kdtune.experiment import Experiment
from kdtune.models import build_model
from kdtune.training import autocast, default_device, evaluation_batch, new_state, precision_of
from tests.benchmarks.making import BATCH, bench_of, experiment_in, interleaved, normalised, random_images, untrained
from tests.benchmarks.timing import Clock, row

Result = tuple[list[dict[str, Any]], dict[str, float]]
NETWORKS = {  # student -> teacher, shape of an image, training images on a CPU
    "resnet20": ("resnet8", (3, 32, 32), 512),
    "resnet18-cifar": ("resnet8", (3, 32, 32), 128),
    "mlp-800-800": ("mlp-800-800", (1, 28, 28), 8192),
}
CLASSES, TARGET = 10, 1.05
FASTER = 40  # a GPU takes so many times as many images


class Bare:
    """The floor: nothing but the steps of an epoch, and nothing but the answers to the validation images."""

    def __init__(self, experiment: Experiment, dataset: Dataset, device: torch.device) -> None:
        self.config = experiment.train
        self.device = device
        self.dtype = precision_of(self.config, device)
        network = build_model(str(experiment.student.model), dataset.shape, CLASSES)
        self.state = new_state(network, self.config, device)
        self.batch = next(normalised(dataset, BATCH))
        self.steps = len(dataset.fit) // BATCH
        self.chunks = [len(chunk) for chunk in torch.split(dataset.validation, evaluation_batch(dataset))]
        self.images = next(normalised(dataset, max(self.chunks))).images

    def train(self) -> None:
        network, optimizer, scaler = self.state.learner.train(), self.state.optimizer, self.state.scaler
        for _ in range(self.steps):
            with autocast(self.dtype, self.device):
                logits: Tensor = network(self.batch.images)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(logits.float(), self.batch.labels)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()

    @torch.inference_mode()
    def validate(self) -> None:
        network = self.state.learner.eval()
        for size in self.chunks:
            with autocast(self.dtype, self.device):
                network(self.images[:size])


def measure(repeats: int = 10, images: int | None = None) -> Result:
    """an epoch of kdtune, augmentation, cache, logging and validation included, against bare training steps"""
    device = default_device()
    clock = Clock(device)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for name, (teacher, shape, count) in NETWORKS.items():
        count = images or count * (FASTER if device.type == "cuda" else 1)
        with tempfile.TemporaryDirectory() as folder:
            spent = _spent(Path(folder), clock, name, teacher, shape, count // BATCH * BATCH, repeats)
        over = [epoch / bare for epoch, bare in zip(spent["epoch"], spent["steps"], strict=True)]
        both = [
            epoch / (steps + validation)
            for epoch, steps, validation in zip(spent["epoch"], spent["steps"], spent["validation"], strict=True)
        ]
        steps = count // BATCH
        rows += [
            row(f"{name}: {what}, a step", [1e3 * s / steps for s in times], "ms") for what, times in spent.items()
        ]
        rows.append(row(f"{name}: epoch / bare steps", over, "", f"<= {TARGET}"))
        rows.append(row(f"{name}: epoch / (bare steps + bare validation)", both, ""))
        ratios[f"epoch_over_floor_{name}"] = statistics.median(over)
        ratios[f"epoch_over_floor_with_bare_validation_{name}"] = statistics.median(both)
    ratios["epoch_over_floor"] = max(ratios[f"epoch_over_floor_{name}"] for name in NETWORKS)
    return rows, ratios


def _spent(
    folder: Path, clock: Clock, name: str, teacher: str, shape: tuple[int, int, int], count: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a trial's epochs, and of the floor's two parts, of a network on `count` images."""
    experiment = experiment_in(folder, repeats + 1, student=name, teacher={"model": teacher})
    dataset = random_images(count, shape, CLASSES, validation=count // 9)
    bench = bench_of(experiment, dataset, untrained(teacher, dataset, folder / "teacher"), clock.device)
    trial = bench.start(experiment, seed=0)
    bare = Bare(experiment, bench.dataset, clock.device)
    acts: dict[str, Callable[[], object]] = {
        "epoch": partial(next, trial.records),
        "steps": bare.train,
        "validation": bare.validate,
    }
    return interleaved(acts, clock, repeats)
