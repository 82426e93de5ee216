"""A run's folder: made for a new experiment, taken up again by the same one, never shared with another."""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtune.cache import mark_used
from kdtune.data import Dataset
from kdtune.errors import CacheError, ExperimentError, RunError, TeacherError
from kdtune.experiment import Experiment, differences, dump, load
from kdtune.experiment.chain import assistant, in_order, searched_assistants, settled
from kdtune.records import TrialRecord, locked, read_object, read_trials, write_text
from kdtune.storage import OWNER, Mirror, below, is_uri, local_root, mirrored
from kdtune.teacher import Teacher
from kdtune.trial.materials import Materials

log = logging.getLogger(__name__)

COLUMNS = "columns"  # in materials.json
SINGLE = "-train"  # ends the name of the folder of one configuration that is trained without a search
STATES = "states"  # folder of what trials go on from: any node writes there
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def claim(experiment: Experiment, suffix: str = "") -> Path:
    """The folder `<storage>/<name><suffix>` with experiment.yaml in it; of an object store, its mirror here.

    Raises RunError where the folder holds another experiment (nothing is touched) or cannot be written.
    """
    folder = local_root(experiment.storage) / f"{experiment.name}{suffix}"
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
    return entry.name in ("experiment.yaml", ".lock", OWNER) or entry.suffix == ".part"


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Holds the run folder for this process. Raises RunError while another process works in it."""
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except BlockingIOError as error:
        raise RunError(f"another kdtune is at work in {folder}; wait for it, or choose another name") from error


@contextmanager
def working(experiment: Experiment, suffix: str = "") -> Iterator[tuple[Path, Mirror | None]]:
    """The run folder, claimed and held for this process; with its mirror, where the storage is an object store.

    Raises RunError like `claim` and `at_work`.
    """
    with ExitStack() as stack:
        mirror = None
        if is_uri(experiment.storage):
            name = f"{experiment.name}{suffix}"
            folder = local_root(experiment.storage) / name
            mirror = stack.enter_context(mirrored(below(experiment.storage, name), folder, apart=(STATES,)))
        folder = claim(experiment, suffix)
        stack.enter_context(at_work(folder))
        if differences(experiment, read_run(folder)):  # it asks for more
            write_text(folder / "experiment.yaml", dump(experiment))
        yield folder, mirror


def made_of(dataset: Dataset, teachers: Mapping[str, Teacher] | None = None) -> dict[str, object]:
    """What results depend on besides the experiment: fingerprints of the data and of the teachers by name."""
    found: dict[str, object] = {
        "dataset": dataset.fingerprint,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
    return found | {f"teacher {name}": teacher.fingerprint for name, teacher in (teachers or {}).items()}


def remember(folder: Path, materials: Materials) -> None:
    """Writes down what the run is made of. Raises RunError where it was begun with other data or another teacher."""
    found = made_of(materials.dataset, materials.teachers)
    path = folder / "materials.json"
    if not path.exists():
        write_text(path, json.dumps({**found, COLUMNS: materials.columns}, indent=2))
    check_materials(folder, found)
    for place in materials.caches.values():
        try:
            mark_used(place, folder)
        except (OSError, CacheError) as error:
            if isinstance(error, OSError) and error.errno not in READ_ONLY:
                raise
            log.warning("cannot note in %s that this run uses it, so pruning may remove it: %s", place.address, error)


def columns_of(folder: Path) -> int | None:
    """View columns of the caches of a run that was begun already, so that it goes on with as many."""
    path = folder / "materials.json"
    if not path.exists():
        return None
    columns: int | None = read_object(path).get(COLUMNS)
    return columns


def check_materials(folder: Path, found: Mapping[str, object]) -> None:
    """Raises RunError that names what differs from `materials.json` (files were replaced under the same path), or
    where that cannot be read."""
    try:
        known = read_object(folder / "materials.json")
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no materials.json, which says what data it was trained on; copy the whole run folder, or "
            f"give the same `kdtune search` again, which writes it"
        ) from None
    differ = [name for name, value in found.items() if known.get(name) != value]
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
    different = differences(experiment, _going_as_far(found, experiment))
    if different:
        shown = "\n".join(f"  - {line}" for line in different[:12])
        more = f"\n  and {len(different) - 12} more" if len(different) > 12 else ""
        raise RunError(
            f"{kept.parent} already holds another experiment; nothing was changed. This file against that "
            f"one:\n{shown}{more}\nChoose another name (--set name=...), or remove that folder"
        )


def _going_as_far(found: Experiment, experiment: Experiment) -> Experiment:
    """The experiment of a run with another's limits, if its search can go on with them: trials are never taken back,
    and a population gets no more members once the states that these would go on from are gone. Who is told of it may
    change at any time."""
    limits: dict[str, object] = {"budget": experiment.search.budget}
    if experiment.search.trials >= found.search.trials > 0 and found.search.stopper.kind != "population":
        limits["trials"] = experiment.search.trials
    search = found.search.model_copy(update=limits)
    return found.model_copy(update={"search": search, "tracking": experiment.tracking})


@dataclass(frozen=True)
class Found:
    """What a search has found: its trials, the one that won, and trials, stopped_early and seconds of its outcome."""

    trials: Sequence[TrialRecord]
    best: TrialRecord
    outcome: Mapping[str, Any]


def asked(experiment: Experiment) -> dict[str, Any]:
    """How far a search goes: what may be raised later, to go on with it."""
    return {"trials": experiment.search.trials, **experiment.search.budget.model_dump()}


def finished(folder: Path, experiment: Experiment) -> bool:
    """Whether the run is over, with as much search as the experiment asks for."""
    if not (folder / "summary.json").exists() or not (folder / "student").exists():
        return False
    return not experiment.search.trials or winner_of(folder, experiment) is not None


def winner_of(folder: Path, experiment: Experiment) -> Found | None:
    """What a search that is over has found; None while it is not over, or where the experiment asks for more."""
    try:
        outcome = read_object(folder / "final" / "winner.json")
    except FileNotFoundError:
        return None
    if outcome.get("asked", asked(experiment)) != asked(experiment):  # an earlier version did not say
        return None
    trials = read_trials(folder / "trials.jsonl")
    return Found(trials, next(trial for trial in trials if trial.trial == outcome["trial"]), outcome)


def assistant_folder(experiment: Experiment, name: str) -> Path:
    """Where the search of an assistant is kept: inside the run's own folder."""
    return local_root(experiment.storage).resolve() / experiment.name / "assistants" / name


