"""Schedules: values against numbers worked out by hand, the model's refusals, bounds, and the overlay of a search."""

import doctest
import inspect
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdtune import schedules
from kdtune.experiment import Distill, Schedule
from kdtune.experiment.schedule import FORMS, fields_of, overlay

EIGHTH_COSINE = (1 + math.cos(math.pi / 4)) / 2  # half a cosine after a quarter of its way, about 0.854

# What a file says -> the value in each of five epochs, that is at progress 0, 1/4, 1/2, 3/4 and 1.
BY_HAND: list[tuple[object, list[float]]] = [
    (4, [4, 4, 4, 4, 4]),
    ({"kind": "fixed", "start": 0}, [0, 0, 0, 0, 0]),
    ({"kind": "linear", "start": 4, "end": 2}, [4, 3.5, 3, 2.5, 2]),
    ({"kind": "linear", "start": 0, "end": 1}, [0, 0.25, 0.5, 0.75, 1]),
    ({"kind": "linear", "start": 4, "end_ratio": 2}, [4, 5, 6, 7, 8]),
    ({"kind": "cosine", "start": 1, "end": 0}, [1, EIGHTH_COSINE, 0.5, 1 - EIGHTH_COSINE, 0]),
    ({"kind": "cosine", "start": 4, "end_ratio": 0.5}, [4, 2 + 2 * EIGHTH_COSINE, 3, 4 - 2 * EIGHTH_COSINE, 2]),
    ({"kind": "exponential", "start": 16, "end": 1}, [16, 8, 4, 2, 1]),
    ({"kind": "exponential", "start": 1, "end": 16}, [1, 2, 4, 8, 16]),
    ({"kind": "exponential", "start": 16, "end_ratio": 0.0625}, [16, 8, 4, 2, 1]),
    ({"kind": "exponential", "start": 4, "rate": 0.5, "floor": 0.75}, [4, 2, 1, 0.75, 0.75]),
    ({"kind": "exponential", "start": 4, "rate": 1, "floor": 1}, [4, 4, 4, 4, 4]),
    ({"kind": "step", "start": 0.8, "factor": 0.5, "milestones": [0.5, 0.75]}, [0.8, 0.8, 0.4, 0.2, 0.2]),
    ({"kind": "step", "start": 0.1, "factor": 2, "milestones": [0.3]}, [0.1, 0.1, 0.2, 0.2, 0.2]),
    ({"kind": "warmup", "start": 0, "end": 0.8, "warmup": 0.5}, [0, 0.4, 0.8, 0.8, 0.8]),
    ({"kind": "warmup", "start": 0, "end": 0.8, "warmup": 1}, [0, 0.2, 0.4, 0.6, 0.8]),
    ({"kind": "warmup", "start": 0.2, "end_ratio": 4, "warmup": 0.5}, [0.2, 0.5, 0.8, 0.8, 0.8]),
    ({"kind": "piecewise", "start": 4, "values": [5, 2], "milestones": [0.25, 0.7]}, [4, 5, 5, 2, 2]),
]

