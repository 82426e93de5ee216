"""What figures are made of: the run's own numbers, in their places."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdtune.report.figures import confusion, style
from kdtune.report.figures.calibration import reliability
from kdtune.report.figures.compare import best_so_far
from kdtune.report.figures.curves import learning_curves
from kdtune.report.figures.fidelity import rank_correlation
from kdtune.report.figures.parallel import NULL, UNSET, axis_of, parallel_coordinates
from kdtune.report.figures.pareto import pareto
from kdtune.report.figures.results import accuracies
from kdtune.report.figures.schedules import schedule, values_of
from kdtune.report.figures.style import DARK, number_of, row_style, thinned
from kdtune.report.figures.temperature import accuracy_by_temperature, temperature_alpha_map
from kdtune.report.figures.terms import shares_of
from kdtune.report.figures.time import time_spent
from kdtune.report.run import Run, load_run
from tests.example_run import EPOCHS, write_run
from tests.pages import long_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(write_run(tmp_path_factory.mktemp("runs")))


def test_a_learning_curve_is_the_trial_s_accuracies_with_gaps_between_trials(run: Run) -> None:
    traces = {trace.name: trace for trace in learning_curves(run).data if trace.mode == "lines"}
    assert set(traces) == {"stopped early (2)", "ran in full (5)", "diverged (1)", "best (trial 0001)"}
    stopped = traces["stopped early (2)"]
    told = [run.epochs[run.epochs["trial"] == trial]["val_accuracy"].to_numpy() for trial in ("0003", "0005")]
    np.testing.assert_array_equal(stopped.y, np.concatenate([told[0], [np.nan], told[1]]))
    np.testing.assert_array_equal(stopped.x, [1, 2, np.nan, 1, 2, 3, 4])


def test_stops_are_marked_where_they_were_and_rungs_drawn(run: Run) -> None:
    drawn = learning_curves(run)
    (marks,) = [trace for trace in drawn.data if trace.mode == "markers" and trace.name == "stopped early"]
    assert list(zip(marks.customdata, marks.x, strict=True)) == [("0003", 2), ("0005", 4)]
    assert [shape.x0 for shape in drawn.layout.shapes] == [2, 4]


def test_the_end_of_a_trial_that_diverged_lies_at_its_last_number(run: Run) -> None:
    (marks,) = [trace for trace in learning_curves(run).data if trace.mode == "markers" and trace.name == "diverged"]
    told = run.epochs[run.epochs["trial"] == "0006"]["val_accuracy"]
    assert list(marks.y) == [told.iloc[-2]]


def test_accuracy_against_temperature_has_each_sound_trial_once(run: Run) -> None:
    traces = {trace.name: trace for trace in accuracy_by_temperature(run).data}
    trials = run.trials.set_index("trial")
    for name, expected in (("ran in full", ["0000", "0002", "0004", "0007"]), ("best", ["0001"])):
        assert [about[0] for about in traces[name].customdata] == expected
        np.testing.assert_allclose(traces[name].x, trials.loc[expected, "distill.temperature.start"].astype(float))
        np.testing.assert_allclose(traces[name].y, trials.loc[expected, "val_accuracy"])
    assert [about[0] for about in traces["foretold"].customdata] == ["0003", "0005"]


def test_the_map_has_temperature_alpha_and_accuracy(run: Run) -> None:
    points = {
        about[0]: (x, y, colour)
        for trace in temperature_alpha_map(run).data
        if trace.customdata is not None and trace.name != "best"
        for about, x, y, colour in zip(trace.customdata, trace.x, trace.y, trace.marker.color, strict=True)
    }
    assert points["0001"] == pytest.approx((4.0, 0.9, 0.954))
    assert points["0002"] == pytest.approx((1.0, 0.5, 0.908))
    assert "0006" not in points


def test_what_is_foretold_of_a_good_beginning_stays_an_accuracy(tmp_path: Path) -> None:
    """Others gained 35 points after the second epoch; a trial that has 90% by then cannot."""
    folder = write_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        if line["trial"] == "0003":  # stopped after two epochs
            line["val_accuracy"] = 0.9
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(folder)
    told = {
        about[0]: colour
        for trace in temperature_alpha_map(run).data
        if trace.customdata is not None and trace.name != "best"
        for about, colour in zip(trace.customdata, trace.marker.color, strict=True)
    }
    assert 0.95 < told["0003"] < 0.995
    assert told["0005"] < 0.95
    spread = run.foretold["spread"][run.trials["trial"] == "0003"].item()
    assert 0 < spread < 1 - told["0003"]


@pytest.mark.parametrize(
    ("costs", "kind", "ticks"),
    [
        ([400, 3000], "log", ["200", "500", "1 k", "2 k", "5 k"]),
        ([300, 9e6], "log", ["1 k", "10 k", "100 k", "1 M", "10 M"]),
        ([100, 101], None, None),
    ],
)
def test_a_wide_range_of_costs_has_ticks_in_whole_numbers(
    tmp_path: Path, costs: list[float], kind: str | None, ticks: list[str] | None
) -> None:
    run = load_run(long_run(tmp_path, trials=2))
    axis = pareto(replace(run, trials=run.trials.assign(cost=costs))).layout.xaxis
    assert axis.type == kind
    assert (None if axis.ticktext is None else list(axis.ticktext)) == ticks


def test_parallel_coordinates_have_an_axis_a_path_and_the_accuracy_last(run: Run) -> None:
    (trace,) = parallel_coordinates(run).data
    labels = [axis.label for axis in trace.dimensions]
    assert labels == [path.removeprefix("distill.") for path in run.paths] + ["accuracy"]
    assert len(trace.dimensions[0]["values"]) == 7  # one diverged


def test_an_axis_has_places_for_words_logarithms_for_wide_ranges_and_one_for_what_is_inactive() -> None:
    words = axis_of("kind", ["b", "a", None, "b"], [False, False, True, False])
    assert (words["ticktext"], list(words["values"])) == ([UNSET, "a", "b"], [2, 1, 0, 2])
    wide = axis_of("temperature", [1.0, 10.0, 100.0], [False] * 3)
    np.testing.assert_allclose(wide["values"], [0, 1, 2])
    assert {"1", "10", "100"} <= set(wide["ticktext"])
    gaps = axis_of("alpha", [0.5, None, 0.6], [False, True, False])
    assert gaps["values"][1] < 0.5
    assert gaps["ticktext"][0] == UNSET
    assert axis_of("one", [3.0, 3.0], [False, False])["ticktext"] == ["3.0"]


def test_null_and_unused_have_a_place_each() -> None:
    words = axis_of("kind", ["b", None, None], [False, False, True])
    assert (words["ticktext"], list(words["values"])) == ([UNSET, NULL, "b"], [2, 1, 0])
    numbers = axis_of("alpha", [0.5, None, None, 0.6], [False, False, True, False])
    assert numbers["ticktext"][:2] == [UNSET, NULL]
    assert numbers["range"][0] == numbers["values"][2] < numbers["values"][1] < 0.5
    wide = axis_of("temperature", [1.0, 100.0, None], [False, False, False])
    assert wide["ticktext"][0] == NULL
    np.testing.assert_allclose(wide["values"], [0, 2, -0.24])


def test_schedules_are_the_winner_s_and_the_textbook_s(run: Run) -> None:
    textbook, best = schedule(run, "temperature").data
    assert list(textbook.y) == [4.0] * EPOCHS
    np.testing.assert_allclose(best.y, [4 * 0.25 ** (k / (EPOCHS - 1)) for k in range(EPOCHS)])
    recorded = run.epochs[run.epochs["trial"] == run.best]
    np.testing.assert_allclose(values_of(run.winner, "temperature"), recorded["temperature"])
    np.testing.assert_allclose(values_of(run.winner, "alpha"), recorded["alpha"])
    np.testing.assert_allclose(values_of(run.winner, "learning_rate"), recorded["learning_rate"], atol=1e-12)


def test_shares_of_the_loss_add_up_to_one_and_are_the_records_own(run: Run) -> None:
    shares = shares_of(run, "best")
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(shares["distillation"], values_of(run.winner, "alpha"))  # as the example makes them
    assert list(shares_of(run, "student alone").columns) == ["cross_entropy"]
    assert shares_of(run, "nobody").empty


def test_confusion_is_by_label_and_its_errors_share_one_scale() -> None:
    before, after = [[8, 2], [5, 5]], [[10, 0], [1, 9]]
    np.testing.assert_allclose(confusion.shares_of(before), [[0.8, 0.2], [0.5, 0.5]])
    assert confusion.worst_error({"a": before, "b": after}) == 0.5
    first = confusion.largest_changes(before, after, ["cat", "dog"])[:2]
    assert [(one["label"], one["answer"], one["right"]) for one in first] == [
        ("dog", "cat", False),
        ("dog", "dog", True),
    ]
    assert (first[0]["before"], first[0]["after"]) == (0.5, 0.1)
    (drawn,) = confusion.change(before, after, ["cat", "dog"]).data
    np.testing.assert_allclose(drawn.z, [[0.2, -0.2], [-0.4, 0.4]])


def test_a_class_that_has_no_image_has_no_share() -> None:
    assert confusion.shares_of([[0, 0], [1, 1]])[0].tolist() == [0, 0]


def test_reliability_has_the_bins_that_have_images(run: Run) -> None:
    assert run.summary is not None
    told = run.summary["calibration"]
    traces = {trace.name: trace for trace in reliability(told).data}
    for name, one in told.items():
        assert list(traces[name].x) == [each["confidence"] for each in one["bins"] if each["count"]]
        assert list(traces[name].y) == [each["accuracy"] for each in one["bins"] if each["count"]]


def test_rank_correlation_has_its_interval() -> None:
    rung = {"epoch": 6, "trials": 12, "spearman": 0.8, "kendall": 0.6, "low": 0.4, "high": 0.95}
    (trace,) = rank_correlation([rung, {**rung, "spearman": None}]).data
    assert (list(trace.x), list(trace.y)) == ([6], [0.8])
    assert trace.error_y.array[0] == pytest.approx(0.15)
    assert trace.error_y.arrayminus[0] == pytest.approx(0.4)


def test_rows_whose_names_begin_alike_have_a_line_each() -> None:
    names = [f"a row whose name is long, {k}" for k in range(3)]
    drawn = accuracies([{"name": name, "test_accuracy": [0.8, 0.9], "mean": 0.85} for name in names])
    assert [list(seeds.y) for seeds in drawn.data[::2]] == [[0, 0], [1, 1], [2, 2]]
    assert [list(mean.y) for mean in drawn.data[1::2]] == [[0], [1], [2]]
    assert list(drawn.layout.yaxis.tickvals) == [0, 1, 2]


def test_a_time_that_is_not_known_has_no_bar() -> None:
    (bars,) = time_spent({"teacher": None, "cache": 1.0, "training": 3.0, "waiting": None, "final": 0.0}).data
    assert dict(zip(bars.y, bars.x, strict=True)) == {
        "cache: the teacher's answers": 1.0, "trials: training, validation": 3.0, "final stage": 0.0,
    }  # fmt: skip


def test_best_so_far_never_falls_and_ends_with_the_best(run: Run) -> None:
    best = best_so_far(run)
    assert (np.diff(best) >= 0).all()
    assert best[-1] == pytest.approx(0.954)
    assert len(best) == len(run.epochs)


def test_thinning_keeps_the_best_the_winner_and_some_of_the_others(run: Run) -> None:
    shown = thinned(run, 4)
    assert 3 <= len(shown) <= 4
    assert run.best in set(shown["trial"])
    assert thinned(run, 8) is run.trials


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        ("1e-3", 0.001),
        ({"kind": "piecewise", "start": 4, "values": [3, 2]}, 2.0),
        ({"start": 4}, 4.0),
        (True, 1.0),
    ],
)
def test_a_searched_value_has_a_number(value: object, number: float) -> None:
    assert number_of(value) == number


def test_words_have_none() -> None:
    assert np.isnan([number_of("adamw"), number_of(None)]).all()


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_marks_stand_out_from_light_and_dark_ground() -> None:
    """A contrast of 3, as WCAG 2.2 asks of graphics (1.4.11)."""
    marks = {
        colour for colour, _ in row_style(["teacher", "student alone", "textbook KD", "best", "a", "b", "c"]).values()
    }
    for colour in marks:
        assert _contrast(colour, style.GROUND) >= 3, colour
        assert _contrast(DARK[colour], DARK[style.GROUND]) >= 3, colour
    assert _contrast(style.INK, style.GROUND) >= 7
    assert _contrast(DARK[style.INK], DARK[style.GROUND]) >= 7
