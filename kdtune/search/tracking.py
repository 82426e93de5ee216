"""Trials as other tools show them: what the records say goes to each tool of `tracking`.

    check_tracking(folder, experiment)                   # before anything starts
    with tracked(folder, experiment) as tracking: ...    # while trials and the final stage run

The records are the truth, and a tool's copy is a view of them: a thread reads trials.jsonl and final.jsonl from where
it left off. So a tool that is slow costs a search nothing, one that fails hears later what it has missed, and a search
that is taken up again goes on in the same runs of the tool. Ray's own callbacks know a trial only as long as one
`tune.run` lasts: a search that goes on would begin every trial again there, count resumed ones from epoch 1, and tell
epochs twice.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from kdtune.errors import ExperimentError, Problem
from kdtune.experiment import Experiment
from kdtune.records import read_lines, write_text
from kdtune.search.board import Board
from kdtune.search.recorder import ERRORS
from kdtune.search.trackers import FINAL, TESTED, TRACKERS, Place, Point, Run, Tracker

log = logging.getLogger(__name__)

STATE = "tracking.json"  # the search's key at its tools, and how far each has been told
TRIALS, FINALS = "trials.jsonl", "final.jsonl"
EVERY_S = 2.0
LINES = 100  # told at once
PAUSE_S = 30.0  # after a tool has failed; twice as long each time
LONGEST_PAUSE_S = 600.0
END_S = 20.0  # when trials are over, a tool that takes nothing holds nobody up for longer,
LONGEST_END_S = 120.0  # and none does for so long
ENDED = ("complete", "stopped", "diverged", "failed")
NUMBERS = ("val_accuracy", "val_loss", "loss", "learning_rate", "temperature", "alpha", "feature_weight", "seconds")
HINTS = {
    "tensorboard": "",
    "mlflow": "MLFLOW_TRACKING_URI says where it keeps runs: http://host:5000, or sqlite:////path/of/mlflow.db",
    "wandb": "`wandb login` or WANDB_API_KEY gives it a key, WANDB_MODE=offline keeps everything on this machine",
}


def check_tracking(folder: Path, experiment: Experiment, *, away: bool = False) -> None:
    """Reaches every tool once, before anything costs time. Raises ExperimentError with what is wrong with each."""
    problems = []
    for name in experiment.tracking:
        try:
            TRACKERS[name](Place(folder, experiment.name, key="", away=away)).close()
        except ImportError as error:
            problems.append(f"{name} is not installed ({error}): pip install 'kdtune[{name}]', or leave it out")
        except Exception as error:  # noqa: BLE001  # each tool has its own kinds, and all of them are told
            problems.append(f"{name} cannot be used: {error}. {HINTS[name]}")
    if problems:
        raise ExperimentError(experiment.name, [Problem("tracking", problem) for problem in problems])


@contextmanager
def tracked(folder: Path, experiment: Experiment) -> Iterator["Tracking"]:
    """Tells the experiment's tools, while the block lasts, what the records in the folder say; then, as long as they
    take it, what is left."""
    tracking = Tracking(folder, experiment)
    if experiment.tracking:
        tracking.start()
    try:
        yield tracking
    finally:
        if experiment.tracking:
            tracking.finish()


class Tracking(threading.Thread):
    """It alone writes the state."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        super().__init__(name="tracking", daemon=True)
        self.folder = folder
        self.board: Board | None = None
        self.failed: set[str] | None = None  # trials that did, once the search is over
        self.done = threading.Event()  # nothing more is written to the records by now
        self.left = False  # nobody waits any longer
        self.moved = time.monotonic()  # when a tool took something
        self.state = _state(folder) if experiment.tracking else {}
        self.tellers = [self._teller(name, experiment.name) for name in experiment.tracking]

    def _teller(self, name: str, title: str) -> "_Teller":
        place = Place(self.folder.resolve(), title, self.state["key"])
        return _Teller(name, place, self.state["told"].setdefault(name, {}))

    def trials_run(self, board: Board) -> None:
        """From now on, and the board says how each ends."""
        self.board = board

    def trials_are_over(self) -> None:
        """Those that neither ran in full nor failed were stopped."""
        lines = read_lines(self.folder / ERRORS)
        self.failed = {line["trial"] for line in lines if not line["times"]}

    def run(self) -> None:
        while not self.done.wait(EVERY_S):
            self._tell()
        while self._tell() and not self.left:
            pass
        for teller in self.tellers:
            teller.close()

    def finish(self) -> None:
        self.done.set()
        self.moved = time.monotonic()
        last = self.moved + LONGEST_END_S
        try:
            while self.is_alive() and time.monotonic() < min(last, self.moved + END_S):
                self.join(0.1)
        finally:
            self.left = True
        for teller in self.tellers:
            if self.is_alive() or teller.failures:
                log.warning("%s was not told of everything; the same command goes on with that", teller.name)

    def _tell(self) -> bool:
        """Whether there may be more to tell."""
        moved = [teller.tell(self._status) for teller in self.tellers]
        if any(moved):
            self.moved = time.monotonic()
            try:
                write_text(self.folder / STATE, json.dumps(self.state))
            except OSError as error:  # a disk that is full ends the search where the records are written
                log.warning("cannot note in %s what has been tracked: %s", self.folder, error)
        return any(moved)

    def _status(self, name: str) -> str | None:
        """Of a trial that has ended, as far as the search knows by now."""
        row = self.board.rows.get(name) if self.board is not None else None
        if row is not None and row.status in ENDED:
            return row.status
        if self.failed is None:
            return None
        return "failed" if name in self.failed else "stopped"


