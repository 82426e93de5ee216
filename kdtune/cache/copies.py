"""Copies of columns on a node's own disk: each is copied once, whatever the number of trials that read it.

copies = Copies(Path("/scratch/kdtune"), store, key="4f1c...")
path = copies.get("00003.arrow", sha256)          # made now if there is none
copies.check("00003.arrow", sha256)               # reads every byte; a damaged copy is made again
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kdtune.cache.columns import DamagedError, Hashing, hash_of
from kdtune.cache.identity import KEY, MANIFEST
from kdtune.cache.store import Store, store_at
from kdtune.errors import CacheError
from kdtune.records import PART, locked, write_text, writing

ORIGIN = "origin"  # the file that says of which cache they are copies: its address
LOCK = ".lock"


def default_copies() -> Path:
    """Where copies go unless `cache.copies` says otherwise: a folder of this user's, in the system's temporary one.

    Raises CacheError where others may write to it: they could change what students learn.
    """
    mine = Path(tempfile.gettempdir()) / f"kdtune-{os.getuid()}"
    if not os.path.lexists(mine):
        mine.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = mine.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"{mine} should be a folder of this user's to which nobody else can write. Remove it, or set cache.copies "
            f"to another folder on this machine's disk"
        )
    return mine / "columns"


class Copies:
    """The copies of one cache."""

    def __init__(self, folder: Path, store: Store, key: str) -> None:
        self.folder = folder / key
        self.store = store

    def get(self, name: str, sha256: str) -> Path:
        """The copy of a file, made now if there is none; a second process waits for the first.

        Raises DamagedError where what arrives is not what was written.
        """
        path = self.folder / name
        if not path.exists():  # a copy that is there is whole: nobody waits for it while others are made
            with self._mine(name):
                if not path.exists():
                    self._fetch(path, sha256)
        return path

    def check(self, name: str, sha256: str) -> None:
        """Sees to it that the copy of a file is right in every byte. Raises DamagedError like `get`."""
        path = self.folder / name
        if path.exists() and hash_of(path) == sha256:
            return
        with self._mine(name):
            if not path.exists() or hash_of(path) != sha256:  # not mended by another process meanwhile
                self._fetch(path, sha256)

    @contextmanager
    def _mine(self, name: str) -> Iterator[None]:
        """Each copy has its own lock, so that columns need not wait for each other."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / f".{name}{LOCK}"):
            for cut in self.folder.glob(f".{name}.*{PART}"):  # whoever fetched it was killed
                cut.unlink()
            yield

    def _fetch(self, path: Path, sha256: str) -> None:
        with writing(path) as file:
            arriving = Hashing(file)
            try:
                self.store.copy(path.name, arriving)
            except FileNotFoundError as error:
                raise DamagedError(
                    f"{self.store.address} has no {path.name}, only its seal. `kdtune cache build` computes it again"
                ) from error
            if arriving.digest.hexdigest() != sha256:
                raise DamagedError(
                    f"{self.store.address}: {path.name} is damaged. `kdtune cache build` computes it again"
                )
        write_text(self.folder / ORIGIN, self.store.address)


@dataclass(frozen=True)
class Copied:
    """What a node holds of one cache."""

    folder: Path
    origin: str  # address of the cache
    bytes: int

    @property
    def key(self) -> str:
        return self.folder.name

    def orphaned(self) -> bool:
        """Whether the cache is no more; not where that cannot be found out now."""
        with suppress(CacheError):
            return store_at(self.origin).read(MANIFEST) is None
        return False

    def remove(self) -> bool:
        """Whether they are removed: not while a process is copying."""
        with ExitStack() as stack:
            try:
                for lock in self.folder.glob(f".*{LOCK}"):
                    stack.enter_context(locked(lock, wait=False))
            except BlockingIOError:
                return False
            shutil.rmtree(self.folder)
        return True


def copies_in(folder: Path) -> Iterator[Copied]:
    """What this machine holds of caches; folders that kdtune has not made are left out."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        origin = entry / ORIGIN
        if KEY.fullmatch(entry.name) and origin.is_file():
            size = sum(file.stat().st_size for file in entry.iterdir() if file.is_file())
            yield Copied(entry, origin.read_text(), size)
