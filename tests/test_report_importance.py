"""Importance: what matters is found, what does not is not, and what cannot be told is said."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from kdtune.report import importance as room
from kdtune.report.importance import codes, importance, shuffled
from kdtune.report.run import load_run
from tests.example_run import write_run
from tests.pages import long_run


def test_what_accuracy_depends_on_is_found_and_the_rest_lies_around_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TREES", 20)
    found = importance(load_run(long_run(tmp_path, trials=60)))
    assert found.why is None
    assert found.explained is not None
    assert found.explained > 0.8
    first, *others = found.paths.itertuples()
    assert first.path == "distill.temperature.start"
    assert first.low > 0.5
    for other in others:
        assert abs(other.mean) < 0.1, other.path
    assert "distill.temperature.kind" not in set(found.paths["path"])  # the same in all trials


def test_shuffling_is_scikit_learn_s() -> None:
    source = np.random.default_rng(0)
    features = source.random((200, 3))
    values = 3 * features[:, 0] + features[:, 1]
    model = LinearRegression().fit(features[:150], values[:150])
    held = features[150:], values[150:]
    error, rises = shuffled(model, *held, 400, source)
    drops = rises / held[1].var()
    reference = permutation_importance(model, *held, n_repeats=400, random_state=0)
    assert 1 - error / held[1].var() == pytest.approx(model.score(*held))
    np.testing.assert_allclose(drops.mean(axis=0), reference.importances_mean, atol=0.08)
    np.testing.assert_allclose(drops.std(axis=0), reference.importances_std, atol=0.05)


def test_options_that_are_inactive_in_some_trials_have_no_number_there() -> None:
    unused = [False, True, False, False]
    np.testing.assert_array_equal(codes(["hint", None, "attention", "hint"], unused), [1, np.nan, 0, 1])
    np.testing.assert_array_equal(codes([0.5, None, 2.0, "one"], unused), [0, np.nan, 1, 2])


def test_null_is_a_value_like_others() -> None:
    unused = [False, False, True]
    np.testing.assert_array_equal(codes(["hint", None, None], unused), [1, 0, np.nan])
    np.testing.assert_array_equal(codes([0.5, None, None], unused), [0.5, -1, np.nan])


def test_few_trials_are_said_to_be_too_few(tmp_path: Path) -> None:
    found = importance(load_run(write_run(tmp_path)))
    assert found.paths.empty
    assert found.why == "7 trials are too few to tell hyperparameters apart: it takes 20 that did not diverge"


def test_what_is_explained_is_of_all_folds_together_also_where_one_has_equal_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R^2 of a fold whose accuracies are all the same is minus infinity, or none."""
    monkeypatch.setattr(room, "TREES", 20)
    run = load_run(long_run(tmp_path, trials=25))
    run.foretold["value"] = np.where(np.arange(25) < 2, 0.5, 0.9)  # at most two folds of five have any variance
    found = importance(run)
    assert found.explained is not None
    assert -2 < found.explained <= 1
    assert found.why is not None
    assert "nan" not in found.why


def test_chance_is_said_to_be_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TREES", 20)
    run = load_run(long_run(tmp_path, trials=40))
    run.foretold["value"] = np.random.default_rng(1).random(40)
    found = importance(run)
    assert found.why is not None
    assert found.why.startswith("values explain nothing of the accuracy of trials that the forest has not seen")
    assert found.paths.empty
