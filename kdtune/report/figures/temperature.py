"""What temperature and alpha have to do with accuracy: one point a trial."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kdtune.report.figures.style import (
    BLUE,
    GROUND,
    INK,
    MIDDLE,
    MOST_POINTS,
    SEQUENTIAL,
    VERMILION,
    figure,
    span_is_wide,
    text,
    thinned,
)
from kdtune.report.run import Run

HOVER = (
    "trial %{customdata[0]} (%{customdata[1]})<br>temperature %{customdata[2]}<br>alpha %{customdata[3]}"
    "<br>%{customdata[4]}<extra></extra>"
)


def varies(run: Run, name: str) -> bool:
    """Whether trials differ in the first epoch's `temperature`, `alpha` or `feature_weight`."""
    return bool(run.epochs[name].groupby(run.epochs["trial"]).first().nunique() > 1)


def accuracy_by_temperature(run: Run) -> go.Figure:
    """Validation accuracy against the temperature of the first epoch; open marks are foretold, not measured."""
    points = _points(run)
    drawn = figure(x="temperature in the first epoch", y="validation accuracy in full")
    drawn.update_yaxes(tickformat=".0%")
    _wide(drawn, "xaxis", points["temperature"])
    for measured, name, symbol in ((False, "foretold", "circle-open"), (True, "ran in full", "circle")):
        part = points[(points["measured"] == measured) & ~points["best"]]
        if not part.empty:
            drawn.add_trace(_scatter(part, part["temperature"], part["value"], name, BLUE, symbol, 9))
    best = points[points["best"]]
    drawn.add_trace(_scatter(best, best["temperature"], best["value"], "best", VERMILION, "star", 14))
    return drawn


def temperature_alpha_map(run: Run) -> go.Figure:
    """Where trials lie by temperature and alpha of their first epoch; the darker, the more accurate."""
    points = _points(run).sort_values("value")  # the best lie on top
    drawn = figure(x="temperature in the first epoch", y="alpha in the first epoch")
    _wide(drawn, "xaxis", points["temperature"])
    low, high = _colour_range(points["value"])
    for measured, name, symbol in ((False, "foretold", "diamond"), (True, "ran in full", "circle")):
        part = points[points["measured"] == measured]
        if part.empty:
            continue
        trace = _scatter(part, part["temperature"], part["alpha"], name, INK, symbol, 10)
        trace.marker.update(color=part["value"].to_numpy(), coloraxis="coloraxis", line={"width": 0.6, "color": INK})
        trace.showlegend = False  # a mark of many colours has none in a legend
        drawn.add_trace(trace)
        key = {"color": MIDDLE, "symbol": symbol, "size": 10, "line": {"width": 0.6, "color": INK}}
        drawn.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=key))
    best = points[points["best"]]
    ring = _scatter(best, best["temperature"], best["alpha"], "best", VERMILION, "circle-open", 17)
    ring.marker.line.width = 2.5
    drawn.add_trace(ring)
    bar = {"tickformat": ".0%", "title": {"text": "accuracy", "side": "right"}, "thickness": 12}
    drawn.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": low, "cmax": high, "colorbar": bar})
    return drawn


def _points(run: Run) -> pd.DataFrame:
    """One row a trial that is shown: temperature, alpha, value, measured, best, and what a pointer tells."""
    trials = run.trials.assign(value=run.foretold["value"], spread=run.foretold["spread"])
    trials = trials[trials["trial"].isin(thinned(run, MOST_POINTS)["trial"])]
    trials = trials[trials["status"] != "diverged"]
    told = run.epochs.drop_duplicates("trial", keep="first").set_index("trial")
    ends = run.epochs.drop_duplicates("trial", keep="last").set_index("trial")
    points = trials[["trial", "status", "value", "spread"]].copy()
    for name in ("temperature", "alpha"):
        points[name] = told[name].reindex(points["trial"]).to_numpy()
        last = ends[name].reindex(points["trial"]).to_numpy()
        points[f"{name}_told"] = [
            f"{first:.3g}" if first == end else f"{first:.3g} to {end:.3g} (epoch {epoch})"
            for first, end, epoch in zip(points[name], last, trials["epochs"], strict=True)
        ]
    points["measured"] = points["status"] == "complete"
    points["best"] = points["trial"] == run.best
    return points.dropna(subset=["temperature", "alpha"])


def _scatter(
    part: pd.DataFrame, x: pd.Series, y: pd.Series, name: str, colour: str, symbol: str, size: int
) -> go.Scatter:
    told = [
        f"accuracy {value:.2%}" + ("" if measured else f" foretold, give or take {spread * 100:.1f} points")
        for value, spread, measured in zip(part["value"], part["spread"], part["measured"], strict=True)
    ]
    about = [part["trial"], part["status"], part["temperature_told"], part["alpha_told"], told]
    return go.Scatter(
        x=x.to_numpy(dtype=float),
        y=y.to_numpy(dtype=float),
        customdata=[list(map(text, one)) for one in zip(*about, strict=True)],
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": size, "line": {"width": 1.2, "color": GROUND}},
        hovertemplate=HOVER,
    )


def _wide(drawn: go.Figure, axis: str, values: pd.Series) -> None:
    if span_is_wide(values):
        ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if values.min() / 2 < tick < values.max() * 2]
        drawn.update_layout({axis: {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}})


def _colour_range(values: pd.Series) -> tuple[float, float]:
    """From the lower quartile on: what is bad need not be told apart."""
    if values.empty:
        return 0.0, 1.0
    low, high = float(np.quantile(values, 0.25)), float(values.max())
    return (low, high) if high > low else (low - 0.01, high)
