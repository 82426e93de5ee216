"""A search as an Optuna study: what Optuna itself loads of it."""

import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from kdtune.cli import app
from kdtune.errors import ExportError
from kdtune.experiment import dump, parse
from kdtune.records import EpochRecord, append_line
from kdtune.report.optuna_study import write_study
from kdtune.report.run import Run, load_run
from tests.experiments import raw_with

SPACE: dict[str, dict[str, object]] = {
    "distill.temperature.kind": {"choice": ["fixed", "exponential"]},
    "distill.temperature.end_ratio": {
        "loguniform": [0.25, 1],
        "when": {"distill.temperature.kind": "exponential"},
    },
    "distill.alpha.start": {"uniform": [0.2, 0.9]},
    "distill.feature_weight": {"choice": [0, {"loguniform": [0.1, 10]}]},
    "train.batch_size": {"integer": [16, 64]},
}
PLAIN = {"distill.temperature.kind": "fixed", "distill.alpha.start": 0.5, "distill.feature_weight": 0,
         "train.batch_size": 32}  # fmt: skip
DECAYS = {**PLAIN, "distill.temperature.kind": "exponential", "distill.temperature.end_ratio": 0.5,
          "distill.feature_weight": 2.5}  # fmt: skip


def a_run(folder: Path, curves: dict[str, tuple[dict[str, Any], list[float]]], space: Any = None, **search: Any) -> Run:
    """A search without a summary: NaN stands for an epoch that diverged."""
    folder.mkdir(exist_ok=True)
    settings = {"search.stopper": {"kind": "asha", "reduction_factor": 2, "grace_epochs": 1}, "train.epochs": 3}
    raw = raw_with({**settings, **{f"search.{name}": value for name, value in search.items()}}, space or SPACE)
    (folder / "experiment.yaml").write_text(dump(parse(raw)))
    for trial, (config, accuracies) in curves.items():
        for epoch, accuracy in enumerate(accuracies, start=1):
            loss = math.nan if math.isnan(accuracy) else 1.0
            told = EpochRecord(epoch, 3, loss, {"cross_entropy": loss}, accuracy, 1.0, 0.1, 0.5).to_json()
            append_line(folder / "trials.jsonl", {"trial": trial, "config": config, "at": 1.0 * epoch, **told})
    return load_run(folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run" / "final").mkdir(parents=True)  # its search is over
    (tmp_path / "run" / "final" / "winner.json").write_text('{"trial": "0001"}')
    append_line(tmp_path / "run" / "errors.jsonl", {"trial": "0004", "error": "lost", "times": 0, "at": 1.0})
    return a_run(
        tmp_path / "run",
        {
            "0001": (DECAYS, [0.3, 0.6, 0.9]),
            "0000": (PLAIN, [0.2, 0.5, 0.8]),
            "0002": (PLAIN, [0.1]),
            "0003": (PLAIN, [0.4, math.nan]),
            "0004": (PLAIN, [0.25]),
        },
    )


def loaded(file: Path) -> optuna.Study:
    (name,) = optuna.get_all_study_names(f"sqlite:///{file}")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{file}")


def test_optuna_loads_states_values_curves_and_what_was_tried(run: Run, tmp_path: Path) -> None:
    assert write_study(run, tmp_path / "s.db") == 5
    study = loaded(tmp_path / "s.db")
    assert study.study_name == "tiny"
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert [trial.user_attrs["trial"] for trial in study.trials] == ["0000", "0001", "0002", "0003", "0004"]
    assert [trial.user_attrs["status"] for trial in study.trials[2:]] == ["stopped", "diverged", "failed"]
    assert study.best_trial.number == 1
    assert study.best_value == 0.9
    assert study.trials[1].intermediate_values == {1: 0.3, 2: 0.6, 3: 0.9}
    assert study.trials[2].intermediate_values == {1: 0.1}
    assert study.trials[2].value == 0.1  # as Optuna itself does: dashboards show it
    assert study.trials[1].user_attrs["config"] == DECAYS


def test_a_space_is_the_same_in_optunas_words_and_parameters_that_are_not_active_are_left_out(
    run: Run, tmp_path: Path
) -> None:
    write_study(run, tmp_path / "s.db")
    plain, decays = loaded(tmp_path / "s.db").trials[:2]
    assert decays.distributions == {
        "distill.temperature.kind": CategoricalDistribution(["fixed", "exponential"]),
        "distill.temperature.end_ratio": FloatDistribution(0.25, 1, log=True),
        "distill.alpha.start": FloatDistribution(0.2, 0.9),
        "distill.feature_weight": CategoricalDistribution([0, "distill.feature_weight@1"]),
        "distill.feature_weight@1": FloatDistribution(0.1, 10, log=True),
        "train.batch_size": IntDistribution(16, 64),
    }
    assert decays.params == {
        "distill.temperature.kind": "exponential",
        "distill.temperature.end_ratio": 0.5,
        "distill.alpha.start": 0.5,
        "distill.feature_weight": "distill.feature_weight@1",
        "distill.feature_weight@1": 2.5,
        "train.batch_size": 32,
    }
    assert plain.params == PLAIN


def test_a_second_objective_is_a_second_value(tmp_path: Path) -> None:
    space = {**SPACE, "student.model": {"choice": ["cnn-8", "cnn-8-16"]}}
    run = a_run(tmp_path / "run", {}, space, second_objective="parameters")
    for number, (cost, accuracy) in enumerate([(100.0, 0.7), (400.0, 0.9), (500.0, 0.8)]):
        for epoch in (1, 2, 3):
            told = EpochRecord(epoch, 3, 1.0, {}, accuracy, 1.0, 0.1, 0.5).to_json()
            line = {"trial": f"{number:04d}", "config": {**PLAIN, "student.model": "cnn-8"}, "at": 1.0, "cost": cost}
            append_line(run.folder / "trials.jsonl", {**line, **told})
    write_study(load_run(run.folder), tmp_path / "s.db")
    study = loaded(tmp_path / "s.db")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [[0.7, 100.0], [0.9, 400.0], [0.8, 500.0]]
    assert [trial.number for trial in study.best_trials] == [0, 1]


def test_trials_of_a_search_under_way_are_running(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", {"0000": (PLAIN, [0.2, 0.5, 0.8]), "0001": (PLAIN, [0.1])}, stopper={"kind": "none"})
    write_study(run, tmp_path / "s.db")
    study = loaded(tmp_path / "s.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    assert study.trials[1].datetime_complete is None


def test_the_study_of_the_same_run_is_replaced_and_nothing_else_is(run: Run, tmp_path: Path) -> None:
    write_study(run, tmp_path / "s.db")
    write_study(run, tmp_path / "s.db")
    assert len(loaded(tmp_path / "s.db").trials) == 5
    shutil.copytree(run.folder, tmp_path / "other")
    (tmp_path / "text.db").write_text("mine")
    for other, file in ((load_run(tmp_path / "other"), "s.db"), (run, "text.db")):
        before = (tmp_path / file).read_bytes()
        with pytest.raises(ExportError, match="exists and is no study of"):
            write_study(other, tmp_path / file)
        assert (tmp_path / file).read_bytes() == before


def test_a_study_that_cannot_be_finished_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(optuna.storages.RDBStorage, "create_new_trial", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        write_study(run, tmp_path / "s.db")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a{b}.db", "a?b#c%20.db"])
def test_a_file_may_have_any_name(run: Run, tmp_path: Path, name: str) -> None:
    write_study(run, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "plain.db")
    assert len(loaded(tmp_path / "plain.db").trials) == 5


def test_what_the_database_refuses_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OperationalError("INSERT", None, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(optuna.storages.RDBStorage, "create_new_trial", full)
    with pytest.raises(ExportError, match=r"cannot write its study.*disk is full.*Set TMPDIR"):
        write_study(run, tmp_path / "s.db")


def test_the_command_line_writes_it_and_says_how_to_look_at_it(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run.folder), "--optuna", str(tmp_path / "s.db")])
    assert done.exit_code == 0, done.output
    assert f"Optuna: 5 trials in {tmp_path / 's.db'}" in done.output.replace("\n", "")
    assert len(loaded(tmp_path / "s.db").trials) == 5
