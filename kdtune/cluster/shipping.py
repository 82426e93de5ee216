"""What a search takes along: the working folder, the experiment as resolved, and what that names: checkpoints, and
records of former searches.

    shipment = resolve(experiment, Path.cwd())
    pack(shipment, Path.cwd(), target)             # target: a .zip file, the working directory of the job

Left out is what .gitignore (up to the top of the repository) and .rayignore name, what may hold a secret, and what a
cluster has no use for: runs, caches, data sets, virtual environments, .git, and kdtune itself, which travels as a
module. The same content gives the same bytes, so that Ray uploads it once.
"""

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.thirdparty.pathspec import PathSpec  # type: ignore[attr-defined]

import kdtune
from kdtune.errors import ClusterError, ExperimentError, Problem
from kdtune.experiment import Experiment, dump, parse
from kdtune.experiment.images import DOWNLOADABLE
from kdtune.experiment.values import plain

LARGEST = DASHBOARD_CLIENT_MAX_SIZE  # bytes of an upload, compressed; Ray's job server refuses more
TOO_LARGE_TO_TRY = 10 * LARGEST  # no compression helps
OURS = ".kdtune"  # in the shipped folder: the experiment, and checkpoints from elsewhere
EXPERIMENT = f"{OURS}/experiment.yaml"
RECORDS = ("experiment.yaml", "trials.jsonl")  # of a former search: what it is known by
GIT_IGNORE = ".gitignore"
IGNORE_FILES = (GIT_IGNORE, ".rayignore")
GIT = ".git"
NEVER = {GIT, ".hg", ".svn", "__pycache__", OURS}
SECRET = {".ssh", ".aws", ".ray", ".env"}  # keys and tokens, as of whoever searches from the home folder
SECRET_ENDS = (".pem", ".key")
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")  # what a virtual environment has at its top
PACKAGE = Path(kdtune.__file__).parent
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip archive's earliest date
Ignored = Callable[[Path], bool]


@dataclass(frozen=True)
class Shipment:
    """An experiment as the cluster will see it, and the files that go with it by their place in the folder."""

    experiment: Experiment
    files: dict[str, Path]

    @property
    def text(self) -> str:
        return dump(self.experiment)

    @cached_property
    def digest(self) -> str:
        """Tells one experiment from another; files that go with it count with their content."""
        hashing = hashlib.sha256(self.text.encode())
        for name in sorted(self.files):
            hashing.update(_content(self.files[name]))
        return hashing.hexdigest()[:16]


def check_data(experiment: Experiment) -> None:
    """Data sets are not shipped. Raises ClusterError where the experiment can only find its own on this machine."""
    data = experiment.data
    if data.root is not None and not data.download and not Path(data.root).is_absolute():
        raise ClusterError(
            f"data.root is {data.root!r}, a folder of this machine: data sets are not shipped. Put it where all nodes "
            f"find it and give that absolute path (--set data.root=/shared/{Path(data.root).name})"
            + (", or let it be fetched there (--set data.download=true)" if data.dataset in DOWNLOADABLE else "")
        )


def pack(shipment: Shipment, folder: Path, target: Path) -> None:
    """Writes the archive. Raises ClusterError where it is larger than Ray takes, naming what is largest."""
    files = {str(path.relative_to(folder)): path for path in files_of(folder, shipment.experiment)} | shipment.files
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > TOO_LARGE_TO_TRY:
        raise _too_large(folder, sum(sizes.values()), sizes)
    with zipfile.ZipFile(target, "w") as archive:
        _add(archive, EXPERIMENT, shipment.text.encode())
        for name in sorted(files):
            _add(archive, name, files[name].read_bytes(), files[name].stat().st_mode & 0o777)
    if target.stat().st_size > LARGEST:
        raise _too_large(folder, target.stat().st_size, sizes)


def _add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content, compresslevel=1)  # a checkpoint does not get smaller, however long one tries


def _too_large(folder: Path, size: int, sizes: dict[str, int]) -> ClusterError:
    by_top: Counter[str] = Counter()
    for name, one in sizes.items():
        top, _, rest = name.partition("/")
        by_top[f"{top}/" if rest and top != OURS else name] += one
    largest = "\n".join(f"  {one / 1e6:10,.1f} MB  {name}" for name, one in by_top.most_common(6))
    return ClusterError(
        f"{folder} is too large to be shipped: {size / 1e6:,.1f} MB, and Ray takes {LARGEST / 1e6:,.1f} MB "
        f"(compressed). The largest parts of it:\n{largest}\nName in .gitignore or .rayignore what the cluster does "
        f"not need. A large checkpoint goes to storage that all nodes share; `weights` is then its absolute path there"
    )


