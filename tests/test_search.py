"""The search room's parts, without starting Ray."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from kdtune.cli.options import default_file
from kdtune.cli.progress import Lines
from kdtune.errors import RunError
from kdtune.experiment import Resources, load, with_values
from kdtune.records import EpochRecord, TrialRecord
from kdtune.search import run, session
from kdtune.search.board import Board, Row, last_error
from kdtune.search.final import state_file
from kdtune.search.placing import Node, place
from kdtune.search.run import pick_best
from kdtune.training import default_device
from kdtune.trial import Materials, asked, claim, finished, jobs_of
from tests.conftest import MakeExperiment

DIGITS = load(default_file())
SPACE = {"distill.alpha": {"uniform": [0.1, 0.9]}}


def record(epoch: int, epochs: int = 4, accuracy: float = 0.5, loss: float = 1.0) -> EpochRecord:
    return EpochRecord(epoch, epochs, loss, {"cross_entropy": loss}, accuracy, 1.0, 0.1, 0.01)


def trial_of(name: str, *accuracies: float, loss: float = 1.0, epochs: int = 4) -> TrialRecord:
    records = [record(k + 1, epochs, accuracy, loss) for k, accuracy in enumerate(accuracies)]
    return TrialRecord(name, {}, tuple(records))


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

    def test_where_a_budget_ended_before_any_trial_ran_in_full_the_best_of_the_furthest_wins(self) -> None:
        trials = [trial_of("short", 0.9), trial_of("further", 0.1, 0.4), trial_of("best", 0.1, 0.5)]
        assert pick_best(trials).trial == "best"

    def test_a_stopped_or_diverged_trial_never_wins(self) -> None:
        trials = [trial_of("stopped", 0.9), trial_of("diverged", 0.9, loss=float("nan")), trial_of("full", *[0.5] * 4)]
        assert pick_best(trials).trial == "full"

    def test_a_tie_goes_to_the_steadier_and_then_to_the_first(self) -> None:
        rough, smooth = trial_of("rough", *[0.1] * 7, 0.7, epochs=8), trial_of("smooth", *[0.1] * 6, 0.6, 0.7, epochs=8)
        assert pick_best([rough, smooth]).trial == "smooth"
        assert pick_best([smooth, trial_of("later", *[0.1] * 6, 0.6, 0.7, epochs=8)]).trial == "smooth"

    def test_where_nothing_ran_the_budget_is_named(self) -> None:
        with pytest.raises(RunError, match=r"raise search\.budget"):
            pick_best([])

    def test_where_every_trial_diverged_there_is_no_winner(self) -> None:
        with pytest.raises(RunError, match="no trial ran without diverging"):
            pick_best([trial_of("diverged", 0.9, loss=float("nan"))])


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

    def test_each_says_its_configuration_as_trials_name_it(self) -> None:
        winner = with_values(DIGITS, {"distill.temperature.kind": "exponential", "distill.temperature.end_ratio": 0.25})
        best, alone, book = jobs_of(DIGITS, winner)[::5]
        assert best.config.items() >= {
            ("teacher", "teacher"), ("student.model", "cnn-16"), ("train.learning_rate", 0.1),
            ("distill.temperature.kind", "exponential"), ("distill.temperature.end_ratio", 0.25),
            ("distill.logit_loss", "kl"),
        }  # fmt: skip
        assert "distill.temperature.end" not in best.config
        assert not any(path.startswith(("distill", "teacher")) for path in alone.config)
        assert {path: value for path, value in best.config.items() if path in alone.config} == alone.config
        assert (book.config["distill.temperature.kind"], book.config["distill.temperature.start"]) == ("fixed", 4.0)

    def test_what_an_earlier_winner_gave_counts_only_where_the_new_one_is_trained_alike(self) -> None:
        """A search that went on may find another winner."""
        first = {job.key for job in jobs_of(DIGITS, with_values(DIGITS, {"distill.temperature.start": 7.0}))}
        second = {job.key for job in jobs_of(DIGITS, with_values(DIGITS, {"distill.temperature.start": 6.0}))}
        assert {name for name, _, _ in first & second} == {"textbook KD"}
        faster = {job.key for job in jobs_of(DIGITS, with_values(DIGITS, {"train.learning_rate": 0.3}))}
        assert not first & faster


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


def test_gpus_that_torch_cannot_use_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver counts them even where it is too old for this torch."""
    started: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: started.update(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "nodes", lambda: [Node(8, started["num_gpus"])])
    for usable in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda usable=usable: usable)
        with session.session(Resources()) as slots:
            assert (slots.device.type, slots.gpus > 0) == (default_device().type, usable)


def test_a_gpu_is_given_back_before_trials_want_it(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the teacher was trained in would stay with this process, which has nothing to compute for now."""
    done: list[str] = []

    def prepared(*given: object, **named: object) -> Materials:
        done.append("prepared")
        return materials

    def trials(*given: object) -> None:
        done.append("trials")
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare", prepared)
    monkeypatch.setattr(run, "session", trials)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    with pytest.raises(KeyboardInterrupt):
        run.run_search(make_experiment({"search.space": SPACE, "search.trials": 3}), Lines())
    assert done == ["prepared", "given back", "trials"]


@pytest.mark.slow
def test_a_search_that_goes_on_is_not_over_until_its_own_summary_is_there(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its winner and its summary, it would count as finished with the results before."""
    few, more = (make_experiment({"search.space": SPACE, "search.trials": n}) for n in (3, 9))
    folder = claim(few)
    (folder / "student").mkdir()
    (folder / "final").mkdir()
    (folder / "trials.jsonl").write_text(json.dumps({"trial": "0000", "config": {}, **record(4).to_json()}) + "\n")
    for name, content in (("summary.json", {}), ("final/winner.json", {"asked": asked(few), "trial": "0000"})):
        (folder / name).write_text(json.dumps(content))
    assert finished(folder, few)
    assert not finished(folder, more)

    def killed(*given: object) -> None:
        (folder / "final" / "winner.json").write_text(json.dumps({"asked": asked(more), "trial": "0000"}))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "tracked", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run_search(more, Lines())
    assert not finished(folder, more)


def test_a_finished_search_stays_so_where_its_going_on_is_refused(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claim(make_experiment({"search.space": SPACE, "search.trials": 3}))
    (folder / "student").mkdir()
    (folder / "summary.json").write_text("{}")

    def refused(*given: object, **named: object) -> None:
        raise RunError("mlflow cannot be used")

    monkeypatch.setattr(run, "check_tracking", refused)
    with pytest.raises(RunError, match="mlflow cannot be used"):
        run.run_search(make_experiment({"search.space": SPACE, "search.trials": 9}), Lines())
    assert (folder / "summary.json").exists()


def test_no_two_runs_of_the_final_stage_save_into_the_same_file(tmp_path: Path) -> None:
    rows: dict[str, dict[str, object]] = {"a b": {}, "a-b": {}, "student-alone": {}}
    experiment = DIGITS.model_copy(update={"final": DIGITS.final.model_copy(update={"rows": rows, "seeds": 2})})
    jobs = jobs_of(experiment, experiment)
    assert len({state_file(tmp_path, job) for job in jobs}) == len(jobs) == 12
