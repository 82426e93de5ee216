"""What a person sees: the live table and the words around it, rendered to text."""

import io
import sys
import time

import pytest
from rich.console import Console, RenderableType

from kdtune.cli.progress import (
    PATIENCE,
    Lines,
    Terminal,
    board_table,
    duration,
    headline,
    short_config,
)
from kdtune.cli.results import results_table
from kdtune.search.board import Board, Row

ROWS = {
    "0000": Row("0000", {"distill.temperature.kind": "fixed", "distill.temperature.start": 4.0}, 25, 0.86, "complete"),
    "0001": Row("0001", {"distill.alpha.start": 0.5}, 6, 0.61, "stopped"),
    "0002": Row("0002", {"distill.alpha.start": 0.7}, 3, 0.22, "running"),
}


def shown(width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(board_table(Board(trials=9, epochs=25, rows=dict(ROWS), seconds=60.0)))
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_the_table_has_a_line_for_each_trial_running_ones_first() -> None:
    lines = shown(120)
    assert lines[0].startswith("2/9 done, 1 running, 1 stopped early, best 86.00% (trial 0000), about")
    assert lines[2].split() == ["trial", "status", "epoch", "accuracy", "configuration"]
    assert [line.split()[:2] for line in lines[3:]] == [["0002", "running"], ["0000", "complete"], ["0001", "stopped"]]
    assert lines[4].endswith("temperature 4")


def test_a_narrow_terminal_cuts_the_configuration_and_nothing_else() -> None:
    for line, row in zip(shown(48)[-3:], ("0002", "0000", "0001"), strict=True):
        assert line.split()[0] == row
        assert "%" in line
        assert len(line) <= 48


def test_a_configuration_is_told_in_a_few_words() -> None:
    config = {
        "distill.temperature.kind": "exponential",
        "distill.temperature.start": 4.0,
        "distill.temperature.end_ratio": 0.25,
        "distill.feature_weight": 0,
        "train.learning_rate": 0.1,
    }
    assert short_config(config) == "temperature exponential 4 → 1, feature_weight 0, learning_rate 0.1"
    assert short_config({"distill.learned_temperature": None, "train.x": 1}) == "learned_temperature null, x 1"


def test_the_schedule_that_a_population_made_is_told_in_the_order_of_its_values() -> None:
    made = {"kind": "piecewise", "start": 4, "values": [3.2, 2.56], "milestones": [0.25, 0.5]}
    assert short_config({"distill.temperature": made}) == "temperature piecewise 4 → 3.2 → 2.56 milestones 0.25 0.5"


def test_durations_are_told_in_the_largest_units_that_fit() -> None:
    assert [duration(s) for s in (5.4, 65, 7260)] == ["5 s", "1 min 5 s", "2 h 1 min"]


def test_before_the_first_result_nothing_is_promised() -> None:
    assert headline(Board(trials=9, epochs=25)) == "0/9 done, 0 running, 0 stopped early, no result yet"


def test_a_row_named_like_markup_is_shown_as_it_is() -> None:
    row = {"model": "cnn-8", "mean": 0.5, "std": None, "test_accuracy": [0.5], "parameters": 9, "size_mb": 1.0,
           "latency_ms": 1.0}  # fmt: skip
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(results_table({"results": [{"name": "T 4 [fixed]", **row}]}))
    assert "T 4 [fixed]" in console.export_text()


def test_a_terminal_breaks_lines_between_words_and_a_pipe_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "word " * 100 + "end"
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("COLUMNS", "80")
        watch = Lines()
        with watch.console.capture() as capture:
            watch.say(text)
        lines = capture.get().splitlines()
        assert (len(lines) > 6) == terminal
        assert all(line.strip().endswith(("word", "end")) for line in lines)


def reading(watch: Lines, monkeypatch: pytest.MonkeyPatch, *moments: float) -> str:
    """What is printed while 2,000 files are read, as many up to each of `moments` (in seconds)."""
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    with watch.console.capture() as capture:
        watch.files_read(0, 2000)
        for number, moment in enumerate(moments, start=1):
            clock = moment
            watch.files_read(2000 * number // len(moments), 2000)
    return capture.get()


@pytest.mark.parametrize("kind", [Lines, Terminal])
def test_reading_files_is_told_once_it_takes_long(kind: type[Lines], monkeypatch: pytest.MonkeyPatch) -> None:
    assert reading(kind(), monkeypatch, 0.1, PATIENCE - 0.1) == ""
    told = reading(kind(), monkeypatch, 0.1, PATIENCE + 0.1, 20, 40)
    assert told.count("\n") == 1
    assert told.endswith("data      reading 2,000 files once, to know them again: 1,000 read\n")


def test_a_log_hears_every_minute_how_far_the_reading_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = reading(Lines(), monkeypatch, 20, 40, 81, 90, 142)
    assert [line.split()[-2] for line in told.splitlines()] == ["400", "1,200", "2,000"]


def test_a_terminal_shows_how_far_the_reading_is_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    shown: list[RenderableType] = []
    monkeypatch.setattr(terminal.live, "update", shown.append)
    reading(terminal, monkeypatch, 0.1, PATIENCE - 0.1)
    assert shown == []
    reading(terminal, monkeypatch, 20, 40, 60, 80)
    with terminal.console.capture() as capture:
        terminal.console.print(*shown, sep="\n")
    words = [line.strip() for line in capture.get().splitlines() if "files" in line]
    assert words == ["data: 500/2,000 files", "data: 1,000/2,000 files", "data: 1,500/2,000 files"]
    assert str(shown[-1]) == ""
