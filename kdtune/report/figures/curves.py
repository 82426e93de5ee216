"""Learning curves: validation accuracy over epochs, one line a trial, and where trials were stopped."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kdtune.report.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    MOST_CURVES,
    PURPLE,
    VERMILION,
    figure,
    text,
    thinned,
)
from kdtune.report.run import Run
from kdtune.tuning.rungs import rungs_of_search

MOST_EPOCHS = 20_000  # points of all curves together
GROUPS = {  # status -> what the legend calls it, colour, mark of its end
    "stopped": ("stopped early", FAINT, "x-thin"),
    "complete": ("ran in full", BLUE, None),
    "running": ("running", GREEN, "triangle-right"),
    "diverged": ("diverged", PURPLE, "cross-thin"),
    "failed": ("failed", PURPLE, "hash"),
}


def learning_curves(run: Run) -> go.Figure:
    """Validation accuracy of each epoch; a mark where a trial ended before its time; dotted lines are rungs."""
    drawn = figure(x="epoch", y="validation accuracy")
    drawn.update_yaxes(tickformat=".0%")
    shown = thinned(run, MOST_CURVES)
    epochs = run.epochs[run.epochs["trial"].isin(shown["trial"])]
    epochs = _every_nth(epochs.assign(value=epochs["val_accuracy"].mask(epochs["loss"].isna())))
    for status, (name, colour, mark) in GROUPS.items():
        of_status = shown[(shown["status"] == status) & (shown["trial"] != run.best)]
        if of_status.empty:
            continue
        part = epochs[epochs["trial"].isin(of_status["trial"])]
        drawn.add_trace(_lines(part, f"{name} ({(run.trials['status'] == status).sum():,})", colour, 1.2))
        if mark is not None:
            drawn.add_trace(_ends(part, name, mark))
    best = epochs[epochs["trial"] == run.best]
    if not best.empty:
        drawn.add_trace(_lines(best, "the student" if run.single else f"best (trial {text(run.best)})", VERMILION, 3))
    if run.searched and run.experiment.search.stopper.kind != "none":
        for rung in rungs_of_search(run.experiment):
            drawn.add_vline(rung, line={"color": GREY, "width": 1, "dash": "dot"})
    return drawn


def _every_nth(epochs: pd.DataFrame) -> pd.DataFrame:
    """Fewer points of each curve where there are too many; its first and its last stay."""
    step = -(-len(epochs) // MOST_EPOCHS)
    if step <= 1:
        return epochs
    first = epochs["trial"] != epochs["trial"].shift()
    last = epochs["trial"] != epochs["trial"].shift(-1)
    return epochs[first | last | (epochs["epoch"] % step == 0)]


def _lines(part: pd.DataFrame, name: str, colour: str, width: float) -> go.Scatter:
    """One trace for all curves, with gaps between them: a trace for each would make the page slow."""
    starts = np.flatnonzero((part["trial"] != part["trial"].shift()).to_numpy())[1:]
    return go.Scatter(
        x=np.insert(part["epoch"].to_numpy(dtype=float), starts, np.nan),
        y=np.insert(part["value"].to_numpy(dtype=float), starts, np.nan),
        customdata=np.insert(part["trial"].to_numpy(dtype=object), starts, ""),
        mode="lines",
        name=name,
        line={"color": colour, "width": width},
        connectgaps=False,
        hovertemplate="trial %{customdata}, epoch %{x}: %{y:.2%}<extra></extra>",
    )


def _ends(part: pd.DataFrame, name: str, mark: str) -> go.Scatter:
    """Where each curve ends; of one that diverged, its last value that is a number."""
    seen = part.assign(value=part.groupby("trial", sort=False)["value"].ffill().fillna(0.0))
    last = seen.drop_duplicates("trial", keep="last")
    return go.Scatter(
        x=last["epoch"].to_numpy(dtype=float),
        y=last["value"].to_numpy(dtype=float),
        customdata=last["trial"].to_numpy(dtype=object),
        mode="markers",
        name=name,
        showlegend=False,
        marker={"symbol": mark, "size": 7, "color": GREY, "line": {"width": 1.5, "color": GREY}},
        hovertemplate=f"trial %{{customdata}} {name} at epoch %{{x}}: %{{y:.2%}}<extra></extra>",
    )
