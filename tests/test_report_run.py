"""A run as pandas frames: what its files say, finished or under way, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdtune
from kdtune.errors import RunError
from kdtune.experiment import dump, parse
from kdtune.experiment.space import parse as parse_space
from kdtune.experiment.values import plain
from kdtune.records import EpochRecord, append_line, read_trials
from kdtune.report import page
from kdtune.report.run import load_run
from kdtune.trial import jobs_of
from kdtune.tuning.making import make_study
from kdtune.tuning.samplers import Random
from tests.example_run import TRIALS, experiment_of, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read only."""
    return write_run(tmp_path_factory.mktemp("runs"))


def test_trials_are_a_frame_with_a_column_for_each_path(folder: Path) -> None:
    trials = kdtune.load_run(folder).trials.set_index("trial")
    assert list(trials["status"]) == ["complete"] * 3 + ["stopped", "complete", "stopped", "diverged", "complete"]
    assert list(trials["epochs"]) == [epochs for _, epochs, _ in TRIALS]
    assert set(trials["planned"]) == {6}
    for number, (config, _, accuracy) in enumerate(TRIALS):
        row = trials.loc[f"{number:04d}"]
        assert row["val_accuracy"] == (0.0 if math.isnan(accuracy) else pytest.approx(accuracy))
        assert {path: row[path] for path in config} == config
        assert all(pd.isna(row[path]) for path in load_run(folder).paths if path not in config)


def test_epochs_are_those_of_the_records(folder: Path) -> None:
    run = load_run(folder)
    told = [(trial.trial, record) for trial in read_trials(folder / "trials.jsonl") for record in trial.epochs]
    assert list(run.epochs["trial"]) == [trial for trial, _ in told]
    for name in (
        "epoch",
        "epochs",
        "loss",
        "val_accuracy",
        "learning_rate",
        "seconds",
        "waited",
        "temperature",
        "alpha",
    ):
        np.testing.assert_array_equal(run.epochs[name], [getattr(record, name) for _, record in told], err_msg=name)
    for name in ("cross_entropy", "distillation"):
        np.testing.assert_array_equal(run.epochs[f"term.{name}"], [record.terms[name] for _, record in told])


def test_what_is_told_again_counts_as_it_does_for_the_search(folder: Path, tmp_path: Path) -> None:
    """A trial that was lost and taken up from before its last epochs."""
    lines = (folder / "trials.jsonl").read_text().splitlines()
    (tmp_path / "experiment.yaml").write_text((folder / "experiment.yaml").read_text())
    again = [json.loads(line) | {"val_accuracy": 0.123} for line in lines[1:3]]  # epochs 2 and 3 of trial 0000
    text = [*lines[:5], *(json.dumps(line) for line in again), *lines[6:12], lines[12][:40]]  # the last was cut
    (tmp_path / "trials.jsonl").write_text("\n".join(text))
    run, told = load_run(tmp_path), read_trials(tmp_path / "trials.jsonl")
    expected = [(trial.trial, record.epoch, record.val_accuracy) for trial in told for record in trial.epochs]
    found = run.epochs[["trial", "epoch", "val_accuracy"]].itertuples(index=False, name=None)
    assert list(found) == expected
    assert (expected[2][2], len([one for one in expected if one[0] == "0000"])) == (0.123, 3)


def test_final_runs_and_their_epochs(folder: Path) -> None:
    run = load_run(folder)
    assert run.summary is not None
    for row in run.summary["results"][1:]:
        of_row = run.final[run.final["name"] == row["name"]].sort_values("seed")
        assert list(of_row["test_accuracy"]) == row["test_accuracy"]
    assert len(run.final_epochs) == len(run.final) * 6


def test_of_a_name_and_seed_the_last_run_counts(folder: Path, tmp_path: Path) -> None:
    write = write_run(tmp_path)
    append_line(write / "final.jsonl", {"name": "best", "seed": 2, "test_accuracy": 0.5, "epochs": []})
    final = load_run(write).final
    assert list(final[(final["name"] == "best") & (final["seed"] == 2)]["test_accuracy"]) == [0.5]


def test_a_search_that_goes_on_has_another_best_and_runs_of_the_earlier_winner_do_not_count(tmp_path: Path) -> None:
    """More trials are asked for, one of them is better and another one has just begun."""
    folder = write_run(tmp_path)
    (folder / "summary.json").unlink()  # as the search does
    experiment = experiment_of(tmp_path)
    search = experiment.search.model_copy(update={"trials": 10})
    more = experiment.model_copy(update={"search": search})
    (folder / "experiment.yaml").write_text(dump(more))
    told = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for line in [line for line in told if line["trial"] == "0001"]:
        append_line(folder / "trials.jsonl", line | {"trial": "0008", "val_accuracy": line["val_accuracy"] + 0.02})
    append_line(folder / "trials.jsonl", told[0] | {"trial": "0009"})
    run = load_run(folder)
    assert run.best == "0008"
    assert run.trials.set_index("trial").loc["0009", "status"] == "running"
    assert run.final.empty
    (job, *_) = jobs_of(more, run.winner)
    line = {"name": "best", "seed": job.seed, "made_of": job.made_of, "test_accuracy": 0.97, "epochs": []}
    append_line(folder / "final.jsonl", line)
    assert list(load_run(folder).final["test_accuracy"]) == [0.97]


