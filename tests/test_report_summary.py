"""The summary of a run against numbers worked out by hand, the records it is made from, and other libraries' names."""

import logging
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtune.cache import Place, open_cache
from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.models import build_model
from kdtune.records import EpochRecord, TrialRecord
from kdtune.report import calibration, in_bins, packed, read_summary, summarise, verdict, write_summary
from kdtune.report.summary import _planned
from kdtune.report.times import time_spent
from kdtune.teacher import Teacher, keep
from kdtune.training import Evaluation, evaluate
from kdtune.trial import Found, Materials
from tests.conftest import CPU, MakeExperiment
from tests.example_run import write_run
from tests.tuning import record

Line = dict[str, Any]
SummaryOf = Callable[[Experiment, list[Line]], dict[str, Any]]


def an_epoch(epoch: int, epochs: int, val_accuracy: float) -> EpochRecord:
    return EpochRecord(epoch, epochs, 1.0, {"cross_entropy": 1.0}, val_accuracy, 1.0, 0.1, 0.5)


def a_trial(name: str, accuracies: list[float], epochs: int) -> TrialRecord:
    said = tuple(an_epoch(k, epochs, accuracy) for k, accuracy in enumerate(accuracies, start=1))
    return TrialRecord(name, {"distill.alpha.start": 0.5}, said)


def a_line(name: str, seed: int, accuracy: float, **more: Any) -> Line:
    return {"name": name, "seed": seed, "test_accuracy": accuracy, "diverged": False, "epochs": [], **more}


@pytest.fixture(scope="session")
def summary_of(materials: Materials) -> SummaryOf:
    best = a_trial("0001", [0.5, 0.75, 0.8], 3)
    trials = [best, a_trial("0002", [0.4], 3), a_trial("0003", [0.3, 0.2], 2)]
    retried = [{"trial": "0001", "times": 2, "error": "OSError: No space left (node 10.0.0.3)"}]
    outcome = {"trial": "0001", "trials": 3, "stopped_early": 1, "seconds": 12.346, "retried": retried}
    return lambda experiment, lines: summarise(
        experiment, experiment, lines, materials, Found(trials, best, outcome), CPU
    )


@pytest.fixture(scope="session")
def taught(materials: Materials) -> Evaluation:
    """The teacher on the test set."""
    dataset = materials.dataset
    return evaluate(materials.teachers["teacher"].load(CPU), dataset, dataset.test.images, dataset.test.labels)


def on_test(answers: Tensor, confidences: Tensor, labels: Tensor) -> Line:
    """What a line of final.jsonl keeps of them, but for the accuracy."""
    return {"answers": packed(answers), "calibration": in_bins(confidences, answers == labels)}


LINES = [a_line("student alone", 2, 0.25), a_line("best", 2, 0.7), a_line("best", 1, 0.5), a_line("best", 3, 0.9)]


def rows_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in summary["results"]}


def test_a_summary_has_exactly_its_keys_and_so_has_the_example_of_one(
    experiment: Experiment, summary_of: SummaryOf, tmp_path: Path
) -> None:
    answers = torch.zeros(450, dtype=torch.int64)
    kept = on_test(answers, torch.full((450,), 0.4), answers)
    written = summary_of(experiment, [a_line(name, 1, 0.5, **kept) for name in ("student alone", "best")])
    write_summary(tmp_path, written)
    summary = read_summary(tmp_path)
    assert summary == written
    assert summary.keys() == {"search", "best", "pareto", "results", "latency_on", "classes", "confusion",
                              "calibration", "time", "verdict"}  # fmt: skip
    told = {"trials", "epochs_run", "epochs_full", "seconds", "stopped_early", "asked", "retried", "rungs"}
    assert summary["search"].keys() == told
    assert summary["best"].keys() == {"config", "val_accuracy"}
    assert summary["time"].keys() == {"teacher", "cache", "training", "waiting", "final"}
    for row in summary["results"]:
        assert row.keys() == {"name", "model", "test_accuracy", "mean", "std", "parameters", "size_mb", "flops",
                              "latency_ms", "latency_range_ms", "paired", "agreement"}  # fmt: skip
    example = read_summary(write_run(tmp_path))
    assert [example.keys(), example["search"].keys(), example["time"].keys()] == [
        summary.keys(), summary["search"].keys(), summary["time"].keys()
    ]  # fmt: skip
    assert all(row.keys() == summary["results"][0].keys() for row in example["results"])
    assert example["calibration"]["best"].keys() == summary["calibration"]["best"].keys()
    assert [one.keys() for one in example["calibration"]["best"]["bins"]] == [
        one.keys() for one in summary["calibration"]["best"]["bins"]
    ]


