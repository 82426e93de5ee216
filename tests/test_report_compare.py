"""Runs side by side: their numbers, and what makes them unlike."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdtune.cli import app, main
from kdtune.errors import RunError
from kdtune.report import page
from kdtune.report.compare import Compared, write_comparison
from kdtune.report.run import load_run
from tests.example_run import write_run
from tests.pages import Page


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The same run twice."""
    monkeypatch.setattr(page, "_plotly", lambda: "/* plotly */")
    first = write_run(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    return first, tmp_path / "two" / "example"


def compared(*folders: Path) -> Compared:
    return Compared.of([load_run(folder) for folder in folders])


def test_runs_are_named_by_what_tells_them_apart(two: tuple[Path, Path]) -> None:
    assert list(compared(*two).runs) == ["one/example", "two/example"]
    assert compared(*two).warnings == []


def test_their_numbers_are_those_of_their_summaries(two: tuple[Path, Path], tmp_path: Path) -> None:
    summary = json.loads((two[1] / "summary.json").read_text())
    summary["results"][3]["mean"] = 0.1234
    (two[1] / "summary.json").write_text(json.dumps(summary))
    overview = compared(*two).overview()
    assert [one["best"] for one in overview] == [pytest.approx(0.95), 0.1234]
    assert overview[0]["epochs"] == summary["search"]["epochs_run"]
    text = write_comparison(compared(*two), tmp_path / "deep" / "compare.html").read_text()
    (results,) = [table for table in Page(text).tables if table[0][1:2] == ["row"]]
    expected = [("one/example", f"{row['mean']:.2%}") for row in load_run(two[0]).summary["results"]]  # type: ignore[index]
    assert [(cells[0], cells[3]) for cells in results[1:5]] == expected
    assert results[-1][3] == "12.34%"


@pytest.mark.parametrize(
    ("file", "before", "after", "warning"),
    [
        ("materials.json", "d" * 64, "f" * 64, "not the same images or labels"),
        ("experiment.yaml", "dataset: digits\n  root: null", "dataset: mnist\n  root: data", "The data sets differ"),
        ("experiment.yaml", "validation: 0.2", "validation: 0.3", "The validation splits differ"),
    ],
)
def test_what_makes_them_unlike_is_said(
    two: tuple[Path, Path], file: str, before: str, after: str, warning: str
) -> None:
    path = two[1] / file
    path.write_text(path.read_text().replace(before, after))
    (said,) = compared(*two).warnings
    assert warning in said


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_is(tmp_path: Path, two: tuple[Path, Path]) -> None:
    going = write_run(tmp_path / "going", finished=False)
    told = CliRunner().invoke(app, ["compare", str(two[0]), str(going), "--to", str(tmp_path / "compare.html")])
    assert told.exit_code == 0, told.output
    assert "Mind: Not finished, so without test accuracies: going/example." in told.stdout
    assert "95.00%" in told.stdout
    assert (tmp_path / "compare.html").exists()


def test_a_place_that_cannot_be_written_is_told(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the comparison, of figures, and of an experiment file."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine")
    runs = [str(folder) for folder in two]
    for arguments, says in (
        (["compare", *runs, "--to", "{}/taken"], "taken: Is a directory. A folder of that name is there"),
        (["compare", *runs, "--to", "{}/file/x.html"], "file: File exists. Something of that name is there already"),
        (["report", runs[0], "--png", "{}/file"], "file: File exists. Something of that name is there already"),
        (["report", runs[0], "--png", "{}/file/sub"], "file/sub: Not a directory. A file lies where a folder has to"),
        (["init", "{}/taken", "--yes", "--force"], "taken: Is a directory. A folder of that name is there"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([argument.format(tmp_path) for argument in arguments])
        assert exit_.value.code == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_one_run_or_the_same_twice_is_refused(two: tuple[Path, Path]) -> None:
    for folders in ([two[0]], [two[0], two[0]]):
        with pytest.raises(RunError, match="two runs or more"):
            compared(*folders)
