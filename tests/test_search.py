"""The search room's parts, without starting Ray."""

import errno
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs
from ray.tune.schedulers import TrialScheduler

from kdtune.cli.options import default_file
from kdtune.errors import CacheError, RunError
from kdtune.experiment import Experiment, Resources, load, textbook, with_values
from kdtune.experiment.space import active, parse
from kdtune.records import EpochRecord, TrialRecord, read_lines
from kdtune.search import board as board_module
from kdtune.search.asha import Asha, Whole, rungs_of
from kdtune.search.board import Board, Recorder, Row, last_error
from kdtune.search.final import jobs_of, state_file
from kdtune.search.placing import Node, place
from kdtune.search.run import pick_best
from kdtune.search.sampler import first_points, make_searcher

DIGITS = load(default_file())


def record(epoch: int, epochs: int = 4, accuracy: float = 0.5, loss: float = 1.0) -> EpochRecord:
    return EpochRecord(epoch, epochs, loss, {"cross_entropy": loss}, accuracy, 1.0, 0.1, 0.01)


def trial_of(name: str, *accuracies: float, loss: float = 1.0, epochs: int = 4) -> TrialRecord:
    records = [record(k + 1, epochs, accuracy, loss) for k, accuracy in enumerate(accuracies)]
    return TrialRecord(name, {}, tuple(records))


def decide(scheduler: Asha, trial: str, epoch: int, accuracy: float) -> str:
    result = {"epoch": epoch, "val_accuracy": accuracy}
    tune_trial: Any = SimpleNamespace(trial_id=trial)
    return scheduler.on_trial_result(None, tune_trial, result)