def test_a_summary_counts_trials_and_epochs(experiment: Experiment, summary_of: SummaryOf) -> None:
    summary = summary_of(experiment, LINES)
    assert summary["search"] == {
        "trials": 3,
        "epochs_run": 3 + 1 + 2,
        "epochs_full": 3 + 3 + 2,
        "seconds": 12.346,
        "stopped_early": 1,
        "asked": None,
        "retried": [{"trial": "0001", "times": 2, "error": "OSError: No space left (node 10.0.0.3)"}],
        # one trial ran on from epoch 1 to its end, which is none to correlate
        "rungs": [{"epoch": 1, "trials": 2, "spearman": None, "kendall": None, "low": None, "high": None}],
    }
    assert summary["latency_on"] == "CPU, one thread"
    assert summary["best"] == {"config": {"distill.alpha.start": 0.5}, "val_accuracy": 0.8}


def test_a_fork_would_have_run_what_its_parent_had_not() -> None:
    own = tuple(record(epoch, epochs=9) for epoch in (4, 5))
    assert _planned(TrialRecord("100000", {}, own)) == 6
    assert _planned(TrialRecord("0000", {}, (record(1, epochs=9),))) == 9


def test_a_summary_has_the_results_in_order_with_their_statistics(
    experiment: Experiment, summary_of: SummaryOf, materials: Materials
) -> None:
    teacher, alone, best = summary_of(experiment, LINES)["results"]
    assert [teacher["name"], alone["name"], best["name"]] == ["teacher", "student alone", "best"]
    dataset = materials.dataset
    on_test = evaluate(materials.teachers["teacher"].load(CPU), dataset, dataset.test.images, dataset.test.labels)
    assert teacher["test_accuracy"] == [on_test.accuracy]
    assert best["test_accuracy"] == [0.5, 0.7, 0.9]  # by seed
    assert best["mean"] == pytest.approx(0.7)
    assert best["std"] == pytest.approx(0.2)  # (0.04 + 0 + 0.04) / (3 - 1), its root
    assert best["std"] == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert teacher["parameters"] == 8 * 9 + 2 * 8 + 16 * 8 * 9 + 2 * 16 + 16 * 10 + 10
    assert alone["parameters"] == best["parameters"] == 8 * 9 + 2 * 8 + 8 * 10 + 10


def test_one_seed_has_no_standard_deviation(experiment: Experiment, summary_of: SummaryOf, tmp_path: Path) -> None:
    write_summary(tmp_path, summary_of(experiment, LINES))
    teacher, alone, best = read_summary(tmp_path)["results"]
    assert (teacher["std"], alone["std"]) == (None, None)
    assert alone["mean"] == 0.25
    assert best["std"] is not None
    assert '"std": null' in (tmp_path / "summary.json").read_text()


def test_a_run_without_a_summary_says_that_it_has_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has not finished"):
        read_summary(tmp_path)


# --- the paired test, agreement and calibration of its rows


