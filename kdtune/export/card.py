"""The model card: README.md of an export, with the YAML header that the Hugging Face Hub reads.

https://huggingface.co/docs/hub/model-cards and https://github.com/huggingface/hub-docs (modelcard.md, model-index).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdtune.data import Dataset
from kdtune.experiment import Experiment, dump
from kdtune.records import BEST, DISTILLED

BAR = r"\|"  # a bar in a cell of a Markdown table
HUB_IDS = {  # data sets by their names on the Hub
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
}
Files = dict[str, dict[str, Any]]  # by name: what config.json says of each file

USES = {
    "safetensors": """import kdtune
student = kdtune.load_student("{place}")
logits = student(images)                 # uint8 [B, {shape}], or floats in 0..1
names = [student.classes[k] for k in logits.argmax(1)]""",
    "pt2": """import torch
student = torch.export.load("{file}").module()
logits = student(images)                 # uint8 [B, {shape}]; torch is all it needs""",
    "onnx": """import onnxruntime
session = onnxruntime.InferenceSession("{file}")
(logits,) = session.run(None, {{"images": images}})      # NumPy uint8 [B, {shape}]""",
    "torchscript": """import torch
student = torch.jit.load("{file}")
logits = student(images)                 # uint8 [B, {shape}], or floats in 0..1; libtorch runs it as well""",
}


def run_card(
    experiment: Experiment,
    dataset: Dataset,
    summary: Mapping[str, Any],
    files: Files,
    provenance: Mapping[str, Any],
) -> str:
    """Model card of a search's winner: what it is, how to use it, what it was compared with."""
    rows = "\n".join(_table_row(row) for row in summary["results"])
    best = next(row for row in summary["results"] if row["name"] in (BEST, DISTILLED))
    verdict = f"\n{summary['verdict']}\n" if summary.get("verdict") else ""
    return card(
        experiment,
        dataset,
        files,
        accuracy=best["test_accuracy"][0],
        body=f"""
## Results
{verdict}
Test accuracy, mean ± standard deviation over seeds; the test set was read once. The weights here are the first
seed's, whose test accuracy is {best["test_accuracy"][0]:.4f}.

| | model | accuracy | runs | parameters | size (MB) | latency (ms, one image) |
|---|---|---|---|---|---|---|
{rows}

{_what_was_found(summary)}
{_origin(provenance)}""",
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    teachers = {
        f"teacher {name}".replace("teacher teacher", "teacher"): p for name, p in provenance["teachers"].items()
    }
    facts = [
        f"experiment: {provenance['experiment']} (below, as it was run)",
        *[f"data set: `{provenance['dataset']}`"] * bool(provenance["dataset"]),
        *[f"{name}: `{print_}`" for name, print_ in teachers.items()],
        f"seed of these weights: {provenance['seed']}",
        f"seeds of the results: {', '.join(map(str, provenance['seeds']))}",
    ]
    return "## Where it comes from\n\nFingerprints are SHA-256 of pixels and weights.\n\n" + _list(facts)


def _list(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


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


def card(experiment: Experiment, dataset: Dataset, files: Files, *, body: str, accuracy: float | None = None) -> str:
    """A model card with the Hub's YAML header; `accuracy` is on the test set, of the weights in `files`."""
    channels, height, width = dataset.shape
    header = yaml.safe_dump(_header(experiment, dataset, accuracy), sort_keys=False).strip()
    return f"""---
{header}
---

# {experiment.name}: {experiment.student.model} taught by {experiment.own_teacher.named}

A {experiment.student.model} for {len(dataset.classes)} classes and images of {width} x {height} pixels with {channels}
channel(s), trained on {_data_name(experiment)} by knowledge distillation with kdtune.

## How to use it

{_uses(files, dataset)}
On image files of any size, and on a whole data set:

```
kdtune predict path/to/this/folder photo.jpg
kdtune evaluate path/to/this/folder path/to/class-folders
```
{body}
{_what_there_is(files)}
## Intended use and limits

It tells apart {_classes(dataset.classes)}, and nothing else: any image gets one of these names, whatever it shows.
Images should look like those of {_data_name(experiment)}; the accuracy above says nothing about others. Probabilities
are the softmax of the logits and were not calibrated. It inherits what its training images and its teacher get wrong.

## Experiment

```yaml
{dump(experiment).strip()}
```
"""


def _header(experiment: Experiment, dataset: Dataset, accuracy: float | None) -> dict[str, Any]:
    hub = HUB_IDS.get(dataset.name)
    header: dict[str, Any] = {
        "library_name": "kdtune",
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", "kdtune"],
        **({"datasets": [hub]} if hub else {}),
    }
    if accuracy is None:
        return header
    measured = {
        "task": {"type": "image-classification"},
        "dataset": {"name": _data_name(experiment), "type": hub or dataset.name, "split": "test"},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 6)}],
    }
    return header | {"metrics": ["accuracy"], "model-index": [{"name": experiment.name, "results": [measured]}]}


