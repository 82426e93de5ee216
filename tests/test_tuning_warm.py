"""Former searches as the sampler of a new one knows them: which of their trials fit, and that they stay known."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdtune.errors import RunError
from kdtune.experiment import Experiment, dump, parse
from kdtune.records import EpochRecord, append_line
from kdtune.tuning.making import make_study
from kdtune.tuning.study import Seen
from kdtune.tuning.warm import former_runs
from tests.experiments import raw_with, space_problems

SPACE: dict[str, Any] = {
    "distill.temperature.kind": {"choice": ["fixed", "exponential"]},
    "distill.temperature.start": {"loguniform": [1, 20]},
    "distill.temperature.end_ratio": {"uniform": [0.1, 1], "when": {"distill.temperature.kind": "exponential"}},
    "train.learning_rate": {"loguniform": [0.01, 1]},
}
FIXED = {"distill.temperature.kind": "fixed", "distill.temperature.start": 4.0, "train.learning_rate": 0.1}
FALLING = {**FIXED, "distill.temperature.kind": "exponential", "distill.temperature.end_ratio": 0.25}
Told = tuple[Mapping[str, Any], Sequence[float | None]]  # a configuration, accuracies; None diverges


def experiment_on(
    searched: Mapping[str, Any], values: Mapping[str, Any] | None = None, *, runs: Sequence[Path] = ()
) -> Experiment:
    warm = {"search.warm_start": [str(run) for run in runs]} if runs else {}
    return parse(raw_with({"train.epochs": 3, **warm, **(values or {})}, searched))


WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """A former run's folder with these trials, of 3 epochs when they ran in full."""

    def write(experiment: Experiment, trials: Sequence[Told], costs: Sequence[float] = (), name: str = "old") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "experiment.yaml").write_text(dump(experiment))
        (folder / "trials.jsonl").touch()
        for k, (config, values) in enumerate(trials):
            for epoch, value in enumerate(values, start=1):
                loss = math.nan if value is None else 1.0
                record = EpochRecord(epoch, 3, loss, {}, value, None, 0.1, 1.0)
                cost = {"cost": costs[k]} if costs else {}
                append_line(
                    folder / "trials.jsonl", {"trial": f"{k:04d}", "config": config, **cost, **record.to_json()}
                )
        return folder

    return write


def known(folder: Path, experiment: Experiment) -> list[Seen]:
    return [seen for former in former_runs(folder, experiment) for seen in former.trials]


def test_trials_of_a_former_search_are_known_with_their_values_and_how_they_ended(
    write_run: WriteRun, tmp_path: Path
) -> None:
    trials = [(FIXED, [0.2, 0.5, 0.7]), (FALLING, [0.3]), (FIXED, [0.1, None])]
    run = write_run(experiment_on(SPACE), trials)
    (former,) = former_runs(tmp_path, experiment_on(SPACE, runs=[run]))
    assert str(former) == f"3 of the 3 trials of {run} were known, those that fit the space"
    assert [seen.number for seen in former.trials] == [-3, -2, -1]
    assert [seen.values for seen in former.trials] == [[0.2, 0.5, 0.7], [0.3], [0.1, 0.0]]
    assert [seen.status for seen in former.trials] == ["complete", "stopped", "diverged"]
    assert [seen.config for seen in former.trials] == [FIXED, FALLING, FIXED]
    assert former.trials[1].sample == {
        "distill.temperature.kind": 1,
        "distill.temperature.start": 4.0,
        "distill.temperature.end_ratio": 0.25,
        "train.learning_rate": 0.1,
    }
    assert {seen.run for seen in former.trials} == {str(run)}


def test_several_former_searches_are_told_apart(write_run: WriteRun, tmp_path: Path) -> None:
    runs = [write_run(experiment_on(SPACE), [(FIXED, [k / 10])], name=f"old{k}") for k in (1, 2)]
    seen = known(tmp_path, experiment_on(SPACE, runs=runs))
    assert [(one.number, one.run, one.values) for one in seen] == [(-2, str(runs[0]), [0.1]), (-1, str(runs[1]), [0.2])]


