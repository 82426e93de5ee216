"""Population-based training: who is replaced by whom, what of it is kept, and the schedule that comes of it."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtune.experiment import Experiment, Schedule, parse, space, with_values
from kdtune.experiment.midway import continued, value_in
from kdtune.experiment.stopping import ready_epochs
from kdtune.tuning.making import make_study
from kdtune.tuning.population import Population, explored
from kdtune.tuning.study import DIVERGED, FORKS_FROM, Seen, Study
from tests.experiments import problems_of, raw_with
from tests.tuning import SPACE, new_population, outcomes, record, work

PATHS = ("distill.alpha", "distill.temperature")
RANGES = {"distill.alpha": (0.0, 1.0), "distill.temperature": (1.0, 20.0)}
NUMBERS = {"distill.alpha": {"uniform": [0, 1]}, "distill.temperature": {"loguniform": [1, 20]}}


def experiment_of(searched: dict[str, Any] = NUMBERS, **values: object) -> Experiment:
    given = {"train.epochs": 9, "search.trials": 8, "search.stopper": {"kind": "population", "grace_epochs": 2}}
    return parse(raw_with({**given, **values}, searched))


def begin(study: Study, count: int) -> list[Seen]:
    asked = [study.ask() for _ in range(count)]
    assert None not in asked
    return [seen for seen in asked if seen is not None]


def tell(study: Study, seen: Seen, *values: float) -> bool:
    """Whether it ends with the last of its next epochs."""
    for value in values:
        study.tell(seen.number, record(seen.epoch + 1, value))
    return seen.ended


# --- who is replaced by whom


def test_members_are_compared_where_as_many_epochs_are_left() -> None:
    assert ready_epochs(2, 9) == [2, 4, 6]
    assert ready_epochs(2, 8) == [2, 4, 6]
    assert ready_epochs(1, 4) == [1, 2], "what would begin at the last epoch has no progress to begin at"
    assert ready_epochs(5, 9) == []


def test_the_worst_of_four_is_stopped_and_a_fork_of_the_best_takes_its_place() -> None:
    study = new_population()
    members = begin(study, 4)
    assert not any(tell(study, seen, 0.5, value) for seen, value in zip(members, (0.6, 0.9, 0.7), strict=False))
    assert tell(study, members[3], 0.9, 0.1)
    fork = study.ask()
    assert fork is not None
    assert (fork.number, fork.parent, fork.epoch) == (FORKS_FROM, (1, 2), 2)
    assert fork.values == [0.5, 0.9] == members[1].values
    for path in PATHS:
        schedule = Schedule.model_validate(fork.config[path])
        assert [schedule.at(epoch, 9) for epoch in (0, 1)] == [members[1].config[path]] * 2
        assert RANGES[path][0] <= schedule.at(2, 9) == schedule.at(8, 9) <= RANGES[path][1]
    assert fork.config != members[1].config


def test_a_fork_that_does_badly_is_replaced_in_its_turn_and_its_schedule_goes_on() -> None:
    study = new_population(members=4)
    members = begin(study, 4)
    for seen, value in zip(members, (0.9, 0.8, 0.7, 0.1), strict=True):
        tell(study, seen, 0.0, value)
    (fork,) = begin(study, 1)
    tell(study, fork, 0.9, 0.9)
    for seen, value in zip(members[:2], (0.8, 0.7), strict=True):
        tell(study, seen, 0.0, value)
    assert tell(study, members[2], 0.0, 0.1)
    (second,) = begin(study, 1)
    assert second.parent == (fork.number, 4)
    assert second.values == [0.0, 0.9, 0.9, 0.9]
    for path in PATHS:
        before, after = fork.config[path], second.config[path]
        assert (after["start"], after["values"][:1]) == (before["start"], before["values"])
        assert after["milestones"] == [2 / 8, 4 / 8]


def test_nobody_is_stopped_among_equals_or_among_three() -> None:
    study = new_population()
    assert not any(tell(study, seen, 0.5, 0.5) for seen in begin(study, 8))
    study = new_population()
    assert not any(tell(study, seen, 0.5, value) for seen, value in zip(begin(study, 3), (0.9, 0.8, 0.1), strict=True))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6).map(lambda k: k / 6), min_size=4, max_size=24))
def test_the_bottom_quarter_gives_way_to_the_top_quarter_as_in_a_sorted_list(values: list[float]) -> None:
    study = new_population(members=len(values))
    members = begin(study, len(values))
    stopped: set[int] = set()
    for k, seen in enumerate(members):
        come = values[: k + 1]
        ended = tell(study, seen, 0.5, values[k])
        assert ended == (k >= 3 and sum(value <= values[k] for value in come) <= len(come) // 4)
        if ended:
            stopped.add(seen.number)
            number, epoch = study.forks[-1].parent
            assert epoch == 2
            assert number not in stopped
            assert values[number] in sorted(come, reverse=True)[: len(come) // 4]


def test_forks_come_before_new_members_and_do_not_count_against_the_trials() -> None:
    study = new_population(members=6)
    members = begin(study, 4)
    for seen, value in zip(members, (0.9, 0.8, 0.7, 0.1), strict=True):
        tell(study, seen, 0.0, value)
    assert [seen.number for seen in begin(study, 3)] == [FORKS_FROM, 4, 5]
    assert study.ask() is None
    assert not study.closed, "whoever runs may be stopped, and then a fork is asked for"
    for seen in study.trials.values():
        if not seen.ended:
            tell(study, seen, *[0.9] * (9 - seen.epoch))
    assert study.closed
    assert study.over


def test_a_member_that_diverges_is_the_worst_and_nobody_goes_on_from_it() -> None:
    study = new_population()
    members = begin(study, 5)
    for seen, value in zip(members, (0.9, 0.8, 0.7), strict=False):
        tell(study, seen, 0.0, value)
    tell(study, members[3], 0.0)
    assert study.tell(3, record(2, 0.99, diverged=True))
    assert study.forks == []
    assert study.trials[3].values[-1] == DIVERGED
    assert not tell(study, members[4], 0.0, 0.1), "the diverged one is the worst of five"


# --- states


@settings(max_examples=80)
@given(
    picks=st.lists(st.integers(0, 11), min_size=20, max_size=200),
    salt=st.integers(0, 10_000),
    workers=st.integers(1, 6),
    members=st.integers(4, 12),
)
def test_the_state_that_a_fork_goes_on_from_has_been_kept(
    picks: list[int], salt: int, workers: int, members: int
) -> None:
    """As a recorder does it: states are kept after the epochs that the study names, and go as soon as it says so."""
    study, outcome = new_population(members), outcomes(salt)
    kept: set[tuple[int, int]] = set()
    for pick in [*picks, *[0] * 400]:
        told = _one(study, outcome, pick, workers)
        if told is not None and told.epoch in study.saved_epochs:
            kept.add((told.number, told.epoch))
        assert study.wanted_states() <= kept
        kept &= study.wanted_states()
        assert len(kept) <= 3 * (members // 4) + len(study.trials)
        for fork in study.forks:
            assert fork.parent in kept
    assert study.over
    assert kept == set(), "nothing is left at the end"


def _one(study: Study, outcome: Any, pick: int, workers: int) -> Seen | None:
    """One epoch of one of so many trials under way."""
    running = [seen for seen in study.trials.values() if seen.status == "running"]
    if len(running) < workers and (asked := study.ask()) is not None:
        running.append(asked)
    if not running:
        return None
    seen = running[pick % len(running)]
    value = outcome(seen.number, seen.epoch + 1)
    study.tell(seen.number, record(seen.epoch + 1, value or 0.0, diverged=value is None))
    return seen


# --- what comes of it


def test_the_schedule_of_a_fork_repeats_what_its_forebears_had_in_every_epoch() -> None:
    generations = []
    for salt in range(20):
        study = make_study(experiment_of())
        work(study, outcomes(salt, diverging=0), list(range(6)) * 60, workers=6, lines=[])
        for seen in (seen for seen in study.trials.values() if seen.parent):
            experiment = with_values(experiment_of(), seen.config)
            for path in PATHS:
                schedule = space.look_up(experiment, path)
                assert isinstance(schedule, Schedule)
                assert [schedule.at(epoch, 9) for epoch in range(9)] == lived(study, seen, path, 9)
            generations.append(len(seen.config[PATHS[0]]["values"]))
    assert {1, 2} <= set(generations), "forks of forks are among them"


def lived(study: Study, seen: Seen, path: str, epochs: int) -> list[float]:
    """The value in each epoch: the forebears' up to where each was forked, then its own."""
    if seen.parent is None:
        return [seen.config[path]] * epochs
    number, epoch = seen.parent
    return lived(study, study.trials[number], path, epoch) + [value_in(seen.config, path)] * (epochs - epoch)


