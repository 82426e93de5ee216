"""report.html: what it says is what summary.json says, whatever the run and whatever its names."""

import json
import logging
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdtune.cli import app
from kdtune.experiment import dump
from kdtune.report import importance, page
from kdtune.report.figures.time import PARTS
from kdtune.report.page import render, write_report
from kdtune.report.run import Run, load_run
from kdtune.report.sections.outcome import so_far, time
from kdtune.search.run import draw
from tests.example_run import experiment_of, write_run
from tests.pages import (
    NASTY,
    UNICODE,
    Page,
    long_run,
    nasty_run,
    run_of_an_earlier_version,
    run_without_search,
    single_run,
)

ORDER = ["verdict", "results", "curves", "temperature", "parallel", "importance", "schedules", "terms", "confusion",
         "calibration", "fidelity", "time", "experiment"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _without_plotly_s_script() -> Any:
    """Five megabytes that no test reads; the browser's tests have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_plotly", lambda: "/* plotly */")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(write_run(tmp_path_factory.mktemp("runs")))


def test_sections_are_those_of_the_run_in_order(run: Run) -> None:
    drawn = Page(render(run))
    assert drawn.sections == ORDER
    assert [level for level, _ in drawn.headings][:2] == ["h1", "h2"]


def test_tables_have_the_numbers_of_the_summary(run: Run) -> None:
    assert run.summary is not None
    text = render(run)
    tables = Page(text).tables
    assert run.summary["verdict"] in text
    (results,) = [table for table in tables if "FLOPs" in " ".join(table[0])]
    for row, cells in zip(run.summary["results"], results[1:], strict=True):
        assert cells[0] == f"{row['name']} {row['model']}"
        std = "" if row["std"] is None else f"{row['std']:.2%}"
        assert cells[1:4] == [f"{row['mean']:.2%}", std, str(len(row["test_accuracy"]))]
        assert cells[6] == f"{row['parameters']:,}"
        low, high = row["latency_range_ms"]
        assert cells[9] == f"{row['latency_ms']:.2f} ms {low:.2f} to {high:.2f}"
        if row["paired"]:
            assert cells[4].startswith(
                f"{row['paired']['difference'] * 100:+.2f} {row['paired']['low'] * 100:+.2f} to "
            )
            assert cells[4].endswith(f"p = {row['paired']['p_value']:.3f}")
    (calibrated,) = [table for table in tables if table[0][1:2] == ["ECE"]]
    assert {cells[0]: cells[1] for cells in calibrated[1:]} == {
        name: f"{one['ece']:.2%}" for name, one in run.summary["calibration"].items()
    }
    (times,) = [table for table in tables if table[0][1:2] == ["seconds"]]
    assert [cells[1] for cells in times[1:]] == [f"{seconds:,.1f}" for seconds in run.summary["time"].values()]
    (rungs,) = [table for table in tables if "Kendall" in " ".join(table[0])]
    assert [cells[:3] for cells in rungs[1:]] == [["2", "5", "0.90"], ["4", "5", "1.00"]]


def test_all_comes_in_one_file_that_may_ask_nothing_of_a_network(run: Run) -> None:
    text = unescape(render(run))
    assert "default-src 'none'" in text
    assert "connect-src 'none'" in text
    for outside in ("http://", "https://", 'src="', "@import", "url("):
        assert outside not in text.replace("http://www.w3.org", ""), outside


def test_names_with_markup_are_shown_as_they_are(tmp_path: Path, run: Run) -> None:
    text = render(load_run(nasty_run(tmp_path)))
    drawn = Page(text)
    assert drawn.scripts == Page(render(run)).scripts
    assert "alert(1)</script>" not in text
    assert UNICODE in text
    assert any(cells[0].startswith(NASTY.split("/", 1)[0]) for table in drawn.tables for cells in table)
    assert drawn.figures["confusion-before"]["data"][0]["x"] is not None
    shown = drawn.figures["confusion-before"]["layout"]["xaxis"]["ticktext"]
    assert shown[0].startswith("&lt;b&gt;&amp;amp;")  # which plotly reads as the letters that they are
    assert shown[1] == UNICODE


def under_way(parent: Path) -> Path:
    return write_run(parent, finished=False)


@pytest.mark.parametrize(
    ("make", "absent", "says"),
    [
        (run_without_search, {"curves", "temperature", "parallel", "importance", "fidelity"}, "Nothing was searched"),
        (run_of_an_earlier_version, set(), "The version that ran this search did not"),
        (under_way, {"results", "confusion", "calibration", "fidelity"}, "Not finished: 8 of 8 trials begun"),
    ],
    ids=["nothing searched", "earlier version", "under way"],
)
def test_a_run_that_lacks_something_has_a_page_all_the_same(
    make: Callable[[Path], Path], absent: set[str], says: str, tmp_path: Path
) -> None:
    text = render(load_run(make(tmp_path)))
    assert set(Page(text).sections) == set(ORDER) - absent
    assert says in text


def words(text: str) -> str:
    """What people read of a page, but for the experiment file."""
    body = re.sub(r"<(script|style|pre)\b.*?</\1>", "", text[text.index("<body") :], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_a_student_that_was_trained_without_a_search_is_not_told_as_one(tmp_path: Path) -> None:
    told = words(render(load_run(single_run(tmp_path))))
    assert "The student came to a validation accuracy of 92.50% in 6 epochs. One configuration, trained once" in told
    assert "kdtune train with this file repeats the run" in told
    for absent in ("trial", "best", "winner", "importan", "stopped", "rung", "final stage", "kdtune search"):
        assert absent not in told, absent
    assert Page(render(load_run(tmp_path / "example-train"))).sections == [
        "verdict", "curves", "schedules", "terms", "time", "experiment",
    ]  # fmt: skip


def test_it_is_told_how_far_a_single_training_is(tmp_path: Path) -> None:
    half, begun = single_run(tmp_path / "half", epochs=2), single_run(tmp_path / "begun", epochs=0)
    told = "Not finished: 2 of 6 epochs, validation accuracy 70.28%."
    assert so_far(load_run(half)) == told
    assert so_far(load_run(begun)) == "Not finished: the student has no epoch behind it yet."
    printed = CliRunner().invoke(app, ["report", str(half)]).stdout.splitlines()
    assert printed == [f"{told} The same `kdtune train` goes on with it.", f"Report: {half / 'report.html'}"]
    path = half / "trials.jsonl"
    lines = [json.loads(line) | {"loss": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lost = load_run(half)
    assert so_far(lost) == "The student diverged in epoch 2 of 6."
    assert Page(render(lost)).sections == ["verdict", "curves", "time", "experiment"]


def test_null_and_unused_are_told_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    path = folder / "trials.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["trial"] != "0000":
            line["config"]["distill.learned_temperature"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (trials,) = [table for table in Page(render(load_run(folder))).tables if "in full" in table[0]]
    column = trials[0].index("learned_temperature")
    assert {row[0]: row[column] for row in trials[1:]} == {f"{k:04d}": "null" if k else "unused" for k in range(8)}


def test_a_comparison_under_way_tells_how_many_of_its_runs_there_are(tmp_path: Path) -> None:
    folder = run_without_search(tmp_path)
    (folder / "summary.json").unlink()
    lines = [json.loads(line) for line in (folder / "final.jsonl").read_text().splitlines()]
    for line in lines:
        del line["made_of"]  # as of a version that did not tell them apart
    (folder / "final.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Not finished: 9 of 9 runs of the final stage; nothing is searched." in render(load_run(folder))


def test_a_run_with_no_trial_yet_and_one_with_a_single_trial(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(experiment_of(tmp_path)))
    assert Page(render(load_run(tmp_path))).sections == ["verdict", "experiment"]
    lines = (write_run(tmp_path / "of") / "trials.jsonl").read_text().splitlines()
    (tmp_path / "trials.jsonl").write_text(lines[0] + "\n")
    text = render(load_run(tmp_path))
    assert "1 trials are too few" in text
    assert "Trials do not differ in temperature or alpha" in text


def test_a_run_under_way_whose_trials_have_all_diverged_has_a_page_and_no_best(tmp_path: Path) -> None:
    folder = write_run(tmp_path, finished=False)
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    diverged = [line | {"loss": None, "val_accuracy": None} for line in lines if line["epoch"] == 1]
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in diverged))
    run = load_run(folder)
    assert run.best is None
    assert "8 of 8 trials begun, 8 epochs; 0 of them ran in full" in render(run)


def test_final_runs_of_a_version_that_did_not_tell_waiting_from_work_took_their_time_all_the_same(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "final.jsonl").read_text().splitlines()]
    for epoch in (epoch for line in lines for epoch in line["epochs"]):
        del epoch["waited"]
    (folder / "final.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text())
    del summary["time"]
    (folder / "summary.json").write_text(json.dumps(summary))
    told = time(load_run(folder))
    assert told is not None
    parts = {label: seconds for label, seconds, _ in told.says["parts"]}
    assert parts[PARTS["final"]] == pytest.approx(9 * 6 * 0.2)


def test_a_long_search_is_thinned_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "TREES", 3)
    run = load_run(long_run(tmp_path, trials=1200))
    text = render(run)
    drawn = Page(text)
    assert len(text) < 3_000_000  # with plotly's own five below eight megabytes
    assert text.count("there are 1,200") == 2  # curves, lines; 2,000 points may be shown
    assert "with 200 classes they are not kept" in text
    (shown,) = [trace for trace in drawn.figures["curves"]["data"] if trace["name"] == "ran in full (1,200)"]
    assert len(set(shown["customdata"])) <= 201
    assert drawn.sections[-2:] == ["pareto", "experiment"]


def test_the_experiment_file_can_be_copied_as_it_is(run: Run) -> None:
    class Text(Page):
        source = ""

        def handle_data(self, data: str) -> None:
            if "pre" in self._inside:
                self.source += data
            super().handle_data(data)

    assert Text(render(run)).source.strip() == dump(run.experiment).strip()


def test_the_command_prints_the_results_and_writes_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    told = CliRunner().invoke(app, ["report", str(folder)])
    assert told.exit_code == 0, told.output
    assert "student alone" in told.stdout
    assert told.stdout.splitlines()[-1] == f"Report: {folder / 'report.html'}"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_a_page_that_cannot_be_drawn_costs_no_finished_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path)

    def broken(run: Run) -> str:
        raise ZeroDivisionError("of a figure")

    monkeypatch.setattr(page, "render", broken)
    with caplog.at_level(logging.WARNING):
        draw(folder)
    assert "was not drawn" in caplog.text
    assert "of a figure" in caplog.text
    monkeypatch.undo()
    write_report(load_run(folder))


def test_a_wheel_carries_the_templates() -> None:
    """hatch packs what lies in the package; `.ci/run` holds that for a wheel, this for what the page reads."""
    folder = Path(page.__file__).parent / "templates"
    assert {"page.html", "content.html", "macros.html", "page.css", "page.js"} <= {one.name for one in folder.iterdir()}
