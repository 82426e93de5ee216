"""The doctor finds what is broken on purpose, and nothing in what is sound."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from kdtune.cli import app
from kdtune.data import Dataset
from kdtune.experiment import dump
from kdtune.models import build_model, count_parameters
from kdtune.trial import Materials, doctor, forecast
from kdtune.trial.doctor import Check, examine, memory, networks, of_teacher, packages
from tests.conftest import CPU, MakeExperiment


@pytest.fixture(scope="module")
def teacher(digits: Dataset) -> nn.Module:
    """One hidden layer that knows digits: 30 steps over all images at once."""
    torch.manual_seed(0)
    network = build_model("mlp-800-800", digits.shape, len(digits.classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    images, labels = digits.normalise(digits.pixels[digits.fit]), digits.labels[digits.fit]
    loss = nn.CrossEntropyLoss()
    for _ in range(30):
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(images), labels))
        optimizer.step()
    return network.eval()


def checks(network: nn.Module, dataset: Dataset) -> Mapping[str, Check]:
    return {check.name.strip(): check for check in of_teacher("teacher", network, dataset)}


def outcomes(found: Mapping[str, Check]) -> dict[str, str]:
    return {name: check.outcome for name, check in found.items()}


def with_rows(network: nn.Module, order: list[int]) -> nn.Module:
    """The same network, whose output k is what its output `order[k]` was."""

    class Reordered(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network(images)
            return logits[:, order]

    return Reordered()


def test_a_sound_teacher_has_no_problem_and_its_accuracy_is_that_on_validation_images(
    teacher: nn.Module, digits: Dataset
) -> None:
    found = checks(teacher, digits)
    assert set(outcomes(found).values()) == {"ok"}
    validation = digits.validation
    right = teacher(digits.normalise(digits.pixels[validation])).argmax(1) == digits.labels[validation]
    assert f"{right.double().mean().item():.2%} of {len(validation)} validation images" in found["teacher"].found
    assert "chance is 10.00%" in found["teacher"].found


def test_another_normalisation_than_the_teachers_is_found_and_named(teacher: nn.Module, digits: Dataset) -> None:
    data = digits
    raw = with_normalisation(teacher, data)  # wants pixels from 0 to 1
    found = checks(raw, replace(data, mean=(0.9,), std=(0.05,)))
    assert found["normalisation"].outcome == "problem"
    assert "pixels from 0 to 1 (mean 0, std 1)" in found["normalisation"].found
    assert found["class order"].outcome == "ok"


def with_normalisation(network: nn.Module, data: Dataset) -> nn.Module:
    """The network as it is fed by others: with pixels in 0..1, which it normalises itself."""

    class Normalising(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network((images - data.mean[0]) / data.std[0])
            return logits

    return Normalising()


def test_channels_the_other_way_round_are_found() -> None:
    class Reddest(nn.Module):
        """Right where blue comes first: class 1 if the first channel is the brighter one."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = images.mean(dim=(2, 3))
            return torch.stack([bright[:, 2], bright[:, 0]], dim=1)

    labels = torch.arange(64) % 2
    images = torch.zeros(64, 3, 4, 4, dtype=torch.uint8)
    images[labels == 0, 0] = 200
    images[labels == 1, 2] = 200
    numbers = torch.arange(64)
    data = Dataset(
        name="folder", classes=("red", "blue"), images=images, labels=labels, given=labels, test=None,  # type: ignore[arg-type]  # which no check may read
        fit=numbers, validation=numbers, mean=(0.4, 0.0, 0.4), std=(0.3, 0.3, 0.3), fingerprint="",
    )  # fmt: skip
    found = checks(Reddest(), data)
    assert found["normalisation"].outcome == "problem"
    assert "blue, green, red" in found["normalisation"].found


def test_classes_in_another_order_are_found_and_the_order_is_told(teacher: nn.Module, digits: Dataset) -> None:
    order = [1, 0, *range(2, 8), 9, 8]
    found = checks(with_rows(teacher, order), digits)
    assert outcomes(found) == {"teacher": "ok", "normalisation": "ok", "class order": "problem"}
    assert "0 is 1, 1 is 0, 8 is 9, 9 is 8" in found["class order"].found
    turned = checks(with_rows(teacher, [*range(1, 10), 0]), digits)
    assert outcomes(turned)["teacher"] == "problem"  # no better than chance
    assert outcomes(turned)["class order"] == "problem"


