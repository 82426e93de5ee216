"""The Gaussian process against scikit-learn's and by its properties, and spaces as numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from kdtune.experiment.space import active, encoded, parse
from kdtune.tuning.cube import Cube
from kdtune.tuning.gaussian import GaussianProcess, Process
from kdtune.tuning.study import Seen

PARAMETERS, _ = parse(
    {
        "kind": {"choice": ["fixed", "falling"]},
        "end": {"loguniform": [0.1, 10], "when": {"kind": "falling"}},
        "weight": {"choice": [0, {"uniform": [2, 4]}]},
        "layers": {"integer": [1, 5]},
    }
)
LABELS = ["kind", "end", "weight", "weight@1", "layers"]
FULL = {"kind": 1, "end": 1.0, "weight": 1, "weight@1": 2.5, "layers": 2}
NAN = math.nan


def process_of(count: int = 12, lengths: tuple[float, float] = (0.7, 0.7)) -> Process:
    """Observations that depend on the first of two features alone."""
    features = np.random.default_rng(0).random((count, 2))
    values = np.sin(6 * features[:, 0])
    return Process(features, values - values.mean(), np.full(count, 0.01), np.array(lengths), level=0.05)


class TestProcess:
    def test_mean_deviation_and_likelihood_are_scikit_learns(self) -> None:
        process = process_of(lengths=(0.4, 1.3))
        reference = GaussianProcessRegressor(
            Matern(length_scale=[0.4, 1.3], nu=2.5), alpha=0.01 + 0.05**2, optimizer=None
        ).fit(process.features, process.values)
        places = np.random.default_rng(1).random((7, 2))
        mean, deviation = process.mean_and_deviation(places)
        expected_mean, expected_deviation = reference.predict(places, return_std=True)
        assert mean == pytest.approx(expected_mean)
        assert deviation == pytest.approx(expected_deviation)
        constant = -len(process.values) / 2 * math.log(2 * math.pi)
        assert process.likelihood + constant == pytest.approx(reference.log_marginal_likelihood_value_)

    def test_fitting_finds_which_feature_matters(self) -> None:
        fitted = process_of(30).fitted()
        assert fitted.lengths[1] > 2 * fitted.lengths[0]
        assert fitted.likelihood > process_of(30).likelihood

    def test_what_runs_already_is_less_uncertain_and_its_mean_stays(self) -> None:
        process, place = process_of(), np.array([[0.5, 0.9]])
        mean, deviation = process.mean_and_deviation(place)
        believed_mean, believed_deviation = process.believing(place).mean_and_deviation(place)
        assert believed_deviation < 0.5 * deviation
        assert believed_mean == pytest.approx(mean, abs=0.02)

    def test_an_uncertain_observation_counts_for_less(self) -> None:
        process = process_of()
        place = process.features[:1]
        doubtful = replace(process, noise=np.array([1.0, *process.noise[1:]]))
        off, surely = (abs(p.mean_and_deviation(place)[0] - process.values[0]) for p in (doubtful, process))
        assert off > surely


class TestCube:
    def test_a_place_is_a_share_of_each_range_in_its_own_scale_and_the_index_of_an_option(self) -> None:
        cube = Cube(PARAMETERS, None)
        assert [parameter.label for parameter in PARAMETERS] == LABELS
        assert cube.places([FULL])[0].tolist() == pytest.approx([1, 0.5, 1, 0.25, 0.25])
        assert cube.sample(cube.places([FULL])[0]) == pytest.approx(FULL)

    def test_a_place_holds_nothing_where_a_label_is_inactive(self) -> None:
        assert Cube(PARAMETERS, None).places([{"kind": 0, "weight": 0, "layers": 5}])[0] == pytest.approx(
            [0, NAN, 0, NAN, 1], nan_ok=True
        )

    def test_features_put_any_two_options_as_far_apart_as_the_ends_of_a_range(self) -> None:
        cube = Cube(PARAMETERS, None)
        ends = cube.features(np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=float))
        assert ends.shape == (3, 7)
        assert np.linalg.norm(ends[1:] - ends[0], axis=1) == pytest.approx([1, 1])

    def test_random_places_settle_to_what_a_trial_of_their_sample_would_hold(self) -> None:
        """The reference goes the long way, through configurations."""
        cube = Cube(PARAMETERS, None)
        places = cube.settled(cube.random_places(200, np.random.default_rng(0)))
        through = [encoded(PARAMETERS, active(PARAMETERS, cube.sample(place), None)) for place in places]
        assert cube.places(through) == pytest.approx(places, nan_ok=True)
        assert {int(layers) for layers in np.round(1 + 4 * places[:, 4])} == {1, 2, 3, 4, 5}
        assert np.isnan(places[:, 1]).any()


def test_a_proposal_beside_a_trial_that_runs_is_another() -> None:
    parameters, _ = parse({"a": {"uniform": [0, 1]}})
    sampler = GaussianProcess(parameters, 0, trials=3, epochs=1)
    trials = [Seen(n, {}, {"a": n / 8}, [0.9 - abs(n / 8 - 0.6)], "complete") for n in range(9)]
    first = sampler.propose(9, trials)["a"]
    running = [Seen(9 + n, {}, {"a": first}, [], "running") for n in range(2)]
    assert abs(sampler.propose(11, [*trials, *running])["a"] - first) > 0.005


def test_trials_that_are_all_alike_are_no_reason_to_fail() -> None:
    sampler = GaussianProcess(PARAMETERS, 0, trials=3, epochs=1)
    config = active(PARAMETERS, FULL, None)
    trials = [Seen(n, config, FULL, [0.1], "complete") for n in range(12)]
    assert sampler.propose(12, trials).keys() == FULL.keys()
