"""A run's folder: made for a new experiment, taken up again by the same one, never shared with another."""

import errno
import os
from pathlib import Path

from kdtune.errors import ExperimentError, RunError
from kdtune.experiment import Experiment, differences, dump, load
from kdtune.records import write_text


def claim(experiment: Experiment, suffix: str = "") -> Path:
    """The folder `<storage>/<name><suffix>` with experiment.yaml in it.

    Raises RunError where the folder holds another experiment (nothing is touched) or cannot be written.
    """
    folder = Path(experiment.storage) / f"{experiment.name}{suffix}"
    try:
        folder = folder.resolve()
        kept = folder / "experiment.yaml"
        if kept.exists():
            _check_same(experiment, kept)
        elif folder.exists() and any(entry.suffix != ".part" for entry in folder.iterdir()):
            raise RunError(f"{folder} exists and is no run of kdtune; choose another name (--set name=...) or move it")
        folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
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
