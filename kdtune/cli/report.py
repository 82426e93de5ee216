"""`kdtune report RUN`: what a run has found, again or so far, in words and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.completing import runs

if TYPE_CHECKING:
    from kdtune.report.run import Run

Folder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder, such as runs/digits.", show_default=False, autocompletion=runs),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Serve = Annotated[
    bool, typer.Option("--serve", help="Serve the page on this machine, drawn again as the search goes on.")
]
Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, show_default=False, help="For --serve; 8420, or a free one, by default."),
]
Png = Annotated[
    Path | None,
    typer.Option("--png", metavar="FOLDER", show_default=False, help="Write each figure as a PNG file, too."),
]
Optuna = Annotated[
    Path | None,
    typer.Option(
        "--optuna",
        metavar="FILE",
        show_default=False,
        help="Write the trials as an Optuna study (SQLite), which optuna-dashboard shows.",
    ),
]
SHOWN = 10


def report(
    run: Folder,
    open_: Open = False,
    serve: Serve = False,
    port: Port = None,
    png: Png = None,
    optuna: Optuna = None,
) -> None:
    """Print the results of a run, finished or not, and draw them as a page: RUN/report.html."""
    import webbrowser

    from kdtune.cli.results import print_results
    from kdtune.cli.tables import console
    from kdtune.report.page import write_report
    from kdtune.report.run import load_run

    if port is not None and not serve:
        raise typer.BadParameter("--port is for --serve")
    found, out = load_run(run), console()
    if found.summary is not None:
        print_results(run, out)
    else:
        for line in _so_far(found):
            out.print(line, markup=False)
    if png is not None:
        from kdtune.report.pictures import write_pictures

        out.print(f"Figures: {len(write_pictures(found, png))} PNG files in {png}", markup=False)
    if optuna is not None:
        from kdtune.report.optuna_study import write_study

        count = write_study(found, optuna)
        out.print(f"Optuna: {count} trials in {optuna}: optuna-dashboard sqlite:///{optuna}", markup=False)
    if serve:
        _serve(run, port, open_=open_)
        return
    page = write_report(found)
    out.print(f"Report: {page}", markup=False, soft_wrap=True)
    if open_:
        webbrowser.open(page.resolve().as_uri())


def _serve(folder: Path, port: int | None, *, open_: bool) -> None:
    import webbrowser

    from kdtune.report.live import serving

    with serving(folder, port) as server:
        typer.echo(f"Report: {server.url} (Ctrl-C ends it)")
        if open_:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")


def _so_far(run: "Run") -> list[str]:
    from kdtune.cli.progress import short_config
    from kdtune.report.sections.outcome import so_far

    over = run.single and run.trials["status"].isin(["complete", "diverged"]).any()
    again = "" if over else f" The same `kdtune {'train' if run.single else 'search'}` goes on with it."
    if run.single:
        return [so_far(run) + again]
    trials = run.trials.assign(full=run.trials["status"] == "complete")
    best = trials.sort_values(["full", "val_accuracy"], ascending=False, kind="stable").head(SHOWN)
    return [
        so_far(run) + again,
        *(
            f"trial {one.trial}  {one.val_accuracy:7.2%}  epoch {one.epochs}/{one.planned}  "
            f"{short_config(run.configs[one.trial])}"
            for one in best.itertuples()
        ),
    ]
