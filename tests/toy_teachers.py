"""What the tests of exactness share: pictures in a folder, teachers that nobody trained, and who was asked what.

`begun(experiment, dataset, folder)` gives materials whose caches have no column yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kdtune.data import Dataset
from kdtune.experiment import Experiment
from kdtune.models import build_model
from kdtune.models.mlp import MLP
from kdtune.teacher import Teacher, keep
from kdtune.trial import Materials, begin_caches, place_of
from tests.conftest import CPU

SIDE = 8
PICTURES = 48


def write_pictures(root: Path) -> Path:
    """A folder data set of three classes, of several sizes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", PICTURES), ("test", 6)):
        for number in range(count):
            path = root / part / ("ant", "bee", "cat")[number % 3] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (9 + number % 7, 10 + number % 5, 3)
            Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8)).save(path)
    return root


class Imprint(nn.Module):
    """64ths below 16 made of every bit of an image: float16 holds them, and no batch changes a whole sum."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        numbers = torch.randint(1, 1 << 30, (channels * height * width, classes), generator=generator(5))
        self.register_buffer("numbers", numbers.double())  # whole: kept as a network's weights are

    def forward(self, images: Tensor) -> Tensor:
        numbers = self.get_buffer("numbers").long()  # [C * H * W, K]
        bits = images.contiguous().view(torch.int32).flatten(1).long()  # [B, C * H * W]
        mixed = (bits[:, :, None] * numbers).sum(dim=1)  # [B, K], wraps around
        return ((mixed >> 20) & 1023).float() / 64


def mlp(image_shape: tuple[int, int, int], classes: int, *, dropout: float = 0.0) -> nn.Module:
    """One narrow hidden layer: `tests.toy_teachers:mlp`."""
    return MLP((24,), image_shape, classes, dropout=dropout)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def untrained(experiment: Experiment, dataset: Dataset, folder: Path, seed: int = 1) -> Teacher:
    """A kept teacher whose BatchNorm has seen images and whose logits are some units apart, as a trained one's."""
    section = experiment.own_teacher
    assert section.model is not None
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = build_model(section.model, dataset.shape, len(dataset.classes), section.options)
    if not isinstance(network, Imprint):
        network.train()(torch.randn(64, *dataset.shape))
        *_, weight, _ = network.parameters()
        with torch.no_grad():
            weight.mul_(3 / network.eval()(torch.randn(64, *dataset.shape)).std())
    return keep(network, section.model, section.options, dataset, folder, depth=1)


def begun(experiment: Experiment, dataset: Dataset, folder: Path) -> Materials:
    """Materials of an untrained teacher; its cache lies in the experiment's storage."""
    teachers = {experiment.teacher_name: untrained(experiment, dataset, folder)}
    return with_caches(experiment, dataset, teachers)


def with_caches(experiment: Experiment, dataset: Dataset, teachers: dict[str, Teacher]) -> Materials:
    caches = begin_caches(experiment, teachers, dataset, CPU)
    places = {name: place_of(experiment, cache.manifest.identity) for name, cache in caches.items()}
    return Materials(dataset, teachers, places, max(cache.views for cache in caches.values()))


@contextmanager
def questions() -> Iterator[list[Tensor]]:
    """The images [B, C, H, W] of every forward of any teacher that is loaded meanwhile."""
    asked: list[Tensor] = []
    load = Teacher.load

    def watched(teacher: Teacher, device: torch.device) -> nn.Module:
        network = load(teacher, device)
        network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "load", watched)
        yield asked


def same(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, BatchNorm's statistics included."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
