"""Test accuracy of each row of the results table, seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from kdtune.report.figures.style import INK, figure, label, row_style


def accuracies(results: Sequence[Mapping[str, Any]]) -> go.Figure:
    """A point a seed, a line at the mean."""
    names = [row["name"] for row in results]
    styles = row_style(names)
    drawn = figure(x="test accuracy", y="", height=90 + 44 * len(names), legend=False)
    drawn.update_xaxes(tickformat=".1%")
    for place, row in enumerate(results):  # labels are cut, so that two rows may have the same
        colour, symbol = styles[row["name"]]
        here = label(row["name"])
        drawn.add_trace(
            go.Scatter(
                x=row["test_accuracy"],
                y=[place] * len(row["test_accuracy"]),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 11, "opacity": 0.75},
                hovertemplate=f"{here}: %{{x:.2%}}<extra></extra>",
            )
        )
        drawn.add_trace(
            go.Scatter(
                x=[row["mean"]],
                y=[place],
                mode="markers",
                marker={"symbol": "line-ns", "size": 26, "line": {"width": 2.5, "color": INK}},
                hovertemplate=f"{here}, mean: %{{x:.2%}}<extra></extra>",
            )
        )
    drawn.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[label(name) for name in names], autorange="reversed", zeroline=False
    )
    return drawn
