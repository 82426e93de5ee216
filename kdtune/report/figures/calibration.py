"""Calibration: whether a network is right as often as it is sure (reliability diagram, Guo et al. 2017)."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from kdtune.report.figures.style import FAINT, figure, label, row_style, text


def reliability(calibration: Mapping[str, Any]) -> go.Figure:
    """Accuracy against confidence, bin by bin; on the dotted line a network is calibrated."""
    drawn = figure(x="confidence", y="accuracy", height=420)
    drawn.update_xaxes(tickformat=".0%", range=[0, 1.02])
    drawn.update_yaxes(tickformat=".0%", range=[0, 1.04])
    drawn.add_trace(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", hoverinfo="skip",
                   line={"color": FAINT, "dash": "dot", "width": 1.5})
    )  # fmt: skip
    styles = row_style(list(calibration))
    for name, one in calibration.items():
        bins = [each for each in one["bins"] if each["count"]]
        colour, symbol = styles[name]
        total = sum(each["count"] for each in bins) or 1
        drawn.add_trace(
            go.Scatter(
                x=[each["confidence"] for each in bins],
                y=[each["accuracy"] for each in bins],
                customdata=[each["count"] for each in bins],
                mode="lines+markers",
                name=label(name),
                line={"color": colour, "width": 1.5},
                marker={"symbol": symbol, "size": [6 + 12 * (each["count"] / total) ** 0.5 for each in bins]},
                hovertemplate=f"{text(name)}: %{{customdata:,}} answers, confidence %{{x:.1%}}, right %{{y:.1%}}"
                "<extra></extra>",
            )
        )
    return drawn
