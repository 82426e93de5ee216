"""What several commands take: an experiment file, and `--set path=value`."""

import gc
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.completing import students

if TYPE_CHECKING:
    from kdtune.experiment import Experiment

File = Annotated[
    Path | None,
    typer.Argument(help="Experiment file (YAML); without one, the built-in digits experiment.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        show_default=False,
        help="Override a field, e.g. --set train.epochs=30. May be repeated.",
    ),
]

Student = Annotated[
    Path,
    typer.Argument(
        help="An export folder such as runs/digits/student, or a file of it (.onnx, .pt2, .torchscript, .safetensors).",
        show_default=False,
        autocompletion=students,
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Open what can run code: a .pt2, a .torchscript, a model of somebody's code."),
]


def read(file: Path | None, overrides: list[str] | None, warm_start: list[str] | None = None) -> "Experiment":
    """The experiment of a command line, the searches of `warm_start` after those that the file names."""
    from kdtune.experiment import load, parse
    from kdtune.experiment.values import plain

    path = file or default_file()
    experiment = load(path, overrides or ())
    if not warm_start:
        return experiment
    runs = (*experiment.search.warm_start, *warm_start)
    search = experiment.search.model_copy(update={"warm_start": tuple(dict.fromkeys(runs))})
    return parse(plain(experiment.model_copy(update={"search": search})), str(path))


def default_file() -> Path:
    """search_spaces/digits.yaml: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "search_spaces" / "digits.yaml"
    return installed if installed.exists() else package.parent / "search_spaces" / "digits.yaml"


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a command that trains. What they make stays: to look for garbage among it again and again
    takes a sixth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def resumable(*, hint: bool = True) -> Iterator[None]:
    """Ctrl-C says how to go on, and exits 130."""
    try:
        yield
    except KeyboardInterrupt:
        command = f"\n  {shlex.join(['kdtune', *sys.argv[1:]])}" if hint else ""
        typer.echo(f"\nStopped; what has finished is kept. The same command takes it up again{command}", err=True)
        raise typer.Exit(130) from None