class _Teller:
    """One tool, and how far it has been told: bytes of each file, and runs that have not ended, with their values."""

    def __init__(self, name: str, place: Place, told: dict[str, Any]) -> None:
        self.name = name
        self.place = place
        self.told = told
        self.open: dict[str, Any] = told.setdefault("open", {})
        self.tracker: Tracker | None = None
        self.failures = 0
        self.not_before = 0.0

    def tell(self, status: Callable[[str], str | None]) -> bool:
        """Whether there was anything new; a tool that fails is left alone for a while."""
        if time.monotonic() < self.not_before:
            return False
        try:
            moved = self._tell(status)
        except Exception as error:  # noqa: BLE001  # whatever another's client raises, it ends no search
            self._failed(error)
            return False
        if self.failures:
            log.warning("%s answers again", self.name)
        self.failures = 0
        return moved

    def _tool(self) -> Tracker:
        """Reached once there is something to tell."""
        if self.tracker is None:
            self.tracker = TRACKERS[self.name](self.place)
        return self.tracker

    def _tell(self, status: Callable[[str], str | None]) -> bool:
        # asked before the records are read: they have every epoch of a trial that has ended by then
        ended = {name: status(name) for name in self.open}
        moved = cut = False
        for file, told_by in ((TRIALS, _of_trial), (FINALS, _of_final)):
            lines, end = _lines(self.place.folder / file, self.told.get(file, 0))
            for _, group in groupby(map(told_by, lines), key=lambda told: told[0].name):
                told = list(group)
                run, points = told[0][0], [point for _, some, _ in told for point in some]
                self.open[run.name] = run.config
                self._tool().epochs(run, points)
                ended[run.name] = told[-1][2] or ended.get(run.name)
            self.told[file] = end
            moved |= bool(lines)
            cut |= len(lines) == LINES
        for name, how in ended.items():
            if how is not None and not (cut and how == "stopped"):  # how a run ended may stand in lines to come
                self._tool().ended(Run(name, self.open[name]), how)
                del self.open[name]
                moved = True
        return moved

    def _failed(self, error: Exception) -> None:
        if not self.failures:
            log.warning("%s fails, and is told later what it misses; the search goes on: %s", self.name, error)
        if self.tracker is not None:
            with suppress(Exception):  # it has failed already
                self.tracker.close()
        self.tracker = None  # the next one asks what there is
        self.failures += 1
        self.not_before = time.monotonic() + min(PAUSE_S * 2 ** (self.failures - 1), LONGEST_PAUSE_S)

    def close(self) -> None:
        if self.tracker is not None:
            try:
                self.tracker.close()
            except Exception as error:  # noqa: BLE001  # as above
                log.warning("%s fails: %s", self.name, error)


def _state(folder: Path) -> dict[str, Any]:
    """The key is made once: a later run of the same name is another."""
    path = folder / STATE
    if not path.exists():
        write_text(path, json.dumps({"key": uuid.uuid4().hex[:12], "told": {}}))
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def _lines(path: Path, begin: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines from a byte on, LINES of them at most, and where they end. A file that has become shorter is another
    one: it is read from its first byte."""
    if not path.exists():
        return [], 0
    lines: list[dict[str, Any]] = []
    with path.open("rb") as file:
        file.seek(begin if begin <= path.stat().st_size else 0)
        end = file.tell()
        while len(lines) < LINES and (line := file.readline()).endswith(b"\n"):
            lines.append(json.loads(line))
            end += len(line)
    return lines, end


Told = tuple[Run, list[Point], str | None]  # what a line tells, and how the run ended if it says so


def _of_trial(line: Mapping[str, Any]) -> Told:
    config = dict(line["config"])
    if "parent" in line:
        config["parent"] = f"{line['parent']['trial']} after epoch {line['parent']['epoch']}"
    ended = "diverged" if line["loss"] is None else "complete" if line["epoch"] >= line["epochs"] else None
    return Run(line["trial"], config), [_point(line)], ended


def _of_final(line: Mapping[str, Any]) -> Told:
    """A run of the final stage is one line, written when it has ended."""
    points = [_point(epoch) for epoch in line["epochs"]]
    points[-1] = Point(points[-1].epoch, points[-1].at, {**points[-1].numbers, TESTED: line["test_accuracy"]})
    name = f"{FINAL}{line['name']}-{line['seed']}-{line.get('made_of', '')}".replace(" ", "-").rstrip("-")
    return (
        Run(name, {"row": line["name"], "seed": line["seed"], **line.get("config", {})}),  # an earlier version: none
        points,
        "diverged" if line["diverged"] else "complete",
    )


def _point(line: Mapping[str, Any]) -> Point:
    """Flat and finite: what does not apply, or has no number, is left out."""
    numbers = {name: line.get(name) for name in NUMBERS} | {f"terms/{k}": v for k, v in line["terms"].items()}
    return Point(line["epoch"], time.time(), {name: float(v) for name, v in numbers.items() if v is not None})
