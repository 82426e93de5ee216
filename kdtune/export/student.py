"""The export: a folder with which anybody can use the student, without the search that found it.

    student/
      student.safetensors    the student alone: no projectors, no wrapper prefixes
      config.json            architecture, classes, image size, normalisation, fingerprint
      README.md              model card

    student = kdtune.load_student("runs/digits/student")
    logits = student(images)      # uint8 [B, C, H, W], or floats in 0..1

An export counts only after it has been read back and given the same outputs as the student on real images.
"""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from kdtune.data import Dataset, affine, read
from kdtune.errors import ExportError, KdtuneError
from kdtune.experiment import Experiment, dump
from kdtune.models import count_parameters, rebuild_model
from kdtune.records import BEST, DISTILLED, write_bytes, write_text
from kdtune.teacher import fingerprint, weights_of

FORMAT = 2
CONFIG_KEYS = ("format", "model", "options", "fingerprint", "image_shape", "classes", "mean", "std")
CHECKED_IMAGES = 256
TOLERANCE = 1e-6
BAR = r"\|"  # a bar in a cell of a Markdown table


class ExportedStudent(nn.Module):
    """A student with its preprocessing: takes images as they are decoded, gives logits [B, classes].

    `network` is the bare student, `classes` the names of its outputs.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.network = network
        self.classes = tuple(classes)
        self.image_shape = image_shape
        scale, shift = affine(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits for uint8 images [B, C, H, W], or float images in 0..1."""
        scaled = images.to(torch.float32) if images.dtype == torch.uint8 else images * 255
        logits: Tensor = self.network(torch.addcmul(self.shift, scaled, self.scale))
        return logits


def load_student(path: str | Path, *, allow_code: bool = False) -> ExportedStudent:
    """The student of an export folder, in eval mode on the CPU. Raises ExportError where it is damaged.

    A model that is a function of somebody's module (`module:function`) is called only with `allow_code`.
    """
    folder = Path(path)
    for name in ("config.json", "student.safetensors"):
        if not (folder / name).is_file():
            raise ExportError(f"{folder} is no export: {folder / name} is missing")
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = safetensors.torch.load_file(folder / "student.safetensors")
    except (ValueError, SafetensorError) as error:
        raise ExportError(f"{folder} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{folder} is damaged: config.json is no mapping")
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise ExportError(f"{folder} is no export: config.json has no {', '.join(missing)}")
    if config["format"] != FORMAT:
        raise ExportError(f"{folder} is of format {config['format']}; this version reads format {FORMAT}")
    if ":" in config["model"] and not config["model"].startswith("timm:") and not allow_code:
        raise ExportError(
            f"{folder}: its model is code of its own, {config['model']}; if you trust it, load with allow_code=True"
        )
    if fingerprint(config["model"], weights, config["options"]) != config["fingerprint"]:
        raise ExportError(f"{folder}: student.safetensors is not the file that config.json describes (fingerprint)")
    try:
        channels, height, width = config["image_shape"]
        if not len(config["mean"]) == len(config["std"]) == channels:
            raise ValueError(f"mean and std are not of {channels} channels")
        network = rebuild_model(config["model"], (channels, height, width), len(config["classes"]), config["options"])
        network.load_state_dict(weights)
        shape = (channels, height, width)
        student = ExportedStudent(network, config["classes"], shape, config["mean"], config["std"])
    except (TypeError, ValueError, RuntimeError, KdtuneError) as error:
        raise ExportError(f"{folder} is damaged: config.json and student.safetensors do not fit: {error}") from error
    return student.eval().requires_grad_(requires_grad=False)


def export_student(folder: Path, network: nn.Module, experiment: Experiment, dataset: Dataset, card: str) -> float:
    """Writes `folder`, whole or not at all, after reading it back; gives the largest difference of outputs.

    Raises ExportError where the export does not reproduce the student on images of the data set.
    """
    weights = weights_of(network)
    config = {
        "format": FORMAT,
        "model": experiment.student.model,
        "options": experiment.student.options,
        "classes": list(dataset.classes),
        "image_shape": list(dataset.shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "parameters": count_parameters(network),
        "fingerprint": fingerprint(experiment.student.model, weights, experiment.student.options),
        "kdtune": version("kdtune"),
    }
    if folder.exists() and any(folder.iterdir()) and not _is_export(folder):
        raise ExportError(f"{folder} exists and is no export of kdtune; choose another folder")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_bytes(part / "student.safetensors", safetensors.torch.save(weights))
    write_text(part / "README.md", card)
    write_text(part / "config.json", json.dumps(config, indent=2))
    # on the CPU: another device rounds differently, which is not the export's doing
    difference = _largest_difference(load_student(part, allow_code=True), copy.deepcopy(network).cpu().eval(), dataset)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the export differs from the student by {difference:.2e}, more than {TOLERANCE:.0e}; it was left in {part}"
        )
    _take_the_place_of(folder, part)
    return difference