# What a file says -> words of the refusal.
REFUSED: list[tuple[object, str]] = [
    (None, "expected a number or a schedule"),
    (True, "expected a number or a schedule"),
    ([4, 1], "expected a number or a schedule"),
    ("hot", "valid number"),
    (math.nan, "finite number"),
    ({"kind": "linear", "end": 1}, "required"),
    ({"kind": "linear", "start": 1}, "kind linear takes start, end or start, end_ratio; given: start"),
    ({"kind": "polynomial", "start": 1, "end": 0}, "'fixed', 'linear'"),
    ({"kind": "fixed", "start": 4, "end": 1}, "kind fixed takes start; given: start, end"),
    ({"start": 4, "end": 1}, "kind fixed takes start; given: start, end"),
    ({"kind": "linear", "start": 4, "end": 1, "end_ratio": 0.5}, "given: start, end, end_ratio"),
    ({"kind": "linear", "start": 4, "end": 1, "warmup": 0.5}, "given: start, end, warmup"),
    ({"kind": "cosine", "start": 4, "rate": 0.5, "floor": 1}, "given: start, floor, rate"),
    ({"kind": "exponential", "start": 4, "rate": 0.5}, "or start, floor, rate; given: start, rate"),
    ({"kind": "exponential", "start": 4, "end": 1, "floor": 1}, "given: start, end, floor"),
    ({"kind": "step", "start": 4, "factor": 0.5}, "given: start, factor"),
    ({"kind": "warmup", "start": 0, "end": 1}, "given: start, end"),
    ({"kind": "linear", "start": 4, "stop": 1}, "Extra inputs"),
    ({"kind": "exponential", "start": 4, "end": 0}, "stays above 0"),
    ({"kind": "exponential", "start": 4, "end_ratio": 0}, "stays above 0"),
    ({"kind": "exponential", "start": 0, "end": 1}, "stays above 0"),
    ({"kind": "exponential", "start": 4, "end": -1}, "stays above 0"),
    ({"kind": "exponential", "start": 4, "rate": 0.5, "floor": 0}, "stays above 0"),
    ({"kind": "exponential", "start": 4, "rate": 0.5, "floor": 5}, "floor 5 lies above start 4"),
    ({"kind": "exponential", "start": 4, "rate": 1.1, "floor": 1}, "less than or equal to 1"),
    ({"kind": "linear", "start": 4, "end_ratio": -1}, "greater than or equal to 0"),
    ({"kind": "step", "start": 4, "factor": 0, "milestones": [0.5]}, "greater than 0"),
    ({"kind": "step", "start": 4, "factor": 0.5, "milestones": []}, "at least 1 item"),
    ({"kind": "step", "start": 4, "factor": 0.5, "milestones": [0.5, 1]}, "between 0 and 1, given 1"),
    ({"kind": "step", "start": 4, "factor": 0.5, "milestones": [0]}, "between 0 and 1, given 0"),
    ({"kind": "warmup", "start": 0, "end": 1, "warmup": 0}, "greater than 0"),
    ({"kind": "piecewise", "start": 4, "values": [2]}, "takes start, milestones, values; given: start, values"),
    ({"kind": "piecewise", "start": 4, "values": [2, 1], "milestones": [0.5]}, "2 values do not go with 1 milestones"),
    ({"kind": "piecewise", "start": 4, "values": [2, 1], "milestones": [0.5, 0.5]}, "come one after the other"),
    ({"kind": "piecewise", "start": 4, "values": [2], "milestones": [1]}, "between 0 and 1, given 1"),
    ({"kind": "step", "start": 4, "values": [2], "milestones": [0.5]}, "kind step takes start, factor, milestones"),
    ({"kind": "warmup", "start": 0, "end": 1, "warmup": 1.5}, "less than or equal to 1"),
]

positive = st.floats(1e-3, 1e3)
anything = st.floats(-1e3, 1e3)
ends = st.fixed_dictionaries({"end": anything}) | st.fixed_dictionaries({"end_ratio": st.floats(0, 1e3)})
positive_ends = st.fixed_dictionaries({"end": positive}) | st.fixed_dictionaries({"end_ratio": positive})
share = st.floats(0.01, 0.99)


def _kind(name: str, start: st.SearchStrategy[float], rest: st.SearchStrategy[dict[str, Any]]) -> Any:
    """Schedules of one kind; `Any`: hypothesis types what `builds` makes by its caller."""
    return st.builds(lambda s, r: Schedule.model_validate({"kind": name, "start": s, **r}), start, rest)


def first(pair: tuple[float, float]) -> float:
    return pair[0]