def test_students_are_tested_against_the_student_alone_seed_by_seed(
    experiment: Experiment, summary_of: SummaryOf
) -> None:
    """Differences of 0.1 and 0.2: with one degree of freedom t has Cauchy's distribution."""
    alone = [a_line("student alone", seed, accuracy) for seed, accuracy in ((1, 0.5), (2, 0.5), (3, 0.9))]
    best = [a_line("best", seed, accuracy) for seed, accuracy in ((2, 0.7), (1, 0.6))]
    summary = summary_of(experiment, [*best, *alone])
    rows = rows_of(summary)
    assert (rows["teacher"]["paired"], rows["student alone"]["paired"]) == (None, None)
    half = 0.05 * math.tan(math.pi * 0.475)
    assert rows["best"]["paired"] == {
        "against": "student alone",
        "difference": pytest.approx(0.15),
        "low": pytest.approx(0.15 - half),
        "high": pytest.approx(0.15 + half),
        "p_value": pytest.approx(1 - 2 / math.pi * math.atan(3)),
        "seeds": 2,
    }
    assert summary["verdict"] == verdict(summary)
    assert rows_of(summary_of(experiment, LINES))["best"]["paired"] is None  # one seed in common


def test_agreement_is_the_share_of_answers_that_are_the_teachers(
    experiment: Experiment, summary_of: SummaryOf, taught: Evaluation
) -> None:
    answers = taught.predictions
    other = torch.cat([(answers[:90] + 1) % 10, answers[90:]])  # 90 of 450 differ
    lines = [a_line("best", 1, 0.5, answers=packed(answers)), a_line("best", 2, 0.5, answers=packed(other)),
             a_line("student alone", 1, 0.5, answers=packed((answers + 1) % 10))]  # fmt: skip
    rows = rows_of(summary_of(experiment, lines))
    assert rows["teacher"]["agreement"] is None
    assert rows["student alone"]["agreement"] == 0
    assert rows["best"]["agreement"] == pytest.approx((1 + 0.8) / 2)


def test_a_student_is_compared_with_the_teacher_that_it_learned_from(
    make_experiment: MakeExperiment, materials: Materials, taught: Evaluation, tmp_path: Path
) -> None:
    dataset = materials.dataset
    network = build_model("cnn-8", dataset.shape, 10)
    theirs = evaluate(network, dataset, dataset.test.images, dataset.test.labels).predictions
    teachers = {**materials.teachers, "other": keep(network, "cnn-8", {}, dataset, tmp_path, depth=1)}
    experiment = make_experiment(
        {
            "teachers": {"other": {"model": "cnn-8"}, "peers": {"peers": ["cnn-8"]}},
            "final.rows": {
                "by another": {"teacher": "other"},
                "slowly": {"teacher": None, "train.learning_rate": 0.01},
                "online": {"teacher": "peers"},
            },
        }
    )
    names = ("by another", "slowly", "online", "best")
    lines = [a_line(name, 1, 0.5, answers=packed(theirs)) for name in names]
    summary = summarise(experiment, experiment, lines, replace(materials, teachers=teachers), None, CPU)
    rows = rows_of(summary)
    with_the_winners = (theirs == taught.predictions).double().mean().item()
    assert with_the_winners < 1
    assert [rows[name]["agreement"] for name in names] == [1, with_the_winners, None, with_the_winners]
    assert rows["teacher other"]["agreement"] is None


def test_every_row_has_its_calibration_and_a_teacher_too(
    experiment: Experiment, summary_of: SummaryOf, taught: Evaluation, materials: Materials
) -> None:
    answers, labels = taught.predictions, materials.dataset.test.labels
    sure, unsure = (on_test(answers, torch.full((450,), value), labels) for value in (0.95, 0.35))
    diverged = {**sure, "calibration": None}
    lines = [a_line("best", 1, 0.5, **sure), a_line("best", 2, 0.5, **unsure), a_line("best", 3, 0.1, **diverged)]
    found = summary_of(experiment, lines)["calibration"]
    assert list(found) == ["teacher", "best"]
    right = taught.accuracy
    assert found["best"]["ece"] == pytest.approx((abs(0.95 - right) + abs(0.35 - right)) / 2)
    assert sum(one["count"] for one in found["best"]["bins"]) == 2 * 450
    with torch.no_grad():
        network, dataset = materials.teachers["teacher"].load(CPU), materials.dataset
        confident = network(dataset.normalise(dataset.test.pixels)).softmax(dim=1).amax(dim=1)
    bins = in_bins(confident, answers == labels)
    assert bins is not None
    assert found["teacher"]["ece"] == pytest.approx(calibration([bins])["ece"])