class TestAsha:
    def test_rungs_are_powers_of_the_factor_below_the_full_length(self) -> None:
        assert rungs_of(grace=1, factor=3, epochs=81) == [1, 3, 9, 27]
        assert rungs_of(grace=6, factor=3, epochs=25) == [6, 18]
        assert rungs_of(grace=5, factor=3, epochs=5) == []
        assert rungs_of(grace=1, factor=1.2, epochs=4) == [1, 2, 3]

    def test_no_trial_is_judged_before_the_rung_holds_enough(self) -> None:
        scheduler = Asha(grace=2, factor=3, epochs=10)
        assert decide(scheduler, "a", 2, 0.9) == TrialScheduler.CONTINUE
        assert decide(scheduler, "b", 2, 0.1) == TrialScheduler.CONTINUE
        assert decide(scheduler, "c", 2, 0.2) == TrialScheduler.STOP

    def test_epochs_between_rungs_decide_nothing(self) -> None:
        scheduler = Asha(grace=2, factor=3, epochs=10)
        for trial in "abcdef":
            assert decide(scheduler, trial, 3, 0.0) == TrialScheduler.CONTINUE

    @given(st.lists(st.floats(0, 1), min_size=3, max_size=30, unique=True))
    def test_a_trial_goes_on_only_among_the_best_third_of_those_that_arrived(self, accuracies: list[float]) -> None:
        scheduler = Asha(grace=1, factor=3, epochs=3)
        for k, accuracy in enumerate(accuracies):
            decision = decide(scheduler, str(k), 1, accuracy)
            seen = sorted(accuracies[: k + 1], reverse=True)
            if k >= 2:
                kept = seen[: -(-len(seen) // 3)]
                assert (decision == TrialScheduler.CONTINUE) == (accuracy in kept)

    def test_a_trial_that_comes_to_a_rung_again_is_not_judged_again(self) -> None:
        scheduler = Asha(grace=1, factor=2, epochs=9)
        assert decide(scheduler, "a", 1, 0.5) == TrialScheduler.CONTINUE
        for trial in "bcd":
            decide(scheduler, trial, 1, 0.9)
        assert decide(scheduler, "a", 1, 0.5) == TrialScheduler.CONTINUE
        assert decide(scheduler, "e", 1, 0.1) == decide(scheduler, "e", 1, 0.1) == TrialScheduler.STOP

    def test_a_restored_scheduler_decides_as_the_one_that_was_saved(self) -> None:
        first, second = Asha(1, 3, 9), Asha(1, 3, 9)
        for trial, accuracy in (("a", 0.9), ("b", 0.8), ("c", 0.7)):
            decide(first, trial, 1, accuracy)
        second.restore_state(first.state())
        assert decide(second, "d", 1, 0.85) == decide(first, "d", 1, 0.85) == TrialScheduler.CONTINUE
        assert decide(second, "e", 1, 0.5) == decide(first, "e", 1, 0.5) == TrialScheduler.STOP


class TestSampler:
    def test_textbook_kd_is_the_first_point(self) -> None:
        parameters, _ = parse(DIGITS.search.space)
        values = active(parameters, first_points(parameters, DIGITS)[0], DIGITS)
        assert with_values(DIGITS, values).distill == textbook(DIGITS).distill

    def test_the_experiments_own_points_follow_in_order(self) -> None:
        parameters, _ = parse(DIGITS.search.space)
        points = [active(parameters, point, DIGITS) for point in first_points(parameters, DIGITS)]
        assert points[1:] == DIGITS.search.points

    def test_the_same_seed_proposes_the_same_configurations(self) -> None:
        assert proposals(DIGITS) == proposals(DIGITS)
        other = DIGITS.model_copy(update={"search": DIGITS.search.model_copy(update={"seed": 1})})
        assert proposals(other) != proposals(DIGITS)

    @pytest.mark.parametrize("sampler", ["hyperopt", "random"])
    def test_every_proposal_makes_a_valid_experiment_within_its_ranges(self, sampler: str) -> None:
        search = DIGITS.search.model_copy(update={"sampler": sampler})
        for values in proposals(DIGITS.model_copy(update={"search": search})):
            distill = with_values(DIGITS, values).distill
            assert 1 <= distill.temperature.start <= 20
            assert 0.2 <= distill.alpha.start <= 0.99
            fixed = distill.temperature.kind == "fixed"
            assert fixed == ("distill.temperature.end_ratio" not in values)

    def test_hyperopt_learns_where_the_good_values_are_and_random_search_does_not(self) -> None:
        def late(sampler: str) -> list[float]:
            search = DIGITS.search.model_copy(update={"sampler": sampler, "trials": 120})
            found = proposals(DIGITS.model_copy(update={"search": search}), 120)
            return [values["distill.alpha.start"] for values in found[60:]]

        # proposals() rewards an alpha near 0.9; uniform over 0.2..0.99 lies 0.3 away from it on average
        distance = {name: statistics.fmean(abs(alpha - 0.9) for alpha in late(name)) for name in ("hyperopt", "random")}
        assert distance["hyperopt"] < 0.7 * distance["random"]


def proposals(experiment: Experiment, count: int = 24) -> list[dict[str, Any]]:
    """What the experiment's sampler proposes, told that accuracy is best for alpha near 0.9."""
    parameters, _ = parse(experiment.search.space)
    searcher = make_searcher(experiment)
    found = []
    for k in range(count):
        sample = searcher.suggest(str(k))
        assert sample is not None
        values = active(parameters, sample, experiment)
        searcher.on_trial_complete(str(k), {"val_accuracy": 1 - abs(values["distill.alpha.start"] - 0.9)})
        found.append(values)
    return found


class TestPlacing:
    def test_as_many_trials_as_the_scarcer_resource_allows(self) -> None:
        assert place(Resources(cpus_per_worker=1), [Node(2, 0)]).concurrent == 2
        assert place(Resources(cpus_per_worker=2), [Node(5, 0)]).concurrent == 2
        assert place(Resources(cpus_per_worker=1), [Node(16, 4)]).concurrent == 4
        assert place(Resources(cpus_per_worker=8), [Node(16, 4)]).concurrent == 2

    def test_fractions_of_a_gpu_are_honoured_and_never_span_two(self) -> None:
        assert place(Resources(gpus_per_worker=0.25), [Node(16, 2)]).concurrent == 8
        assert place(Resources(gpus_per_worker=0.4), [Node(16, 2)]).concurrent == 4

    def test_half_a_core_lets_two_trials_share_it_with_one_thread_each(self) -> None:
        slots = place(Resources(cpus_per_worker=0.5), [Node(2, 0)])
        assert (slots.concurrent, slots.threads) == (4, 1)

    def test_what_cannot_be_placed_is_refused_with_both_sides_named(self) -> None:
        with pytest.raises(RunError, match=r"8 CPUs and 0 GPUs; there is 1 x 2 CPUs, 0 GPUs"):
            place(Resources(cpus_per_worker=8), [Node(2, 0)])
        with pytest.raises(RunError, match=r"1 GPUs; there is 1 x 2 CPUs, 0 GPUs"):
            place(Resources(gpus_per_worker=1), [Node(2, 0)])

    def test_a_worker_lies_within_one_machine_and_a_trial_may_span_several(self) -> None:
        two = Resources(workers_per_trial=2, cpus_per_worker=3)
        assert place(two, [Node(4, 0, count=4)]).concurrent == 2
        with pytest.raises(RunError, match=r"2 workers of 3 CPUs and 0 GPUs each, of which 1 fit; there is 2 x 2 CPUs"):
            place(two, [Node(2, 0, count=2), Node(4, 0)])


class TestPickingTheWinner:
    def test_the_best_last_epoch_wins_not_the_best_epoch(self) -> None:
        trials = [trial_of("peaked", 0.1, 0.9, 0.5, 0.6), trial_of("steady", 0.1, 0.5, 0.6, 0.7)]
        assert pick_best(trials).trial == "steady"

    def test_a_stopped_or_diverged_trial_never_wins(self) -> None:
        trials = [trial_of("stopped", 0.9), trial_of("diverged", 0.9, loss=float("nan")), trial_of("full", *[0.5] * 4)]
        assert pick_best(trials).trial == "full"

    def test_a_tie_goes_to_the_steadier_and_then_to_the_first(self) -> None:
        rough, smooth = trial_of("rough", *[0.1] * 7, 0.7, epochs=8), trial_of("smooth", *[0.1] * 6, 0.6, 0.7, epochs=8)
        assert pick_best([rough, smooth]).trial == "smooth"
        assert pick_best([smooth, trial_of("later", *[0.1] * 6, 0.6, 0.7, epochs=8)]).trial == "smooth"

    def test_without_a_full_trial_there_is_no_winner(self) -> None:
        with pytest.raises(RunError, match="no trial ran in full"):
            pick_best([trial_of("stopped", 0.9)])


class TestFinalJobs:
    def test_all_are_trained_alike_on_seeds_that_the_search_did_not_use(self) -> None:
        winner = with_values(DIGITS, {"distill.temperature.start": 7.0, "train.learning_rate": 0.3})
        jobs = jobs_of(DIGITS, winner)
        assert [job.name for job in jobs] == ["best"] * 5 + ["student alone"] * 5 + ["textbook KD"] * 5
        assert {job.experiment.train.learning_rate for job in jobs} == {0.3}
        assert {job.seed for job in jobs} == {1, 2, 3, 4, 5}
        assert DIGITS.search.seed == 0
        assert jobs[0].experiment.distill.temperature.start == 7
        assert jobs[-1].experiment.distill.temperature.start == 4


class TestBoard:
    def test_time_left_is_the_epochs_to_come_at_the_speed_so_far(self) -> None:
        board = Board(trials=4, epochs=10, seconds=30.0)
        assert board.seconds_left is None
        board.rows = {"0": Row("0", {}, 10, 0.9, "complete"), "1": Row("1", {}, 5, 0.5, "stopped")}
        # 15 epochs in 30 s; four trials of 7.5 epochs each are 30 epochs
        assert board.seconds_left == pytest.approx(30.0)

    def test_the_best_is_never_a_trial_that_was_given_up(self) -> None:
        board = Board(trials=4, epochs=10)
        board.rows = {"0": Row("0", {}, 10, 0.6, "complete"), "1": Row("1", {}, 5, 0.9, "stopped")}
        assert board.best is board.rows["0"]
        assert board.ended == 2


class Unwatched:
    def search_resumed(self, board: Board) -> None:
        """Nobody looks."""

    def search_progress(self, board: Board) -> None:
        """Nobody looks."""


def ended_trial(folder: Path) -> Any:  # what of Tune's the recorder looks at
    return SimpleNamespace(
        trial_id="a",
        config=first_points(parse(DIGITS.search.space)[0], DIGITS)[0],
        last_result={"record": record(4).to_json()},
        storage=SimpleNamespace(trial_fs_path=str(folder), storage_filesystem=fs.LocalFileSystem()),
    )


class TestRecorder:
    def test_a_state_that_tune_could_not_restore_is_an_error_and_no_new_search(self, tmp_path: Path) -> None:
        """Tune itself logs the failure and starts over."""
        recorder = Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=True)
        with pytest.raises(RunError, match="cannot be read"):
            recorder.setup()
        recorder.set_state(Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=False).get_state())
        recorder.setup()

    def test_a_checkpoint_outlives_its_trial_until_a_snapshot_knows_of_the_end(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=False)
        checkpoint = tmp_path / "trial" / "checkpoint_000001"
        checkpoint.mkdir(parents=True)
        ended = ended_trial(checkpoint.parent)
        recorder.on_trial_complete(1, [ended], ended)
        assert recorder.board.rows["0000"].status == "complete"
        for _ in range(2):  # the snapshot that is being taken, and one that waits for it: none on disk knows yet
            recorder.get_state()
            assert checkpoint.exists()
        recorder.get_state()
        assert not checkpoint.exists()

    def test_columns_are_counted_until_all_are_there_and_a_storage_that_fails_ends_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(board_module, "LOOK_EVERY_S", -1.0)
        failures = CacheError("the bucket does not answer"), OSError(errno.ESTALE, "a stale handle")
        answers: Iterator[int | Exception] = iter([1, *failures, 4])

        def there() -> int:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        cache: Any = SimpleNamespace(views=4, there=there)
        recorder = Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=False, caches=[cache])
        seen = []
        for step in range(5):
            recorder.on_step_end(step, [])
            seen.append(recorder.board.columns)
        assert seen == [(1, 4), (1, 4), (1, 4), (4, 4), (4, 4)]  # what is complete is not looked at again

    def test_the_line_about_a_trials_end_counts_the_columns_anew(self, tmp_path: Path) -> None:
        cache: Any = SimpleNamespace(views=4, there=lambda: 2)
        recorder = Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=False, caches=[cache])
        recorder.looked = time.monotonic()
        recorder.on_step_end(1, [])
        assert recorder.board.columns == (0, 0)
        ended = ended_trial(tmp_path)
        recorder.on_trial_complete(1, [ended], ended)
        assert recorder.board.columns == (2, 4)


