"""Parallel coordinates: each trial a line through its values, to its accuracy."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kdtune.report.figures.style import INK, LONGEST_LABEL, SEQUENTIAL, figure, number_of, span_is_wide, thinned
from kdtune.report.run import Run

MOST_LINES = 1000
LEAST_LABEL = 0.08  # of the range, between two labels of an axis
UNSET = "unused"  # where a path is inactive


def parallel_coordinates(run: Run) -> go.Figure:
    """One axis a searched path, and the accuracy last; drag along an axis to see only some of the lines."""
    trials = run.trials.assign(value=run.foretold["value"])
    trials = trials[trials["trial"].isin(thinned(run, MOST_LINES)["trial"]) & (trials["status"] != "diverged")]
    trials = trials.sort_values("value", kind="stable")  # the best lie on top
    dimensions = [axis_of(path.removeprefix("distill."), trials[path]) for path in run.paths]
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


def axis_of(label: str, values: pd.Series) -> dict[str, Any]:
    """A dimension of plotly's: numbers (by their logarithm where they span much), or one place for each option.

    What is inactive has a place of its own below the others.
    """
    missing = values.isna().to_numpy()
    numbers = np.array([number_of(value) for value in values], dtype=float)
    if np.isfinite(numbers[~missing]).all() and (~missing).any() and len(set(numbers[~missing])) > 1:
        return _numeric(label, numbers, missing)
    options = sorted({str(value) for value, gone in zip(values, missing, strict=True) if not gone})
    options = [*([UNSET] if missing.any() else []), *options]
    places = [options.index(UNSET if gone else str(value)) for value, gone in zip(values, missing, strict=True)]
    ends = [-0.5, len(options) - 0.5] if len(options) == 1 else [0, len(options) - 1]
    return {
        "label": label, "values": np.array(places, dtype=float), "tickvals": list(range(len(options))),
        "ticktext": [one if len(one) <= LONGEST_LABEL else f"{one[: LONGEST_LABEL - 1]}…" for one in options],
        "range": ends,
    }  # fmt: skip


def _numeric(label: str, numbers: Any, missing: Any) -> dict[str, Any]:  # `Any`: numpy arrays
    wide = span_is_wide(numbers[~missing])
    shown = np.log10(numbers) if wide else numbers
    low, high = float(shown[~missing].min()), float(shown[~missing].max())
    ticks = _log_ticks(low, high) if wide else [(value, f"{value:.3g}") for value in np.linspace(low, high, 5)]
    if missing.any():
        unset = low - 0.12 * (high - low)
        shown = np.where(missing, unset, shown)
        ticks, low = [(unset, UNSET), *ticks], unset
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
