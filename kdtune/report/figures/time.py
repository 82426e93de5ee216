"""Where the time went: seconds of work, summed over processes."""

from collections.abc import Mapping

import plotly.graph_objects as go

from kdtune.report.figures.style import BLUE, figure

PARTS = {  # key of summary.json's `time` -> what it is
    "teacher": "teacher: training",
    "cache": "cache: the teacher's answers",
    "training": "trials: training, validation",
    "waiting": "trials: waiting for answers",
    "final": "final stage",
}

OF_SINGLE = {"training": "training, validation", "waiting": "waiting for answers"}  # of one student without a search


def time_spent(time: Mapping[str, float | None], labels: Mapping[str, str] = PARTS) -> go.Figure:
    """A bar for each part of `labels` that is known."""
    known = [(label, seconds) for name, label in reversed([*labels.items()]) if (seconds := time.get(name)) is not None]
    total = sum(seconds for _, seconds in known) or 1.0
    drawn = figure(x="seconds of work", y="", height=80 + 34 * len(known), legend=False)
    drawn.add_trace(
        go.Bar(
            x=[seconds for _, seconds in known],
            y=[label for label, _ in known],
            text=[f"{seconds / total:.0%}" for _, seconds in known],
            textposition="auto",
            orientation="h",
            marker={"color": BLUE},
            hovertemplate="%{y}: %{x:,.1f} s, %{text}<extra></extra>",
        )
    )
    return drawn
