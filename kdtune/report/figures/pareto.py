"""Accuracy against the second objective: all trials, and the front that none beats in both."""

import math
from typing import Any

import plotly.graph_objects as go

from kdtune.report.figures.style import FAINT, MOST_POINTS, VERMILION, figure, span_is_wide, text, thinned
from kdtune.report.run import Run
from kdtune.report.wording import amount

MANY = 1e4  # times as much, from which on only powers of ten have a tick
UNITS = {"parameters": "parameters", "latency": "milliseconds for one image"}


def pareto(run: Run) -> go.Figure:
    """Needs a second objective. Costs of the front were measured once more, each architecture alone."""
    second = run.experiment.search.second_objective
    assert second is not None
    drawn = figure(x=UNITS[second], y="validation accuracy")
    drawn.update_yaxes(tickformat=".0%")
    trials = thinned(run, MOST_POINTS).dropna(subset=["cost"])
    trials = trials[trials["status"] != "diverged"]
    drawn.add_trace(
        go.Scatter(
            x=trials["cost"].to_numpy(dtype=float),
            y=trials["val_accuracy"].to_numpy(dtype=float),
            customdata=trials[["trial", "status", "epochs"]].astype(str).to_numpy().tolist(),
            mode="markers",
            name="trials, where they ended",
            marker={"color": FAINT, "size": 7},
            hovertemplate="trial %{customdata[0]} (%{customdata[1]} at epoch %{customdata[2]}): %{x:.4g}, %{y:.2%}"
            "<extra></extra>",
        )
    )
    front = (run.summary or {}).get("pareto", [])
    costs = [*trials["cost"], *(one["cost"] for one in front)]
    if span_is_wide(costs):
        drawn.update_xaxes(type="log", **_ticks(min(costs), max(costs)))
    drawn.add_trace(
        go.Scatter(
            x=[one["cost"] for one in front],
            y=[one["val_accuracy"] for one in front],
            customdata=[[one["trial"], text(one["model"])] for one in front],
            mode="lines+markers",
            name="Pareto front",
            line={"color": VERMILION, "width": 2, "shape": "hv"},
            marker={"size": 10, "symbol": "star"},
            hovertemplate="trial %{customdata[0]}, %{customdata[1]}: %{x:.4g}, %{y:.2%}<extra></extra>",
        )
    )
    return drawn


def _ticks(low: float, high: float) -> dict[str, list[Any]]:
    """1, 2, 5, 10, ... as words: plotly's own are digits whose power of ten stands elsewhere."""
    steps = (1, 2, 5) if high / low < MANY else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**power for power in powers for step in steps]
    values = [value for value in values if low / 2 <= value <= high * 2]
    return {"tickvals": values, "ticktext": [amount(value) for value in values]}