def _data_name(experiment: Experiment) -> str:
    """Of class folders, the name of their folder: `folder` says nothing."""
    data = experiment.data
    return Path(data.root).name if data.dataset == "folder" and data.root else data.dataset


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20:,} more (config.json has all)"


def _uses(files: Files, dataset: Dataset) -> str:
    """One example a format, of its first file."""
    first: dict[str, str] = {}
    for name, facts in files.items():
        first.setdefault(facts["format"], name)
    shape = ", ".join(map(str, dataset.shape))
    return "".join(
        f"```python\n{USES[kind].format(place='path/to/this/folder', file=name, shape=shape)}\n```\n\n"
        for kind, name in first.items()
    )


def _what_there_is(files: Files) -> str:
    rows = "\n".join(_file_row(name, facts) for name, facts in files.items())
    return f"""## Files

Each was opened again by its own runtime and compared with the student on real images, at several batch sizes.

| file | stored as | bytes | largest difference of a logit | latency (ms, one image, one thread) |
|---|---|---|---|---|
{rows}
{"".join(_costs(files))}"""


def _file_row(name: str, facts: Mapping[str, Any]) -> str:
    latency = f"{facts['latency_ms']:.2f}" if "latency_ms" in facts else "see the results"
    return f"| {name} | {facts['precision']} | {facts['bytes']:,} | {facts['difference']:.1e} | {latency} |"


def _costs(files: Files) -> Iterator[str]:
    """What fewer bits cost, a sentence a file, and what that was measured on."""
    judged = {name: facts["cost"] for name, facts in files.items() if "cost" in facts}
    if not judged:
        return
    one = next(iter(judged.values()))
    yield f"\nWhat fewer bits cost, on {one['images']:,} {images_in_words(one)}:\n\n"
    for name, cost in judged.items():
        yield f"- {name}: {cost_in_words(cost)}\n"
    if any(facts["precision"] == "int8" for facts in files.values()):
        yield (
            "\nThe 8-bit file finds the scale of its activations anew for every batch, so an image's logits depend a "
            "little on what else is in the batch.\n"
        )


def images_in_words(cost: Mapping[str, Any]) -> str:
    """Which images a cost was measured on, and what that means."""
    if cost["trained_on"]:
        return (
            "validation images, on which these weights were trained as well: the accuracies are higher than on new "
            "images, what counts is that they agree. `kdtune evaluate FILE DATA` measures it on others"
        )
    return "validation images, on which these weights were not trained"


def cost_in_words(cost: Mapping[str, Any]) -> str:
    """`accuracy 98.51% instead of 98.88%, the same answer for 99.26%`."""
    return (
        f"accuracy {cost['accuracy']:.2%} instead of {cost['accuracy_float32']:.2%}, the same answer for "
        f"{cost['agreement']:.2%}"
    )
