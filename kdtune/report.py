"""`summary.json`: the numbers people quote, made from what a run has recorded.

    {"search": {"trials", "epochs_run", "epochs_full", "seconds", "stopped_early",
                "retried": [{"trial", "times", "error"}, ...]},
     "best": {"config", "val_accuracy"},
     "results": [{"name", "model", "test_accuracy": [one a seed], "mean", "std",
                  "parameters", "size_mb", "latency_ms"}, ...], "latency_on": a device,
     "classes": [...], "confusion": {"student alone": [[...]], "best": [[...]]}}

Accuracies are fractions in 0..1; std is the sample's (n - 1), null for a single run. Confusion matrices count test
images over all seeds, label by answer; a data set of many classes has none.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdtune.data import Dataset
from kdtune.errors import RunError
from kdtune.experiment import Experiment, Student, row
from kdtune.models import costs, rebuild_model
from kdtune.records import ALONE, BEST, DISTILLED, TEACHER, TEXTBOOK_KD, write_text
from kdtune.teacher import Teacher
from kdtune.training import evaluate
from kdtune.trial import Found, Materials


def summarise(
    experiment: Experiment,
    winner: Experiment,
    lines: Sequence[Mapping[str, Any]],
    materials: Materials,
    found: Found | None,
    device: torch.device,
) -> dict[str, Any]:
    """The summary of a run whose final stage is complete; reads the test set once for each teacher, on `device`.

    `lines` are those of final.jsonl; `found` is None where nothing was searched.
    """
    dataset = materials.dataset.to(device)
    own = winner.teacher_name
    named = sorted(materials.teachers, key=lambda name: name != own)
    results = [
        _teacher_row(TEACHER if name == own else f"{TEACHER} {name}", materials.teachers[name], dataset)
        for name in named
    ]
    changed = {name: row(experiment, changes)[0] for name, changes in experiment.final.rows.items()}
    measured: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([ALONE, TEXTBOOK_KD, *changed, DISTILLED, BEST]):
        by_seed = {line["seed"]: line for line in lines if line["name"] == name}
        if by_seed:
            student = changed.get(name, winner).student
            key = student.model_dump_json()  # measured once an architecture
            measured[key] = measured.get(key) or _student_costs(student, dataset)
            runs = [by_seed[seed] for seed in sorted(by_seed)]
            results.append(_result(name, student.model, [line["test_accuracy"] for line in runs], measured[key]))
    return {
        "search": {
            "trials": found.outcome["trials"] if found else 0,
            "epochs_run": sum(len(trial.epochs) for trial in found.trials) if found else 0,
            "epochs_full": sum(trial.epochs[-1].epochs for trial in found.trials) if found else 0,
            "seconds": found.outcome["seconds"] if found else 0.0,
            "stopped_early": found.outcome["stopped_early"] if found else 0,
            # an earlier version did not say
            "retried": [*(found.outcome.get("retried", []) if found else []), *_retried(lines)],
        },
        "best": {
            "config": dict(found.best.config) if found else {},
            "val_accuracy": found.best.val_accuracy if found else None,
        },
        "results": results,
        "latency_on": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread",
        "classes": list(dataset.classes),
        "confusion": _confusion(lines),
    }


def _retried(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the final stage, by name and seed."""
    return [
        {"trial": f"{line['name']}, seed {line['seed']}", "times": line["lost"], "error": line["error"]}
        for line in lines
        if line.get("lost")
    ]


def _confusion(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Before and after: of the student alone and of the winner, summed over seeds."""
    found: dict[str, Any] = {}
    for name in (ALONE, DISTILLED, BEST):
        tables = [line["confusion"] for line in lines if line["name"] == name and line.get("confusion")]
        if tables:
            found[name] = torch.tensor(tables).sum(dim=0).tolist()
    return found


def _teacher_row(name: str, teacher: Teacher, dataset: Dataset) -> dict[str, Any]:
    network = teacher.load(dataset.labels.device)
    on_test = evaluate(network, dataset, dataset.test.images, dataset.test.labels)
    found = _result(name, teacher.model, [on_test.accuracy], costs(network, dataset.shape))
    if not teacher.trained_here:
        found["note"] = "brought along: it may have been trained on validation images"
    return found


def _student_costs(student: Student, dataset: Dataset) -> dict[str, Any]:
    network = rebuild_model(student.model, dataset.shape, len(dataset.classes), student.options)
    return costs(network.to(dataset.labels.device).eval(), dataset.shape)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    write_text(folder / "summary.json", json.dumps(summary, indent=2))


def read_summary(folder: Path) -> dict[str, Any]:
    """Raises RunError where the run has not come to its end."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no summary.json: its search has not finished. The same `kdtune search` takes it up again"
        ) from None
    return summary


def _result(name: str, model: str, accuracies: Sequence[float], cost: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "model": model,
        "test_accuracy": list(accuracies),
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        **cost,
    }
