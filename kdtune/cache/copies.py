"""Copies of columns on a node's own disk: each is copied once, whatever the number of trials that read it.

copies = Copies(Path("/scratch/kdtune"), store, key="4f1c...")
path = copies.get("00003.arrow", sha256)
"""

import os
import tempfile
from pathlib import Path

from kdtune.cache.columns import Hashing
from kdtune.cache.store import Store
from kdtune.errors import CacheError
from kdtune.records import locked, writing


def default_copies() -> Path:
    """Where copies go unless `cache.copies` says otherwise: a folder of this user's, in the system's temporary one."""
    return Path(tempfile.gettempdir()) / f"kdtune-{os.getuid()}" / "columns"


class Copies:
    """The copies of one cache."""

    def __init__(self, folder: Path, store: Store, key: str) -> None:
        self.folder = folder / key
        self.store = store

    def get(self, name: str, sha256: str) -> Path:
        """The copy of a file, made now if there is none; a second process waits for the first.

        Raises CacheError where what arrives is not what was written.
        """
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / "lock"):
            if not path.exists():
                with writing(path) as file:
                    arriving = Hashing(file)
                    self.store.copy(name, arriving)
                    if arriving.digest.hexdigest() != sha256:
                        raise CacheError(f"{self.store.address}/{name} is damaged")
        return path

    def forget(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
