"""What the nodes of a cluster share: where an experiment's storage lies, and whether every node sees it.

experiment = on_cluster(experiment)      # a relative storage below $KDTUNE_STORAGE, else ~/kdtune if no nodes may come
check_seen(folder)                       # with Ray running
leave_link(folder)                       # ~/.kdtune/runs/<name>, for whoever fetches the run and knows only its name
"""

import os
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.errors import StorageError
from kdtune.experiment import Experiment
from kdtune.experiment.caching import check_storage
from kdtune.records import PART
from kdtune.search.session import NODES
from kdtune.storage import below, folder_of

STORAGE = "KDTUNE_STORAGE"
APPEARS_S = 5.0  # a file written on one node is seen by the others within this time


def on_cluster(experiment: Experiment) -> Experiment:
    """The experiment with its relative folders where all nodes find them. Raises StorageError over KDTUNE_STORAGE."""
    shared = os.environ.get(STORAGE) or _at_home(experiment)
    try:
        check_storage(shared)
    except ValueError as error:
        raise StorageError(f"{STORAGE}: {error}") from error
    folder = folder_of(shared)
    if folder is not None and not folder.is_absolute():
        raise StorageError(
            f"{STORAGE} is {shared!r}: expected an absolute folder that all nodes share, or an address such as "
            f"s3://bucket/kdtune. Correct it where the nodes are started"
        )
    cache = experiment.cache
    if cache.storage is not None:
        cache = cache.model_copy(update={"storage": _placed(shared, cache.storage)})
    return experiment.model_copy(update={"storage": _placed(shared, experiment.storage), "cache": cache})


def _at_home(experiment: Experiment) -> str:
    """A folder of this machine. Raises StorageError where nodes may come that cannot be asked whether they see it."""
    relative = [one for one in (experiment.storage, experiment.cache.storage) if one and _relative(one)]
    if relative and os.environ.get(NODES):
        raise StorageError(
            f"the storage {relative[0]!r} would lie in this machine's home folder, and nodes that the cluster grows by "
            f"would not see it. Set {STORAGE} where the nodes are started: an address (s3://bucket/kdtune), or a "
            f"folder that is mounted on all of them"
        )
    return str(Path.home() / "kdtune")


def _placed(shared: str, storage: str) -> str:
    folder = _relative(storage)
    return below(shared, folder.as_posix()) if folder else storage


def _relative(storage: str) -> Path | None:
    """The folder that an address names relative to another; None for a whole address."""
    folder = folder_of(storage)
    return None if folder is None or folder.is_absolute() else folder


def check_seen(folder: Path) -> None:
    """Raises StorageError that names the nodes which cannot write a folder that this one can."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    if len(nodes) < 2:
        return
    marker = folder / f".{uuid.uuid4().hex}.seen{PART}"
    marker.write_text("")
    look: Any = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        asked = {
            name: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(marker)
            for name in nodes
        }
        blind = sorted({nodes[name] for name, answer in asked.items() if not _answered(answer)})
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise StorageError(
            f"{folder} is a folder of this machine, which {len(blind)} of {len(nodes)} nodes cannot see or write: "
            f"{', '.join(blind[:8])}. Trials on them could not save anything. Mount one folder on all nodes and set "
            f"{STORAGE} to it where they are started, or use an address (s3://bucket/kdtune)"
        )


def _answered(answer: Any) -> bool:
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError:  # a node that was lost meanwhile is no reason
        return True


def _sees(marker: Path) -> bool:
    began = time.monotonic()
    while not marker.exists():
        if time.monotonic() - began > APPEARS_S:
            return False
        time.sleep(0.2)
    return os.access(marker.parent, os.W_OK)


def leave_link(folder: Path) -> None:
    """`~/.kdtune/runs/<name>`, which leads to the run folder."""
    links = Path.home() / ".kdtune" / "runs"
    links.mkdir(parents=True, exist_ok=True)
    fresh = links / f".{uuid.uuid4().hex}{PART}"
    fresh.symlink_to(folder)
    fresh.replace(links / folder.name)