def test_runs_of_an_earlier_version_have_neither_agreement_nor_calibration(
    experiment: Experiment, summary_of: SummaryOf, taught: Evaluation, materials: Materials
) -> None:
    """Nor has a row that began with it: a mean over some of its seeds would be taken for one over all."""
    kept = on_test(taught.predictions, taught.confidences, materials.dataset.test.labels)
    summary = summary_of(experiment, [a_line("best", 1, 0.5), a_line("best", 2, 0.5, **kept)])
    assert rows_of(summary)["best"]["agreement"] is None
    assert "best" not in summary["calibration"]


# --- where the time went


def test_the_time_is_that_of_teachers_columns_trials_and_the_final_stage(materials: Materials) -> None:
    cache = open_cache(materials.caches["teacher"])
    seals = [seal for view in range(3) if (seal := cache.seal(view))]
    epochs = [replace(record(k, epochs=2), seconds=2.0, waited=0.75, computed=0.5) for k in (1, 2)]
    found = Found([TrialRecord("0000", {}, tuple(epochs))], TrialRecord("0000", {}, tuple(epochs)), {})
    last = replace(epochs[0], seconds=7.0).to_json()
    spent = time_spent(materials, found, [a_line("best", 1, 0.5, epochs=[last]), a_line("best", 2, 0.5, epochs=[last])])
    assert spent == {
        "teacher": pytest.approx(materials.teachers["teacher"].seconds, abs=1e-3),
        "cache": pytest.approx(sum(seal.seconds for seal in seals)),
        "training": 4.0,
        "waiting": 0.5,
        "final": 14.5,
    }
    assert spent["teacher"] > 0
    assert time_spent(replace(materials, columns=1), found, [])["cache"] == seals[0].seconds  # others' columns


def test_only_teachers_that_were_trained_here_took_time_and_each_of_them_once(materials: Materials) -> None:
    own = replace(materials.teachers["teacher"], seconds=3.0)

    def seconds(**teachers: Teacher) -> float | None:
        spent: float | None = time_spent(replace(materials, teachers=teachers, caches={}), None, [])["teacher"]
        return spent

    other = replace(own, fingerprint="other")
    assert seconds(teacher=own, again=own, other=other) == 6
    assert seconds(teacher=own, all=replace(own, fingerprint="all", members=(own, other), seconds=None)) == 3
    assert seconds(teacher=own, brought=replace(other, trained_here=False, seconds=None)) == 3
    assert seconds(brought=replace(other, trained_here=False, seconds=None)) == 0
    assert seconds(teacher=own, old=replace(other, seconds=None)) is None  # kept by an earlier version


def test_what_is_not_known_is_null_and_never_nothing(
    materials: Materials, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = an_epoch(1, 1, 0.5)
    found = Found([TrialRecord("0000", {}, (old,))], TrialRecord("0000", {}, (old,)), {})
    gone = replace(materials, caches={"teacher": Place(str(tmp_path / "pruned"))})
    with caplog.at_level(logging.WARNING):
        spent = time_spent(gone, found, [a_line("best", 1, 0.5, epochs=[old.to_json()])])
    assert (spent["cache"], spent["waiting"], spent["final"], spent["training"]) == (None, None, None, 0.5)
    assert "pruned" in caplog.text
    assert time_spent(replace(materials, caches={}), None, [])["cache"] == 0
