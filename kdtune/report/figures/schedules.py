"""The winner's schedules beside those of textbook KD: what each value was in each epoch."""

import numpy as np
import plotly.graph_objects as go

from kdtune.experiment import Experiment, textbook
from kdtune.records import TEXTBOOK_KD
from kdtune.report.figures.style import MOST_POINTS, figure, row_style, text
from kdtune.report.run import Run

NAMES = ("temperature", "alpha", "feature_weight", "learning_rate")


def differing(run: Run) -> list[str]:
    """Of NAMES those that are worth a picture: feature_weight only where somebody has one."""
    zero = run.winner.distill.feature_weight.is_zero
    return [name for name in NAMES if name != "feature_weight" or not zero]


def schedule(run: Run, name: str) -> go.Figure:
    """One of NAMES over the epochs of the winner and of textbook KD."""
    drawn = figure(x="epoch", y=name.replace("_", " "), height=260)
    styles = row_style([TEXTBOOK_KD, run.winner_name])
    for row, experiment in ((TEXTBOOK_KD, textbook(run.winner)), (run.winner_name, run.winner)):
        values = _learned(run, row) if name == "temperature" and experiment.distill.learned_temperature else None
        if values is None:
            values = values_of(experiment, name)
        epochs = np.arange(1, len(values) + 1)
        keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(int))
        drawn.add_trace(
            go.Scatter(
                x=epochs[keep],
                y=values[keep],
                mode="lines",
                name=text(row),
                line={"color": styles[row][0], "width": 3 if row == run.winner_name else 2,
                      "dash": "solid" if row == run.winner_name else "dash"},
                hovertemplate=f"{text(row)}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
            )
        )  # fmt: skip
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def values_of(experiment: Experiment, name: str) -> np.ndarray:
    """In each epoch; the learning rate is that at the epoch's end, as it is recorded."""
    from kdtune.training import learning_rate

    epochs = experiment.train.epochs
    if name == "learning_rate":
        return np.array([learning_rate(experiment.train, (epoch + 1) / epochs) for epoch in range(epochs)])
    values = getattr(experiment.distill, name)
    return np.array([values.at(epoch, epochs) for epoch in range(epochs)])


def _learned(run: Run, row: str) -> np.ndarray | None:
    """A temperature that is learned, as the runs of the final stage have it on average; before them, as the trial."""
    told = run.final_epochs[run.final_epochs["name"] == row]
    if told.empty:
        told = run.epochs[run.epochs["trial"] == run.best]
    means = told.groupby("epoch")["temperature"].mean()
    return None if means.empty else means.to_numpy(dtype=float)
