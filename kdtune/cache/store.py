"""Where a cache lies: in a folder (a path or file:///...) or on an object store (s3://bucket/caches, `bucket.py`).

store = store_at("runs/.caches/4f1c...")
store.write("manifest.json", content)            # whole or absent
with store.claim("00003.arrow") as mine: ...     # at most one process computes a column
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from kdtune.cache.columns import Sink
from kdtune.errors import CacheError
from kdtune.records import PART, locked, write_bytes, writing
from kdtune.storage import folder_of

PIECE = 1 << 23  # bytes that are copied at once
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Store(Protocol):
    """The files of one cache. A file is whole or absent."""

    address: str
    patience: float  # seconds after which it is worth looking again for what another process makes

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by name; none where there is nothing yet."""

    def read(self, name: str) -> bytes | None:
        """A file's content, or None where there is no such file."""

    def write(self, name: str, content: bytes) -> None: ...

    def writing(self, name: str) -> AbstractContextManager[Sink]:
        """A file to be written in parts."""

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Whether this process may make what is called `name`; it goes with the process, however that ends.

        What killed processes have left of it, and of what has the same name with another ending, is removed.
        Claims save work and no more: a column is a function of the cache's identity and is written whole, so that
        two processes which make the same one do no harm.
        """

    def path(self, name: str) -> Path | None:
        """The file itself, or None where a machine must copy it first."""

    def copy(self, name: str, sink: Sink) -> None:
        """Raises FileNotFoundError where there is no such file."""

    def remove(self, name: str | None = None) -> None:
        """Removes a file, or the whole cache."""

    def free(self) -> int | None:
        """Bytes that still fit, None where there is no limit to know of."""

    def busy(self) -> bool:
        """Whether a process is making something here now."""


class Folder:
    """A cache in a folder: on this machine's disk, or on one that nodes share (NFS)."""

    patience = 0.05

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)

    def sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        with suppress(FileNotFoundError):  # nothing has been begun
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):  # another process has taken it away meanwhile
                    if entry.is_file() and not entry.name.endswith(PART):
                        sizes[entry.name] = entry.stat().st_size
        return sizes

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / name, content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with writing(self.folder / name) as file:
            yield file

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(locks / name, wait=False))
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise CacheError(
                    f"{self.folder} is on a file system without locks ({error.strerror}). Mount it with them (NFS "
                    f"without nolock, Lustre with flock), or set cache.storage to another folder"
                ) from error
            for cut in self.folder.glob(f".{Path(name).stem}.*{PART}"):  # whoever wrote it was killed
                cut.unlink(missing_ok=True)
            yield True

    def path(self, name: str) -> Path | None:
        return self.folder / name

    def copy(self, name: str, sink: Sink) -> None:
        with (self.folder / name).open("rb") as file:
            shutil.copyfileobj(file, sink, PIECE)

    def remove(self, name: str | None = None) -> None:
        if name is None and self.folder.is_symlink():
            self.folder.unlink()
        elif name is None:
            with suppress(FileNotFoundError):  # another has removed it
                shutil.rmtree(self.folder)
        else:
            (self.folder / name).unlink(missing_ok=True)

    def free(self) -> int | None:
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return shutil.disk_usage(there).free

    def busy(self) -> bool:
        locks = self.folder / "locks"
        for lock in locks.iterdir() if locks.exists() else ():
            with self.claim(lock.name) as ours:
                if not ours:
                    return True
        return False


def store_at(address: str, *, patient: bool = False) -> Store:
    """The store of an address. Raises CacheError where it cannot be understood or reached, much later if `patient`."""
    folder = folder_of(address)
    if folder is None:
        from kdtune.cache.bucket import Bucket

        return Bucket(address, patient=patient)
    return Folder(folder)
