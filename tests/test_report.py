"""What a run reports of its search besides the table: whether stopping early was safe, and the Pareto front."""

import io
import json
import math
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kdtune.cli import app
from kdtune.cli.results import front_table, stopping
from kdtune.experiment import dump
from kdtune.records import EpochRecord, TrialRecord, append_line
from kdtune.report import summarise
from kdtune.trial import Found, Materials
from tests.conftest import CPU, MakeExperiment
from tests.pages import single_run

LINES = [{"name": "best", "seed": 1, "test_accuracy": 0.5, "epochs": []}]
RUNG = {"epoch": 6, "trials": 12, "spearman": 0.81, "kendall": 0.64, "low": 0.42, "high": 0.95}


def an_epoch(epoch: int, epochs: int, accuracy: float, *, loss: float = 1.0) -> EpochRecord:
    return EpochRecord(epoch, epochs, loss, {"cross_entropy": loss}, accuracy, 1.0, 0.1, 0.5)


def a_trial(number: int, config: dict[str, Any], *accuracies: float, loss: float = 1.0) -> TrialRecord:
    told = tuple(an_epoch(k, 3, accuracy, loss=loss) for k, accuracy in enumerate(accuracies, start=1))
    return TrialRecord(f"{number:04d}", config, told)


def said(*rungs: dict[str, Any], stopped: int = 5) -> list[str]:
    return stopping({"search": {"stopped_early": stopped, "rungs": list(rungs)}})


def test_a_line_says_with_its_number_whether_stopping_early_was_safe() -> None:
    assert said(RUNG) == [
        "Stopping early was safe: the orders at epoch 6 and at the end agree by 0.81 (Spearman's rank correlation of "
        "12 trials that ran in full, 95% interval 0.42 to 0.95)."
    ]
    assert said(RUNG, stopped=0)[0].startswith("Stopping early would have been safe")
    assert said({**RUNG, "spearman": 0.5, "high": 0.65})[0].startswith("Stopping early was a gamble")
    assert said({**RUNG, "spearman": 0.1, "low": -0.3, "high": 0.4})[0].startswith("Stopping early was not safe")
    assert said({**RUNG, "spearman": 0.8, "low": -0.3})[0].startswith("Stopping early was of unknown safety")


def test_where_the_first_rung_was_not_safe_the_line_says_from_when_on_it_is() -> None:
    (line,) = said({**RUNG, "spearman": 0.5, "high": 0.65}, {**RUNG, "epoch": 18, "spearman": 0.9})
    assert line.endswith("; from epoch 18 on by 0.90 (search.stopper.grace_epochs).")


def test_too_few_trials_to_tell_are_told_and_an_earlier_versions_summary_says_nothing() -> None:
    none = {**RUNG, "trials": 2, "spearman": None, "low": None, "high": None}
    assert "cannot be told" in said(none)[0]
    assert said(none, stopped=0) == []
    assert stopping({"search": {"stopped_early": 5}}) == []


@pytest.fixture
def summary(make_experiment: MakeExperiment, materials: Materials) -> dict[str, Any]:
    """Of a search among three students: two sizes, one of them with dropout, which has as many parameters."""
    experiment = make_experiment(
        {
            "train.epochs": 3,
            "search.second_objective": "parameters",
            "search.space": {"student.model": {"choice": ["cnn-8", "cnn-8-16", "mlp-800-800"]}},
        }
    )
    small, large, huge = ({"student.model": name} for name in ("cnn-8", "cnn-8-16", "mlp-800-800"))
    trials = [
        a_trial(0, large, 0.5, 0.6, 0.9),
        a_trial(1, small, 0.5, 0.6, 0.7),
        a_trial(2, small, 0.5, 0.6, 0.65),
        a_trial(3, huge, 0.5, 0.6, 0.9),  # as good as the first, and larger
        a_trial(4, small, 0.5, 0.95),  # stopped early
        a_trial(5, small, 0.99, loss=float("nan")),
    ]
    outcome = {"trial": "0000", "trials": 6, "stopped_early": 1, "seconds": 1.0}
    return summarise(experiment, experiment, LINES, materials, Found(trials, trials[0], outcome), CPU)


