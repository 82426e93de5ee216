"""The model card, and what a run exports: numbers worked out by hand, and the Hub's own parser."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import yaml
from huggingface_hub import ModelCard
from torch import nn

import kdtune
from kdtune.data import Dataset
from kdtune.errors import ExportError
from kdtune.experiment import Experiment, parse
from kdtune.export import card, export_run, run_card
from kdtune.export.card import Files
from tests.conftest import MakeExperiment
from tests.test_export import a_student, logits_of


def hub(text: str) -> Any:  # its types leave out what a header may hold
    """A card's header as the Hub's own parser reads it, which raises where a model-index is not well formed."""
    return ModelCard(text).data


@pytest.fixture
def network() -> nn.Module:
    return a_student()


ORIGIN: Mapping[str, Any] = {
    "experiment": "tiny", "dataset": "d" * 64, "teachers": {"teacher": "a" * 64, "small": "b" * 64},
    "seed": 1, "seeds": [1, 2],
}  # fmt: skip
PLAIN: Files = {
    "student.safetensors": {"format": "safetensors", "precision": "float32", "bytes": 1900, "difference": 0.0}
}
COST = {
    "split": "validation",
    "trained_on": True,
    "images": 269,
    "accuracy_float32": 0.95,
    "accuracy": 0.94,
    "agreement": 0.98,
}
WITH_ONNX: Files = {
    "student.safetensors": {**PLAIN["student.safetensors"], "latency_ms": 0.2},
    "student.onnx": {"format": "onnx", "precision": "float32", "bytes": 3769, "difference": 5.7e-6, "latency_ms": 0.05},
    "student.int8.onnx": {
        "format": "onnx", "precision": "int8", "bytes": 1234, "difference": 0.42, "latency_ms": 0.125, "cost": COST,
    },
}  # fmt: skip


SUMMARY: Mapping[str, Any] = {
    "search": {"trials": 8, "epochs_run": 30, "epochs_full": 40, "seconds": 12.5, "stopped_early": 3},
    "best": {"config": {"distill.alpha.start": 0.75}, "val_accuracy": 0.9125},
    "results": [
        {
            "name": "teacher",
            "model": "cnn-8",
            "test_accuracy": [0.97],
            "mean": 0.97,
            "std": None,
            "parameters": 12345,
            "size_mb": 0.05,
            "latency_ms": 0.25,
        },
        {
            "name": "best",
            "model": "cnn-8",
            "test_accuracy": [0.9375, 0.9475],
            "mean": 0.9425,
            "std": 0.0088,
            "parameters": 190,
            "size_mb": 0.05,
            "latency_ms": 0.1,
        },
    ],
}


def test_the_cards_header_is_yaml_and_holds_the_accuracy_of_the_exported_weights(
    experiment: Experiment, digits: Dataset
) -> None:
    text = run_card(experiment, digits, SUMMARY, PLAIN, ORIGIN)
    assert text.startswith("---\n")
    _, header, body = text.split("---\n", 2)
    meta = yaml.safe_load(header)
    assert meta["library_name"] == "kdtune"
    assert meta["pipeline_tag"] == "image-classification"
    ((result,),) = [model["results"] for model in meta["model-index"]]
    assert result["dataset"]["name"] == "digits"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9375}]  # of the first seed: its weights are here
    assert "kdtune.load_student" in body
    assert "| teacher | cnn-8 | 0.9700 | 1 | 12,345 | 0.05 | 0.25 |" in body
    assert "| best | cnn-8 | 0.9425 ± 0.0088 | 2 | 190 | 0.05 | 0.10 |" in body
    assert "`distill.alpha.start`: 0.75" in body


def test_the_hub_reads_the_header_as_it_is_meant(make_experiment: MakeExperiment, digits: Dataset) -> None:
    data = hub(run_card(make_experiment({"name": "first"}), digits, SUMMARY, WITH_ONNX, ORIGIN))
    assert (data.library_name, data.pipeline_tag) == ("kdtune", "image-classification")
    assert data.model_name == "first"
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_split) == ("image-classification", "digits", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9375)


def test_published_data_sets_have_their_names_on_the_hub_and_folders_that_of_their_folder(
    make_experiment: MakeExperiment, digits: Dataset, tmp_path: Path
) -> None:
    cifar = make_experiment({"data.dataset": "cifar10", "data.root": "data", "data.augment": "none"})
    text = run_card(cifar, replace(digits, name="cifar10"), SUMMARY, PLAIN, ORIGIN)
    assert hub(text).datasets == ["uoft-cs/cifar10"]
    assert hub(text).eval_results[0].dataset_type == "uoft-cs/cifar10"
    flowers = {"data.dataset": "folder", "data.root": str(tmp_path / "flowers"), "data.image_size": 8}
    data = hub(run_card(make_experiment(flowers), replace(digits, name="folder"), SUMMARY, PLAIN, ORIGIN))
    assert data.eval_results[0].dataset_name == "flowers"
    assert "datasets" not in data.to_dict()


def test_the_card_says_where_the_weights_come_from(experiment: Experiment, digits: Dataset) -> None:
    text = run_card(experiment, digits, SUMMARY, PLAIN, ORIGIN)
    for fact in (f"data set: `{'d' * 64}`", f"teacher: `{'a' * 64}`", f"teacher small: `{'b' * 64}`"):
        assert f"- {fact}\n" in text
    assert "- seed of these weights: 1\n- seeds of the results: 1, 2\n" in text


def test_the_card_says_the_verdict_where_the_summary_has_one(experiment: Experiment, digits: Dataset) -> None:
    text = run_card(experiment, digits, {**SUMMARY, "verdict": "A clear gain."}, PLAIN, ORIGIN)
    assert "## Results\n\nA clear gain.\n\nTest accuracy" in text


def test_the_card_has_each_file_with_what_was_measured_and_how_to_use_it(
    experiment: Experiment, digits: Dataset
) -> None:
    text = run_card(experiment, digits, SUMMARY, WITH_ONNX, ORIGIN)
    assert "| student.onnx | float32 | 3,769 | 5.7e-06 | 0.05 |" in text
    assert "| student.int8.onnx | int8 | 1,234 | 4.2e-01 | 0.12 |" in text
    assert "- student.int8.onnx: accuracy 94.00% instead of 95.00%, the same answer for 98.00%" in text
    assert "on which these weights were trained as well" in text
    assert 'onnxruntime.InferenceSession("student.onnx")' in text
    assert "torch.jit" not in text


def test_a_card_of_safetensors_alone_says_nothing_of_other_formats(experiment: Experiment, digits: Dataset) -> None:
    text = run_card(experiment, digits, SUMMARY, PLAIN, ORIGIN)
    assert "| student.safetensors | float32 | 1,900 | 0.0e+00 | see the results |" in text
    assert not any(word in text for word in ("onnx", "fewer bits", "8-bit"))


def test_a_bar_in_the_name_of_a_row_does_not_end_its_cell(experiment: Experiment, digits: Dataset) -> None:
    rows = [*SUMMARY["results"], {**SUMMARY["results"][0], "name": "T=4|a"}]
    assert "| T=4\\|a | cnn-8 |" in run_card(experiment, digits, {**SUMMARY, "results": rows}, PLAIN, ORIGIN)


def test_the_experiment_in_the_card_can_be_run_again(experiment: Experiment, digits: Dataset) -> None:
    text = run_card(experiment, digits, SUMMARY, PLAIN, ORIGIN)
    assert parse(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])) == experiment


def test_a_card_without_an_accuracy_claims_none(experiment: Experiment, digits: Dataset) -> None:
    meta = yaml.safe_load(card(experiment, digits, PLAIN, body="").split("---\n")[1])
    assert "model-index" not in meta


def test_a_run_exports_the_weights_of_its_final_stage(
    experiment: Experiment, digits: Dataset, network: nn.Module, tmp_path: Path
) -> None:
    run = a_run(tmp_path / "run", network)
    files = export_run(run, tmp_path / "out", experiment, digits, SUMMARY)
    assert (kdtune.load_student(tmp_path / "out")(digits.test.images) - logits_of(network, digits)).abs().max() <= 1e-6
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    seeds = list(range(1, 1 + experiment.final.seeds))
    origin = {**ORIGIN, "teachers": {"teacher": "a" * 64}, "seeds": seeds}
    assert config["provenance"] == origin
    assert (tmp_path / "out" / "README.md").read_text() == run_card(experiment, digits, SUMMARY, files, origin)


def a_run(folder: Path, network: nn.Module) -> Path:
    """What an export reads of a run."""
    (folder / "final").mkdir(parents=True)
    safetensors.torch.save_file(network.state_dict(), folder / "final" / "best.safetensors")
    (folder / "materials.json").write_text(
        json.dumps({"dataset": "d" * 64, "mean": [0.3], "teacher teacher": "a" * 64})
    )
    return folder


def test_a_run_without_a_winner_exports_nothing(experiment: Experiment, digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no trained winner yet.*kdtune search"):
        export_run(tmp_path, tmp_path / "out", experiment, digits, SUMMARY)
    assert not (tmp_path / "out").exists()