def test_values_move_by_a_fifth_within_their_range_or_are_drawn_anew() -> None:
    config = {"distill.alpha": 0.5, "distill.temperature": 19.0}
    drawn = [explored(SPACE, config, random.Random(k)) for k in range(2000)]
    alphas = [one["distill.alpha"] for one in drawn]
    for moved, least in ((0.4, 0.3375), (0.6, 0.3375)):  # (1 - 0.25) / 2 of them, less four standard deviations
        assert sum(alpha == pytest.approx(moved) for alpha in alphas) / 2000 > least - 0.005
    assert 0.2 < sum(alpha not in (0.4, 0.6) for alpha in alphas) / 2000 < 0.3
    hot = [one["distill.temperature"] for one in drawn]
    assert max(hot) == 20
    assert sum(value == 20 for value in hot) / 2000 > 0.33


def test_options_of_a_choice_are_drawn_anew_and_numbers_among_them_move() -> None:
    parameters, _ = space.parse({"distill.temperature": {"choice": [2, {"uniform": [4, 8]}]}})
    drawn = [explored(parameters, {"distill.temperature": 2}, random.Random(k)) for k in range(200)]
    assert {one["distill.temperature"] == 2 for one in drawn} == {True, False}
    moved = [explored(parameters, {"distill.temperature": 6.0}, random.Random(k)) for k in range(200)]
    assert sum(one["distill.temperature"] in (pytest.approx(4.8), pytest.approx(7.2)) for one in moved) > 120
    parameters, _ = space.parse({"distill.temperature": {"integer": [2, 9]}})
    whole = [explored(parameters, {"distill.temperature": 7}, random.Random(k)) for k in range(50)]
    assert all(float(one["distill.temperature"]).is_integer() for one in whole)


