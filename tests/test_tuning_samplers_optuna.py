"""Optuna's samplers through Ray's wrapper: exact after an interruption, one trial at a time."""

import importlib.util
from dataclasses import replace
from typing import Any, get_args

import pytest

from kdtune.errors import ExperimentError
from kdtune.experiment import Experiment, parse
from kdtune.experiment.search import OptunaName
from kdtune.experiment.space import active, encoded
from kdtune.experiment.space import parse as parse_space
from kdtune.search.optuna import OptunaSampler, optuna_sampler_of
from kdtune.tuning.making import first_points, make_study
from kdtune.tuning.samplers import Random
from kdtune.tuning.study import Sample, Sampler, Seen
from tests.experiments import problems_of, raw_with

SPACE = {
    "distill.temperature.kind": {"choice": ["fixed", "exponential"]},
    "distill.temperature.start": {"loguniform": [1, 20]},
    "distill.temperature.end_ratio": {"loguniform": [0.125, 4], "when": {"distill.temperature.kind": "exponential"}},
    "distill.alpha.start": {"uniform": [0.2, 0.99]},
    "train.epochs": {"integer": [3, 6]},
}
NAMES = get_args(OptunaName)


def experiment_of(name: str = "tpe", seed: int = 0) -> Experiment:
    search = {"search.sampler": "optuna", "search.optuna_sampler": name, "search.seed": seed}
    return parse(raw_with(search | {"train.epochs": 6, "search.stopper.grace_epochs": 1}, SPACE))


def make_optuna_sampler(experiment: Experiment) -> OptunaSampler:
    sampler = optuna_sampler_of(experiment)
    assert sampler is not None
    return sampler


def searched(experiment: Experiment, sampler: Sampler, trials: int, before: list[Seen] | None = None) -> list[Seen]:
    """One trial at a time, every third stopped half way; `before` are those of a former process."""
    found = list(before or [])
    parameters, _ = parse_space(experiment.search.space)
    points = first_points(parameters, experiment)
    for number in range(len(found), trials):
        proposal: Sample | None = points[number] if number < len(points) else sampler.propose(number, found)
        assert proposal is not None
        config = active(parameters, proposal, experiment)
        sample = encoded(parameters, config)
        reached = 0.9 - abs(sample["distill.alpha.start"] - 0.8)
        epochs = 3 if number % 3 == 2 else 6
        values = [reached * epoch / 6 for epoch in range(1, epochs + 1)]
        found.append(Seen(number, config, sample, values, "complete" if epochs == 6 else "stopped"))
    return found


def known_to_optuna(sampler: OptunaSampler) -> list[Any]:
    study: Any = sampler.searcher._ot_study  # made with the searcher
    return list(study.trials)


def samples(trials: list[Seen]) -> list[Sample]:
    return [trial.sample for trial in trials]


@pytest.mark.parametrize("name", NAMES)
def test_a_new_process_goes_on_exactly_as_one_that_was_never_killed(name: str) -> None:
    experiment = experiment_of(name)
    through = searched(experiment, make_optuna_sampler(experiment), 18)
    again = searched(experiment, make_optuna_sampler(experiment), 18, before=through[:13])
    assert samples(again) == samples(through)
    assert samples(searched(experiment_of(name, 1), make_optuna_sampler(experiment_of(name, 1)), 18)) != samples(
        through
    )


def test_textbook_kd_is_known_to_optuna_as_its_first_trial() -> None:
    experiment = experiment_of()
    sampler = make_optuna_sampler(experiment)
    found = searched(experiment, sampler, 3)
    told = known_to_optuna(sampler)
    assert told[0].params["distill.temperature.start"] == 4
    assert [trial.value for trial in told[:2]] == pytest.approx([trial.values[-1] for trial in found[:2]])


def test_a_trial_that_ran_otherwise_than_a_new_process_would_have_asked_is_told_as_it_ran() -> None:
    experiment = experiment_of()
    alone = searched(experiment, make_optuna_sampler(experiment), 6)
    other = {**alone[4].sample, "distill.alpha.start": 0.21}
    alone[4] = Seen(4, alone[4].config, other, alone[4].values, "complete")
    sampler = make_optuna_sampler(experiment)
    sampler.propose(6, alone)
    told = [(trial.params["distill.alpha.start"], trial.state.name) for trial in known_to_optuna(sampler)]
    assert (0.21, "COMPLETE") in told
    assert [state for _, state in told].count("FAIL") == 1


def test_a_trial_that_failed_is_no_value_to_learn_from() -> None:
    experiment = experiment_of()
    found = searched(experiment, make_optuna_sampler(experiment), 3)
    found[2].values, found[2].status = [], "failed"
    sampler = make_optuna_sampler(experiment)
    sampler.propose(3, found)
    assert [trial.state.name for trial in known_to_optuna(sampler)] == [
        "COMPLETE",
        "COMPLETE",
        "FAIL",
        "RUNNING",
    ]


@pytest.mark.parametrize(("name", "package"), [("tpe", "optuna"), ("cmaes", "cmaes")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without(wanted: str, *rest: Any) -> Any:
        return None if wanted == package else found(wanted, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(
        ExperimentError, match=f"search.sampler: Optuna's {name} needs {package}: pip install {package}"
    ):
        make_optuna_sampler(experiment_of(name))


def test_a_sampler_of_optunas_without_optuna_is_refused() -> None:
    found = problems_of(lambda: parse(raw_with({"search.optuna_sampler": "gp"}, SPACE)))
    assert found["search.optuna_sampler"] == "needs search.sampler optuna, given hyperopt+gp"


def test_a_study_asks_optuna_where_the_experiment_does() -> None:
    experiment = experiment_of("random")
    study = make_study(experiment, sampler=optuna_sampler_of(experiment))
    alone = [trial.config for trial in searched(experiment, make_optuna_sampler(experiment), 4)]
    assert [seen.config for seen in (study.ask() for _ in range(4)) if seen is not None] == alone
    assert optuna_sampler_of(parse(raw_with({}, SPACE))) is None


def test_trials_of_a_former_search_are_known_to_optuna_from_the_start() -> None:
    experiment = experiment_of()
    former = [
        replace(trial, number=trial.number - 8, run="runs/former")
        for trial in searched(experiment, Random(parse_space(experiment.search.space)[0], 0), 8)
    ]
    sampler = make_optuna_sampler(experiment)
    sampler.propose(0, former)
    told = [trial for trial in known_to_optuna(sampler) if trial.state.name == "COMPLETE"]
    assert [trial.params["train.epochs"] for trial in told] == [one.sample["train.epochs"] for one in former]
