"""Parallel coordinates: each trial a line through its values, to its accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kdtune.report.figures.style import INK, LONGEST_LABEL, SEQUENTIAL, figure, number_of, span_is_wide, thinned
from kdtune.report.run import Run

MOST_LINES = 1000
LEAST_LABEL = 0.08  # of the range, between two labels of an axis
UNSET, NULL = "unused", "null"  # a path that is inactive, and one that is active and none


def parallel_coordinates(run: Run) -> go.Figure:
    """One axis a searched path, and the accuracy last; drag along an axis to see only some of the lines."""
    trials = run.trials.assign(value=run.foretold["value"])
    trials = trials[trials["trial"].isin(thinned(run, MOST_LINES)["trial"]) & (trials["status"] != "diverged")]
    trials = trials.sort_values("value", kind="stable")  # the best lie on top
    dimensions = [axis_of(path.removeprefix("distill."), *run.tried(path, trials["trial"])) for path in run.paths]
    values = trials["value"].to_numpy(dtype=float)
    dimensions.append({"label": "accuracy", "values": values, "tickformat": ".0%"})
    low = float(np.quantile(values, 0.25)) if len(values) else 0.0
    drawn = figure(x="", y="", height=440, legend=False)
    drawn.update_layout(margin={"l": 100, "r": 60, "t": 90, "b": 24})
    drawn.add_trace(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": values, "colorscale": SEQUENTIAL, "cmin": low, "cmax": values.max(initial=low + 1e-9)},
            labelangle=-20,
            labelfont={"size": 12, "color": INK},
            tickfont={"size": 11, "color": INK},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the ticks say it
        )
    )
    return drawn


def axis_of(label: str, values: Sequence[Any], unused: Sequence[bool]) -> dict[str, Any]:
    """A dimension of plotly's: numbers (by their logarithm where they span much), or one place for each option.

    What is null or unused has a place of its own below the others.
    """
    gone = np.array(unused, dtype=bool)
    null = np.array([value is None for value in values], dtype=bool) & ~gone
    apart = [(name, where) for name, where in ((NULL, null), (UNSET, gone)) if where.any()]
    known = ~(null | gone)
    numbers = np.array([number_of(value) for value in values], dtype=float)
    if np.isfinite(numbers[known]).all() and len(set(numbers[known])) > 1:
        return _numeric(label, numbers, known, apart)
    words = [
        UNSET if absent else NULL if value is None else str(value) for value, absent in zip(values, gone, strict=True)
    ]
    named = {word for word, is_known in zip(words, known, strict=True) if is_known}
    options = [*(name for name, _ in reversed(apart)), *sorted(named)]
    ends = [-0.5, len(options) - 0.5] if len(options) == 1 else [0, len(options) - 1]
    return {
        "label": label, "values": np.array([options.index(word) for word in words], dtype=float),
        "tickvals": list(range(len(options))),
        "ticktext": [one if len(one) <= LONGEST_LABEL else f"{one[: LONGEST_LABEL - 1]}…" for one in options],
        "range": ends,
    }  # fmt: skip


def _numeric(label: str, numbers: Any, known: Any, apart: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`Any`: numpy arrays; those of `apart` say where a place below the numbers is taken."""
    wide = span_is_wide(numbers[known])
    shown = np.log10(numbers, where=known, out=np.zeros(len(numbers))) if wide else numbers
    low, high = float(shown[known].min()), float(shown[known].max())
    ticks = _log_ticks(low, high) if wide else [(value, f"{value:.3g}") for value in np.linspace(low, high, 5)]
    step = 0.12 * (high - low)
    for name, where in apart:
        low -= step
        shown = np.where(where, low, shown)
        ticks = [(low, name), *ticks]
    return {
        "label": label, "values": shown, "range": [low, high], "tickvals": [tick for tick, _ in ticks],
        "ticktext": [name for _, name in ticks],
    }  # fmt: skip


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2, 5, 10, ... within the range, and its ends unless they would cover one of these."""
    between = [k * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for k in (1, 2, 5)]
    ticks = [float(np.log10(value)) for value in between if low < np.log10(value) < high]
    room = LEAST_LABEL * (high - low)
    ends = [end for end in (low, high) if all(abs(end - tick) > room for tick in ticks)]
    return [(tick, f"{10**tick:.3g}") for tick in sorted([*ticks, *ends])]
