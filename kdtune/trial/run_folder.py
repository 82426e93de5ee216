"""A run's folder: made for a new experiment, taken up again by the same one, never shared with another."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdtune.data import Dataset
from kdtune.errors import ExperimentError, RunError
from kdtune.experiment import Experiment, differences, dump, load
from kdtune.records import locked, write_text
from kdtune.teacher import Teacher


def claim(experiment: Experiment, suffix: str = "") -> Path:
    """The folder `<storage>/<name><suffix>` with experiment.yaml in it.

    Raises RunError where the folder holds another experiment (nothing is touched) or cannot be written.
    """
    folder = Path(experiment.storage) / f"{experiment.name}{suffix}"
    try:
        folder = folder.resolve()
        kept = folder / "experiment.yaml"
        bare = not folder.exists() or all(map(_is_ours, folder.iterdir()))
        if kept.exists() and not bare:
            _check_same(experiment, kept)
        elif not bare:
            raise RunError(f"{folder} exists and is no run of kdtune; choose another name (--set name=...) or move it")
        folder.mkdir(parents=True, exist_ok=True)
        if bare:  # nothing has come of it yet: a mistake in the file may be corrected
            with at_work(folder):  # unless a run is just beginning in it
                write_text(kept, dump(experiment))
        elif not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"cannot write the run folder {folder}: {getattr(error, 'strerror', None) or error}. "
            f"Set storage to a folder that you can write (--set storage=DIR)"
        ) from error
    return folder


def _is_ours(entry: Path) -> bool:
    """Whether it is what a claim itself leaves in a folder."""
    return entry.name in ("experiment.yaml", ".lock") or entry.suffix == ".part"


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Holds the run folder for this process. Raises RunError while another process works in it."""
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except BlockingIOError as error:
        raise RunError(f"another kdtune is at work in {folder}; wait for it, or choose another name") from error


def remember(folder: Path, dataset: Dataset, teacher: Teacher) -> None:
    """Writes down what the run is made of. Raises RunError where it was begun with other data or another teacher."""
    made_of = {
        "dataset": dataset.fingerprint,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "teacher": teacher.fingerprint,
    }
    path = folder / "materials.json"
    if not path.exists():
        write_text(path, json.dumps(made_of, indent=2))
    check_materials(folder, made_of)


def check_materials(folder: Path, made_of: Mapping[str, object]) -> None:
    """Raises RunError that names what differs from `materials.json`: files were replaced under the same path."""
    known = json.loads((folder / "materials.json").read_text())
    differ = [name for name, value in made_of.items() if known.get(name) != value]
    if differ:
        raise RunError(
            f"{folder} was begun with another {' and '.join(differ)}: the files have changed since. "
            f"Put them back, or choose another name (--set name=...)"
        )


def _check_same(experiment: Experiment, kept: Path) -> None:
    try:
        found = load(kept)
    except ExperimentError as error:
        raise RunError(
            f"{kept.parent} holds an experiment that this version cannot read; choose another name "
            f"(--set name=...).\n{error}"
        ) from error
    different = differences(experiment, found)
    if different:
        shown = "\n".join(f"  - {line}" for line in different[:12])
        more = f"\n  and {len(different) - 12} more" if len(different) > 12 else ""
        raise RunError(
            f"{kept.parent} already holds another experiment; nothing was changed. This file against that "
            f"one:\n{shown}{more}\nChoose another name (--set name=...), or remove that folder"
        )


def read_run(folder: Path) -> Experiment:
    """The experiment of an existing run folder. Raises RunError where it is none."""
    if not (folder / "experiment.yaml").exists():
        raise RunError(f"{folder} is no run folder: it has no experiment.yaml")
    return load(folder / "experiment.yaml")
