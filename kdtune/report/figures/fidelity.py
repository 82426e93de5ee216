"""How well the order of trials at each rung foretold that at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from kdtune.report.figures.style import BLUE, GREY, figure


def rank_correlation(rungs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Spearman's rho of each rung with its 95% interval."""
    told = [rung for rung in rungs if rung["spearman"] is not None]
    drawn = figure(x="epoch of the rung", y="Spearman's rho", height=300, legend=False)
    drawn.add_trace(
        go.Scatter(
            x=[rung["epoch"] for rung in told],
            y=[rung["spearman"] for rung in told],
            customdata=[[rung["trials"], rung["low"], rung["high"]] for rung in told],
            mode="lines+markers",
            line={"color": BLUE, "width": 2},
            marker={"size": 9},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [rung["high"] - rung["spearman"] for rung in told],
                "arrayminus": [rung["spearman"] - rung["low"] for rung in told],
                "color": GREY,
            },
            hovertemplate="epoch %{x}: %{y:.2f} (%{customdata[1]:.2f} to %{customdata[2]:.2f}, "
            "%{customdata[0]} trials)<extra></extra>",
        )
    )
    drawn.update_yaxes(range=[min(-0.05, *(rung["low"] - 0.05 for rung in told)), 1.05])
    return drawn
