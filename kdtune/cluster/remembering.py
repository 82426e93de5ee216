"""What this machine knows of a search on a cluster: `cluster.json` in its local run folder.

    {"name": "digits", "cluster": "/home/me/cluster.yaml", "job": "kdtune-digits-1f0c9a-1", "digest": "1f0c9a...", ...}

So a search is taken up again by name, from another terminal or after the laptop was restarted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdtune.cluster.files import ClusterFile, read_cluster_file
from kdtune.errors import ClusterError, nearest
from kdtune.experiment import Experiment
from kdtune.records import write_text

FILE = "cluster.json"
RUNS = Path("runs")


@dataclass(frozen=True)
class Remembered:
    """A search on a cluster; `folder` is the run folder on this machine, where results come to."""

    folder: Path
    name: str
    cluster: Path
    job: str
    digest: str  # of the experiment as it was shipped
    fetched: bool = False

    def write(self) -> "Remembered":
        self.folder.mkdir(parents=True, exist_ok=True)
        fields = {name: value for name, value in vars(self).items() if name != "folder"}
        write_text(self.folder / FILE, json.dumps(fields | {"cluster": str(self.cluster)}, indent=2))
        return self

    def with_results(self) -> "Remembered":
        return replace(self, fetched=True).write()

    def cluster_file(self) -> ClusterFile:
        try:
            return read_cluster_file(self.cluster)
        except ClusterError as error:
            raise ClusterError(f"the search {self.name} has a cluster file that cannot be used: {error}") from error


def local_folder(experiment: Experiment) -> Path:
    """Where results come to on this machine; a storage that is the cluster's own says nothing about this one."""
    storage = Path(experiment.storage)
    shared = storage.is_absolute() or "://" in experiment.storage
    return (RUNS if shared else storage) / experiment.name


def recall(folder: Path) -> Remembered | None:
    """What is remembered in a run folder. Raises ClusterError where that cannot be read."""
    try:
        raw = json.loads((folder / FILE).read_text())
        return Remembered(folder, raw["name"], Path(raw["cluster"]), raw["job"], raw["digest"], raw["fetched"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ClusterError(f"{folder / FILE} was edited or damaged; remove it, and search again") from error


def known() -> tuple[list[Remembered], dict[Path, ClusterError]]:
    """Every search of the current folder that went to a cluster, and what is wrong with run folders that are damaged.

    Run folders lie in an experiment's `storage`: looked for are those of one folder's name (runs) or two (out/runs).
    """
    found, damaged = list[Remembered](), dict[Path, ClusterError]()
    here = Path()
    for file in sorted([*here.glob(f"*/*/{FILE}"), *here.glob(f"*/*/*/{FILE}")]):
        try:
            search = recall(file.parent)
        except ClusterError as error:
            damaged[file.parent] = error
        else:
            found += [search] if search is not None else []
    return found, damaged


def find(name: str | None) -> Remembered:
    """By name or run folder; without one, the only one that has not been fetched, or the only one at all."""
    searches, damaged = known()
    if name is None:
        return _only_one(searches, damaged)
    found = [one for one in searches if one.name == name]
    if len(found) > 1:
        folders = ", ".join(str(one.folder) for one in found)
        raise ClusterError(f"several searches are called {name}: give the run folder of one of them: {folders}")
    for folder, error in damaged.items():
        if not found and folder.name == name:
            raise error
    search = found[0] if found else recall(Path(name))
    if search is None:
        names = [one.name for one in searches]
        raise ClusterError(
            f"no search {name!r} was begun on a cluster from this folder.{_those(names)}" + nearest(name, names)
        )
    return search


def _only_one(searches: list[Remembered], damaged: dict[Path, ClusterError]) -> Remembered:
    if damaged and not searches:
        raise next(iter(damaged.values()))
    open_ones = [one for one in searches if not one.fetched] or searches
    if not open_ones:
        raise ClusterError(
            f"no search was sent to a cluster from this folder, {Path.cwd()}. Of one on this machine `kdtune report "
            f"runs/NAME` tells how far it is"
        )
    if len(open_ones) != 1:
        raise ClusterError(f"which search? Give its name.{_those([one.name for one in open_ones])}")
    return open_ones[0]


def _those(names: Sequence[str]) -> str:
    return f" There are: {', '.join(names)}." if names else f" There are none in {Path.cwd()}."