def cut(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Milestones in order, each with its value."""
    milestones, values = zip(*sorted(pairs), strict=True)
    return {"milestones": milestones, "values": values}


@st.composite
def decays(draw: st.DrawFn) -> Schedule:
    """The (start, rate, floor) form, its floor below its start."""
    start = draw(positive)
    floor = start * draw(st.floats(0.01, 1))
    return Schedule(kind="exponential", start=start, rate=draw(st.floats(0.01, 1)), floor=floor)


any_schedule: st.SearchStrategy[Schedule] = st.one_of(
    _kind("fixed", anything, st.just({})),
    _kind("linear", anything, ends),
    _kind("cosine", anything, ends),
    _kind("exponential", positive, positive_ends),
    decays(),
    _kind(
        "step",
        anything,
        st.fixed_dictionaries(
            {"factor": st.floats(0.1, 10), "milestones": st.lists(share, min_size=1, max_size=4)},
        ),
    ),
    _kind(
        "piecewise", anything, st.lists(st.tuples(share, anything), min_size=1, max_size=4, unique_by=first).map(cut)
    ),
    _kind("warmup", anything, st.builds(lambda end, w: {**end, "warmup": w}, ends, st.floats(0.01, 1))),
)


@pytest.mark.parametrize(("said", "by_hand"), BY_HAND, ids=str)
def test_a_schedule_has_the_values_worked_out_by_hand(said: object, by_hand: list[float]) -> None:
    schedule = Schedule.model_validate(said)
    assert [schedule.at(epoch, 5) for epoch in range(5)] == pytest.approx(by_hand, abs=1e-12)


def test_every_form_of_every_kind_is_worked_out_by_hand() -> None:
    seen = {
        (said["kind"], frozenset(said) - {"kind", "start"}) if isinstance(said, dict) else ("fixed", frozenset())
        for said, _ in BY_HAND
    }
    assert seen == {(kind, form) for kind, forms in FORMS.items() for form in forms}


@pytest.mark.parametrize("said", [said for said, _ in BY_HAND], ids=str)
def test_a_run_of_one_epoch_stays_at_the_start(said: object) -> None:
    schedule = Schedule.model_validate(said)
    assert schedule.at(0, 1) == schedule.start


def test_the_rate_form_counts_epochs_and_the_end_form_the_planned_length() -> None:
    rate = Schedule(kind="exponential", start=16, rate=0.5, floor=1)
    end = Schedule(kind="exponential", start=16, end=1)
    assert [rate.at(2, epochs) for epochs in (3, 5, 9)] == [4, 4, 4]
    assert [end.at(2, epochs) for epochs in (3, 5, 9)] == pytest.approx([1, 4, 8])


def test_a_milestone_is_reached_in_the_very_epoch_whose_progress_it_names() -> None:
    for k in range(1, 10):
        schedule = Schedule(kind="step", start=1, factor=0.5, milestones=(k / 10,))
        assert [schedule.at(epoch, 11) for epoch in (k - 1, k)] == [1, 0.5]


def test_the_order_of_milestones_means_nothing() -> None:
    one = Schedule(kind="step", start=1, factor=0.5, milestones=(0.25, 0.75))
    other = Schedule(kind="step", start=1, factor=0.5, milestones=(0.75, 0.25))
    assert [one.at(epoch, 9) for epoch in range(9)] == [other.at(epoch, 9) for epoch in range(9)]


@given(any_schedule, st.integers(1, 50))
def test_extremes_bound_every_value_in_every_epoch(schedule: Schedule, epochs: int) -> None:
    low, high = min(schedule.extremes()), max(schedule.extremes())
    slack = 1e-9 * max(abs(low), abs(high))
    for epoch in range(epochs):
        assert low - slack <= schedule.at(epoch, epochs) <= high + slack


@given(any_schedule, st.integers(2, 50))
def test_the_first_epoch_is_at_the_start_and_the_last_at_the_end(schedule: Schedule, epochs: int) -> None:
    assert schedule.at(0, epochs) == pytest.approx(schedule.start, abs=1e-9)
    parameters = schedule.parameters()
    if "end" in parameters:
        assert schedule.at(epochs - 1, epochs) == pytest.approx(parameters["end"], abs=1e-9)


@pytest.mark.parametrize(
    ("said", "zero"),
    [
        (0, True),
        (0.1, False),
        ({"kind": "linear", "start": 0, "end": 0}, True),
        ({"kind": "linear", "start": 0, "end": 1}, False),
        ({"kind": "linear", "start": 1, "end": 0}, False),
        ({"kind": "linear", "start": 0, "end_ratio": 5}, True),
        ({"kind": "step", "start": 0, "factor": 2, "milestones": [0.5]}, True),
        ({"kind": "warmup", "start": 0, "end": 1, "warmup": 0.5}, False),
    ],
    ids=str,
)
def test_only_a_schedule_that_never_leaves_0_is_zero(said: object, zero: bool) -> None:
    assert Schedule.model_validate(said).is_zero is zero


@pytest.mark.parametrize(("said", "words"), REFUSED, ids=str)
def test_a_schedule_that_makes_no_sense_is_refused(said: object, words: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Schedule.model_validate(said)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "said",
    [
        1.01,
        -0.01,
        {"kind": "linear", "start": 0.5, "end": 1.2},
        {"kind": "linear", "start": 0.5, "end_ratio": 3},
        {"kind": "exponential", "start": 1.5, "rate": 0.5, "floor": 0.1},
        {"kind": "step", "start": 0.6, "factor": 2, "milestones": [0.5]},
        {"kind": "warmup", "start": -0.1, "end": 0.9, "warmup": 0.2},
    ],
    ids=str,
)
def test_an_alpha_that_leaves_0_to_1_is_refused(said: object) -> None:
    with pytest.raises(ValidationError, match="alpha must stay within 0 and 1, this reaches"):
        Distill.model_validate({"alpha": said})


@pytest.mark.parametrize(
    "said",
    [
        0,
        -1,
        {"kind": "linear", "start": 4, "end": 0},
        {"kind": "cosine", "start": 4, "end_ratio": 0},
        {"kind": "warmup", "start": 0, "end": 4, "warmup": 0.2},
    ],
    ids=str,
)
def test_a_temperature_that_reaches_0_is_refused(said: object) -> None:
    with pytest.raises(ValidationError, match="a temperature must stay above 0"):
        Distill.model_validate({"temperature": said})


def test_a_negative_feature_weight_is_refused_and_zero_allowed() -> None:
    assert Distill.model_validate({"feature_weight": {"kind": "linear", "start": 1, "end": 0}}).alpha.start == 0.9
    with pytest.raises(ValidationError, match="must not be negative"):
        Distill.model_validate({"feature_weight": {"kind": "linear", "start": 1, "end": -0.1}})


def test_alpha_may_touch_both_of_its_ends() -> None:
    assert Distill.model_validate({"alpha": {"kind": "linear", "start": 1, "end": 0}}).alpha.at(4, 5) == 0


def test_the_file_reads_the_parameters_that_the_functions_take() -> None:
    for kind, forms in FORMS.items():
        for form in forms:
            function = schedules.decay if "rate" in form else schedules.SCHEDULES[kind]
            taken = {name for name, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY}
            assert {"end" if name == "end_ratio" else name for name in form} | {"start"} == taken


@pytest.mark.parametrize(
    ("base", "sampled", "merged"),
    [
        (4, {}, {"kind": "fixed", "start": 4}),
        (4, {"start": 2}, {"kind": "fixed", "start": 2}),
        (4, {"kind": "linear", "end": 1}, {"kind": "linear", "start": 4, "end": 1}),
        # `fixed` has no use for an end, neither the base's nor the sampled one
        ({"kind": "linear", "start": 4, "end": 1}, {"kind": "fixed"}, {"kind": "fixed", "start": 4}),
        (4, {"kind": "fixed", "end_ratio": 0.5}, {"kind": "fixed", "start": 4}),
        # a sampled end takes the place of another form of end
        (
            {"kind": "linear", "start": 4, "end": 1},
            {"end_ratio": 0.5},
            {"kind": "linear", "start": 4, "end_ratio": 0.5},
        ),
        (
            {"kind": "exponential", "start": 4, "end_ratio": 0.5},
            {"rate": 0.9, "floor": 1},
            {"kind": "exponential", "start": 4, "rate": 0.9, "floor": 1},
        ),
        (
            {"kind": "exponential", "start": 4, "rate": 0.9, "floor": 1},
            {"end": 2},
            {"kind": "exponential", "start": 4, "end": 2},
        ),
        # half of a pair keeps the other half
        (
            {"kind": "exponential", "start": 4, "rate": 0.9, "floor": 1},
            {"rate": 0.8},
            {"kind": "exponential", "start": 4, "rate": 0.8, "floor": 1},
        ),
        # an end that another kind reads as well stays
        (
            {"kind": "warmup", "start": 0, "end": 1, "warmup": 0.2},
            {"kind": "linear"},
            {"kind": "linear", "start": 0, "end": 1},
        ),
    ],
    ids=str,
)
def test_sampled_fields_lie_over_the_base(base: object, sampled: dict[str, object], merged: dict[str, object]) -> None:
    assert overlay(base, sampled) == merged


@given(any_schedule)
def test_an_overlay_of_nothing_changes_nothing(schedule: Schedule) -> None:
    assert Schedule.model_validate(overlay(schedule.model_dump(exclude_none=True), {})) == schedule


@given(any_schedule, st.sampled_from(sorted(FORMS)))
def test_an_overlay_holds_only_what_its_kind_reads(schedule: Schedule, kind: str) -> None:
    assert overlay(schedule.model_dump(exclude_none=True), {"kind": kind}).keys() <= fields_of(kind)


def test_an_overlay_leaves_its_base_alone() -> None:
    base = {"kind": "linear", "start": 4, "end": 1}
    overlay(base, {"kind": "fixed", "start": 2})
    assert base == {"kind": "linear", "start": 4, "end": 1}


def test_the_examples_in_the_docstring_hold() -> None:
    result = doctest.testmod(schedules)
    assert result.attempted > 0
    assert result.failed == 0
