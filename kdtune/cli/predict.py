"""`kdtune predict STUDENT IMAGE...`: what a student makes of image files."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kdtune.cli.options import AllowCode, Student


def predict(
    student: Student,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="Classes that are named, the most probable first.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of a table.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Name the most probable classes of image files of any size, and their probabilities.

    What is no image is told and does not hold up the others; the exit code is then 2.
    """
    from rich.markup import escape
    from rich.table import Table

    from kdtune.cli.tables import console
    from kdtune.export import open_student
    from kdtune.export import predict as predictions

    opened = open_student(student, allow_code=allow_code)
    table = Table("image", "class", "probability")
    table.columns[2].justify = "right"
    failed = False
    for one in predictions(opened, images, top):
        failed |= bool(one.error)
        if as_json:
            ranked = [{"class": name, "probability": round(chance, 6)} for name, chance in one.ranked]
            answer = {"error": one.error} if one.error else {"classes": ranked}
            typer.echo(json.dumps({"image": str(one.image), **answer}))
        elif one.error:
            typer.echo(f"error: {one.error}", err=True)
        for k, (name, chance) in enumerate(one.ranked):
            table.add_row(escape(str(one.image)) if k == 0 else "", escape(name), f"{chance:.2%}")
    if not as_json and table.rows:
        console().print(table)
    if failed:
        raise typer.Exit(2)