def test_an_earlier_winner_that_wins_again_has_its_own_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    run = load_run(folder)
    jobs = [job for job in jobs_of(run.experiment, run.winner) if job.name == "best"]
    (folder / "final.jsonl").write_text("")
    for made_of, accuracy in ((jobs[0].made_of, 0.9), ("another", 0.1)):
        for job in jobs:
            line = {"name": job.name, "seed": job.seed, "made_of": made_of, "test_accuracy": accuracy, "epochs": []}
            append_line(folder / "final.jsonl", line)
    assert list(load_run(folder).final["test_accuracy"]) == [0.9] * 3


def test_the_best_is_the_winner_and_before_there_is_one_the_best_so_far(folder: Path, tmp_path: Path) -> None:
    assert load_run(folder).best == "0001"
    under_way = load_run(write_run(tmp_path, finished=False))
    full = under_way.trials[under_way.trials["status"] == "complete"]
    assert under_way.summary is None
    assert under_way.best == full.sort_values("val_accuracy")["trial"].iloc[-1]


def test_a_run_under_way_knows_what_was_stopped_from_what_runs(tmp_path: Path) -> None:
    """As the search's own study does, which was told the same in the same order."""
    experiment = experiment_of(tmp_path)
    (tmp_path / "experiment.yaml").write_text(dump(experiment))
    study = make_study(experiment, sampler=Random(parse_space(experiment.search.space)[0], 0))
    for number, accuracy in enumerate((0.9, 0.8, 0.7, 0.6, 0.5)):
        seen = study.ask()
        assert seen is not None
        for epoch in range(1, 7 if number < 4 else 2):
            record = EpochRecord(
                epoch, 6, 1.0, {"cross_entropy": 1.0}, accuracy, 1.0, 0.1, 0.2, temperature=4, alpha=0.9
            )
            line = {"trial": f"{number:04d}", "config": seen.config, "at": float(number), **record.to_json()}
            append_line(tmp_path / "trials.jsonl", line)
            if study.tell(number, record):
                break
    run = load_run(tmp_path)
    assert list(run.trials["status"]) == [seen.status for seen in study.trials.values()]
    assert set(run.trials["status"]) == {"complete", "stopped", "running"}


def test_records_that_another_version_has_judged_count_as_running(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, finished=False))
    assert set(run.trials["status"]) == {"complete", "running"}


def test_a_trial_that_failed_and_then_went_on_has_not_failed(folder: Path, tmp_path: Path) -> None:
    """0003 was stopped at epoch 2, 0005 at epoch 4."""
    for name in ("experiment.yaml", "trials.jsonl"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "winner.json").write_text('{"trial": "0001"}')

    def statuses(*told: tuple[str, dict[str, int]]) -> list[str]:
        (tmp_path / "errors.jsonl").unlink(missing_ok=True)
        for trial, more in told:
            append_line(tmp_path / "errors.jsonl", {"trial": trial, "error": "lost", "times": 0, "at": 1.0, **more})
        return [load_run(tmp_path).trials.set_index("trial").loc[name, "status"] for name in ("0003", "0005")]

    assert statuses(("0003", {"epoch": 1}), ("0005", {"epoch": 4})) == ["stopped", "failed"]
    assert statuses(("0005", {"epoch": 2})) == ["stopped", "stopped"]
    assert statuses(("0005", {"epoch": 2}), ("0005", {"epoch": 4})) == ["stopped", "failed"]
    assert statuses(("0003", {})) == ["failed", "stopped"]  # an earlier version did not say when


def test_a_trial_that_failed_has_failed_while_the_search_goes_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path, finished=False)
    append_line(folder / "errors.jsonl", {"trial": "0007", "error": "lost", "times": 0, "epoch": 1, "at": 1.0})
    assert list(load_run(folder).trials["status"][6:]) == ["running", "failed"]


def test_a_forecast_is_what_was_measured_where_a_trial_ran_in_full(folder: Path) -> None:
    run = load_run(folder)
    full = (run.trials["status"] == "complete").to_numpy()
    np.testing.assert_allclose(run.foretold["value"][full], run.trials["val_accuracy"][full])
    assert (run.foretold["spread"][full] == 0).all()
    stopped = (run.trials["status"] == "stopped").to_numpy()
    assert (run.foretold["value"][stopped] > run.trials["val_accuracy"][stopped]).all()


