"""The command line, one file per command. Commands import torch and Ray inside, so that `--help` is instant.

`main` turns what a user can mend into a sentence on stderr and exit code 2; Ctrl-C into a hint and 130.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import kdtune
from kdtune.cli import (
    attach,
    cache,
    compare,
    doctor,
    evaluate,
    export,
    fetch,
    init,
    listing,
    logs,
    plan,
    predict,
    report,
    schema,
    search,
    status,
    stop,
    teacher,
    train,
)
from kdtune.errors import KdtuneError

app = typer.Typer(
    name="kdtune",
    no_args_is_help=True,
    invoke_without_command=True,  # for --version
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # half of the time that --help would take
    help="Searches temperature, alpha, feature weight and schedules of knowledge distillation.",
)


@app.callback()
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"kdtune {kdtune.__version__}")
        raise typer.Exit


app.command("search")(search.search)
app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
for command in (attach.attach, status.status, logs.logs, stop.stop, fetch.fetch):
    app.command()(command)
app.command("train")(train.train)
app.command("teacher")(teacher.teacher)
app.add_typer(cache.app, name="cache")
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("list")(listing.list_known)
app.command("schema")(schema.schema)

ELSEWHERE = (
    "Check its permissions, or set storage (of a cache: cache.storage) to a folder that you can write "
    "(--set storage=DIR)"
)
NAMES = {
    errno.EISDIR: "A folder of that name is there; give the name of a file",
    errno.ENOTDIR: "A file lies where a folder has to be; give another name",
    errno.EEXIST: "Something of that name is there already; give another name",
}
# What the operating system refuses and a user can mend; any other OSError is a bug and shows its traceback.
MENDABLE = {
    **NAMES,
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EROFS: ELSEWHERE,
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits: 0 done, 2 something to mend, 130 stopped by Ctrl-C."""
    # before torch is imported: on a busy machine waiting threads that spin make small networks several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="kdtune")
    except KdtuneError as error:
        typer.echo(f"error: {error}", err=True)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        place = error.filename or "writing"
        then = "" if error.errno in NAMES else "; the same command then takes up what is finished"
        typer.echo(f"error: {place}: {error.strerror}. {MENDABLE[error.errno]}{then}", err=True)
    sys.exit(2)
