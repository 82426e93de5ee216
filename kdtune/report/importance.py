"""How much each hyperparameter matters to the accuracy, as far as the trials of a search can tell.

    found = importance(run)
    found.paths            # one row a path: mean, low, high
    found.explained        # R^2 on trials that the forest has not seen

A random forest learns the accuracy of trials from their values; importance is by how much its R^2 on *held-out* trials
drops when the values of one path are shuffled among them (permutation importance, Breiman 2001; Fisher, Rudin &
Dominici 2019). Five-fold cross-validation, repeated; residuals of all folds are weighed against the variance of all
trials, since that of one fold may be none. The interval is that of the drops over folds and shuffles. Of a trial that
was stopped early the accuracy is the one that its curve foretells. A forest that explains nothing has no importances
to tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdtune.report.run import Run

FEWEST = 20  # trials from which on a forest is asked
MOST = 1000  # trials that it learns from
FOLDS, ROUNDS, SHUFFLES, TREES = 5, 2, 5, 60
LEAST_EXPLAINED = 0.1  # R^2 below which importances say nothing


@dataclass(frozen=True)
class Importance:
    """`paths`: path, mean, low, high (2.5th and 97.5th percentile), the most important first; empty where `why` says
    that nothing can be told."""

    paths: pd.DataFrame
    explained: float | None
    trials: int
    why: str | None = None


def importance(run: Run) -> Importance:
    """Permutation importances on held-out trials, or why there are none."""
    sound = (run.trials["status"] != "diverged").to_numpy() & (run.foretold["value"].to_numpy() > 0)
    rows = np.flatnonzero(sound)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)] if len(rows) else rows
    trials, accuracy = run.trials.iloc[rows], run.foretold["value"].to_numpy()[rows]
    features = {path: codes(*run.tried(path, trials["trial"])) for path in run.paths}
    features = {path: code for path, code in features.items() if len(np.unique(code[~np.isnan(code)])) > 1}
    none = pd.DataFrame({"path": [], "mean": [], "low": [], "high": []})
    if len(rows) < FEWEST:
        why = f"{len(rows)} trials are too few to tell hyperparameters apart: it takes {FEWEST} that did not diverge"
        return Importance(none, None, len(rows), why)
    if len(features) < 2 or np.ptp(accuracy) == 0:
        return Importance(
            none, None, len(rows), "trials differ in less than two hyperparameters, or all came to the same"
        )
    drops, explained = _drops(np.column_stack(list(features.values())), accuracy)
    if explained < LEAST_EXPLAINED:
        why = (
            f"values explain nothing of the accuracy of trials that the forest has not seen (R² {explained:.2f} over "
            f"{len(rows)} trials): what matters cannot be told apart from chance"
        )
        return Importance(none, explained, len(rows), why)
    low, high = np.quantile(drops, [0.025, 0.975], axis=0)
    frame = pd.DataFrame({"path": list(features), "mean": drops.mean(axis=0), "low": low, "high": high})
    return Importance(frame.sort_values("mean", ascending=False, ignore_index=True), explained, len(rows))


def codes(values: Sequence[Any], unused: Sequence[bool]) -> Any:  # a numpy array
    """Numbers as they are, null below them; options by their place in the alphabet; NaN where the path is inactive."""
    from kdtune.report.figures.style import number_of

    gone = np.array(unused, dtype=bool)
    null = np.array([value is None for value in values], dtype=bool) & ~gone
    numbers = np.array([number_of(value) for value in values], dtype=float)
    known = numbers[~(gone | null)]
    if np.isfinite(known).all():
        return np.where(null, known.min(initial=0.0) - 1, numbers)
    found = np.full(len(values), np.nan)
    words = ["" if value is None else str(value) for value in values]
    found[~gone] = np.unique(np.array(words)[~gone], return_inverse=True)[1]
    return found


def _drops(features: Any, accuracy: Any) -> tuple[Any, float]:  # numpy arrays
    """By how much R^2 drops, [shuffles over all folds, paths], and R^2 over all folds."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import RepeatedKFold

    variance, errors, drops = accuracy.var(), [], []
    folds = RepeatedKFold(n_splits=FOLDS, n_repeats=ROUNDS, random_state=0).split(features)
    for number, (fit, held) in enumerate(folds):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=number).fit(features[fit], accuracy[fit])
        error, rises = shuffled(forest, features[held], accuracy[held], SHUFFLES, np.random.default_rng(number))
        errors.append(error * len(held))
        drops.append(rises / variance)
    return np.concatenate(drops), float(1 - np.sum(errors) / (ROUNDS * len(accuracy) * variance))


def shuffled(model: Any, features: Any, values: Any, shuffles: int, source: np.random.Generator) -> tuple[float, Any]:
    """Mean squared error of a fitted model on features [N, P] and values [N], and by how much it rises, [shuffles, P],
    when a column is shuffled. As `sklearn.inspection.permutation_importance`, but with one call of the model, which is
    most of it.
    """
    rows, paths = features.shape
    tables = np.repeat(features[np.newaxis], 1 + shuffles * paths, axis=0)
    for place in range(shuffles * paths):
        column = tables[1 + place, :, place % paths]
        column[:] = source.permutation(column)
    answers = model.predict(tables.reshape(-1, paths)).reshape(-1, rows)
    errors = ((answers - values) ** 2).mean(axis=1)
    return float(errors[0]), errors[1:].reshape(shuffles, paths) - errors[0]
