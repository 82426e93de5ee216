"""`kdtune evaluate STUDENT DATA`: an exported student, in any format, measured on a data set again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdtune.cli.options import AllowCode, Student

if TYPE_CHECKING:
    from kdtune.export import Labelled, Opened

SHOWN = 30  # classes of a table; of more the least accurate


def evaluate(
    student: Student,
    data: Annotated[
        Path,
        typer.Argument(
            help="Class folders (DATA/<class>/<image>), a folder of train/ and test/, or an experiment file.",
            show_default=False,
        ),
    ],
    split: Annotated[
        Literal["test", "validation", "train"] | None,
        typer.Option(help="Which images, where DATA has several; test by default.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Measure accuracy, loss and calibration of a student; classes are matched by their names."""
    from kdtune.export import measure, open_student
    from kdtune.report import calibration, in_bins

    opened = open_student(student, allow_code=allow_code)
    images = _images(data, split, opened)
    measured = measure(opened, images)
    bins = in_bins(measured.confidences, measured.predictions == measured.labels)
    found: dict[str, Any] = {  # any JSON value
        "student": str(student),
        "runtime": opened.runtime,
        "data": images.what,
        "images": len(measured.labels),
        "accuracy": measured.accuracy,
        "top5": measured.top5,
        "loss": measured.loss,
        "ece": calibration([bins])["ece"] if bins else None,
        "images_a_second": len(measured.labels) / measured.seconds,
        "classes": [
            {"class": name, "images": count, "accuracy": accuracy}
            for name, count, accuracy in measured.by_class(opened.classes)
        ],
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found, len(opened.classes))


def _images(data: Path, split: str | None, opened: "Opened") -> "Labelled":
    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.experiment import load
    from kdtune.export import of_dataset, of_folder

    if data.is_dir():
        return of_folder(data, split, opened)
    experiment = load(data)
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
    return of_dataset(dataset, split or "test", opened)


def _print(found: dict[str, Any], known: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kdtune.cli.tables import console, print_facts

    top5, ece = found["top5"], found["ece"]
    rows = found["classes"]
    print_facts(
        {
            "student": f"{found['student']} ({found['runtime']})",
            "images": f"{found['images']:,} {found['data']}, of {len(rows)} of the student's {known} classes",
            "accuracy": f"{found['accuracy']:.2%}",
            **({"top-5 accuracy": f"{top5:.2%}"} if top5 is not None else {}),
            "loss": f"{found['loss']:.4f} (mean cross-entropy)",
            "calibration": "a probability is no number" if ece is None else f"{ece:.4f} expected error, 15 bins",
            "speed": f"{found['images_a_second']:,.0f} images a second, without decoding",
        }
    )
    table = Table("class", "images", "accuracy")
    for column in table.columns[1:]:
        column.justify = "right"
    shown = rows if len(rows) <= SHOWN else sorted(rows, key=lambda row: row["accuracy"])[:SHOWN]
    for row in shown:
        table.add_row(escape(row["class"]), f"{row['images']:,}", f"{row['accuracy']:.2%}")
    out = console()
    out.print(table)
    if len(rows) > SHOWN:
        out.print(f"the {SHOWN} least accurate of {len(rows)} classes; --json has all")
