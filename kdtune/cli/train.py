"""`kdtune train [FILE]`: one configuration, without Ray; what a debugger steps through is what a search runs."""

from functools import partial

from kdtune.cli.options import File, Overrides, read, resumable
from kdtune.errors import KdtuneError


def train(file: File = None, overrides: Overrides = None) -> None:
    """Train the student once with the file's own `distill` section, and export it.

    Validation accuracy is measured each epoch; the test set is left alone. The run folder is <name>-train.
    """
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.export import card, export_student
    from kdtune.records import append_line, mend
    from kdtune.training import default_device
    from kdtune.trial import SINGLE, Bench, columns_of, prepare, remember, with_assistants, working

    with resumable(), watcher() as watch, working(experiment, SINGLE) as (folder, _):
        path = folder / "trials.jsonl"
        mend(path)
        device = default_device()
        settled = with_assistants(experiment)
        materials = prepare(settled, device, watch, columns=columns_of(folder))
        remember(folder, materials)
        trial = Bench(materials, device).start(settled, seed=experiment.search.seed)
        for record in trial.resumable(folder / "trial.pt"):
            append_line(path, {"trial": "0000", "config": {}, **record.to_json()})
            watch.trial_epoch(record)
        last = trial.history[-1]
        if last.diverged:
            raise KdtuneError(
                f"the student diverged in epoch {last.epoch}; lower train.learning_rate "
                f"({experiment.train.learning_rate}) and choose another name (--set name=...)"
            )
        body = f"\nValidation accuracy {last.val_accuracy:.4f}.\n"
        write = partial(card, experiment, materials.dataset, body=body)
        export_student(folder / "student", trial.student.network, experiment, materials.dataset, write)
        watch.say(
            f"student   {experiment.student.model}: {last.val_accuracy:.2%} of "
            f"{len(materials.dataset.validation)} validation images, exported to {folder / 'student'}"
        )