def test_a_start_that_is_searched_becomes_a_schedule_of_its_whole_path() -> None:
    config = continued({"distill.alpha.start": 0.5}, {"distill.alpha.start": 0.4}, 2, 9)
    assert config == {"distill.alpha": {"kind": "piecewise", "start": 0.5, "values": [0.4], "milestones": [0.25]}}
    again = continued(config, {"distill.alpha.start": 0.6}, 4, 9)
    assert again["distill.alpha"]["values"] == [0.4, 0.6]
    assert value_in(again, "distill.alpha.start") == 0.6


# --- what it cannot search


@pytest.mark.parametrize(
    ("searched", "values", "path", "words"),
    [
        ({"train.learning_rate": {"loguniform": [0.01, 1]}}, {}, "search.space.train.learning_rate", "in mid-training"),
        ({"distill.logit_loss": {"choice": ["kl", "dist"]}}, {}, "search.space.distill.logit_loss", "in mid-training"),
        (
            {"distill.alpha.kind": {"choice": ["fixed"]}},
            {},
            "search.space.distill.alpha.kind",
            "distill.temperature, distill.alpha, distill.feature_weight only",
        ),
        (
            {"distill.feature_weight": {"choice": [0, {"loguniform": [0.01, 1]}]}},
            {},
            "search.space.distill.feature_weight",
            "turned on or off",
        ),
        (
            {"distill.feature_weight": {"uniform": [0, 1]}},
            {},
            "search.space.distill.feature_weight",
            "turned on or off",
        ),
        (
            {"distill.alpha.start": {"uniform": [0, 1]}},
            {"distill.alpha": {"kind": "linear", "start": 0.5, "end": 0.1}},
            "search.space.distill.alpha.start",
            "makes the schedule itself",
        ),
        (
            {"distill.alpha": {"uniform": [0, 1]}, "distill.alpha.start": {"uniform": [0, 1]}},
            {},
            "search.space.distill.alpha",
            "searched twice",
        ),
        (
            {**NUMBERS, "distill.alpha": {"uniform": [0, 1], "when": {"distill.logit_loss": "kl"}}},
            {},
            "search.space.distill.alpha",
            "`when`",
        ),
        (
            {"distill.temperature": {"uniform": [2, 9]}},
            {"distill.learned_temperature": {"warmup": 0}},
            "search.space.distill.temperature",
            "a learned temperature has no schedule",
        ),
        (NUMBERS, {"search.trials": 3}, "search.trials", "4 to 100,000 members, given 3"),
        (
            NUMBERS,
            {"search.stopper": {"kind": "population", "grace_epochs": 5}},
            "search.stopper",
            "give at most half of train.epochs",
        ),
    ],
)
def test_what_cannot_change_in_mid_training_is_refused(
    searched: dict[str, Any], values: dict[str, object], path: str, words: str
) -> None:
    problems = problems_of(lambda: experiment_of(searched, **values))
    assert words in problems[path]
    assert len(problems) == 1


@pytest.mark.parametrize(
    "searched",
    [
        {"distill.feature_weight": {"choice": [0.1, 1]}},
        {"distill.alpha.start": {"uniform": [0, 1]}},
        {"distill.temperature": {"choice": [1, "2e0", {"uniform": [4, 9]}]}},
    ],
)
def test_numbers_that_may_change_are_searched_and_every_fork_is_valid(searched: dict[str, Any]) -> None:
    experiment = experiment_of(searched)
    study = make_study(experiment)
    assert isinstance(study.stopper, Population)
    work(study, outcomes(1, diverging=0), list(range(6)) * 60, workers=6, lines=[])
    forks = [seen for seen in study.trials.values() if seen.parent]
    assert forks
    for seen in forks:
        with_values(experiment, seen.config)
