"""`kdtune doctor [FILE]`: what is likely to go wrong, before money is spent on it."""

import typer

from kdtune.cli.options import File, Overrides, read

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(file: File = None, overrides: Overrides = None) -> None:
    """Check teacher, normalisation, class order, networks, memory, disk and time; exit 2 where there is a problem.

    Nothing is trained or kept, and the test set is not read.
    """
    experiment = read(file, overrides)

    from contextlib import suppress

    from rich.table import Table
    from rich.text import Text

    from kdtune.cli.progress import watcher
    from kdtune.cli.tables import console
    from kdtune.data import load_dataset
    from kdtune.errors import TeacherError
    from kdtune.training import default_device
    from kdtune.trial import with_assistants
    from kdtune.trial.doctor import examine

    with suppress(TeacherError):  # of an assistant whose search has yet to run
        experiment = with_assistants(experiment)
    device = default_device()
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
        watch.dataset_ready(dataset)
        checks = []
        for check in examine(experiment, dataset.to(device), device):
            checks.append(check)
            watch.say(f"checked   {check.name.strip()}: {check.outcome}")
    table = Table()
    for name in ("check", "", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        table.add_row(check.name, Text(check.outcome, style=STYLES[check.outcome]), Text(check.found), check.advice)
    console().print(table)
    if any(check.outcome == "problem" for check in checks):
        raise typer.Exit(2)