def _is_export(folder: Path) -> bool:
    try:
        return "kdtune" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _take_the_place_of(folder: Path, new: Path) -> None:
    """Renames `new` to `folder`; what was there goes only when that has worked."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if replaced:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@torch.inference_mode()
def _largest_difference(student: ExportedStudent, network: nn.Module, dataset: Dataset) -> float:
    """Largest difference of logits over real training images."""
    chosen = torch.arange(min(len(dataset.labels), CHECKED_IMAGES), device=dataset.labels.device)
    images = torch.cat(list(read(dataset.images, [chosen])))
    theirs = network(dataset.normalise(images).cpu())
    difference: Tensor = (student(images.cpu()) - theirs).abs().max()
    return difference.item()


def export_run(run: Path, to: Path, experiment: Experiment, dataset: Dataset, summary: Mapping[str, Any]) -> float:
    """Exports the winner of a run, its first seed of the final stage. Raises ExportError before that has run."""
    try:
        weights = safetensors.torch.load_file(run / "final" / "best.safetensors")
    except FileNotFoundError:
        raise ExportError(f"{run} has no trained winner yet; the same `kdtune search` takes it up again") from None
    student = experiment.student
    network = rebuild_model(student.model, dataset.shape, len(dataset.classes), student.options)
    network.load_state_dict(weights)
    return export_student(to, network.eval(), experiment, dataset, run_card(experiment, dataset, summary))


def run_card(experiment: Experiment, dataset: Dataset, summary: Mapping[str, Any]) -> str:
    """Model card of a search's winner: what it is, how to use it, what it was compared with."""
    rows = "\n".join(_table_row(row) for row in summary["results"])
    best = next(row for row in summary["results"] if row["name"] in (BEST, DISTILLED))
    return card(
        experiment,
        dataset,
        accuracy=best["test_accuracy"][0],
        body=f"""
## Results

Test accuracy, mean ± standard deviation over seeds; the test set was read once. The weights here are the first
seed's, whose test accuracy is {best["test_accuracy"][0]:.4f}.

| | model | accuracy | runs | parameters | size (MB) | latency (ms, one image) |
|---|---|---|---|---|---|---|
{rows}

{_what_was_found(summary)}""",
    )


def _what_was_found(summary: Mapping[str, Any]) -> str:
    search, best = summary["search"], summary["best"]
    if not search["trials"]:
        return "Nothing was searched: the configuration is the one that the experiment below says.\n"
    found = "\n".join(f"- `{path}`: {value}" for path, value in best["config"].items())
    return f"""## What the search found

{found}

{search["trials"]} trials, {search["epochs_run"]} of {search["epochs_full"]} epochs run, validation accuracy of the
winner {best["val_accuracy"]:.4f}.
"""


def _table_row(row: Mapping[str, Any]) -> str:
    spread = "" if row["std"] is None else f" ± {row['std']:.4f}"
    return (
        f"| {row['name'].replace('|', BAR)} | {row['model']} | {row['mean']:.4f}{spread} | {len(row['test_accuracy'])} "
        f"| {row['parameters']:,} | {row['size_mb']:.4g} | {row['latency_ms']:.2f} |"
    )


def card(experiment: Experiment, dataset: Dataset, body: str, accuracy: float | None = None) -> str:
    """A model card with the Hub's YAML header."""
    header: dict[str, Any] = {
        "library_name": "kdtune",
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", "kdtune"],
    }
    if accuracy is not None:
        header["model-index"] = [
            {
                "name": experiment.name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": dataset.name, "type": dataset.name, "split": "test"},
                        "metrics": [{"type": "accuracy", "value": round(accuracy, 6)}],
                    }
                ],
            }
        ]
    channels, height, width = dataset.shape
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {experiment.name}: {experiment.student.model} taught by {experiment.own_teacher.named}

A {experiment.student.model} for {len(dataset.classes)} classes and images of {width} x {height} pixels with {channels}
channel(s), trained on {dataset.name} by knowledge distillation with [kdtune](https://pypi.org/project/kdtune).

```python
import kdtune
student = kdtune.load_student("path/to/this/folder")
logits = student(images)                 # uint8 [B, {channels}, {height}, {width}], or floats in 0..1
names = [student.classes[k] for k in logits.argmax(1)]
```
{body}
## Experiment

```yaml
{dump(experiment).strip()}
```
"""
