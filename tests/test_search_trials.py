"""Tune as kdtune drives it, with trials that do nothing: which process runs what, in how many calls, and Ctrl-C.

They take a minute: `pytest -m slow`.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from kdtune.cli.options import default_file
from kdtune.experiment import Experiment, load
from kdtune.records import EpochRecord, read_lines
from kdtune.search import trials
from kdtune.search.board import Board
from kdtune.search.placing import Slots
from kdtune.search.session import session
from kdtune.search.trials import run_study
from tests.test_recorder import Unwatched, recorder_of

pytestmark = pytest.mark.slow

EPOCHS = 4
DIGITS = load(
    default_file(), ["search.trials=12", f"train.epochs={EPOCHS}", "search.stopper.grace_epochs=1", "search.sampler=gp"]
)
ONE = Slots(1, 0, 1)


def record_of(values: dict[str, Any], epoch: int) -> EpochRecord:
    """Of a trial whose accuracy is a function of its temperature; it says in which process it ran."""
    accuracy = 1 / (1 + abs(values["distill.temperature.start"] - 3)) * epoch / EPOCHS
    return EpochRecord(epoch, EPOCHS, 1.0, {"process": float(os.getpid())}, accuracy, 1.0, 0.1, 0.01)


class Quick(tune.Trainable):
    """A trial whose epochs take no time."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.values, self.epoch = new_config["values"], new_config["told"]
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        told = record_of(self.values, self.epoch).to_json()
        return {"val_accuracy": told["val_accuracy"], "record": json.dumps(told), "lost": 0, "cost": None}


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with session(DIGITS.resources):
        yield


def told(folder: Path) -> list[tuple[str, int, float, Any]]:
    return [
        (line["trial"], line["epoch"], line["val_accuracy"], line["config"])
        for line in read_lines(folder / "trials.jsonl")
    ]


def without_ray(folder: Path, experiment: Experiment) -> list[tuple[str, int, float, Any]]:
    """What is told where one trial runs after the other."""
    recorder = recorder_of(folder, experiment)
    while (seen := recorder.study.ask()) is not None:
        recorder.started(seen.number)
        while not recorder.result(seen.number, record_of(dict(seen.config), seen.epoch + 1).to_json(), 0):
            """Its next epoch."""
    return told(folder)


def test_a_search_in_several_calls_of_tune_is_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TRIALS_A_CALL", 5)
    monkeypatch.setattr(trials, "CALL_SLOTS", 1)
    calls, run = [], tune.run

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(named["name"])
        return run(*given, **named)

    monkeypatch.setattr(tune, "run", counted)
    for name in ("tune", "alone"):
        (tmp_path / name).mkdir()
    recorder = recorder_of(tmp_path / "tune", DIGITS)
    run_study(recorder, Quick, ONE)
    assert recorder.study.ran
    assert len(calls) == 3
    assert told(tmp_path / "tune") == without_ray(tmp_path / "alone", DIGITS)


def test_trials_that_are_over_before_a_process_has_started_do_not_keep_others_from_starting(tmp_path: Path) -> None:
    """A process whose trial was given to another would be ended, and one more started for the next trial."""
    recorder = recorder_of(tmp_path, DIGITS)
    run_study(recorder, Quick, Slots(1, 0, 2))
    processes = {line["terms"]["process"] for line in read_lines(tmp_path / "trials.jsonl")}
    assert len(processes) == 2


def test_ctrl_c_ends_all_calls_and_is_handled_afterwards_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "TRIALS_A_CALL", 4)
    monkeypatch.setattr(trials, "CALL_SLOTS", 1)
    before = signal.getsignal(signal.SIGINT)

    class Pressing(Unwatched):
        pressed = False

        def search_progress(self, board: Board) -> None:
            if board.ended == 4 and not self.pressed:  # the last trial of the first call
                self.pressed = True
                os.kill(os.getpid(), signal.SIGINT)

    recorder = recorder_of(tmp_path, DIGITS)
    recorder.watch = Pressing()
    run_study(recorder, Quick, ONE)
    assert len(recorder.study.trials) <= 5
    assert not recorder.study.over
    assert signal.getsignal(signal.SIGINT) is before