def test_a_teacher_that_knows_nothing_is_one_problem_and_not_three(toy: Dataset, materials: Materials) -> None:
    data = materials.dataset
    torch.manual_seed(0)
    blind = build_model("cnn-8", data.shape, len(data.classes)).eval()
    with torch.no_grad():
        for parameter in blind.parameters():
            parameter.zero_()
    assert outcomes(checks(blind, data)) == {"teacher": "problem", "normalisation": "ok", "class order": "ok"}


def test_what_is_not_installed_is_told_with_what_to_install(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages(make_experiment()).outcome == "ok"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = packages(make_experiment({"tracking": ["mlflow"], "student.model": "timm:resnet18"}))
    assert found.outcome == "problem"
    assert found.advice == "pip install mlflow-skinny timm"


def test_networks_that_do_not_fit_end_the_examination(make_experiment: MakeExperiment, materials: Materials) -> None:
    experiment = make_experiment({"student.model": "tests.toy_teachers:no_such_model"})
    assert networks(experiment, materials.dataset).outcome == "problem"
    assert [check.name for check in examine(experiment, materials.dataset, CPU)] == ["packages", "networks"]


def test_memory_without_a_gpu_is_an_estimate_of_weights_and_of_what_a_step_keeps(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = make_experiment({"student.model": "mlp-800-800", "train.batch_size": 64})
    network = build_model("mlp-800-800", materials.dataset.shape, 10)
    linear = 64 * 4 * (800 + 800 + 10)
    at_least = 4 * 4 * count_parameters(network) + linear  # AdamW: weights, gradients, two moments
    found = memory(experiment, materials.dataset, CPU)
    assert "estimated" in found.found
    told = float(found.found.split("about ")[1].split(" MiB")[0])
    assert at_least / 2**20 - 0.05 <= told <= 1.2 * at_least / 2**20  # activations after each layer besides


def test_a_student_that_does_not_fit_on_a_gpu_is_a_problem_and_ends_nothing(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(doctor, "_step_bytes", full)
    monkeypatch.setattr(forecast, "measure", full)
    found = outcomes({check.name: check for check in examine(make_experiment(), materials.dataset, CPU)})
    assert found["GPU memory"] == found["cache and time"] == "problem"


def test_what_was_taken_to_measure_a_step_counts_as_free(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 of 16 GiB are kept by torch's allocator after the step that needed them."""
    kept = [9 << 30]
    monkeypatch.setattr(doctor, "_step_bytes", lambda *given: float(9 << 30))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((16 << 30) - sum(kept), 16 << 30))
    found = memory(make_experiment(), materials.dataset, torch.device("cuda"))
    assert found.outcome == "ok", found


@pytest.mark.slow
def test_the_command_exits_2_where_a_checkpoint_was_trained_with_another_class_order(
    make_experiment: MakeExperiment, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    *_, last = [name for name, tensor in weights.items() if tensor.shape[:1] == (10,)]
    head = last.rpartition(".")[0]
    order = torch.tensor([1, 0, *range(2, 10)])
    for name in (f"{head}.weight", f"{head}.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, tmp_path / "t.safetensors")
    experiment = make_experiment(
        {"teacher": {"model": "mlp-800-800", "weights": str(tmp_path / "t.safetensors")}, "search.trials": 0}
    )
    (tmp_path / "e.yaml").write_text(dump(experiment))
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "e.yaml")])
    assert done.exit_code == 2, done.output
    assert "class order" in done.output
    assert "problem" in done.output
    save_file({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, tmp_path / "t.safetensors")
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "e.yaml")])
    assert done.exit_code == 0, done.output
    for name in ("packages", "networks", "teacher", "normalisation", "GPU memory", "cache", "disk", "time"):
        assert name in done.output
    assert not (tmp_path / "runs").exists()  # nothing is kept
