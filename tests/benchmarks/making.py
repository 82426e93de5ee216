"""What benchmarks of training are made of: an experiment, random images, a teacher with random weights, a bench.

None of this changes how long anything takes. Images are of CIFAR-100's shape unless said otherwise.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtune.cache import LogitCache
from kdtune.data import Batch, Dataset, Images
from kdtune.distill import Live, logit_student
from kdtune.experiment import Experiment, parse
from kdtune.models import Tapped, build_model
from kdtune.teacher import Teacher, keep
from kdtune.trial import Bench, Materials, Trial
from kdtune.trial.caches import begin_caches, place_of

STUDENT, TEACHERS = "resnet20", ("resnet56", "resnet110")
CLASSES, SHAPE, BATCH = 100, (3, 32, 32), 128
VIEWS = 2


def experiment_in(folder: Path, epochs: int, *, student: str = STUDENT, **more: Any) -> Experiment:
    """One that keeps its things in `folder`; `more` are its further sections."""
    return parse(
        {
            "name": "benchmark",
            "data": {"dataset": "cifar100", "root": "none", "augment": "crop-flip", "views": VIEWS},
            "teacher": {"model": TEACHERS[0]},
            "student": {"model": student},
            "train": {"epochs": epochs, "batch_size": BATCH, "learning_rate": 0.01},  # labels are random
            "storage": str(folder),
            **more,
        }
    )


def random_images(
    count: int, shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, validation: int = 0
) -> Dataset:
    """As many images to train on as asked for, on the CPU, and so many for validation.

    Where none are for validation, the first ones stand for them; they are the test images too.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count + validation, *shape), generator=generator, dtype=torch.uint8)
    labels, few = torch.arange(len(images)) % classes, torch.arange(BATCH)
    return Dataset(
        name="cifar100",
        classes=tuple(map(str, range(classes))),
        images=images,
        labels=labels,
        given=labels,
        test=Images(images[:BATCH], labels[:BATCH]),
        fit=torch.arange(count),
        validation=torch.arange(count, len(images)) if validation else few,
        mean=(0.5,) * shape[0],
        std=(0.29,) * shape[0],
        fingerprint=hashlib.sha256(images.numpy().tobytes()).hexdigest(),
    )


def untrained(name: str, dataset: Dataset, folder: Path) -> Teacher:
    """A kept teacher: random weights, and BatchNorm's statistics of a batch, without which logits grow out of range."""
    torch.manual_seed(1)
    network = build_model(name, dataset.shape, len(dataset.classes)).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the average of what it has seen
    with torch.no_grad():
        network(next(normalised(dataset, BATCH)).images)
    folder.mkdir(parents=True)
    return keep(network.eval(), name, {}, dataset, folder, depth=0)


def bench_of(experiment: Experiment, dataset: Dataset, teacher: Teacher, device: torch.device) -> Bench:
    """With a cache that has every column."""
    cache: LogitCache = begin_caches(experiment, {"teacher": teacher}, dataset.to(device), device)["teacher"]
    for view in range(VIEWS):
        cache.ensure(view)
    places = {"teacher": place_of(experiment, cache.manifest.identity)}
    return Bench(Materials(dataset, {"teacher": teacher}, places, VIEWS), device)


def live_trial(experiment: Experiment, bench: Bench, network: nn.Module) -> Trial:
    """The cached trial, with the teacher itself as the source of the same logits."""
    student = logit_student(experiment, bench.dataset, Live(Tapped(network, ())), 0, bench.device)
    return Trial(student, experiment, bench.dataset, seed=0, whole=True)


def normalised(dataset: Dataset, size: int) -> Iterator[Batch]:
    """Whole batches of plain images."""
    for indices in torch.split(torch.arange(len(dataset.labels), device=dataset.labels.device), size):
        yield Batch(dataset.normalise(dataset.pixels[indices]), dataset.labels[indices], indices, 0)


def interleaved(
    acts: Mapping[str, Callable[[], object]], clock: Callable[[Callable[[], object]], float], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each, a round after the other, after one that does not count; each round begins with another one."""
    spent: dict[str, list[float]] = {name: [] for name in acts}
    names = list(acts)
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = clock(acts[name])
            if turn:
                spent[name].append(seconds)
    return spent
