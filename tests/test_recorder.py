"""What a search writes down, and that it goes on from there."""

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdtune.cli.options import default_file
from kdtune.errors import CacheError, RunError, StorageError
from kdtune.experiment import Experiment, load
from kdtune.records import EpochRecord, read_lines
from kdtune.search import recorder as recorder_module
from kdtune.search import trainable as trainable_module
from kdtune.search.board import Board
from kdtune.search.recorder import Recorder
from kdtune.search.states import States, kept_name, state_name, states_of
from kdtune.search.trainable import StudentTrial
from kdtune.tuning.making import make_study
from kdtune.tuning.study import Budget
from tests.object_store import S3
from tests.test_search import DISK_FULL

DIGITS = load(default_file(), ["search.trials=8", "train.epochs=4", "search.stopper.grace_epochs=1"])


class Unwatched:
    def __init__(self) -> None:
        self.resumed = 0

    def search_resumed(self, board: Board) -> None:
        self.resumed += 1

    def search_progress(self, board: Board) -> None:
        """Nobody looks."""

    def search_ended(self, board: Board) -> None:
        """Nobody looks."""


def recorder_of(folder: Path, experiment: Experiment = DIGITS, **settings: Any) -> Recorder:
    """Of a search that is begun in the folder, or taken up again."""
    states = States(str(folder / "states"))
    made = Recorder(folder, make_study(experiment), Board(8, 4), Unwatched(), states, **settings)
    made.begin()
    return made


def told(epoch: int, accuracy: float = 0.5, loss: float = 1.0) -> dict[str, Any]:
    return EpochRecord(epoch, 4, loss, {"cross_entropy": loss}, accuracy, 1.0, 0.1, 0.01).to_json()


def begin(recorder: Recorder) -> int:
    seen = recorder.study.ask()
    assert seen is not None
    recorder.started(seen.number)
    return seen.number


def run(recorder: Recorder, number: int, accuracy: float, epochs: int = 4) -> None:
    """To its end, or until it is stopped."""
    for epoch in range(recorder.study.trials[number].epoch + 1, epochs + 1):
        if recorder.result(number, told(epoch, accuracy), 0):
            return


def lines(folder: Path) -> list[tuple[str, int]]:
    return [(line["trial"], line["epoch"]) for line in read_lines(folder / "trials.jsonl")]


