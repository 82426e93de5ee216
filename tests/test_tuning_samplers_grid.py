"""The grid: which combinations, in which order, and what is refused."""

import itertools

import pytest

from kdtune.experiment import parse
from kdtune.experiment.sampling import grid, values_of
from kdtune.experiment.space import active
from kdtune.experiment.space import parse as parse_space
from kdtune.tuning.making import make_study
from kdtune.tuning.samplers import Grid
from tests.experiments import problems_of, raw_with

SPACE: dict[str, dict[str, object]] = {
    "distill.temperature.end_ratio": {"loguniform": [0.125, 4], "when": {"distill.temperature.kind": "exponential"}},
    "distill.temperature.kind": {"choice": ["fixed", "exponential"]},
    "distill.feature_weight": {"choice": [0, {"loguniform": [0.01, 10]}]},
    "train.epochs": {"integer": [5, 6]},
}
FIXED: list[dict[str, object]] = [{"distill.temperature.kind": "fixed"}]
FALLING: list[dict[str, object]] = [
    {"distill.temperature.kind": "exponential", "distill.temperature.end_ratio": end} for end in (0.125, 0.5**0.5, 4)
]
WEIGHTS: list[dict[str, object]] = [{"distill.feature_weight": weight} for weight in (0, 0.01, 0.1**0.5, 10)]
EPOCHS: list[dict[str, object]] = [{"train.epochs": epochs} for epochs in (5, 6)]
EXPECTED = [one | two | three for one, two, three in itertools.product(FIXED + FALLING, WEIGHTS, EPOCHS)]
GRID = {"search.sampler": "grid", "train.epochs": 6, "search.stopper.grace_epochs": 1}


def sorted_configs(configs: list[dict[str, object]]) -> list[list[tuple[str, str]]]:
    return sorted(sorted((path, _text(value)) for path, value in config.items()) for config in configs)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float | int) else str(value)


def proposed(seed: int = 0) -> list[dict[str, object]]:
    study = make_study(parse(raw_with(GRID | {"search.trials": 40, "search.seed": seed}, SPACE)))
    found = []
    while (seen := study.ask()) is not None:
        found.append(dict(seen.config))
    assert study.exhausted == (len(found) < 40)
    return found


def test_a_search_tries_every_combination_once_and_an_inactive_label_multiplies_nothing() -> None:
    assert len(EXPECTED) == 32
    assert sorted_configs(proposed()) == sorted_configs(EXPECTED)


def test_the_order_is_the_seeds() -> None:
    assert proposed(0) == proposed(0)
    assert proposed(0) != proposed(1)
    assert sorted_configs(proposed(0)) == sorted_configs(proposed(1))


def test_after_the_last_there_is_nothing_to_propose() -> None:
    sampler = Grid([{"a": 1.0}, {"a": 2.0}], seed=0)
    assert {(sampler.propose(number, []) or {})["a"] for number in range(2)} == {1.0, 2.0}
    assert sampler.propose(2, []) is None


@pytest.mark.parametrize(
    ("distribution", "points", "values"),
    [
        ({"uniform": [0, 1]}, 5, [0, 0.25, 0.5, 0.75, 1]),
        ({"loguniform": [1, 16]}, 5, [1, 2, 4, 8, 16]),
        ({"loguniform": [0.1, 0.3]}, 2, [0.1, 0.3]),
        ({"integer": [1, 3]}, 7, [1, 2, 3]),
        ({"integer": [1, 9]}, 3, [1, 5, 9]),
        ({"choice": ["a", "b", "c"]}, 2, [0, 1, 2]),
    ],
)
def test_values_are_evenly_spaced_in_the_distributions_own_scale(
    distribution: dict[str, object], points: int, values: list[float]
) -> None:
    (parameter,), _ = parse_space({"a": distribution})
    found = values_of(parameter, points)
    assert found == pytest.approx(values)
    assert found[0] == values[0]
    assert found[-1] == values[-1]


def test_a_range_in_a_choice_whose_middle_is_another_option_keeps_its_values() -> None:
    parameters, _ = parse_space({"a": {"choice": [1, {"loguniform": [0.1, 10]}]}})
    values = [active(parameters, sample, None)["a"] for sample in grid(parameters, 3, None)]
    assert values == pytest.approx([1, 0.1, 1, 10])


def test_a_grid_larger_than_the_search_is_refused_with_its_size() -> None:
    message = problems_of(lambda: parse(raw_with(GRID | {"search.trials": 31}, SPACE)))["search.trials"]
    assert message.startswith("is 31, but the grid has 32 combinations with 3 values of each range")
    huge = {f"train.{name}": {"uniform": [1e-5, 1e-3]} for name in ("learning_rate", "weight_decay")}
    message = problems_of(lambda: parse(raw_with(GRID | {"search.grid_points": 400}, huge)))["search.trials"]
    assert "100,000 combinations or more" in message


def test_settings_of_a_grid_belong_to_a_grid() -> None:
    found = problems_of(lambda: parse(raw_with({"search.grid_points": 4}, SPACE)))
    assert found["search.grid_points"] == "needs search.sampler grid, given hyperopt+gp"
    points = {"search.trials": 40, "search.points": [{"train.epochs": 5}]}
    assert "a grid has its own points" in problems_of(lambda: parse(raw_with(GRID | points, SPACE)))["search.points"]
