"""A cache on an object store or any other file system of `pyarrow.fs`: S3, Google's, Azure's, HDFS.

    Bucket("s3://bucket/caches/4f1c...?region=eu-central-1")      # credentials as the service's own tools find them

Object stores have no locks. A claim is an object that its owner renews; one that stays the same for `DEAD_S`, by the
clock of whoever looks, is that of a process that has ended.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from kdtune.cache.columns import Sink
from kdtune.cache.store import PIECE
from kdtune.errors import CacheError

BEAT_S = 10.0  # how often a claim is renewed
DEAD_S = 60.0
SETTLE_S = 0.5  # after this long a new claim is read again: of two that came at once the later one holds
CLAIM = ".claim"  # ends the name of a claim


class Bucket:
    """A cache under an address of `pyarrow.fs`. Raises CacheError where the address cannot be understood or reached."""

    patience = 2.0

    def __init__(self, address: str) -> None:
        self.address = address
        with self._told("reach"):
            self.files, self.root = fs.FileSystem.from_uri(address)
        self.whole = self.files.type_name in ("s3", "gcs", "abfs")  # an object appears when its upload ends
        self.seen: dict[str, tuple[bytes, float]] = {}  # claims of others, and since when they are the same

    def sizes(self) -> dict[str, int]:
        return {name: size for name, size in self._names().items() if not name.endswith(CLAIM)}

    def _names(self) -> dict[str, int]:
        with self._told("list"):
            found = self.files.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return {file.base_name: file.size for file in found if file.is_file}

    def read(self, name: str) -> bytes | None:
        try:
            with self._told("read"), self.files.open_input_stream(self._path(name)) as file:
                content: bytes = file.read()
            return content
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        path = self._path(name)
        beside = path if self.whole else f"{path}.{uuid.uuid4().hex}"
        with self._told("write"):
            if not self.whole:
                self.files.create_dir(self.root, recursive=True)
            with self.files.open_output_stream(beside) as file:
                yield file
            if not self.whole:
                self.files.move(beside, path)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        name += CLAIM
        if not self._free(name):
            yield False
            return
        mine = uuid.uuid4().hex.encode()
        self.write(name, mine)
        time.sleep(SETTLE_S)
        if self.read(name) != mine:
            yield False
            return
        done = threading.Event()
        beats = threading.Thread(target=self._renew, args=(name, mine, done), daemon=True)
        beats.start()
        try:
            yield True
        finally:
            done.set()
            beats.join()
            self.remove(name)

    def _free(self, name: str) -> bool:
        """Whether nobody has the claim, or nobody alive."""
        content = self.read(name)
        if content is None:
            self.seen.pop(name, None)
            return True
        if name not in self.seen or self.seen[name][0] != content:
            self.seen[name] = (content, time.monotonic())
        return time.monotonic() - self.seen[name][1] > DEAD_S

    def _renew(self, name: str, mine: bytes, done: threading.Event) -> None:
        beat = 0
        while not done.wait(BEAT_S):
            beat += 1
            self.write(name, mine + b" %d" % beat)

    def path(self, name: str) -> Path | None:
        return None

    def copy(self, name: str, sink: Sink) -> None:
        with self._told("read"), self.files.open_input_stream(self._path(name)) as file:
            while piece := file.read(PIECE):
                sink.write(piece)

    def remove(self, name: str | None = None) -> None:
        with self._told("remove"):
            if name is None:
                self.files.delete_dir(self.root)
                return
            try:
                self.files.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def free(self) -> int | None:
        return None

    def busy(self) -> bool:
        """Claims of processes that were killed count for a while: who looks once cannot tell."""
        return any(name.endswith(CLAIM) for name in self._names())

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """What a service says becomes a CacheError that names the address."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise CacheError(
                f"cannot {doing} {self.address}: {error}. Check the address (cache.storage), its region and the "
                f"credentials of this machine"
            ) from error


def folders_below(address: str) -> list[str]:
    """Names of what looks like folders below an address."""
    bucket = Bucket(address)
    with bucket._told("list"):
        found = bucket.files.get_file_info(fs.FileSelector(bucket.root, allow_not_found=True))
    return sorted(entry.base_name for entry in found if not entry.is_file)
