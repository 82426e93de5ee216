"""Figures about several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kdtune.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    MOST_POINTS,
    OCHRE,
    PURPLE,
    TEAL,
    VERMILION,
    figure,
    label,
    text,
)
from kdtune.report.run import Run

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, OCHRE, TEAL, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")


def results_of_all(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Mean and standard deviation of each row of the results tables, run by run."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    drawn = figure(x="test accuracy", y="", height=110 + 26 * len(rows))
    drawn.update_xaxes(tickformat=".1%")
    for place, run in enumerate(runs):
        of_run = [row for row in rows if row["run"] == run]
        drawn.add_trace(
            go.Scatter(
                x=[row["mean"] for row in of_run],
                y=[names.index(row["name"]) + _beside(place, len(runs)) for row in of_run],
                customdata=[[text(row["name"]), text(row["model"])] for row in of_run],
                mode="markers",
                name=label(run),
                marker={"color": COLOURS[place % len(COLOURS)], "size": 10, "symbol": place % 20},
                error_x={"type": "data", "array": [row["std"] or 0.0 for row in of_run]},
                hovertemplate=f"{text(run)}, %{{customdata[0]}} (%{{customdata[1]}}): %{{x:.2%}}<extra></extra>",
            )
        )
    drawn.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[label(name) for name in names], autorange="reversed", zeroline=False
    )
    return drawn


def _beside(place: int, runs: int) -> float:
    """Runs of one row lie beside each other, not on each other."""
    return 0.0 if runs == 1 else 0.5 * (place / (runs - 1) - 0.5)


def accuracy_by_epochs(runs: Mapping[str, Run]) -> go.Figure:
    """The best validation accuracy that any trial had come to, against the epochs of all trials until then."""
    drawn = figure(x="epochs of all trials together", y="best validation accuracy so far")
    drawn.update_yaxes(tickformat=".0%")
    for place, (name, run) in enumerate(runs.items()):
        best = best_so_far(run)
        # where it rose, and the end: steps in between say nothing
        keep = np.flatnonzero(np.diff(best, prepend=-1.0) > 0)
        keep = np.unique([*keep[:: -(-len(keep) // MOST_POINTS)], len(best) - 1])
        drawn.add_trace(
            go.Scatter(
                x=keep + 1,
                y=best[keep],
                mode="lines",
                name=label(name),
                line={
                    "color": COLOURS[place % len(COLOURS)], "width": 2.5, "shape": "hv",
                    "dash": DASHES[place // len(COLOURS) % len(DASHES)],
                },
                hovertemplate=f"{text(name)}, %{{x:,}} epochs: %{{y:.2%}}<extra></extra>",
            )
        )  # fmt: skip
    return drawn


def best_so_far(run: Run) -> np.ndarray:
    """[epochs of all trials] in the order of time; an epoch of a trial that diverged counts for nothing."""
    told = run.epochs
    if told["at"].notna().any():  # earlier versions did not say when
        told = told.sort_values("at", kind="stable")
    values = told["val_accuracy"].mask(told["loss"].isna()).fillna(0.0).to_numpy(dtype=float)
    best: np.ndarray = np.maximum.accumulate(values)
    return best
