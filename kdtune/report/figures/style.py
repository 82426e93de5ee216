"""What all figures share: colours that colour-blind people tell apart, fonts, axes, thinning.

Colours are those of a light page; `DARK` has the colour of a dark one for each, which the page puts in its place. A
figure has no title: the page has a heading and a caption, and a paper its own.
"""

from collections.abc import Hashable, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kdtune.records import ALONE, BEST, DISTILLED, TEACHER, TEXTBOOK_KD
from kdtune.report.run import Run

# After Okabe & Ito (2008), darkened where white paper asks for it: each has a contrast of 3 to its ground.
VERMILION, BLUE, GREEN, PURPLE, GREY, TEAL, OCHRE = (
    "#d55e00", "#0072b2", "#008a65", "#aa3377", "#6b7280", "#117a9c", "#8a6d00",
)  # fmt: skip
INK, GROUND, LINES, FAINT = "#1d2430", "#ffffff", "#dfe3e8", "#b4bbc6"
LOW, MIDDLE, HIGH = "#d3dfec", "#5596cc", "#082f66"  # of what is measured: the more, the further from the ground
LESS, SAME, MORE = "#0072b3", "#f3f4f6", "#d55e01"
DARK = {
    VERMILION: "#ff8c42", BLUE: "#5cb3ea", GREEN: "#35c99b", PURPLE: "#e37fb4", GREY: "#9aa4b2", TEAL: "#4fc3dd",
    OCHRE: "#d9b642", INK: "#e6e9ee", GROUND: "#161b22", LINES: "#30363f", FAINT: "#59616d", LOW: "#1f3a57",
    MIDDLE: "#4b9bd9", HIGH: "#e4f2ff", LESS: "#5cb3eb", SAME: "#232a33", MORE: "#ff8c43",
}  # fmt: skip
SEQUENTIAL = [[0.0, LOW], [0.5, MIDDLE], [1.0, HIGH]]
DIVERGING = [[0.0, LESS], [0.5, SAME], [1.0, MORE]]
ROWS = {TEACHER: (GREY, "square"), ALONE: (BLUE, "circle"), TEXTBOOK_KD: (GREEN, "diamond")}
ROWS |= dict.fromkeys((BEST, DISTILLED), (VERMILION, "star"))
OTHERS = ((PURPLE, "triangle-up"), (TEAL, "triangle-down"), (OCHRE, "pentagon"))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MOST_CURVES, MOST_POINTS = 200, 2000
LONGEST_LABEL = 22  # characters


def figure(*, x: str, y: str, height: int = 380, legend: bool = True) -> go.Figure:
    """An empty figure with named axes, as wide as it may be."""
    axis: dict[str, Any] = {
        "gridcolor": LINES, "linecolor": LINES, "zerolinecolor": LINES, "automargin": True, "ticks": "outside",
        "tickcolor": LINES,
    }  # fmt: skip
    layout = {
        "template": None,
        "height": height,
        "autosize": True,
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": GROUND,
        "plot_bgcolor": GROUND,
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemwidth": 30,
            "bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 12},
        },
        "hoverlabel": {"bgcolor": GROUND, "bordercolor": LINES, "font": {"color": INK, "family": FONT}},
        "dragmode": "zoom",
        "uirevision": "kept",  # what a reader has zoomed to stays when a live page is drawn again
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
    }
    return go.Figure(layout=layout)


def text(value: object) -> str:
    """Of a name, for plotly, which reads some tags and entities."""
    return escape(str(value), quote=False)


def label(value: object) -> str:
    """Of a name beside an axis or in a legend, where a long one would leave no room for the plot."""
    shown = str(value)
    return text(shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…")


def row_style(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row of the results table; further teachers look like the teacher."""
    found = {}
    others = 0
    for name in names:
        if name in ROWS:
            found[name] = ROWS[name]
        elif name.startswith(f"{TEACHER} "):
            found[name] = (GREY, "square-open")
        else:
            found[name] = OTHERS[others % len(OTHERS)]
            others += 1
    return found


def span_is_wide(values: Sequence[float] | pd.Series) -> bool:
    """Whether values are better seen on a logarithmic axis."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return len(known) > 0 and known.min() > 0 and known.max() / known.min() > 3


def number_of(value: Hashable) -> float:
    """A searched value as a number: of a schedule what it comes to, NaN for what is none or inactive."""
    if isinstance(value, dict):
        later = value.get("values")
        value = later[-1] if later else value.get("end", value.get("start"))
    if isinstance(value, bool) or value is None:
        return float("nan") if value is None else float(value)
    try:
        return float(value)  # type: ignore[arg-type]  # text such as 1e-3 is read too, anything else is caught
    except (TypeError, ValueError):
        return float("nan")


def thinned(run: Run, most: int) -> pd.DataFrame:
    """Rows of `run.trials`, at most so many of them: the best quarter by what is foretold of them, and of the others
    every n-th; always the winner."""
    trials = run.trials
    if len(trials) <= most:
        return trials
    best = run.foretold["value"].to_numpy().argsort()[::-1][: most // 4]
    rest = np.setdiff1d(np.arange(len(trials)), best)
    even = rest[np.linspace(0, len(rest) - 1, most - len(best) - 1).round().astype(int)]
    winner = np.flatnonzero((trials["trial"] == run.best).to_numpy())
    return trials.iloc[np.unique(np.concatenate([best, even, winner]))]
