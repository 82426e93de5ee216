"""A search over teachers, with real Ray: a searched assistant, an ensemble, peers and rows in one file.

They take minutes: `pytest -m slow`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import kdtune
from kdtune.records import read_lines, read_trials
from tests.typed import kdtune_

pytestmark = pytest.mark.slow

ARRANGED = """
name: arranged
data: {dataset: digits, validation: 0.2}
teachers:
  large: {model: cnn-16-32, train: &short {epochs: 2, batch_size: 32, learning_rate: 0.1}}
  wide: {model: cnn-8-16, train: *short, stop_at: 2}
  assistant:
    model: cnn-8-16
    taught_by: large
    train: *short
    search: {trials: 2, space: {distill.temperature.start: {loguniform: [1, 4]}}}
  both: {ensemble: [large, wide]}
  online: {peers: [cnn-8]}
teacher: assistant
student: {model: cnn-4-8}
train: {epochs: 2, batch_size: 32, learning_rate: 0.1}
search:
  trials: 3
  space:
    teacher: {choice: [assistant, both]}
    distill.alpha.start: {uniform: [0.2, 0.9]}
final:
  seeds: 1
  baselines: [student alone]
  rows:
    directly: {teacher: large}
    online: {teacher: online, distill.temperature: 1}
    alone, slowly: {teacher: null, train.learning_rate: 0.01}
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("arranged")
    (folder / "arranged.yaml").write_text(ARRANGED)
    return folder, kdtune_(folder, "search", "arranged.yaml")


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "runs" / "arranged" / "summary.json").read_text())
    return summary


def test_the_table_has_every_teacher_and_every_row(searched: tuple[Path, str]) -> None:
    folder, output = searched
    results = {row["name"]: row for row in summary_of(folder)["results"]}
    own = read_trials(folder / "runs" / "arranged" / "trials.jsonl")
    assert {trial.config["teacher"] for trial in own} <= {"assistant", "both"}
    teachers = [name for name in results if name.startswith("teacher")]
    assert len(teachers) == 4  # large, wide, both, assistant: one of them is the winner's own, called just teacher
    assert list(results)[4:] == ["student alone", "directly", "online", "alone, slowly", "best"]
    for name in results:
        assert name in output
    assert all(len(row["test_accuracy"]) == 1 and row["size_mb"] > 0 for row in results.values())
    compared = {name for name, row in results.items() if row["agreement"] is not None}
    assert compared == {"student alone", "directly", "alone, slowly", "best"}  # peers leave no teacher behind
    assert summary_of(folder)["calibration"].keys() == results.keys()


def test_the_assistants_search_is_kept_in_the_run_and_decides_how_it_is_trained(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    run = folder / "runs" / "arranged" / "assistants" / "assistant"
    assert len(read_trials(run / "trials.jsonl")) == 2
    assert (run / "final" / "winner.json").exists()
    kdtune_(folder, "teacher", "arranged.yaml")  # finds all of them: nothing is trained again
    assert "cnn-8-16" in kdtune_(folder, "cache", "info", "arranged.yaml")


def test_rows_are_trained_as_they_say(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    lines = {line["name"]: line for line in read_lines(folder / "runs" / "arranged" / "final.jsonl")}
    assert lines["alone, slowly"]["epochs"][0]["terms"].keys() == {"cross_entropy"}
    assert lines["online"]["epochs"][0]["temperature"] == 1
    assert lines["directly"]["epochs"][0]["temperature"] == 4
    assert sum(map(sum, lines["best"]["confusion"])) == 450  # test images


def test_the_student_of_an_arranged_search_can_be_used(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    student = kdtune.load_student(folder / "runs" / "arranged" / "student")
    assert student.classes == tuple("0123456789")
    assert "taught by" in (folder / "runs" / "arranged" / "student" / "README.md").read_text()


def test_nothing_searched_is_a_comparison_of_what_the_file_says(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    output = kdtune_(
        folder,
        *("search", "arranged.yaml", "--set", "name=compared", "--set", "search={trials: 0}", "--set", "teacher=both"),
        *("--set", "final.rows={directly: {teacher: large}}"),
    )
    results = [row["name"] for row in json.loads((folder / "runs/compared/summary.json").read_text())["results"]]
    assert results == ["teacher", "teacher large", "teacher wide", "student alone", "directly", "distilled"]
    assert "Nothing was searched" in output
    assert "The distilled student is" in output
    assert not (folder / "runs" / "compared" / "states").exists()
