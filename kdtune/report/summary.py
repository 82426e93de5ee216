"""`summary.json`: the numbers people quote, made from what a run has recorded.

    {"search": {"trials", "epochs_run", "epochs_full", "seconds", "stopped_early",
                "retried": [{"trial", "times", "error"}, ...],
                "rungs": [{"epoch", "trials", "spearman", "kendall", "low", "high"}, ...]},
     "best": {"config", "val_accuracy"},
     "pareto": [{"trial", "config", "model", "val_accuracy", "cost", "parameters", "size_mb", "latency_ms"}, ...],
     "results": [{"name", "model", "test_accuracy": [one a seed], "mean", "std",
                  "parameters", "size_mb", "flops", "latency_ms", "latency_range_ms": [25%, 75%],
                  "paired": {"against", "difference", "low", "high", "p_value", "seeds"}, "agreement"}, ...],
     "latency_on": a device, "classes": [...], "confusion": {"student alone": [[...]], "best": [[...]]},
     "calibration": {name of a row: {"ece", "bins": [{"low", "high", "count", "confidence", "accuracy"}, ...]}},
     "time": {"teacher", "cache", "training", "waiting", "final"}, "verdict": a sentence}

Accuracies are fractions in 0..1; std is the sample's (n - 1), null for a single run. `paired` tests a student against
the student alone (`verdict.py`), null where they have fewer than two seeds in common. `agreement` is the share of test
images, mean over seeds, that a student answers as the teacher does that it learned from (a student alone: as the
winner's); null of a teacher, and where none is kept. Confusion matrices count test images over all seeds, label by
answer; a data set of many classes has none. `calibration` and `time`: see there. `rungs` say how well the order of
trials at an epoch foretold that at the end. The best is the most accurate trial, also where a second objective is set;
`pareto` then has the trials that ran in full and that no other beats in both, from the cheapest, with what they cost,
and is empty otherwise. Costs are measured here, each architecture once: trials shared their machine.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdtune.errors import RunError
from kdtune.experiment import Experiment, row, with_values
from kdtune.records import ALONE, BEST, DISTILLED, TEACHER, TEXTBOOK_KD, TrialRecord, read_object, write_text
from kdtune.report.rows import Costs, Row, student_row, teacher_row
from kdtune.report.times import time_spent
from kdtune.report.verdict import verdict
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
    costs_of = Costs(dataset)
    rows = _rows(experiment, winner, lines, materials, costs_of)
    summary = {
        "search": _search(experiment, lines, found),
        "best": {
            "config": dict(found.best.config) if found else {},
            "val_accuracy": found.best.val_accuracy if found else None,
        },
        "pareto": _pareto(experiment, found, costs_of) if found else [],
        "results": [one.result for one in rows],
        "latency_on": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread",
        "classes": list(dataset.classes),
        "confusion": _confusion(lines),
        "calibration": {one.result["name"]: one.calibration for one in rows if one.calibration},
        "time": time_spent(materials, found, lines),
    }
    return {**summary, "verdict": verdict(summary)}


def _rows(
    experiment: Experiment,
    winner: Experiment,
    lines: Sequence[Mapping[str, Any]],
    materials: Materials,
    costs_of: Costs,
) -> list[Row]:
    """Teachers, the winner's first; then the baselines, the rows of the file, and the winner."""
    own, dataset = winner.teacher_name, costs_of.dataset
    rows, answers = [], {}
    for name in sorted(materials.teachers, key=lambda name: name != own):
        shown = TEACHER if name == own else f"{TEACHER} {name}"
        one, answers[name] = teacher_row(shown, materials.teachers[name], dataset)
        rows.append(one)
    changed = {name: row(experiment, changes) for name, changes in experiment.final.rows.items()}
    alone = _runs(lines, ALONE)
    for name in dict.fromkeys([ALONE, TEXTBOOK_KD, *changed, DISTILLED, BEST]):
        runs = _runs(lines, name)
        if runs:
            trained, without = changed.get(name, (winner, False))
            taught = answers.get(own if without else trained.teacher_name)  # none of peers
            rows.append(student_row(name, runs, alone, trained.student, costs_of, taught))
    return rows


def _runs(lines: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Of a row, one a seed."""
    return list({line["seed"]: line for line in lines if line["name"] == name}.values())


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


COST = {"parameters": "parameters", "latency": "latency_ms"}  # of each second objective


def _pareto(experiment: Experiment, found: Found, costs_of: Costs) -> list[dict[str, Any]]:
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
    """Raises RunError where the run has not come to its end, or where the file is damaged."""
    try:
        summary = read_object(folder / "summary.json")
    except FileNotFoundError:
        if (folder / "student").is_dir() and not (folder / "final").exists():
            raise RunError(
                f"{folder} is one training, without a search (kdtune train); its student is {folder / 'student'}"
            ) from None
        raise RunError(
            f"{folder} has no summary.json: its search has not finished. The same `kdtune search` takes it up again"
        ) from None
    lacking = [name for name in ("search", "best", "results") if name not in summary]
    if lacking:
        raise RunError(f"{folder / 'summary.json'} lacks {', '.join(lacking)}: the file was edited or damaged")
    return summary