def test_a_fork_s_forecast_begins_with_its_parent_s_epochs(tmp_path: Path) -> None:
    """Values of two trials meet at equal epochs only, and a fork's own begin in the middle of a run."""
    (tmp_path / "experiment.yaml").write_text(dump(experiment_of(tmp_path)))
    write_run(tmp_path / "of", finished=True)
    for line in map(json.loads, (tmp_path / "of" / "example" / "trials.jsonl").read_text().splitlines()):
        if line["trial"] == "0000":
            append_line(tmp_path / "trials.jsonl", line)
        if line["trial"] == "0001" and line["epoch"] > 4:
            fork = line | {"trial": "100000", "parent": {"trial": "0000", "epoch": 4}}
            append_line(tmp_path / "trials.jsonl", fork)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "winner.json").write_text('{"trial": "0000"}')
    run = load_run(tmp_path)
    assert list(run.epochs[run.epochs["trial"] == "100000"]["epoch"]) == [5, 6]
    assert list(run.foretold["spread"]) == [0, 0]


def test_a_run_that_has_only_begun_has_empty_frames(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(experiment_of(tmp_path)))
    run = load_run(tmp_path)
    assert (len(run.trials), len(run.epochs), len(run.final), len(run.foretold)) == (0, 0, 0, 0)
    assert (run.best, run.summary) == (None, None)
    assert "distill.temperature.start" in run.trials.columns


def test_records_of_earlier_versions_lack_some_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text((folder / "experiment.yaml").read_text())
    for line in (folder / "trials.jsonl").read_text().splitlines()[:6]:
        old = {name: value for name, value in json.loads(line).items() if name not in ("at", "waited", "computed")}
        append_line(tmp_path / "trials.jsonl", old)
    assert set(load_run(tmp_path).epochs["waited"]) == {0.0}


def test_values_of_one_path_may_be_of_several_types(tmp_path: Path) -> None:
    """A choice between a word and a number, a schedule that a population made."""
    (tmp_path / "experiment.yaml").write_text(dump(experiment_of(tmp_path)))
    write_run(tmp_path / "of")
    first = json.loads((tmp_path / "of" / "example" / "trials.jsonl").read_text().splitlines()[0])
    values = ["auto", 0.5, {"kind": "piecewise", "start": 1, "values": [2], "milestones": [0.5]}, None, [1, 2]]
    for number, value in enumerate(values):
        line = first | {"trial": f"{number:04d}", "config": {"distill.alpha": value}, "epochs": 1}
        append_line(tmp_path / "trials.jsonl", line)
    assert list(load_run(tmp_path).trials["distill.alpha"]) == values


@pytest.mark.parametrize(
    "text", ["{}\n", '{"trial": "0000", "config": {}, "epoch": "x"}\n', "nonsense\n", '{"trial": "0", "config": 3}\n']
)
def test_damaged_records_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(experiment_of(tmp_path)))
    (tmp_path / "trials.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"trials\.jsonl.*edited or damaged"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "final/winner.json", "materials.json"])
@pytest.mark.parametrize("text", ["nonsense", "[]", ""])
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    folder = write_run(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(RunError, match=rf"{name}.*edited or damaged"):
        page.render(load_run(folder))


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "best", "seed": 1}', '{"seed": 1, "epochs": []}'])
def test_a_damaged_final_run_is_refused_by_its_line(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path)
    (folder / "final.jsonl").write_text(text + "\n")
    with pytest.raises(RunError, match=r"final\.jsonl, line 1 is no run of the final stage: .*edited or damaged"):
        load_run(folder)


def test_a_summary_that_lacks_what_is_read_from_it_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "summary.json").write_text('{"search": {}}')
    with pytest.raises(RunError, match=r"summary\.json lacks best, results"):
        load_run(folder)


def test_what_is_no_run_is_refused_saying_what_is(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no experiment\.yaml\. Give the folder"):
        load_run(tmp_path)
    (tmp_path / "experiment.yaml").write_text("name: x\nnonsense: 1\n")
    with pytest.raises(RunError, match="this version cannot read"):
        load_run(tmp_path)


def test_a_run_without_a_search_has_a_winner_too(tmp_path: Path) -> None:
    raw = plain(experiment_of(tmp_path)) | {"search": {"trials": 0}}
    (tmp_path / "experiment.yaml").write_text(dump(parse(raw)))
    run = load_run(tmp_path)
    assert run.winner == run.experiment
    assert run.winner_name == "distilled"
