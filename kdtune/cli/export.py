"""`kdtune export RUN`: the winner of a finished search as files that anybody can load."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/digits.", show_default=False)],
    to: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN/student by default.", show_default=False)
    ] = None,
) -> None:
    """Write the best student of a run (safetensors, config, model card), read it back and compare."""
    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.experiment import with_values
    from kdtune.export import export_run
    from kdtune.report import read_summary
    from kdtune.trial import check_materials, made_of, read_run

    experiment = read_run(run)
    summary = read_summary(run)
    target = to or run / "student"
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
    check_materials(run, made_of(dataset))
    difference = export_run(run, target, with_values(experiment, summary["best"]["config"]), dataset, summary)
    typer.echo(f"{target}: read back, largest difference of logits on real images {difference:.1e}")
