"""What a search knows: a study that was killed and is told its records again goes on as one that never was."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtune.errors import RunError
from kdtune.records import EpochRecord
from kdtune.tuning.brackets import shares
from kdtune.tuning.making import make_study
from kdtune.tuning.population import Population
from kdtune.tuning.samplers import Random
from kdtune.tuning.stoppers import Asha, Median, Never
from kdtune.tuning.study import DIVERGED, Budget, Stopper, Study
from tests.experiments import changed
from tests.tuning import SPACE, Line, line, new_study, outcomes, record, work

KINDS: dict[str, Callable[[], Stopper]] = {
    "asha": lambda: Asha([[1, 3]], 2),
    "hyperband": lambda: Asha([[1, 3], [3], []], 2, shares=shares(2, 2), seed=5),
    "median": lambda: Median(2),
    "population": lambda: Population(SPACE, [2, 4, 6], 9, 8, 5),
    "none": Never,
}


def state(study: Study) -> list[dict[str, Any]]:
    return [dataclasses.asdict(seen) for _, seen in sorted(study.trials.items())]


# --- exactness


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(
    picks=st.lists(st.integers(0, 11), min_size=1, max_size=90),
    salt=st.integers(0, 10_000),
    workers=st.integers(1, 4),
    killed=st.integers(0, 90),
)
def test_a_study_rebuilt_from_its_records_decides_as_the_one_that_lived(
    kind: str, picks: list[int], salt: int, workers: int, killed: int
) -> None:
    lived, outcome = new_study(KINDS[kind]()), outcomes(salt)
    lines: list[Line] = []
    work(lived, outcome, picks[:killed], workers=workers, lines=lines)
    rebuilt = new_study(KINDS[kind]())
    rebuilt.replay(lines)
    for seen in lived.trials.values():  # its workers are gone too: one takes all up again, in order of their numbers
        seen.status = seen.status if seen.ended else "waiting"
    assert state(rebuilt) == state(lived)
    after = [work(study, outcome, [0] * 120, workers=1, lines=[]) for study in (lived, rebuilt)]
    assert after[0] == after[1]
    assert state(rebuilt) == state(lived)
    assert rebuilt.over


def test_with_one_worker_a_search_killed_at_any_epoch_is_the_search_that_never_was() -> None:
    whole: list[Line] = []
    work(make_study(changed("search.trials=9")), outcomes(3), [0] * 400, workers=1, lines=whole, epochs=40)
    assert {len({one["trial"] for one in whole}), whole[-1]["trial"]} == {9, "0008"}
    for killed in range(0, len(whole), 7):
        study, lines = make_study(changed("search.trials=9")), whole[:killed]
        study.replay(lines)
        work(study, outcomes(3), [0] * 400, workers=1, lines=lines, epochs=40)
        assert lines == whole


@pytest.mark.parametrize(
    "damaged",
    [
        {"trial": "0000", "config": {}},
        {**line(0, {}, record(1)), "trial": "first"},
        {**line(0, {}, record(1)), "config": None},
        {**line(0, {}, record(1)), "terms": None},
        line(0, {}, record(3)),
    ],
    ids=["no epoch", "no number", "no configuration", "no terms", "epochs left out"],
)
def test_records_that_are_none_are_refused_by_their_line(damaged: Line) -> None:
    with pytest.raises(RunError, match=r"trials\.jsonl, line 2 .* edited or damaged"):
        new_study().replay([line(0, {}, record(1)), damaged])


# --- asking


def test_points_come_first_and_then_what_the_sampler_proposes() -> None:
    points = [{"distill.alpha": 0.25, "distill.temperature": 2.0}]
    study = Study(SPACE, Random(SPACE, 0), Never(), Budget(3), points=points)
    first, second = study.ask(), study.ask()
    assert first is not None
    assert first.config == points[0] == first.sample
    assert second is not None
    assert second.sample == Random(SPACE, 0).propose(1, [])


def test_no_more_trials_are_begun_than_the_budget_has() -> None:
    study = new_study(trials=2)
    assert [seen and seen.number for seen in (study.ask(), study.ask(), study.ask())] == [0, 1, None]
    assert not study.over, "they run"


def test_trials_that_had_not_ended_are_asked_for_again_before_new_ones() -> None:
    study = new_study(trials=4)
    study.replay(
        [line(1, {"distill.alpha": 0.5}, record(1)), line(0, {"distill.alpha": 0.1}, record(1, diverged=True))]
    )
    asked = [study.ask() for _ in range(4)]
    assert [seen and (seen.number, seen.epoch) for seen in asked] == [(1, 1), (2, 0), (3, 0), None]


def test_a_trial_of_which_nothing_was_recorded_leaves_its_number_to_the_next() -> None:
    study = new_study(trials=3)
    study.replay([line(1, {"distill.alpha": 0.5}, record(1, epochs=1))])
    assert [seen and seen.number for seen in (study.ask(), study.ask(), study.ask())] == [0, 2, None]


def test_a_sampler_that_has_nothing_left_ends_the_search_with_its_trials() -> None:
    class One:
        def propose(self, number: int, trials: object) -> dict[str, float] | None:
            return {"distill.alpha": 0.5, "distill.temperature": 4.0} if number == 0 else None

    study = Study(SPACE, One(), Never(), Budget(5))
    assert study.ask() is not None
    assert study.ask() is None
    assert not study.over
    study.tell(0, record(1, epochs=1))
    assert study.over


# --- telling


def test_what_a_trial_showed_and_how_it_ended() -> None:
    study = new_study(Asha([[1]], 2), trials=4)
    for _ in range(4):
        study.ask()
    assert not study.tell(0, record(1, 0.9))
    assert study.tell(1, record(1, 0.1)), "the worse of two"
    assert study.tell(2, record(1, 0.9, diverged=True))
    study.failed(3)
    assert not study.tell(0, record(2, 0.8, epochs=3))
    assert study.tell(0, record(3, 0.7, epochs=3))
    assert [seen.status for seen in study.trials.values()] == ["complete", "stopped", "diverged", "failed"]
    assert [seen.values for seen in study.trials.values()] == [[0.9, 0.8, 0.7], [0.1], [DIVERGED], []]
    assert study.best == 0.7, "its last epoch counts"
    assert study.epochs == 5
    assert study.over


def test_an_epoch_that_is_told_again_changes_nothing() -> None:
    study = new_study(Asha([[1]], 2), trials=2)
    study.ask()
    study.tell(0, record(1, 0.5))
    study.tell(0, record(2, 0.6))
    before = state(study)
    assert not study.tell(0, record(1, 0.1))
    assert not study.tell(0, record(2, 0.1))
    assert state(study) == before
    assert study.epochs == 2
    study.ask()
    assert not study.tell(1, record(1, 0.5)), "the rung holds two, of which neither is worse"


def test_a_trial_that_diverges_on_being_taken_up_again_ends_there_and_then() -> None:
    study = new_study(trials=2)
    study.ask()
    for epoch in (1, 2, 3):
        study.tell(0, record(epoch, 0.5))
    assert study.tell(0, record(2, diverged=True))
    assert study.trials[0].values == [0.5, DIVERGED]
    assert study.tell(0, record(2, 0.9)), "it has ended"
    assert study.trials[0].values == [0.5, DIVERGED]


def test_a_trial_of_another_length_ends_with_its_own() -> None:
    study = new_study(trials=1)
    study.ask()
    assert study.tell(0, record(1, epochs=1))


# --- budgets


@pytest.mark.parametrize(
    ("budget", "told", "spent"),
    [
        ({"epochs": 2}, [record(1)], None),
        ({"epochs": 2}, [record(1), record(2)], "epochs"),
        ({"gpu_hours": 1.0}, [record(1, seconds=1799.0)], None),
        ({"gpu_hours": 1.0}, [record(1, seconds=1801.0)], "gpu_hours"),
        ({"accuracy": 0.8}, [record(1, 0.9)], None),
        ({"accuracy": 0.8}, [record(1, 0.9), record(2, 0.8, epochs=2)], "accuracy"),
        ({"seconds": 60.0}, [record(1)], None),
    ],
)
def test_a_budget_is_spent_by_what_was_told(budget: dict[str, Any], told: list[EpochRecord], spent: str | None) -> None:
    study = Study(SPACE, Random(SPACE, 0), Never(), Budget(4, **budget), gpus=2)
    study.ask()
    for one in told:
        study.tell(0, one)
    assert study.spent == spent
    assert (study.ask() is None) == (spent is not None)
    assert study.over == (spent is not None)


def test_seconds_before_an_interruption_count() -> None:
    study = new_study(trials=4, seconds=60)
    study.replay([line(0, {}, record(1), at=59.9), line(1, {}, record(1), at=61.0)])
    assert study.spent == "seconds"
    assert study.ask() is None


def test_an_extended_search_goes_on_where_the_shorter_one_ended() -> None:
    short: list[Line] = []
    work(new_study(Asha([[1, 3]], 2), trials=4), outcomes(1), [0] * 99, workers=1, lines=short)
    extended, whole = new_study(Asha([[1, 3]], 2), trials=9), new_study(Asha([[1, 3]], 2), trials=9)
    extended.replay(short)
    work(extended, outcomes(1), [0] * 99, workers=1, lines=[])
    work(whole, outcomes(1), [0] * 99, workers=1, lines=[])
    assert state(extended) == state(whole)
    assert len(extended.trials) == 9
