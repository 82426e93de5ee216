"""Caches as a whole: which there are, how big, who uses them; and those that nobody uses any more.

    kept, others = caches_in("runs/.caches")        # `others`: folders that are no caches
    for one in to_remove(kept, keys=(), finished=False): remove(one.kept)

A run on another machine cannot be looked at from here, so it counts as one that goes on.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdtune.cache.identity import KEY, MANIFEST, Manifest
from kdtune.cache.logits import COLUMN, SEAL, Place, read_manifest
from kdtune.cache.store import Store, store_at
from kdtune.errors import CacheError, nearest
from kdtune.storage import below, names_below

USED_BY = "used-by-"  # begins the name of a file that names a run
ENDED = ("summary.json", "student/config.json")  # what a search leaves at its end, and `kdtune train`
SHORTEST_KEY = 8
NAMED = "named on the command line"

State = Literal["finished", "unfinished", "gone", "elsewhere"]


@dataclass(frozen=True)
class User:
    """A run that has used a cache."""

    run: str  # its folder
    host: str

    @property
    def name(self) -> str:
        return self._whole.name if self._whole == Path(self.run) else f"{self._whole.name}/{Path(self.run).name}"

    @property
    def state(self) -> State:
        """What has become of its folder; of one on another machine nothing is known."""
        if self.host != platform.node():
            return "elsewhere"
        if not Path(self.run).exists():
            return "gone"
        return "finished" if any((self._whole / name).exists() for name in ENDED) else "unfinished"

    @property
    def _whole(self) -> Path:
        """The folder of the whole run, where the search of an assistant is a part of it."""
        folder = Path(self.run)
        return folder.parents[1] if folder.parent.name == "assistants" else folder


def mark_used(place: Place, run: Path) -> None:
    """Writes down that a run uses a cache."""
    user = User(str(run), platform.node())
    name = USED_BY + hashlib.sha256(f"{user.host}:{user.run}".encode()).hexdigest()[:16]
    store_at(place.address).write(name, json.dumps({"run": user.run, "host": user.host}).encode())


@dataclass(frozen=True)
class Kept:
    """A cache as it lies in a storage; one that is damaged or of another version has no manifest but `trouble`."""

    store: Store
    key: str
    manifest: Manifest | None
    trouble: str
    columns: int
    bytes: int  # of all its files
    users: tuple[User, ...]

    @property
    def address(self) -> str:
        return self.store.address


def caches_in(storage: str) -> tuple[list[Kept], list[str]]:
    """The caches of a folder or address, and the names of folders there that are none."""
    found = {name: _look(below(storage, name), name) for name in names_below(storage)}
    return [kept for kept in found.values() if kept], [name for name, kept in found.items() if kept is None]


def _look(address: str, name: str) -> Kept | None:
    """None where it is no cache: what is listed may be removed, so a name that kdtune did not give rules it out."""
    if not KEY.fullmatch(name):
        return None
    store = store_at(address)
    sizes = store.sizes()
    columns = [file for file in sizes if COLUMN.fullmatch(file)]
    if MANIFEST not in sizes and not columns:
        return None
    manifest, trouble = None, ""
    try:
        manifest = read_manifest(store)
        if manifest is None:
            trouble = "it has no manifest.json"
        elif manifest.identity.key != name:
            trouble = f"its manifest.json is that of {manifest.identity.key}"
    except CacheError:
        trouble = "its manifest.json is damaged or of another version"
    seals = {file.removesuffix(".json") for file in sizes if SEAL.fullmatch(file)}
    there = sum(file.removesuffix(".arrow") in seals for file in columns)
    return Kept(store, name, manifest, trouble, there, sum(sizes.values()), users_of(store))


def users_of(store: Store) -> tuple[User, ...]:
    """The runs that have used a cache, by name."""
    found = []
    for name in store.sizes():
        content = store.read(name) if name.startswith(USED_BY) else None
        if content is not None:
            try:
                found.append(User(**json.loads(content)))
            except (ValueError, TypeError):  # a user that cannot be known is one that goes on
                found.append(User(f"unknown ({name} is damaged)", "unknown"))
    return tuple(sorted(found, key=lambda user: user.name))


@dataclass(frozen=True)
class Removal:
    """A cache that may go, and why; or why it stays nevertheless."""

    kept: Kept
    why: str
    busy: bool = False


def to_remove(caches: Sequence[Kept], keys: Sequence[str], *, finished: bool) -> list[Removal]:
    """The caches named by `keys` (a beginning that only one has will do); without any, those that no run uses.

    With `finished` also those whose runs are all finished. Where a process computes a column now, `busy` says so.
    Raises CacheError over keys that are unknown or meant for several.
    """
    if keys:
        chosen = {one.key: (one, NAMED) for one in _named(caches, keys)}
    else:
        chosen = {one.key: (one, why) for one in caches if (why := _why_unused(one, finished=finished))}
    return [Removal(one, why, one.store.busy()) for one, why in chosen.values()]


def _why_unused(kept: Kept, *, finished: bool) -> str:
    """Empty where it is in use."""
    states = {user.state for user in kept.users}
    if states <= {"gone"}:
        return "all its runs are gone" if states else "no run has used it"
    if finished and states <= {"gone", "finished"}:
        return "all its runs are finished"
    return ""


def _named(caches: Sequence[Kept], keys: Iterable[str]) -> list[Kept]:
    known, found, problems = [one.key for one in caches], [], []
    for key in keys:
        meant = [one for one in caches if one.key.startswith(key)] if key else []
        if len(meant) == 1:
            found += meant
        elif meant:
            problems.append(f"{key!r} begins {len(meant)} keys: {', '.join(one.key for one in meant)}")
        else:
            there = f"there are {', '.join(known)}" if known else "there is none at all"
            problems.append(f"no cache has the key {key!r}; {there}.{nearest(key, known)}")
    if problems:
        raise CacheError("\n".join(problems))
    return found


def short_keys(caches: Sequence[Kept]) -> dict[str, str]:
    """By whole key: as much of its beginning as tells it from the others."""
    keys = [one.key for one in caches]
    length = next(n for n in range(SHORTEST_KEY, 17) if len({key[:n] for key in keys}) == len(keys))
    return {key: key[:length] for key in keys}


def remove(kept: Kept) -> None:
    """Removes a cache; its manifest goes first, so that one that is half gone is not taken for a whole one."""
    kept.store.remove(MANIFEST)
    kept.store.remove()
