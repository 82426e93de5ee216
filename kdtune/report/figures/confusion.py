"""Confusion matrices before and after, and what changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kdtune.report.figures.style import DIVERGING, HIGH, MIDDLE, SAME, figure, label

MOST_NUMBERS = 20  # classes up to which cells have their numbers in them
ERRORS = [[0.0, SAME], [0.5, MIDDLE], [1.0, HIGH]]  # none has hardly a colour


def shares_of(counts: Sequence[Sequence[int]]) -> np.ndarray:
    """[C, C] share of a class's images (row) that got each answer (column)."""
    table = np.asarray(counts, dtype=float)
    shares: np.ndarray = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    return shares


def matrix(counts: Sequence[Sequence[int]], classes: Sequence[str], worst: float) -> go.Figure:
    """Shares of errors off the diagonal, on a scale up to `worst`; on it, without a colour, what is right."""
    shares = shares_of(counts)
    errors = shares.copy()
    np.fill_diagonal(errors, np.nan)
    trace: dict[str, Any] = {"colorscale": ERRORS, "zmin": 0, "zmax": worst}
    return _map(errors, shares, classes, trace, "%{y} taken for %{x}: %{customdata:.1%}<extra></extra>", ".0%")


def change(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], classes: Sequence[str]) -> go.Figure:
    """After less before, in shares: of an error, less is better; on the diagonal, more."""
    differences = shares_of(after) - shares_of(before)
    most = float(np.abs(differences).max()) or 0.01
    trace: dict[str, Any] = {"colorscale": DIVERGING, "zmin": -most, "zmax": most}
    return _map(
        differences, differences, classes, trace, "%{y} answered %{x}: %{customdata:+.1%}<extra></extra>", "+.0%"
    )


def worst_error(tables: Mapping[str, Sequence[Sequence[int]]]) -> float:
    """The largest share of a class that is taken for one other, in any of the tables."""
    shares = [shares_of(counts) for counts in tables.values()]
    return max((float((one - np.diag(np.diag(one))).max()) for one in shares), default=0.0) or 0.01


def largest_changes(
    before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], classes: Sequence[str], most: int = 10
) -> list[dict[str, Any]]:
    """The cells whose share changed most, the largest change first: label, answer, right, before, after."""
    one, other = shares_of(before), shares_of(after)
    places = np.argsort(-np.abs(other - one), axis=None, kind="stable")[:most]
    cells = [divmod(int(place), len(classes)) for place in places]
    return [
        {"label": classes[i], "answer": classes[k], "right": i == k, "before": one[i, k], "after": other[i, k]}
        for i, k in cells
        if one[i, k] != other[i, k]
    ]


def _map(
    colours: np.ndarray, shares: np.ndarray, classes: Sequence[str], trace: dict[str, Any], hover: str, tick: str
) -> go.Figure:
    names = [label(name) for name in classes]
    drawn = figure(x="answer", y="label", height=480, legend=False)
    numbers = {}
    if len(names) <= MOST_NUMBERS:
        words = [[_short(share, signed=tick[0] == "+") for share in row] for row in shares]
        numbers = {"text": words, "texttemplate": "%{text}", "textfont": {"size": 10}}
    places = list(range(len(names)))
    bar = {"tickformat": tick, "thickness": 10, "orientation": "h", "x": 0.5, "y": 1.0, "yanchor": "bottom"}
    drawn.add_trace(
        go.Heatmap(
            z=colours, x=places, y=places, customdata=shares, xgap=1, ygap=1, hoverongaps=True,
            colorbar=bar, **numbers, **trace,
            hovertemplate=hover,
        )
    )  # fmt: skip
    shown = places[:: -(-len(names) // 25)]
    ticks = {"tickvals": shown, "ticktext": [names[k] for k in shown], "showgrid": False, "zeroline": False}
    drawn.update_xaxes(**ticks, constrain="domain")
    drawn.update_yaxes(**ticks, autorange="reversed", scaleanchor="x", constrain="domain")
    return drawn


def _short(share: float, *, signed: bool) -> str:
    percent = round(share * 100)
    if percent == 0:
        return ""
    return f"{percent:+d}" if signed else f"{percent}"
