"""The search space: what is refused, what a sample and a point mean."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtune.errors import ExperimentError
from kdtune.experiment import Experiment, parse, space, with_values
from tests.experiments import MINIMAL, problems_of, raw_with, space_problems

# --- the search space


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("train.epoch", "no field 'train.epoch'. Did you mean 'train.epochs'?"),
        (
            "distil.alpha.start",
            "only fields of train and distill, teacher, student.model and student.options.NAME can be searched. "
            "Did you mean 'distill.alpha.start'?",
        ),
        ("distill.temperature.strat", "Did you mean 'distill.temperature.start'?"),
        ("distill.alpha.start.low", "distill.alpha.start is a plain value and has no fields"),
        ("train", "only fields of train and distill"),
        ("teacher.seed", "only fields of train and distill, teacher, student.model and student.options.NAME"),
        ("search.trials", "only fields of train and distill, teacher, student.model and student.options.NAME"),
        ("train.epochs.", "plain value"),
        ("", "only fields of train and distill"),
    ],
)
def test_a_searched_path_that_does_not_exist_is_refused(path: str, words: str) -> None:
    assert words in space_problems({path: {"uniform": [0.1, 0.2]}})[f"search.space.{path}"]


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        ({"uniform": [0.5, 0.1]}, "finite low below high, given [0.5, 0.1]"),
        ({"uniform": [0.5, 0.5]}, "finite low below high"),
        ({"uniform": [0.5]}, "takes two numbers [low, high]"),
        ({"uniform": 0.5}, "takes two numbers [low, high]"),
        ({"uniform": ["a", "b"]}, "takes two numbers [low, high]"),
        ({"uniform": [True, 2]}, "takes two numbers [low, high]"),
        ({"uniform": [0, math.inf]}, "finite"),
        ({"uniform": [0, 10**400]}, "takes two numbers [low, high]"),
        ({"loguniform": [0, 1]}, "needs a low above 0"),
        ({"integer": [1.5, 3]}, "takes whole numbers"),
        ({"choice": []}, "takes a list of options"),
        ({"choice": "sgd"}, "takes a list of options"),
        ({"choice": [{"choice": [0.1]}]}, "a value or a plain range"),
        ({"choice": [{"uniform": [0.1, 0.2], "when": {"train.optimizer": "sgd"}}]}, "a value or a plain range"),
        ({"unifrom": [0.1, 0.2]}, "unknown distribution 'unifrom'"),
        ({"unifrom": [0.1, 0.2]}, "Did you mean 'uniform'?"),
        ({"uniform": [0, 1], "choice": [1]}, "expected one of {choice: [a, b]}"),
        ({}, "expected one of {choice: [a, b]}"),
        ({"uniform": [0.1, 0.2], "when": 3}, "`when` takes {path: value}"),
        ({"uniform": [0.1, 0.2], "when": {}}, "`when` takes {path: value}"),
    ],
    ids=str,
)
def test_a_distribution_that_cannot_be_read_is_refused(distribution: dict[str, object], words: str) -> None:
    assert words in space_problems({"train.momentum": distribution})["search.space.train.momentum"]


@pytest.mark.parametrize(
    ("space", "given"),
    [
        ({"distill.alpha.start": {"uniform": [0.2, 1.2]}}, "distill.alpha.start=1.2"),
        ({"distill.alpha.start": {"uniform": [-0.2, 0.9]}}, "distill.alpha.start=-0.2"),
        ({"distill.temperature": {"choice": [4, 0]}}, "distill.temperature=0"),
        ({"train.momentum": {"choice": [0.5, {"uniform": [0.6, 1.5]}]}}, "train.momentum=1.5"),
        ({"train.optimizer": {"choice": ["sgd", "adam"]}}, "train.optimizer='adam'"),
        ({"train.batch_size": {"integer": [1, 64]}}, "train.batch_size=1"),
        (
            {
                "distill.alpha.kind": {"choice": ["fixed", "linear"]},
                "distill.alpha.start": {"uniform": [0.2, 0.8]},
                "distill.alpha.end_ratio": {"uniform": [0.1, 2], "when": {"distill.alpha.kind": "linear"}},
            },
            "distill.alpha.start=0.8, distill.alpha.end_ratio=2.0",  # only both high ends together leave 0 to 1
        ),
    ],
    ids=str,
)
def test_a_range_whose_end_does_not_validate_is_refused(space: dict[str, object], given: str) -> None:
    with pytest.raises(ExperimentError) as refusal:
        parse(raw_with({}, space))
    assert any(problem.path == "search.space" and given in problem.message for problem in refusal.value.problems)


def test_a_run_length_in_the_space_must_leave_room_for_the_grace_epochs() -> None:
    values: dict[str, object] = {"search.stopper.grace_epochs": 5}
    assert parse(raw_with(values, {"train.epochs": {"integer": [5, 9]}}))
    problems = problems_of(lambda: parse(raw_with(values, {"train.epochs": {"integer": [4, 9]}})))
    assert "with train.epochs=4" in problems["search.space"]


@pytest.mark.parametrize(
    ("space", "path", "words"),
    [
        ({"distill.alpha.end": {"uniform": [0.1, 0.2]}}, "distill.alpha.end", "no end in kind fixed"),
        (
            {
                "distill.alpha.kind": {"choice": ["fixed", "cosine"]},
                "distill.alpha.end": {"uniform": [0.1, 0.2], "when": {"distill.alpha.kind": "cosine"}},
                "distill.alpha.rate": {"uniform": [0.1, 0.2], "when": {"distill.alpha.kind": "cosine"}},
            },
            "distill.alpha.rate",
            "no rate in kind cosine",
        ),
        (
            {
                "distill.alpha.kind": {"choice": ["fixed", "cosine"]},
                "distill.alpha.end": {"uniform": [0.1, 0.2], "when": {"distill.alpha.kind": "fixed"}},
            },
            "distill.alpha.end",
            "no end in kind fixed",
        ),
    ],
)
def test_a_parameter_that_no_kind_reads_is_refused(space: dict[str, object], path: str, words: str) -> None:
    problem = space_problems(space)[f"search.space.{path}"]
    assert problem == f"has no effect: {words}"


def test_a_condition_on_a_field_that_does_not_exist_is_refused() -> None:
    given = {"uniform": [0.1, 0.2], "when": {"train.optimiser": "sgd"}}
    problems = space_problems({"train.momentum": given})
    assert "Did you mean 'train.optimizer'?" in problems["search.space.train.momentum.when"]


def test_a_condition_that_never_holds_is_refused() -> None:
    given = {"uniform": [0.1, 0.2], "when": {"train.optimizer": "sdg"}}
    problems = space_problems({"train.momentum": given, "train.optimizer": {"choice": ["sgd", "adamw"]}})
    assert any(path.startswith("search.space.train.momentum") for path in problems)


def test_conditions_in_a_circle_are_refused() -> None:
    circle = {
        "train.momentum": {"uniform": [0.1, 0.2], "when": {"train.warmup": 0.1}},
        "train.warmup": {"uniform": [0.1, 0.2], "when": {"train.momentum": 0.1}},
    }
    assert "in a circle" in space_problems(circle)["search.space"]


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"train.momentun": 0.5}, "train.momentun is not in search.space. Did you mean 'train.momentum'?"),
        ({"train.momentum": 0.9}, "train.momentum: 0.9 lies outside its distribution"),
        ({"train.momentum": "high"}, "lies outside its distribution"),
        ({"train.optimizer": "adam"}, "train.optimizer: 'adam' lies outside its distribution"),
        ({"train.batch_size": 20.5}, "train.batch_size: 20.5 lies outside its distribution"),
    ],
    ids=str,
)
def test_a_point_outside_the_space_is_refused(point: dict[str, object], words: str) -> None:
    searched = {
        "train.momentum": {"uniform": [0.1, 0.6]},
        "train.optimizer": {"choice": ["sgd", "adamw"]},
        "train.batch_size": {"integer": [16, 64]},
    }
    problems = space_problems(searched, **{"search.points": [{"train.momentum": 0.5}, point]})
    assert words in problems["search.points.1"]


def test_a_point_takes_numbers_that_yaml_reads_as_text() -> None:
    searched = {"train.learning_rate": {"loguniform": ["1e-5", 1]}}
    assert parse(raw_with({"search.points": [{"train.learning_rate": "1e-3"}]}, searched))


# --- parameters, samples and points

NESTED: dict[str, Any] = {  # every kind of parameter, conditions on a base value, on a choice and on a condition
    "train.optimizer": {"choice": ["sgd", "adamw"]},
    "train.momentum": {"uniform": [0.1, 0.9], "when": {"train.optimizer": "sgd"}},
    "train.nesterov": {"choice": [False, True], "when": {"train.optimizer": "sgd"}},
    "train.batch_size": {"integer": [16, 64]},
    "train.warmup": {"choice": [0, {"uniform": [0.1, 0.2]}, {"uniform": [0.3, 0.4]}]},
    "distill.temperature.kind": {"choice": ["fixed", "linear", "exponential"]},
    "distill.temperature.end": {"loguniform": [1, 9], "when": {"distill.temperature.kind": ["linear", "exponential"]}},
    "distill.feature_weight": {"choice": [0, {"loguniform": [0.01, 10]}], "when": {"train.precision": "auto"}},
}


@pytest.fixture(scope="module")
def nested() -> Experiment:
    return parse(raw_with({}, NESTED))


def test_a_range_inside_a_choice_is_a_parameter_of_its_own() -> None:
    parameters, problems = space.parse({"train.warmup": NESTED["train.warmup"]})
    assert problems == []
    assert [(p.label, p.kind, p.low, p.high, p.option_of, p.option) for p in parameters] == [
        ("train.warmup", "choice", 0, 0, None, -1),
        ("train.warmup@1", "uniform", 0.1, 0.2, "train.warmup", 1),
        ("train.warmup@2", "uniform", 0.3, 0.4, "train.warmup", 2),
    ]


@pytest.mark.parametrize(
    ("sample", "values"),
    [
        (
            {"train.optimizer": 0, "train.warmup": 0, "distill.temperature.kind": 0, "distill.feature_weight": 0},
            {
                "train.optimizer": "sgd",
                "train.momentum": 0.5,
                "train.nesterov": True,
                "train.batch_size": 21,
                "train.warmup": 0,
                "distill.temperature.kind": "fixed",
                "distill.feature_weight": 0,
            },
        ),
        (
            {"train.optimizer": 1, "train.warmup": 2, "distill.temperature.kind": 2, "distill.feature_weight": 1},
            {
                "train.optimizer": "adamw",
                "train.batch_size": 21,
                "train.warmup": 0.35,
                "distill.temperature.kind": "exponential",
                "distill.temperature.end": 3.0,
                "distill.feature_weight": 0.7,
            },
        ),
    ],
)
def test_only_parameters_whose_conditions_hold_are_active(
    nested: Experiment, sample: dict[str, float], values: dict[str, object]
) -> None:
    parameters, _ = space.parse(NESTED)
    rest = {
        "train.momentum": 0.5,
        "train.nesterov": 1,
        "train.batch_size": 20.6,
        "train.warmup@1": 0.15,
        "train.warmup@2": 0.35,
        "distill.temperature.end": 3.0,
        "distill.feature_weight@1": 0.7,
    }
    found = space.active(parameters, {**rest, **sample}, nested)
    assert found == values
    assert {path: type(value) for path, value in found.items()} == {path: type(v) for path, v in values.items()}


def test_a_condition_may_refer_to_a_field_that_is_not_searched() -> None:
    searched: dict[str, dict[str, object]] = {
        "train.momentum": {"uniform": [0.1, 0.2], "when": {"train.optimizer": "sgd"}}
    }
    parameters, _ = space.parse(searched)
    for optimizer, active in (("sgd", {"train.momentum": 0.15}), ("adamw", {})):
        experiment = parse(raw_with({"train.optimizer": optimizer}))
        assert space.active(parameters, {"train.momentum": 0.15}, experiment) == active


@st.composite
def samples(draw: st.DrawFn) -> dict[str, float]:
    """What a sampler may propose for NESTED: a value of every label."""
    sample: dict[str, float] = {}
    for p in space.parse(NESTED)[0]:
        if p.kind == "choice":
            sample[p.label] = draw(st.integers(0, len(p.options) - 1))
        elif p.kind == "integer":
            sample[p.label] = draw(st.integers(int(p.low), int(p.high)))
        else:
            sample[p.label] = draw(st.floats(p.low, p.high))
    return sample


@given(samples())
def test_a_point_made_from_a_samples_values_has_the_same_values(sample: dict[str, float]) -> None:
    parameters, _ = space.parse(NESTED)
    base = parse(MINIMAL)
    values = space.active(parameters, sample, base)
    point = space.full_point(parameters, values, base)
    assert point.keys() == sample.keys()  # HyperOpt wants full points
    assert space.active(parameters, point, base) == values
    for parameter in parameters:
        within = (
            point[parameter.label] in range(len(parameter.options))
            if parameter.kind == "choice"
            else parameter.low <= point[parameter.label] <= parameter.high
        )
        assert within


@settings(max_examples=50)
@given(samples())
def test_any_sample_gives_a_valid_experiment_with_its_values_in_place(sample: dict[str, float]) -> None:
    base = parse(raw_with({}, NESTED))
    values = space.active(space.parse(NESTED)[0], sample, base)
    trial = with_values(base, values)
    for path, value in values.items():
        here = space.look_up(trial, path)
        assert (here.start if isinstance(value, int | float) and hasattr(here, "start") else here) == value
    assert trial.model_copy(update={"train": base.train, "distill": base.distill}) == base


def test_a_point_takes_what_it_does_not_name_from_the_experiment() -> None:
    searched: dict[str, dict[str, object]] = {
        "train.momentum": {"uniform": [0.1, 0.6]},
        "train.optimizer": {"choice": ["sgd", "adamw"]},
    }
    parameters, _ = space.parse(searched)
    base = parse(raw_with({"train.momentum": 0.3, "train.optimizer": "adamw"}))
    assert space.full_point(parameters, {}, base) == {"train.momentum": 0.3, "train.optimizer": 1}
    assert space.full_point(parameters, {"train.optimizer": "sgd"}, base)["train.optimizer"] == 0


def test_true_is_not_the_option_1() -> None:
    (parameter,), _ = space.parse({"train.nesterov": {"choice": [1, True]}})
    assert (parameter.encode(1), parameter.encode(True), parameter.encode(0)) == (0, 1, None)


def test_sampled_fields_of_a_schedule_lie_over_a_sampled_number() -> None:
    experiment = with_values(
        parse(MINIMAL), {"distill.alpha.end": 0.1, "distill.alpha.kind": "linear", "distill.alpha": 0.5}
    )
    alpha = experiment.distill.alpha
    assert (alpha.kind, alpha.start, alpha.end) == ("linear", 0.5, 0.1)


def test_a_sampled_value_that_does_not_fit_is_refused() -> None:
    assert problems_of(lambda: with_values(parse(MINIMAL), {"distill.alpha.start": 2})).keys() == {"distill.alpha"}


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_a_range_of_whole_numbers_is_refused_where_it_would_give_fractions(kind: str) -> None:
    problems = space_problems({"train.epochs": {kind: [10, 20]}, "train.batch_size": {"choice": [8, {kind: [16, 64]}]}})
    assert problems == {
        "search.space.train.epochs": "takes whole numbers: {integer: [10, 20]}",
        "search.space.train.batch_size": "takes whole numbers: {integer: [16, 64]}",
    }
