"""`summary.json`: the numbers people quote, made from what a run has recorded.

    {"search": {"trials", "epochs_run", "epochs_full", "seconds", "stopped_early",
                "retried": [{"trial", "times", "error"}, ...],
                "rungs": [{"epoch", "trials", "spearman", "kendall", "low", "high"}, ...]},
     "best": {"config", "val_accuracy"},
     "pareto": [{"trial", "config", "model", "val_accuracy", "cost", "parameters", "size_mb", "latency_ms"}, ...],
     "results": [{"name", "model", "test_accuracy": [one a seed], "mean", "std",
                  "parameters", "size_mb", "latency_ms"}, ...], "latency_on": a device,
     "classes": [...], "confusion": {"student alone": [[...]], "best": [[...]]}}

Accuracies are fractions in 0..1; std is the sample's (n - 1), null for a single run. Confusion matrices count test
images over all seeds, label by answer; a data set of many classes has none. `rungs` say how well the order of trials at
an epoch foretold that at the end. The best is the most accurate trial, also where a second objective is set; `pareto`
then has the trials that ran in full and that no other beats in both, from the cheapest, and is empty otherwise. Their
costs are measured here, each architecture once, and not taken from the trials, which shared their machine.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdtune.data import Dataset
from kdtune.errors import RunError
from kdtune.experiment import Experiment, Student, row, with_values
from kdtune.models import costs, rebuild_model
from kdtune.records import ALONE, BEST, DISTILLED, TEACHER, TEXTBOOK_KD, TrialRecord, write_text
from kdtune.teacher import Teacher
from kdtune.training import evaluate
from kdtune.trial import Found, Materials
from kdtune.tuning.fidelity import fidelity
from kdtune.tuning.pareto import pareto_front
from kdtune.tuning.rungs import rungs_of_search


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
    costs_of = _Costs(dataset)
    for name in dict.fromkeys([ALONE, TEXTBOOK_KD, *changed, DISTILLED, BEST]):
        by_seed = {line["seed"]: line for line in lines if line["name"] == name}
        if by_seed:
            student = changed.get(name, winner).student
            accuracies = [by_seed[seed]["test_accuracy"] for seed in sorted(by_seed)]
            results.append(_result(name, student.model, accuracies, costs_of(student)))
    return {
        "search": _search(experiment, lines, found),
        "best": {
            "config": dict(found.best.config) if found else {},
            "val_accuracy": found.best.val_accuracy if found else None,
        },
        "pareto": _pareto(experiment, found, costs_of) if found else [],
        "results": results,
        "latency_on": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread",
        "classes": list(dataset.classes),
        "confusion": _confusion(lines),
    }


def _planned(trial: TrialRecord) -> int:
    """Epochs that it would have run to its end; a fork has not run those of its parent."""
    return trial.epochs[-1].epochs - trial.epochs[0].epoch + 1


def _search(experiment: Experiment, lines: Sequence[Mapping[str, Any]], found: Found | None) -> dict[str, Any]:
    trials = found.trials if found else []
    outcome: Mapping[str, Any] = found.outcome if found else {"trials": 0, "seconds": 0.0, "stopped_early": 0}
    return {
        "trials": outcome["trials"],
        "epochs_run": sum(len(trial.epochs) for trial in trials),
        "epochs_full": sum(map(_planned, trials)),
        "seconds": outcome["seconds"],
        "stopped_early": outcome["stopped_early"],
        # earlier versions did not say
        "asked": outcome.get("asked"),
        "retried": [*outcome.get("retried", []), *_retried(lines)],
        "rungs": fidelity(trials, rungs_of_search(experiment)) if found else [],
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


class _Costs:
    """What students cost, each architecture measured once, where the data set lies."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.known: dict[str, dict[str, Any]] = {}

    def __call__(self, student: Student) -> dict[str, Any]:
        key = student.model_dump_json()
        if key not in self.known:
            shape, classes = self.dataset.shape, len(self.dataset.classes)
            network = rebuild_model(student.model, shape, classes, student.options)
            self.known[key] = costs(network.to(self.dataset.labels.device).eval(), shape)
        return self.known[key]


COST = {"parameters": "parameters", "latency": "latency_ms"}  # of each second objective


def _pareto(experiment: Experiment, found: Found, costs_of: _Costs) -> list[dict[str, Any]]:
    """The front of the trials that ran in full, from the cheapest on; none without a second objective."""
    second = experiment.search.second_objective
    if second is None:
        return []
    trials = [trial for trial in found.trials if trial.complete and not trial.epochs[-1].diverged]
    students = [with_values(experiment, trial.config).student for trial in trials]
    measured = [costs_of(student) for student in students]
    weighed = [cost[COST[second]] for cost in measured]
    return [
        {
            "trial": trials[k].trial,
            "config": dict(trials[k].config),
            "model": students[k].model,
            "val_accuracy": trials[k].val_accuracy,
            "cost": weighed[k],
            **measured[k],
        }
        for k in pareto_front([trial.val_accuracy for trial in trials], weighed)
    ]


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
