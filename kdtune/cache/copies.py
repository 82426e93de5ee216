"""Copies of columns on a node's own disk: each is copied once, whatever the number of trials that read it.

copies = Copies(Path("/scratch/kdtune"), store, key="4f1c...")
path = copies.get("00003.arrow", sha256)
"""

import os
import stat
import tempfile
from pathlib import Path

from kdtune.cache.columns import Hashing
from kdtune.cache.store import Store
from kdtune.errors import CacheError
from kdtune.records import PART, locked, writing


class DamagedError(CacheError):
    """What a store holds is not what was written."""


def default_copies() -> Path:
    """Where copies go unless `cache.copies` says otherwise: a folder of this user's, in the system's temporary one.

    Raises CacheError where others may write to it: they could change what students learn.
    """
    mine = Path(tempfile.gettempdir()) / f"kdtune-{os.getuid()}"
    if not os.path.lexists(mine):
        mine.mkdir(mode=0o700, exist_ok=True)
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
        if path.exists():
            return path
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / f".{name}.lock"):
            if not path.exists():
                for cut in self.folder.glob(f".{name}.*{PART}"):  # whoever fetched it was killed
                    cut.unlink()
                self._fetch(name, sha256)
        return path

    def _fetch(self, name: str, sha256: str) -> None:
        with writing(self.folder / name) as file:
            arriving = Hashing(file)
            try:
                self.store.copy(name, arriving)
            except FileNotFoundError as error:
                raise DamagedError(
                    f"{self.store.address} has no {name}, only its seal. `kdtune cache build` computes it again"
                ) from error
            if arriving.digest.hexdigest() != sha256:
                raise DamagedError(f"{self.store.address}: {name} is damaged. `kdtune cache build` computes it again")

    def forget(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