def files_of(folder: Path, experiment: Experiment) -> Iterator[Path]:
    """Every file of the working folder, an absolute path, that is shipped."""
    cache = experiment.cache
    names = ("runs", experiment.storage, experiment.data.root, cache.storage, cache.copies)
    apart = {(folder / name).resolve() for name in names if name is not None}
    yield from _walk(folder, _rules_above(folder), apart | {PACKAGE.resolve()})


def _rules_above(folder: Path) -> list[Ignored]:
    """Those of the repository that a folder belongs to, save where they name the folder itself."""
    upwards = [folder, *folder.parents]
    top = next((depth for depth, one in enumerate(upwards) if (one / GIT).exists()), 0)
    rules = [_rule(parent / GIT_IGNORE) for parent in upwards[1 : top + 1]]
    return [rule for rule in rules if rule is not None and not rule(folder)]


def _walk(folder: Path, ignored: list[Ignored], apart: set[Path]) -> Iterator[Path]:
    ignored = [*ignored, *(rule for name in IGNORE_FILES if (rule := _rule(folder / name)) is not None)]
    for entry in _entries(folder):
        path = Path(entry.path)
        if _never(entry.name) or path.resolve() in apart or any(rule(path) for rule in ignored):
            continue
        if entry.is_dir(follow_symlinks=False):
            if not any((path / mark).exists() for mark in ENVIRONMENT_MARKS):
                yield from _walk(path, ignored, apart)
        elif entry.is_file():  # links to folders are left out: they lead to disks that stay here
            yield path


def _never(name: str) -> bool:
    return name in NEVER | SECRET or name.endswith(SECRET_ENDS)


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise ClusterError(
            f"{folder} is in the working folder, but cannot be read; name it in .gitignore or .rayignore, or search "
            f"from another folder"
        ) from error


def _rule(file: Path) -> Ignored | None:
    """Whether an ignore file names a path below its own folder."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    patterns = PathSpec.from_lines("gitwildmatch", lines)  # type: ignore[no-untyped-call]

    def ignored(path: Path) -> bool:
        name = str(path.relative_to(file.parent))
        return bool(patterns.match_file(f"{name}/" if path.is_dir() else name))

    return ignored


def resolve(experiment: Experiment, folder: Path) -> Shipment:
    """The experiment with its checkpoints and former searches where they will lie in the shipped folder.

    A relative path inside the working folder stays as it is. An absolute path that this machine does not have is taken
    to be one of the cluster. Raises ExperimentError where a relative one is missing, ClusterError where the data set
    is only here.
    """
    check_data(experiment)
    raw = plain(experiment)
    sections = {f"teachers.{name}": section for name, section in raw["teachers"].items()}
    if isinstance(raw["teacher"], dict):
        sections["teacher"] = raw["teacher"]
    files, missing = {}, []
    for where, section in sections.items():
        if section["weights"] is None:
            continue
        path = folder / section["weights"]  # an absolute path stays one
        if path.is_file():
            section["weights"] = name = _place(section["weights"], path, folder)
            files[name] = path
        elif not Path(section["weights"]).is_absolute():
            missing.append(Problem(f"{where}.weights", f"no file {path}"))
    runs = raw["search"]["warm_start"]
    for k, run in enumerate(runs):
        path = folder / run
        if (path / RECORDS[0]).is_file():
            runs[k] = place = _place_of_run(run, path)
            files |= {f"{place}/{name}": path / name for name in RECORDS if (path / name).is_file()}
        elif not Path(run).is_absolute():
            missing.append(Problem("search.warm_start", f"no run in {path}"))
    if missing:
        raise ExperimentError(experiment.name, missing)
    return Shipment(parse(raw, experiment.name) if files else experiment, files)


def _place_of_run(given: str, path: Path) -> str:
    inside = Path(os.path.normpath(given))
    if not inside.is_absolute() and inside.parts[0] != "..":
        return str(inside)
    return f"{OURS}/runs/{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]}-{path.name}"


def _place(given: str, path: Path, folder: Path) -> str:
    inside = Path(os.path.normpath(given))
    if not inside.is_absolute() and inside.parts[0] != "..":
        return str(inside)
    return f"{OURS}/weights/{_content(path).hex()[:8]}-{path.name}"


def _content(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
