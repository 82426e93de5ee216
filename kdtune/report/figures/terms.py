"""Shares of the loss terms: how the balance between the labels and the teacher moves while a student learns."""

import pandas as pd
import plotly.graph_objects as go

from kdtune.report.figures.style import BLUE, TEAL, VERMILION, figure
from kdtune.report.reading import TERM
from kdtune.report.run import Run

COLOURS = {"cross_entropy": BLUE, "distillation": VERMILION, "features": TEAL}


def shares_of(run: Run, row: str) -> pd.DataFrame:
    """Mean share of each term of the loss by epoch, over the seeds of a row; of the best trial, where there are none.

    Index: epoch; a column a term. Shares of an epoch add up to 1.
    """
    told = run.final_epochs[run.final_epochs["name"] == row]
    if told.empty and row == run.winner_name:
        told = run.epochs[run.epochs["trial"] == run.best]
    terms = [name for name in told.columns if name.startswith(TERM) and told[name].notna().any()]
    if told.empty or not terms:
        return pd.DataFrame()
    values = told[terms].astype(float).fillna(0.0)
    shares = values.div(told["loss"].astype(float), axis=0).assign(epoch=told["epoch"].to_numpy())
    means = shares.groupby("epoch").mean()
    return means.rename(columns=lambda name: name.removeprefix(TERM))


def loss_shares(shares: pd.DataFrame) -> go.Figure:
    """Stacked areas of `shares_of`."""
    drawn = figure(x="epoch", y="share of the loss", height=300)
    drawn.update_yaxes(tickformat=".0%", range=[0, 1])
    for name in shares.columns:
        drawn.add_trace(
            go.Scatter(
                x=shares.index.to_numpy(),
                y=shares[name].to_numpy(),
                mode="lines",
                stackgroup="one",
                name=name.replace("_", " "),
                line={"color": COLOURS.get(name), "width": 1},
                hovertemplate="%{y:.1%}",
            )
        )
    drawn.update_layout(hovermode="x unified")
    return drawn