def test_a_trial_outside_the_space_is_left_out_and_counted(write_run: WriteRun, tmp_path: Path) -> None:
    outside = {**FIXED, "train.learning_rate": 2.0}
    run = write_run(experiment_on(SPACE), [(outside, [0.9]), (FIXED, [0.5])])
    (former,) = former_runs(tmp_path, experiment_on(SPACE, runs=[run]))
    assert (former.count, [seen.values for seen in former.trials]) == (2, [[0.5]])


def test_what_a_former_search_did_not_vary_is_taken_from_its_experiment(write_run: WriteRun, tmp_path: Path) -> None:
    """It searched the temperature whole, and its learning rate was fixed."""
    searched = {"distill.temperature": {"uniform": [1, 9]}}
    run = write_run(experiment_on(searched, {"train.learning_rate": 0.05}), [({"distill.temperature": 7.0}, [0.5])])
    (seen,) = known(tmp_path, experiment_on(SPACE, runs=[run]))
    assert seen.config == {**FIXED, "distill.temperature.start": 7.0, "train.learning_rate": 0.05}


def test_what_is_no_longer_searched_is_not_asked_about(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(experiment_on(SPACE), [(FALLING, [0.5])])
    rate = {"train.learning_rate": SPACE["train.learning_rate"]}
    (seen,) = known(tmp_path, experiment_on(rate, runs=[run]))
    assert seen.config == {"train.learning_rate": 0.1}


def test_a_condition_that_no_longer_holds_makes_a_value_needless(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(experiment_on(SPACE), [({**FALLING, "distill.temperature.kind": "fixed"}, [0.5])])
    (seen,) = known(tmp_path, experiment_on(SPACE, runs=[run]))
    assert seen.config == FIXED


@pytest.mark.parametrize(("objective", "expected"), [("parameters", [800, 90]), ("latency", [None, None])])
def test_costs_are_known_where_they_are_in_the_same_unit(
    write_run: WriteRun, tmp_path: Path, objective: str, expected: list[float | None]
) -> None:
    searched = {"student.model": {"choice": ["cnn-8", "cnn-8-16"]}}
    former = experiment_on(searched, {"search.second_objective": "parameters"})
    trials = [({"student.model": name}, [0.5]) for name in ("cnn-8-16", "cnn-8")]
    run = write_run(former, trials, costs=[800, 90])
    seen = known(tmp_path, experiment_on(searched, {"search.second_objective": objective}, runs=[run]))
    assert [one.cost for one in seen] == expected


def test_a_search_that_is_taken_up_again_knows_the_same_though_the_former_has_gone_on_or_is_gone(
    write_run: WriteRun, tmp_path: Path
) -> None:
    run = write_run(experiment_on(SPACE), [(FIXED, [0.5])])
    experiment = experiment_on(SPACE, runs=[run])
    first = known(tmp_path, experiment)
    record = EpochRecord(2, 3, 1.0, {}, 0.9, None, 0.1, 1.0)
    append_line(run / "trials.jsonl", {"trial": "0000", "config": FIXED, **record.to_json()})
    assert known(tmp_path, experiment) == first
    for file in run.iterdir():
        file.unlink()
    assert known(tmp_path, experiment) == first


def test_asking_beforehand_keeps_nothing_and_finds_the_same(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(experiment_on(SPACE), [(FIXED, [0.5]), (FALLING, [0.25])])
    folder, experiment = tmp_path / "new", experiment_on(SPACE, runs=[run])
    folder.mkdir()
    beforehand = former_runs(folder, experiment, keep=False)
    assert list(folder.iterdir()) == []
    assert former_runs(folder, experiment) == beforehand
    assert former_runs(folder, experiment) == beforehand  # from warm.jsonl


def test_a_search_without_a_former_one_keeps_nothing(tmp_path: Path) -> None:
    assert former_runs(tmp_path, experiment_on(SPACE)) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused_and_nothing_is_kept(write_run: WriteRun, tmp_path: Path) -> None:
    good = write_run(experiment_on(SPACE), [(FIXED, [0.5])])
    with pytest.raises(RunError, match=r"nowhere is no run folder, it has no experiment.yaml; give the folder"):
        former_runs(tmp_path, experiment_on(SPACE, runs=[good, tmp_path / "nowhere"]))
    assert not (tmp_path / "warm.jsonl").exists()


def test_a_run_without_trials_or_with_none_that_fit_is_refused_saying_why(write_run: WriteRun, tmp_path: Path) -> None:
    empty = write_run(experiment_on(SPACE), [], name="empty")
    with pytest.raises(RunError, match="it has no trial at all"):
        former_runs(tmp_path, experiment_on(SPACE, runs=[empty]))
    (empty / "trials.jsonl").unlink()
    with pytest.raises(RunError, match=r"has no trials\.jsonl: nothing was searched there"):
        former_runs(tmp_path, experiment_on(SPACE, runs=[empty]))
    outside = write_run(experiment_on(SPACE), [({**FIXED, "train.learning_rate": 2.0}, [0.9])])
    with pytest.raises(RunError, match=r"trial 0000: train\.learning_rate is 2\.0, outside\. Remove it"):
        former_runs(tmp_path, experiment_on(SPACE, runs=[outside]))
    kind = {"distill.alpha.kind": {"choice": ["cosine"]}, "distill.alpha.end": {"uniform": [0.1, 0.2]}}
    with pytest.raises(RunError, match=r"distill\.alpha\.kind is 'fixed', outside"):
        former_runs(tmp_path, experiment_on(kind, runs=[write_run(experiment_on(SPACE), [(FIXED, [0.5])], name="b")]))


def test_a_run_is_not_warmed_by_itself(write_run: WriteRun) -> None:
    run = write_run(experiment_on(SPACE), [(FIXED, [0.5])])
    with pytest.raises(RunError, match="is this very run"):
        former_runs(run, experiment_on(SPACE, runs=[run]))


def test_a_warm_start_of_a_sampler_that_does_not_learn_is_refused() -> None:
    problems = space_problems(SPACE, **{"search.warm_start": ["runs/old"], "search.sampler": "random"})
    assert problems["search.warm_start"].startswith("does nothing: the sampler random learns from no trial")


def test_the_sampler_of_a_study_is_given_former_trials_before_its_own(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(experiment_on(SPACE), [(FIXED, [0.5]), (FALLING, [0.7])])
    experiment = experiment_on(SPACE, runs=[run])
    study = make_study(experiment, known=known(tmp_path, experiment))
    given: list[list[int]] = []
    inner = study.sampler

    class Listening:
        def propose(self, number: int, trials: Sequence[Seen]) -> Any:
            given.append([seen.number for seen in trials])
            return inner.propose(number, trials)

    study.sampler = Listening()
    for _ in range(3):
        study.ask()
    assert given == [[-2, -1, 0], [-2, -1, 0, 1]]  # the first trial is textbook KD


def test_the_default_sampler_proposes_what_was_good_before(write_run: WriteRun, tmp_path: Path) -> None:
    """Of 60 former trials only learning rates near 0.03 were any good."""
    rates = [0.01 * 100 ** (k / 59) for k in range(60)]
    trials = [({"train.learning_rate": rate}, [1 - abs(math.log(rate / 0.03)) / 5] * 3) for rate in rates]
    searched = {"train.learning_rate": SPACE["train.learning_rate"]}
    run = write_run(experiment_on(searched), trials)
    experiment = experiment_on(searched, runs=[run])
    cold, warm = make_study(experiment), make_study(experiment, known=known(tmp_path, experiment))

    def far(study: Any) -> float:
        proposed = [study.ask().config["train.learning_rate"] for _ in range(12)][1:]
        return sum(abs(math.log(rate / 0.03)) for rate in proposed) / len(proposed)

    assert far(warm) < far(cold) / 2
