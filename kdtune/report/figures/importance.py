"""Importance of each hyperparameter, with how sure it is."""

import plotly.graph_objects as go

from kdtune.report.figures.style import BLUE, GREY, figure
from kdtune.report.importance import Importance


def importance_bars(found: Importance) -> go.Figure:
    """One bar a path, the most important on top."""
    paths = found.paths[::-1]
    drawn = figure(x="drop of R² when shuffled", y="", height=90 + 38 * len(paths), legend=False)
    mean = paths["mean"].to_numpy()
    drawn.add_trace(
        go.Bar(
            x=mean,
            y=[path.removeprefix("distill.") for path in paths["path"]],
            orientation="h",
            marker={"color": BLUE},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": paths["high"].to_numpy() - mean,
                "arrayminus": mean - paths["low"].to_numpy(),
                "color": GREY,
                "thickness": 1.5,
            },
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    return drawn
