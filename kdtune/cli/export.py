"""`kdtune export RUN`: the winner of a finished search as files that anybody can load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.completing import runs

if TYPE_CHECKING:
    from rich.table import Table

    from kdtune.export import Files

SAFETENSORS = "safetensors"


def export(
    run: Annotated[
        Path, typer.Argument(help="A run folder, e.g. runs/digits.", show_default=False, autocompletion=runs)
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN/student by default.", show_default=False)
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="safetensors (always written), pt2, onnx, torchscript; several with commas.")
    ] = SAFETENSORS,
    half: Annotated[
        bool, typer.Option("--half", help="Each format in float16 as well: half the size, computed in float32.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="ONNX in 8-bit integers as well: a quarter of the size; convolutions get slower."),
    ] = False,
) -> None:
    """Write the best student of a run, open each file with its own runtime and compare it with the student.

    The folder is replaced as a whole, or stays as it is where a file does not give the student's answers.
    """
    from kdtune.cli.progress import watcher
    from kdtune.cli.tables import console
    from kdtune.data import load_dataset
    from kdtune.experiment import with_values
    from kdtune.export import Wanted, check_place, cost_in_words, export_run, images_in_words
    from kdtune.report import read_summary
    from kdtune.trial import check_materials, made_of, read_run

    names = dict.fromkeys(name.strip() for name in formats.split(",") if name.strip())
    wanted = Wanted([name for name in names if name != SAFETENSORS], half=half, int8=int8)
    wanted.check()
    experiment = read_run(run)
    summary = read_summary(run)
    target = to or run / "student"
    check_place(target)
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
    check_materials(run, made_of(dataset))
    files = export_run(run, target, with_values(experiment, summary["best"]["config"]), dataset, summary, wanted)
    if list(files) == [f"student.{SAFETENSORS}"]:
        (facts,) = files.values()
        typer.echo(f"{target}: read back, largest difference of logits on real images {facts['difference']:.1e}")
        return
    typer.echo(f"{target}: each file opened by its own runtime and compared with the student on real images")
    console().print(_table(files))
    judged = {name: facts["cost"] for name, facts in files.items() if "cost" in facts}
    for name, cost in judged.items():
        typer.echo(f"{name}: {cost_in_words(cost)}")
    if judged:
        one = next(iter(judged.values()))
        typer.echo(f"(measured on {one['images']:,} {images_in_words(one)})")


def _table(files: "Files") -> "Table":
    from rich.table import Table

    from kdtune.cli.tables import megabytes

    table = Table("file", "stored as", "size", "largest difference", "latency")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, facts in files.items():
        difference, latency = f"{facts['difference']:.1e}", f"{facts['latency_ms']:.2f} ms"
        table.add_row(name, facts["precision"], megabytes(facts["bytes"]), difference, latency)
    return table
