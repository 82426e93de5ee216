"""Where the time went: seconds of work, summed over processes."""

from collections.abc import Mapping

import plotly.graph_objects as go

from kdtune.report.figures.style import BLUE, GREEN, GREY, OCHRE, VERMILION, figure

PARTS = {  # key of summary.json's `time` -> what it is, colour
    "teacher": ("teacher: training", GREEN),
    "cache": ("cache: the teacher's answers", OCHRE),
    "training": ("trials: training and validation", BLUE),
    "waiting": ("trials: waiting for answers", GREY),
    "final": ("final stage", VERMILION),
}


def time_spent(time: Mapping[str, float | None]) -> go.Figure:
    """One bar, a part for each that is known."""
    drawn = figure(x="seconds of work", y="", height=190)
    total = sum(seconds for seconds in time.values() if seconds) or 1.0
    for name, (label, colour) in PARTS.items():
        seconds = time.get(name)
        if seconds is None:
            continue
        drawn.add_trace(
            go.Bar(
                x=[seconds],
                y=[""],
                orientation="h",
                name=label,
                marker={"color": colour},
                hovertemplate=f"{label}: {seconds:,.1f} s, {seconds / total:.0%}<extra></extra>",
            )
        )
    drawn.update_layout(barmode="stack")
    drawn.update_yaxes(showticklabels=False, ticks="")
    return drawn