def test_an_epoch_that_comes_again_changes_nothing(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    number = begin(recorder)
    for epoch in (1, 2, 3, 2, 3, 4):
        recorder.result(number, told(epoch, 0.1 * epoch), 0)
    assert lines(tmp_path) == [("0000", epoch) for epoch in (1, 2, 3, 4)]
    assert recorder.study.trials[number].values == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_so_it_does_where_the_driver_before_was_killed_after_it_had_said_it(tmp_path: Path) -> None:
    first = recorder_of(tmp_path)
    number = begin(first)
    run(first, number, 0.5, epochs=3)
    second = recorder_of(tmp_path)
    assert begin(second) == number
    assert not second.result(number, told(2), 0)
    assert lines(tmp_path) == [("0000", epoch) for epoch in (1, 2, 3)]
    assert second.result(number, told(4), 0)


def test_a_trial_that_diverges_where_it_did_not_before_has_diverged(tmp_path: Path) -> None:
    """Sums in another order, on another GPU: what it had said of later epochs does not count."""
    recorder = recorder_of(tmp_path)
    number = begin(recorder)
    run(recorder, number, 0.5, epochs=3)
    assert recorder.result(number, told(2, loss=float("nan")), 0)
    assert recorder.study.trials[number].values == [0.5, 0.0]
    assert recorder_of(tmp_path).study.trials[number].status == "diverged"


def search(folder: Path, killed_after: int | None) -> list[dict[str, Any]]:
    """The lines of a search of one worker, whose driver is killed after each so many lines, if any; its trials too, so
    that they begin again: what they tell is what they told."""

    def killed(recorder: Recorder) -> bool:
        said = 0
        while not recorder.study.over:
            seen = recorder.study.trials[begin(recorder)]
            while not seen.ended:
                if said == killed_after:
                    return True
                said += 1
                accuracy = seen.config["distill.alpha.start"] * (seen.epoch + 1) / 4
                recorder.result(seen.number, told(seen.epoch + 1, round(accuracy, 6)), 0)
        return False

    while killed(recorder_of(folder)):
        with (folder / "trials.jsonl").open("a") as file:
            file.write('{"trial": "0003", "epo')  # a crash cuts a line
    return [{**line, "at": None} for line in read_lines(folder / "trials.jsonl")]


@pytest.mark.parametrize("killed_after", [1, 2, 3, 7])
def test_a_search_that_was_killed_proposes_and_stops_as_one_that_was_not(tmp_path: Path, killed_after: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = search(tmp_path / "whole", None)
    assert search(tmp_path / "killed", killed_after) == whole
    assert len({line["trial"] for line in whole}) == 8
    assert len(whole) < 8 * 4  # some were stopped


def test_states_go_when_the_records_that_make_them_needless_have_arrived(tmp_path: Path) -> None:
    arrives: Iterator[bool] = iter([False, True])
    recorder = recorder_of(tmp_path, push=lambda: next(arrives))
    number = begin(recorder)
    name = state_name(number, recorder.study.trials[number].config)
    recorder.states.write(name, b"state")
    run(recorder, number, 0.5)
    recorder.look()
    assert recorder.states.names() == {name}  # the storage does not know of the end yet
    recorder.settle()
    assert recorder.states.names() == set()


def test_states_of_what_runs_and_of_the_best_stay(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path, keep=2)
    names = []
    for accuracy in (0.5, 0.9, 0.7, None):
        number = begin(recorder)
        names.append(state_name(number, recorder.study.trials[number].config))
        recorder.states.write(names[-1], b"state")
        if accuracy is not None:
            recorder.study.trials[number].values = [accuracy] * 3  # past every rung
            run(recorder, number, accuracy)
        recorder.look()
    assert recorder.states.names() == set(names[1:])


class TestForks:
    """Of a population whose members are compared after epochs 1 and 2 of 4."""

    POPULATION = load(
        default_file(),
        [
            *("search.trials=8", "train.epochs=4", "search.stopper={kind: population, grace_epochs: 1}"),
            *("search.points=[]", "search.space={distill.alpha: {uniform: [0.2, 0.9]}}"),
        ],
    )

    def begun(self, folder: Path, *accuracies: float) -> Recorder:
        """Members that have told of their first epoch."""
        recorder = recorder_of(folder, self.POPULATION)
        for number, accuracy in enumerate(accuracies):
            assert begin(recorder) == number
            self.save(recorder, number, 1)
            recorder.result(number, told(1, accuracy), 0)
        return recorder

    def save(self, recorder: Recorder, number: int, epoch: int) -> str:
        name = kept_name(number, recorder.study.trials[number].config, epoch)
        recorder.states.write(name, b"state")
        return name

    def test_their_lines_name_their_parents_and_lead_to_them_again(self, tmp_path: Path) -> None:
        recorder = self.begun(tmp_path, 0.9, 0.8, 0.7, 0.1)
        fork = begin(recorder)
        recorder.result(fork, told(2, 0.9), 0)
        assert list(read_lines(tmp_path / "trials.jsonl"))[-1]["parent"] == {"trial": "0000", "epoch": 1}
        again = recorder_of(tmp_path, self.POPULATION)
        assert again.study.trials[fork].values == [0.9, 0.9]
        assert again.study.trials[fork].parent == (0, 1)
        assert [begin(again) for _ in range(5)] == [0, 1, 2, fork, 4]

    def test_the_states_that_they_may_go_on_from_stay(self, tmp_path: Path) -> None:
        recorder = self.begun(tmp_path, 0.9, 0.8, 0.7, 0.1)
        recorder.settle()
        best = {kept_name(number, recorder.study.trials[number].config, 1) for number in (0, 1)}
        assert recorder.states.names() == best, "a quarter of eight"

    def test_so_do_those_of_a_trial_that_is_ahead_of_the_records(self, tmp_path: Path) -> None:
        first = self.begun(tmp_path, 0.9)
        ahead = self.save(first, 0, 2)
        second = recorder_of(tmp_path, self.POPULATION)
        second.settle()
        assert ahead in second.states.names()

    def test_a_state_that_is_saved_again_goes_again(self, tmp_path: Path) -> None:
        recorder = self.begun(tmp_path, 0.9, 0.8, 0.7, 0.1)
        recorder.settle()
        name = self.save(recorder, 2, 1)
        recorder.result(2, told(1, 0.7), 1)
        recorder.settle()
        assert name not in recorder.states.names()

    @pytest.mark.parametrize("state", [2, 3, 5])
    def test_a_state_is_saved_only_as_it_was_after_its_epoch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: int
    ) -> None:
        """The trial was taken up in the state after that epoch, and the records tell of one."""
        monkeypatch.setattr(trainable_module, "draining", lambda *nodes: False)
        epochs = [EpochRecord.from_json({**told(epoch), "epochs": 9}) for epoch in range(1, 7)]
        trial: Any = StudentTrial.__new__(StudentTrial)
        history = epochs[:state]

        def still() -> Iterator[EpochRecord]:
            for record in epochs[state:]:
                history.append(record)
                yield record

        trial.trial = SimpleNamespace(history=history, records=still(), state=lambda: f"{len(history)}".encode())
        trial.place = SimpleNamespace(whereabouts=lambda: ((), 0))
        trial.states, trial.number, trial.values = States(str(tmp_path)), 0, {}
        trial.saved_epochs, trial.told, trial.losses, trial.cost = [3, 4], 1, 0, None
        trial.saved, trial.experiment = time.monotonic(), DIGITS
        for _ in range(5):
            trial.step()
        saved = {3: b"3", 4: b"4"}
        for epoch, expected in saved.items():
            assert trial.states.read(kept_name(0, {}, epoch)) == (expected if epoch >= state else None)


def test_a_slow_storage_is_not_asked_all_the_time(tmp_path: Path) -> None:
    pushed: list[int] = []

    def push() -> bool:
        pushed.append(1)
        return True

    recorder = recorder_of(tmp_path, push=push)
    run(recorder, begin(recorder), 0.5)
    recorder.push_again = time.monotonic() + 60
    recorder.look()
    assert not pushed
    recorder.push_again = time.monotonic()
    for _ in range(3):
        recorder.look()
    assert len(pushed) == 1  # nothing has ended since


def test_a_state_that_cannot_be_removed_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_of(tmp_path)
    run(recorder, begin(recorder), 0.5)

    def away(name: str) -> None:
        raise StorageError("out of reach")

    monkeypatch.setattr(recorder.states, "delete", away)
    recorder.settle()
    assert recorder.study.trials[0].ended


def test_a_trial_that_was_lost_is_counted_and_its_reason_kept(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    number = begin(recorder)
    recorder.result(number, told(1), 0)
    for _ in range(2):
        recorder.lost(number, DISK_FULL)
    again = recorder_of(tmp_path)
    for one in (recorder, again):
        (row,) = one.board.rows.values()
        assert row.retries == 2
        assert row.error == "OSError: [Errno 28] No space left on device: '/tmp/copies/0.arrow' (node 10.0.0.3)"
    assert isinstance(again.watch, Unwatched)
    assert again.watch.resumed == 1


def test_a_trial_that_failed_is_tried_again_by_the_next_driver(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    number = begin(recorder)
    recorder.result(number, told(1), 0)
    recorder.failed(number, DISK_FULL)
    assert recorder.board.rows["0000"].status == "failed"
    assert begin(recorder) == number + 1
    assert "Traceback" not in json.dumps(recorder.board.rows["0000"].error)
    (line,) = read_lines(tmp_path / "errors.jsonl")
    assert (line["text"], line["epoch"]) == (DISK_FULL, 1)
    assert begin(recorder_of(tmp_path)) == number


def test_records_that_were_edited_are_told_from_a_crash(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    run(recorder, begin(recorder), 0.5)
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::2]))
    with pytest.raises(RunError, match=r"line 2 .* epoch 3 .* after epoch 1"):
        recorder_of(tmp_path)


def test_a_search_that_a_budget_has_ended_is_over_whatever_the_clock_says(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    recorder.study.budget = Budget(8, epochs=3)
    number = begin(recorder)
    assert [recorder.result(number, told(epoch), 0) for epoch in (1, 2, 3)] == [False, False, True]
    assert recorder.board.spent == "epochs"
    assert not recorder.study.trials[number].ended  # it goes on when the budget does
    recorder.study.budget = Budget(8)
    assert recorder.spent()
    assert begin(recorder_of(tmp_path)) == number


class TestColumns:
    def test_they_are_counted_until_all_are_there_and_a_storage_that_fails_ends_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recorder_module, "LOOK_EVERY_S", -1.0)
        failures = CacheError("the bucket does not answer"), OSError(errno.ESTALE, "a stale handle")
        answers: Iterator[int | Exception] = iter([1, *failures, 4])

        def there() -> int:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        cache: Any = SimpleNamespace(views=4, there=there)
        recorder = recorder_of(tmp_path, caches=[cache])
        seen = []
        for _ in range(5):
            recorder.look()
            seen.append(recorder.board.columns)
        assert seen == [(1, 4), (1, 4), (1, 4), (4, 4), (4, 4)]  # what is complete is not looked at again

    def test_the_line_about_a_trials_end_counts_them_anew(self, tmp_path: Path) -> None:
        cache: Any = SimpleNamespace(views=4, there=lambda: 2)
        recorder = recorder_of(tmp_path, caches=[cache])
        recorder.looked = time.monotonic()
        recorder.look()
        assert recorder.board.columns == (0, 0)
        run(recorder, begin(recorder), 0.5)
        assert recorder.board.columns == (2, 4)


class TestStates:
    def check(self, states: States) -> None:
        one, other = state_name(3, {"a": 1}), state_name(3, {"a": 2})
        assert one != other == state_name(3, json.loads(json.dumps({"a": 2})))
        assert states.read(one) is None
        assert states.names() == set()
        states.write(one, b"first")
        states.write(one, b"second")
        states.write(other, b"third")
        assert states.read(one) == b"second"
        assert states.names() == {one, other}
        for _ in range(2):
            states.delete(one)
        assert states.names() == {other}

    def test_in_a_folder(self, tmp_path: Path) -> None:
        self.check(states_of(str(tmp_path), "run"))
        assert not list(tmp_path.rglob(".*"))

    def test_in_a_bucket(self, s3: S3) -> None:
        self.check(states_of(s3.address("runs"), "run"))
