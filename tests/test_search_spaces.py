"""The experiment files that come along: each loads, says what it is, and fits its data set's images."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from kdtune.cli.options import default_file
from kdtune.data import Dataset
from kdtune.experiment import Experiment, load
from kdtune.experiment.chain import configurations, in_order
from kdtune.trial import check_networks, views_needed

FILES = sorted(default_file().parent.glob("*.yaml"))
SYSTEMS = ["L1", "L2", "H1", "H2", "A1", "A2", "A3", "A4", "I1", "I2", "M1", "M2", "M3", "M4", "M5", "M6", "O1"]
SHAPES = {"mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100),
          "imagenet": ((3, 224, 224), 1000), "digits": ((1, 8, 8), 10)}  # fmt: skip


def header_of(file: Path) -> str:
    lines = file.read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in lines[: next(k for k, x in enumerate(lines) if x[:1] != "#")])


def pretended(toy: Dataset, experiment: Experiment) -> Dataset:
    """A data set of the right shape and number of classes, without images."""
    shape, classes = SHAPES[experiment.data.dataset]
    names = tuple(map(str, range(classes)))
    return dataclasses.replace(toy, images=torch.zeros((1, *shape), dtype=torch.uint8), classes=names)


def test_every_system_has_a_file() -> None:
    found = {system for file in FILES for system in re.findall(r"\b([LHAIMO]\d)\b(?=[ :(])", header_of(file))}
    assert set(SYSTEMS) <= found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_it_costs_and_loads(file: Path) -> None:
    experiment = load(file)
    assert "Expected cost" in header_of(file)
    assert experiment.name.replace("-", "") in file.stem.replace("_", "") + "cifar"
    assert configurations(experiment)
    assert views_needed(experiment) >= 1
    if file.stem != "digits":
        assert "Source" in header_of(file) or "No row" in header_of(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_networks_of_a_file_fit_its_images_and_each_other(file: Path, toy: Dataset) -> None:
    experiment = load(file)
    check_networks(experiment, pretended(toy, experiment))
    assert in_order(experiment)


def test_a_file_says_the_same_under_every_name_that_the_readme_gives_it() -> None:
    listed = re.findall(r"`([a-z0-9_]+\.yaml)`", (default_file().parent / "README.md").read_text())
    assert set(listed) == {file.name for file in FILES}
