"""The student's architecture in the search space, and a second objective that it decides."""

from typing import Any

import pytest
import torch

from kdtune.data import Dataset
from kdtune.errors import ModelError
from kdtune.experiment import parse, space, with_values
from kdtune.models import build_model, cost_of, count_parameters
from kdtune.trial import check_networks
from tests.conftest import CPU, MakeExperiment
from tests.experiments import raw_with, space_problems

MODELS = {"student.model": {"choice": ["cnn-8", "cnn-8-16", "mlp-800-800"]}}
DROPOUT = {"student.options.dropout": {"uniform": [0.1, 0.5], "when": {"student.model": "mlp-800-800"}}}


def test_a_searched_architecture_takes_the_students_place_with_its_options() -> None:
    base = parse(raw_with({}, {**MODELS, **DROPOUT}))
    parameters, _ = space.parse(base.search.space)
    assert space.active(parameters, {"student.model": 1, "student.options.dropout": 0.3}, base) == {
        "student.model": "cnn-8-16"
    }
    values = space.active(parameters, {"student.model": 2, "student.options.dropout": 0.3}, base)
    student = with_values(base, values).student
    assert (student.model, student.options) == ("mlp-800-800", {"dropout": 0.3})
    assert base.student.options == {}


def test_a_point_takes_the_architecture_from_the_experiment_and_needs_no_option() -> None:
    base = parse(raw_with({"student.model": "cnn-8-16"}, {**MODELS, **DROPOUT}))
    parameters, _ = space.parse(base.search.space)
    point = space.full_point(parameters, {}, base)
    assert space.active(parameters, point, base) == {"student.model": "cnn-8-16"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("student.taps", "only fields of train and distill, teacher, student.model and student.options.NAME"),
        ("student.modle", "Did you mean 'student.model'?"),
        ("student", "only fields of train and distill"),
        ("student.options", "only fields of train and distill"),
        ("student.options.", "only fields of train and distill"),
        ("student.model.depth", "only fields of train and distill"),
    ],
)
def test_what_is_no_part_of_the_architecture_is_refused(path: str, words: str) -> None:
    assert words in space_problems({path: {"choice": ["cnn-8"]}})[f"search.space.{path}"]


def test_an_unknown_architecture_is_refused_with_the_nearest_name() -> None:
    problems = space_problems({"student.model": {"choice": ["cnn-8", "rsenet20"]}})
    assert "Did you mean 'resnet20'?" in problems["search.space"]


def test_every_architecture_is_checked_before_anything_starts(make_experiment: MakeExperiment, digits: Dataset) -> None:
    """Also the last of many, where all combinations with what else features depend on are too many to try."""
    names = [*(["cnn-8", "cnn-16"] * 40), "plain-cnn-10"]  # which pools 8x8 pixels away
    searched: dict[str, Any] = {
        "student.model": {"choice": names},
        "distill.feature_weight": {"choice": [0, {"uniform": [0.1, 1]}]},
        "distill.feature_loss": {"choice": ["hint", "attention", "rkd"]},
    }
    assert len(names) * 4 * 3 > space.MOST_CORNERS
    with pytest.raises(ModelError, match="plain-cnn-10"):
        check_networks(make_experiment({"search.space": searched}), digits)
    searched["student.model"]["choice"].pop()
    check_networks(make_experiment({"search.space": searched}), digits)


def test_the_architecture_of_an_assistant_cannot_be_searched() -> None:
    assistant = {"model": "cnn-8", "taught_by": "large", "search": {"trials": 2, "space": MODELS}}
    teachers = {"large": {"model": "cnn-8-16"}, "small": assistant}
    problems = space_problems(MODELS, teachers=teachers, teacher="small")
    path = "teachers.small.search.space.student.model"
    assert problems == {path: "the architecture of a teacher is what its section says"}


def test_a_second_objective_that_nothing_changes_is_refused() -> None:
    searched = {"distill.alpha": {"uniform": [0.2, 0.9]}}
    values: dict[str, Any] = {"search.second_objective": "parameters"}
    message = space_problems(searched, **values)["search.second_objective"]
    assert message.startswith("is parameters, which is the same for every trial: nothing in search.space changes the")
    assert "student.model: {choice: [...]}" in message
    assert parse(raw_with(values, {**searched, **MODELS})).search.second_objective == "parameters"


def test_an_unknown_second_objective_is_refused() -> None:
    problems = space_problems(MODELS, **{"search.second_objective": "flops"})
    assert "expected one of parameters, latency" in problems["search.second_objective"]


# --- what a trial's student costs


@pytest.mark.parametrize("model", ["cnn-8", "mlp-800-800", "timm:resnet10t"])
def test_the_cost_in_parameters_is_their_count(make_experiment: MakeExperiment, model: str) -> None:
    experiment = make_experiment(
        {"student.model": model, "search.space": MODELS, "search.second_objective": "parameters"}
    )
    built = build_model(model, (1, 8, 8), 10)
    assert cost_of(experiment, (1, 8, 8), 10, CPU) == count_parameters(built)


def test_the_cost_in_latency_is_measured_and_leaves_the_random_state_alone(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({"search.space": MODELS, "search.second_objective": "latency"})
    before = torch.get_rng_state()
    cost = cost_of(experiment, (1, 8, 8), 10, CPU)
    assert cost is not None
    assert 0 < cost < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_there_is_no_cost_without_a_second_objective(make_experiment: MakeExperiment) -> None:
    assert cost_of(make_experiment(), (1, 8, 8), 10, CPU) is None
