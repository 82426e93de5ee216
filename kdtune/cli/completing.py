"""What a shell is offered for the beginning of a word: runs, students, models, data sets (`--install-completion`).

    run: Annotated[Path, typer.Argument(autocompletion=runs)]

Each is a function of what was typed. It is called at every press of TAB, and imports neither torch nor Ray.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

RUNS = Path("runs")  # where `storage` lies by default, from here


def runs(incomplete: str) -> list[str]:
    """Run folders in runs/, and folders that lead to others."""
    return _folders(incomplete, "", "experiment.yaml")


def students(incomplete: str) -> list[str]:
    """Export folders of runs in runs/, and folders and files that what was typed leads to."""
    beside = [text for text, path in _beginning_with(incomplete) if path.is_file()] if incomplete else []
    return [*_folders(incomplete, "student", "config.json"), *beside]


def searches(incomplete: str) -> list[str]:
    """Names of searches that went from here to a cluster."""
    folders = [file.parent for depth in ("*/*", "*/*/*") for file in Path().glob(f"{depth}/cluster.json")]
    return sorted({folder.name for folder in folders if folder.name.startswith(incomplete)})


def models(incomplete: str) -> list[str]:
    """Of the zoo."""
    from kdtune.experiment.networks import MODEL_NAMES

    return [name for name in MODEL_NAMES if name.startswith(incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Names that `data.dataset` takes."""
    from kdtune.experiment.images import DatasetName

    return [name for name in get_args(DatasetName) if name.startswith(incomplete)]


def _folders(incomplete: str, inside: str, mark: str) -> list[str]:
    """Folders with the file `mark` in them, `inside` of those in runs/ or beginning with what was typed; of that, other
    folders with a slash, so that the next TAB looks there."""
    found = [str(path / inside) for path in sorted(RUNS.glob("*")) if (path / inside / mark).is_file()]
    found = [path for path in found if path.startswith(incomplete)]
    below = [(text, path) for text, path in _beginning_with(incomplete) if path.is_dir()]
    typed = [text if (path / mark).is_file() else f"{text}/" for text, path in below] if incomplete or not found else []
    return list(dict.fromkeys([*found, *typed]))


def _beginning_with(incomplete: str) -> Iterator[tuple[str, Path]]:
    """What lies in the folder that was typed and begins with the rest of it, as it would be typed, and where it is.

    Hidden files only where they are meant; nothing of a folder that cannot be read.
    """
    above, slash, rest = incomplete.rpartition("/")
    try:
        folder = Path(f"{above}{slash}" or ".").expanduser()
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
    except (OSError, RuntimeError):  # RuntimeError: ~somebody who is not there
        return
    for path in inside:
        if path.name.startswith(rest) and (rest.startswith(".") or not path.name.startswith(".")):
            yield f"{above}{slash}{path.name}", path