def with_assistants(experiment: Experiment) -> Experiment:
    """The experiment with what the searches of its assistants have found. Raises TeacherError before they have run."""
    begun = experiment
    for name in searched_assistants(experiment):
        folder = assistant_folder(experiment, name)
        found = winner_of(folder, assistant(experiment, name))
        if found is None:
            raise TeacherError(f"the assistant {name!r} is found by a search of its own; run `kdtune search` first")
        if begun is experiment:
            begun = read_run(folder.parents[1])
        if not _search_alike(experiment, begun, name):
            raise RunError(
                f"{folder} is of another search for the assistant {name!r}: data, teacher or settings have changed. "
                f"Undo that, or choose another name (--set name=...) and run `kdtune search`"
            )
        experiment, begun = (settled(one, name, found.best.config) for one in (experiment, begun))
    return experiment


def _search_alike(one: Experiment, other: Experiment, name: str) -> bool:
    """Whether both describe the same search for an assistant: what is found by one holds for the other."""
    if name not in searched_assistants(other):
        return False
    children = [assistant(experiment, name) for experiment in (one, other)]
    first, second = (
        [child.data, child.student, child.train, child.distill, child.search]
        + [(above, child.all_teachers[above]) for above in in_order(child)]
        for child in children
    )
    return first == second


def read_run(folder: Path) -> Experiment:
    """The experiment of an existing run folder. Raises RunError where it is none."""
    if not folder.exists():
        raise RunError(f"there is no folder {folder}. Give that of a run, such as runs/digits")
    if not (folder / "experiment.yaml").exists():
        raise RunError(f"{folder} is no run folder: it has no experiment.yaml")
    return load(folder / "experiment.yaml")