class Controller:
    """What of Tune's controller a scheduler is handed."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.snapshots = 0

    def checkpoint(self, *, force: bool) -> None:
        assert force
        self.snapshots += 1
        self.recorder.get_state()


class TestSnapshots:
    def test_one_is_taken_whenever_a_trial_has_ended_with_the_records_before_it(self, tmp_path: Path) -> None:
        pushed: list[int] = []
        recorder = Recorder(
            tmp_path / "trials.jsonl",
            DIGITS,
            Whole(),
            Unwatched(),
            resumed=False,
            before_snapshot=lambda: pushed.append(1),
        )
        controller, ended = Controller(recorder), ended_trial(tmp_path)
        recorder.on_step_end(1, [])
        recorder.scheduler.on_trial_complete(controller, ended, {})
        recorder.on_trial_complete(1, [ended], ended)
        assert controller.snapshots == 0  # Tune itself does not know of the end yet
        recorder.on_step_end(2, [ended])
        recorder.on_step_end(3, [ended])
        assert (controller.snapshots, len(pushed)) == (1, 1)

    def test_a_slow_storage_is_not_asked_for_one_after_the_other(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=False)
        controller, ended = Controller(recorder), ended_trial(tmp_path)
        recorder.scheduler.on_trial_complete(controller, ended, {})
        recorder.on_trial_complete(1, [ended], ended)
        recorder.save_again = time.monotonic() + 60
        recorder.on_step_end(1, [ended])
        assert controller.snapshots == 0
        recorder.save_again = time.monotonic()
        recorder.on_step_end(2, [ended])
        assert controller.snapshots == 1


def told(path: Path) -> list[int]:
    return [line["epoch"] for line in read_lines(path)]


class TestRetries:
    def report(self, recorder: Recorder, trial: Any, epoch: int) -> None:
        result = {"epoch": epoch, "val_accuracy": 0.5, "record": record(epoch).to_json(), "lost": 0}
        recorder.on_trial_result(1, [trial], trial, result)

    def test_an_epoch_that_comes_again_replaces_what_was_said_of_it(self, tmp_path: Path) -> None:
        path, trial = tmp_path / "trials.jsonl", ended_trial(tmp_path)
        other: Any = SimpleNamespace(**vars(trial) | {"trial_id": "b"})
        recorder = Recorder(path, DIGITS, Whole(), Unwatched(), resumed=False)
        recorder.on_trial_start(1, [trial, other], trial)
        self.report(recorder, other, 1)
        for epoch in (1, 2, 3, 2, 3, 4):
            self.report(recorder, trial, epoch)
        assert sorted(told(path)) == [1, 1, 2, 3, 4]

    def test_so_it_does_where_the_driver_before_was_killed_after_it_had_said_it(self, tmp_path: Path) -> None:
        path, trial = tmp_path / "trials.jsonl", ended_trial(tmp_path)
        first = Recorder(path, DIGITS, Whole(), Unwatched(), resumed=False)
        for epoch in (1, 2, 3):
            self.report(first, trial, epoch)
        second = Recorder(path, DIGITS, Whole(), Unwatched(), resumed=True)
        self.report(second, trial, 2)
        assert told(path) == [1, 2]

    def test_a_trial_that_was_lost_is_counted_and_its_reason_kept(self, tmp_path: Path) -> None:
        trial = ended_trial(tmp_path)
        trial.error_file = str(tmp_path / "error.txt")
        Path(trial.error_file).write_text(DISK_FULL)
        recorder = Recorder(tmp_path / "trials.jsonl", DIGITS, Whole(), Unwatched(), resumed=False)
        recorder.on_trial_start(1, [trial], trial)
        for _ in range(2):
            recorder.on_trial_recover(1, [trial], trial)
        recorder.on_trial_complete(1, [trial], trial)
        (row,) = recorder.board.rows.values()
        assert (row.status, row.retries) == ("complete", 2)
        assert row.error == "OSError: [Errno 28] No space left on device: '/tmp/copies/0.arrow' (node 10.0.0.3)"


DISK_FULL = """Failure # 1 (occurred at 2026-11-21_14-00-00)
kdtune.errors.CacheError: an earlier failure: with a colon
Failure # 2 (occurred at 2026-11-21_14-00-10)
[36mray::StudentTrial.train()[39m (pid=3, ip=10.0.0.3, actor_id=ab, repr=<kdtune>)
  File "/x/trainable.py", line 9, in train
    raise skipped from exception_cause(skipped)
OSError: [Errno 28] No space left on device: '/tmp/copies/0.arrow'
"""
DIED = """Failure # 1 (occurred at 2026-11-21_14-00-00)
The actor died unexpectedly before finishing this task.
	class_name: StudentTrial
	actor_id: ab
	pid: 12
	namespace: x
	ip: 10.0.0.7
The actor is dead because its node has died. Node Id: ff
	the actor's node was terminated unexpectedly: preempted.
"""


def test_the_last_error_of_a_trial_is_shown_with_its_message_and_its_node() -> None:
    text = 'Traceback (most recent call last):\n  File "a.py", line 1\nkdtune.errors.CacheError: bad column\n'
    assert last_error(text) == "kdtune.errors.CacheError: bad column"
    assert last_error(DISK_FULL).endswith("0.arrow' (node 10.0.0.3)")
    assert last_error(DIED) == (
        "The actor died unexpectedly before finishing this task. The actor is dead because its node has died. "
        "Node Id: ff (node 10.0.0.7)"
    )


def test_no_two_runs_of_the_final_stage_save_into_the_same_file(tmp_path: Path) -> None:
    rows: dict[str, dict[str, object]] = {"a b": {}, "a-b": {}, "student-alone": {}}
    experiment = DIGITS.model_copy(update={"final": DIGITS.final.model_copy(update={"rows": rows, "seeds": 2})})
    jobs = jobs_of(experiment, experiment)
    assert len({state_file(tmp_path, job) for job in jobs}) == len(jobs) == 12
