"""`kdtune train [FILE]`: one configuration, without Ray; what a debugger steps through is what a search runs."""

import time

from kdtune.cli.options import File, Overrides, read, resumable
from kdtune.errors import KdtuneError

SAVE_EVERY_S = 30.0
SUFFIX = "-train"


def train(file: File = None, overrides: Overrides = None) -> None:
    """Train the student once with the file's own `distill` section, and export it.

    Validation accuracy is measured each epoch; the test set is left alone. The run folder is <name>-train.
    """
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.export import card, export_student
    from kdtune.records import append_line, mend, read_trials
    from kdtune.training import default_device
    from kdtune.trial import Bench, claim, prepare

    with resumable(), watcher() as watch:
        folder = claim(experiment, SUFFIX)
        path, state = folder / "trials.jsonl", folder / "trial.pt"
        mend(path)
        device = default_device()
        materials = prepare(experiment, device, watch)
        trial = Bench(materials, device).start(experiment, seed=experiment.search.seed)
        if state.exists():
            trial.load(state)
        saved = time.monotonic()
        for record in trial.records:
            append_line(path, {"trial": "0000", "config": {}, **record.to_json()})
            watch.trial_epoch(record)
            if record.diverged:
                raise KdtuneError(
                    f"the student diverged in epoch {record.epoch}; lower train.learning_rate "
                    f"({experiment.train.learning_rate})"
                )
            if record.last or time.monotonic() - saved > SAVE_EVERY_S:
                trial.save(state)
                saved = time.monotonic()
        last = read_trials(path)[0].epochs[-1]
        export_student(
            folder / "student",
            trial.student.network,
            experiment,
            materials.dataset,
            card(experiment, materials.dataset, body=f"\nValidation accuracy {last.val_accuracy:.4f}.\n"),
        )
        watch.say(
            f"student   {experiment.student.model}: {last.val_accuracy:.2%} of "
            f"{len(materials.dataset.validation)} validation images, exported to {folder / 'student'}"
        )
