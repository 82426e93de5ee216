"""The benchmark on a table of trained students: what counts as good, how workers are simulated, when it is found."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kdtune.tuning.making import make_study
from tests.benchmarks.search_surface import WORKERS, experiment_on, good_ones, interval, search, simulated
from tests.benchmarks.surface_table import EXPERIMENT, GRID, TABLE, Surface, configurations, read_surface

PATH = "distill.temperature.start"
NOTHING_STOPS: dict[str, Any] = {"sampler": "random", "stopper": {"kind": "none"}}


def surface_of(*ends: tuple[float, ...], epochs: int = 3) -> Surface:
    """A grid over the temperature alone: of each value the accuracies of its seeds at the end, reached in a line."""
    experiment = {**EXPERIMENT, "train": {**EXPERIMENT["train"], "epochs": epochs}}
    accuracy = [[[end * epoch / epochs for epoch in range(1, epochs + 1)] for end in seeds] for seeds in ends]
    return Surface(experiment, {PATH: [2.0**k for k in range(len(ends))]}, accuracy)


def test_good_is_within_a_standard_deviation_of_the_best() -> None:
    # means 0.80, 0.78, 0.70. The second seed gives all 0.1 more, and besides 0.02 more or less
    surface = surface_of((0.76, 0.84), (0.72, 0.84), (0.65, 0.75))
    # runs lie 0.01, 0.01 and 0 from what that leaves: variances 2e-4, 2e-4 and 0, the root of their mean 0.0115
    assert good_ones(surface) == {0}
    assert good_ones(surface_of((0.76, 0.84), (0.73, 0.85), (0.65, 0.75))) == {0, 1}  # means 0.01 apart


def test_workers_run_side_by_side_and_each_epoch_of_each_trial_is_told_once() -> None:
    surface = surface_of((0.3,), (0.6,))
    study = make_study(experiment_on(surface, {**NOTHING_STOPS, "trials": 3}))
    told = []
    for seen in simulated(study, lambda one: surface.accuracy[surface.index(one.config)][0], workers=2):
        told.append((seen.number, seen.epoch))
        assert seen.values == surface.accuracy[surface.index(seen.config)][0][: seen.epoch]
    assert told == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert study.over


def test_found_is_what_the_search_would_return_and_not_what_it_has_merely_tried() -> None:
    """By the seed that the search sees the second value is better, by the others the first."""
    surface = surface_of((0.5, 0.9, 0.9), (0.6, 0.1, 0.1))
    good = good_ones(surface)
    assert good == {0}
    settings = {**NOTHING_STOPS, "trials": 12}
    outcomes = [search(surface, {**settings, "seed": seed}, 0, good) for seed in range(20)]
    assert not any(one.good_in_the_end for one in outcomes)  # 12 trials of two values: both were tried
    early = [one.epochs_to_good for one in outcomes if one.epochs_to_good is not None]
    assert early  # where the first trial happened to have it
    assert set(early) == {WORKERS * 2 + 1}  # the first of the trials side by side to end its third epoch
    assert all(one.epochs == 12 * 3 for one in outcomes)


def test_an_interval_holds_the_median_of_its_values() -> None:
    assert interval([1.0] * 9, max) == (1.0, 1.0)
    low, high = interval([float(k) for k in range(100)], lambda values: sorted(values)[50])
    assert 30 < low < 50 < high < 70


@pytest.mark.skipif(not TABLE.exists(), reason="the table has not been made: python -m tests.benchmarks.surface_table")
def test_the_table_is_of_this_grid_and_experiment() -> None:
    surface = read_surface()
    assert surface.grid == GRID
    assert surface.experiment == EXPERIMENT
    assert len(surface.accuracy) == len(configurations(GRID)) == 100
    assert all(len(seeds) == surface.seeds >= 3 for seeds in surface.accuracy)
    assert all(len(epochs) == EXPERIMENT["train"]["epochs"] for seeds in surface.accuracy for epochs in seeds)
    assert TABLE.stat().st_size < 200_000


def test_a_table_is_read_as_fractions_of_its_images(tmp_path: Path) -> None:
    table = {"experiment": {}, "grid": {PATH: [1, 2]}, "images": 8, "right": [[[2, 4]], [[0, 8]]]}
    path = tmp_path / "table.json.gz"
    path.write_bytes(gzip.compress(json.dumps(table).encode()))
    assert read_surface(path).accuracy == [[[0.25, 0.5]], [[0.0, 1.0]]]
