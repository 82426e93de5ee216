"""`kdtune report RUN`: what a run has found, again or so far."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdtune.records import TrialRecord

Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/digits.")]
SHOWN = 10


def report(run: Run) -> None:
    """Print the results of a run; of one that has not finished, how far its trials are and the best of them."""
    from kdtune.cli.results import print_results
    from kdtune.cli.tables import console
    from kdtune.records import read_trials
    from kdtune.trial import read_run

    if (run / "summary.json").exists():
        print_results(run, console())
        return
    experiment = read_run(run)
    out = console()
    for line in _so_far(read_trials(run / "trials.jsonl"), experiment.search.trials):
        out.print(line, markup=False)


def _so_far(trials: "Sequence[TrialRecord]", planned: int) -> list[str]:
    from kdtune.cli.progress import short_config

    epochs = sum(len(trial.epochs) for trial in trials)
    in_full = {trial.trial for trial in trials if trial.complete and not trial.epochs[-1].diverged}
    best = sorted(trials, key=lambda trial: (trial.trial in in_full, trial.val_accuracy), reverse=True)[:SHOWN]
    return [
        f"Not finished: {len(trials)} of {planned} trials begun, {epochs} epochs; {len(in_full)} of them ran in full. "
        f"The same `kdtune search` goes on with it.",
        *(
            f"trial {trial.trial}  {trial.val_accuracy:7.2%}  epoch {last.epoch}/{last.epochs}  "
            f"{short_config(trial.config)}"
            for trial, last in ((trial, trial.epochs[-1]) for trial in best)
        ),
    ]
