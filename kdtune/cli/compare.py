"""`kdtune compare RUN RUN ...`: several runs side by side, in a table and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli import completing

if TYPE_CHECKING:
    from rich.table import Table

    from kdtune.report.compare import Compared

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN RUN ...", help="Run folders, two or more.", show_default=False, autocompletion=completing.runs
    ),
]
To = Annotated[Path, typer.Option("--to", metavar="FILE", help="The page.")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


def compare(runs: Folders, to: To = Path("compare.html"), open_: Open = False) -> None:
    """Print the results of several runs side by side, say what makes them unlike, and draw them as a page."""
    import webbrowser

    from kdtune.cli.tables import console
    from kdtune.report.compare import Compared, write_comparison
    from kdtune.report.run import load_run

    out = console()
    compared = Compared.of([load_run(run) for run in runs])
    out.print(_table(compared))
    for warning in compared.warnings:
        out.print(f"Mind: {warning}", markup=False)
    page = write_comparison(compared, to)
    out.print(f"Page: {page}", markup=False, soft_wrap=True)
    if open_:
        webbrowser.open(page.resolve().as_uri())


def _table(compared: "Compared") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from kdtune.cli.progress import short_config

    table = Table()
    for name in ("run", "data", "teacher", "student"):
        table.add_column(name, overflow="fold")
    for name in ("best", "std", "against alone", "epochs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("configuration of the best", overflow="fold")
    for one in compared.overview():
        table.add_row(
            *(Text(one[name]) for name in ("run", "data", "teacher", "student")),
            "" if one["best"] is None else f"{one['best']:.2%}",
            "" if one["std"] is None else f"{one['std']:.2%}",
            "" if one["gain"] is None else f"{one['gain'] * 100:+.2f}",
            f"{one['epochs']:,}",
            Text(short_config(one["config"])),
        )
    return table
