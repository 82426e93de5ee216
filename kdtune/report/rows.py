"""The rows of the results table: every teacher, and every student of the final stage, on the test set.

A row is its entry of `results` in summary.json, and its entry of `calibration`, which a row of runs that all diverged,
or that an earlier version has trained, does not have.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdtune.data import Dataset
from kdtune.experiment import Student
from kdtune.models import costs, rebuild_model
from kdtune.records import ALONE
from kdtune.report.answers import agreement, unpacked
from kdtune.report.calibration import calibration, in_bins
from kdtune.report.verdict import paired
from kdtune.teacher import Teacher
from kdtune.training import evaluate

Lines = Sequence[Mapping[str, Any]]  # of final.jsonl


@dataclass(frozen=True)
class Row:
    result: dict[str, Any]
    calibration: Mapping[str, Any] | None


class Costs:
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


def teacher_row(name: str, teacher: Teacher, dataset: Dataset) -> tuple[Row, Tensor]:
    """With the teacher's answers [N] to the test set, on the CPU."""
    network, test = teacher.load(dataset.labels.device), dataset.test
    found = evaluate(network, dataset, test.images, test.labels)
    result = _result(name, teacher.model, [found.accuracy], costs(network, dataset.shape))
    if not teacher.trained_here:
        result["note"] = "brought along: it may have been trained on validation images"
    bins = in_bins(found.confidences, found.predictions == test.labels)
    return Row(result, calibration([bins]) if bins else None), found.predictions.cpu()


def student_row(name: str, lines: Lines, alone: Lines, student: Student, costs_of: Costs, taught: Tensor | None) -> Row:
    """Of the runs `lines`, against those of the student `alone`; `taught` are answers [N] of the teacher, if any."""
    by_seed, against = _by_seed(lines), _by_seed(alone)
    result = _result(name, student.model, [by_seed[seed] for seed in sorted(by_seed)], costs_of(student))
    if name != ALONE:
        result["paired"] = paired(by_seed, against, ALONE)
    if taught is not None and all("answers" in line for line in lines):  # earlier versions kept none
        result["agreement"] = statistics.fmean(agreement(unpacked(line["answers"]), taught) for line in lines)
    runs = [line["calibration"] for line in lines if line.get("calibration")]
    known = runs and all("calibration" in line for line in lines)
    return Row(result, calibration(runs) if known else None)


def _by_seed(lines: Lines) -> dict[int, float]:
    return {line["seed"]: line["test_accuracy"] for line in lines}


def _result(name: str, model: str, accuracies: Sequence[float], cost: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "model": model,
        "test_accuracy": list(accuracies),
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        **cost,
        "paired": None,
        "agreement": None,
    }