def test_the_pareto_front_has_what_no_trial_beats_in_both_and_the_best_is_the_most_accurate(
    summary: dict[str, Any],
) -> None:
    front = [(one["trial"], one["model"], one["val_accuracy"], one["cost"]) for one in summary["pareto"]]
    cheap, dear = 8 * 9 + 2 * 8 + 8 * 10 + 10, 8 * 9 + 2 * 8 + 16 * 8 * 9 + 2 * 16 + 16 * 10 + 10
    assert front == [("0001", "cnn-8", 0.7, cheap), ("0000", "cnn-8-16", 0.9, dear)]
    assert summary["best"]["config"] == {"student.model": "cnn-8-16"}
    assert all(one["latency_ms"] > 0 for one in summary["pareto"])
    assert json.loads(json.dumps(summary["pareto"])) == summary["pareto"]


def test_the_front_is_a_table(summary: dict[str, Any]) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(front_table(summary))
    lines = [line for line in console.export_text().splitlines() if "model cnn" in line]
    assert [word for word in lines[0].split() if word.strip("│")][:3] == ["0001", "70.00%", "178"]
    assert "0000" in lines[1]


def test_the_summary_tells_how_well_each_rung_foretold_the_end(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = make_experiment({"train.epochs": 3, "search.stopper": {"kind": "asha", "grace_epochs": 1}})
    orders = [(0.1, 0.1), (0.2, 0.2), (0.3, 0.4), (0.4, 0.3)]
    trials = [a_trial(k, {}, first, 0.5, last) for k, (first, last) in enumerate(orders)]
    outcome = {"trial": "0002", "trials": 4, "stopped_early": 0, "seconds": 1.0}
    summary = summarise(experiment, experiment, LINES, materials, Found(trials, trials[2], outcome), CPU)
    (rung,) = summary["search"]["rungs"]
    assert (rung["epoch"], rung["trials"]) == (1, 4)
    assert rung["spearman"] == pytest.approx(0.8)  # 1 - 6 * (1 + 1) / (4 * (16 - 1))
    assert summary["pareto"] == []


def test_a_run_that_has_not_finished_is_reported_so_far(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment = make_experiment({"search.space": {"distill.alpha": {"uniform": [0.1, 0.9]}}, "search.trials": 9})
    (tmp_path / "experiment.yaml").write_text(dump(experiment))
    for number, accuracies in enumerate([(0.5, 0.6), (0.7,), (0.9, math.nan)]):
        for epoch, accuracy in enumerate(accuracies, start=1):
            loss = 1.0 if math.isfinite(accuracy) else math.nan
            told = an_epoch(epoch, 2, accuracy, loss=loss).to_json()
            append_line(tmp_path / "trials.jsonl", {"trial": f"{number:04d}", "config": {"distill.alpha": 0.5}, **told})
    lines = CliRunner().invoke(app, ["report", str(tmp_path)]).stdout.splitlines()
    assert lines[0].startswith("Not finished: 3 of 9 trials begun, 5 epochs; 1 of them ran in full.")
    assert lines[-1] == f"Report: {tmp_path / 'report.html'}"
    assert lines[1:-1] == [
        "trial 0000   60.00%  epoch 2/2  alpha 0.5",
        "trial 0001   70.00%  epoch 1/2  alpha 0.5",
        "trial 0002    0.00%  epoch 2/2  alpha 0.5",
    ]


def test_the_page_is_opened_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.chdir(tmp_path)
    single_run(tmp_path / "a b")
    folder = Path("a b", "example-train")
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    assert addresses == []
    assert CliRunner().invoke(app, ["report", str(folder), "--open"]).exit_code == 0
    assert addresses == [f"file://{tmp_path}/a%20b/example-train/report.html"]
    other = single_run(tmp_path / "c")
    assert CliRunner().invoke(app, ["compare", str(folder), str(other), "--open", "--to", "both.html"]).exit_code == 0
    assert addresses[1:] == [f"file://{tmp_path}/both.html"]
