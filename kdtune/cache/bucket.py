"""A cache on an object store: S3 and what speaks like it, Google's, Azure's.

    Bucket("s3://bucket/caches/4f1c...?region=eu-central-1")      # credentials as the service's own tools find them

Object stores have no locks. A claim is an object that its owner renews; one that stays the same for `DEAD_S`, by the
clock of whoever looks, is that of a process that has ended.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from kdtune.cache.columns import Sink
from kdtune.cache.store import PIECE
from kdtune.errors import CacheError
from kdtune.storage import Remote

log = logging.getLogger(__name__)

UNDER_WAY = 16  # pieces that wait for being uploaded; Arrow alone would copy a whole column into memory
BEAT_S = 10.0  # how often a claim is renewed
DEAD_S = 60.0
SETTLE_S = 0.5  # after this long a new claim is read again: of two that came at once the later one holds
CLAIM = ".claim"  # ends the name of a claim


class Bucket(Remote):
    """A cache under an address of `pyarrow.fs`. Raises CacheError where the address cannot be understood or reached."""

    field = "cache.storage"
    error = CacheError
    patience = 2.0

    def __init__(self, address: str, *, patient: bool = False) -> None:
        super().__init__(address, patient=patient)
        self.seen: dict[str, tuple[bytes, float]] = {}  # claims of others, and since when they are the same

    def sizes(self) -> dict[str, int]:
        return {name: size for name, size in self.names().items() if not name.endswith(CLAIM)}

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        path = self.at(name)
        with self.told("write"):
            file = self.files.open_output_stream(path)
        try:
            yield _Upload(self, file)
        except BaseException:
            with suppress(OSError):  # where it cannot be ended there is nothing to take away
                file.close()  # Arrow cannot give up an upload: an object appears, cut where it was
                self.files.delete_file(path)
            raise
        with self.told("write"):
            file.close()

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        began = time.monotonic()
        if not self._free(name + CLAIM):
            yield False
            return
        claim = _Claim(self, name + CLAIM)
        try:
            yield claim.held_since(began)
        finally:
            claim.end()

    def _free(self, name: str) -> bool:
        """Whether nobody has the claim, or nobody alive."""
        content = self.read(name)
        if content is None:
            self.seen.pop(name, None)
            return True
        if name not in self.seen or self.seen[name][0] != content:
            self.seen[name] = (content, time.monotonic())
        return time.monotonic() - self.seen[name][1] > DEAD_S

    def path(self, name: str) -> Path | None:
        return None

    def copy(self, name: str, sink: Sink) -> None:
        with self.told("read"):
            file = self.files.open_input_stream(self.at(name))
        with file:
            while True:
                with self.told("read"):
                    piece = file.read(PIECE)
                if not piece:
                    return
                sink.write(piece)  # a full disk is no fault of the store

    def remove(self, name: str | None = None) -> None:
        with suppress(FileNotFoundError), self.told("remove"):
            if name is None:
                self.files.delete_dir(self.root)
            else:
                self.files.delete_file(self.at(name))

    def free(self) -> int | None:
        return None

    def busy(self) -> bool:
        """Claims of processes that were killed stay: what counts is renewed, by the clock of the store itself."""
        claims = [file for file in self.listed() if file.base_name.endswith(CLAIM)]
        if not claims:
            return False
        probe = f"{uuid.uuid4().hex}.clock"
        self.write(probe, b"")
        with self.told("read"):
            now = self.files.get_file_info(self.at(probe)).mtime
        self.remove(probe)
        return any((now - claim.mtime).total_seconds() < DEAD_S for claim in claims)


class _Upload:
    """An object that is being written."""

    def __init__(self, bucket: Bucket, file: pa.NativeFile) -> None:
        self.bucket = bucket
        self.file = file
        self.waiting = 0

    def write(self, content: bytes | pa.Buffer) -> None:
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), PIECE):
            with self.bucket.told("write"):
                self.file.write(whole[start : start + PIECE])
                self.waiting += 1
                if self.waiting == UNDER_WAY:
                    self.file.flush()
                    self.waiting = 0


class _Claim:
    """A claim of this process: written, held by renewing it, taken away."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.bucket = bucket
        self.name = name
        self.mine = uuid.uuid4().hex.encode()
        self.done = threading.Event()
        self.beats: threading.Thread | None = None

    def held_since(self, looked: float) -> bool:
        """Claims what was free when it was `looked` at, and tells whether it was the last to do so."""
        self.bucket.write(self.name, self.mine)
        took = time.monotonic() - looked
        time.sleep(max(SETTLE_S, 4 * took))  # another that looked before this was written may be as slow as that
        if not self._is_mine():
            return False
        self.beats = threading.Thread(target=self._renew, daemon=True)
        self.beats.start()
        return True

    def _is_mine(self) -> bool:
        return (self.bucket.read(self.name) or b"").startswith(self.mine)

    def _renew(self) -> None:
        beat = 0
        while not self.done.wait(BEAT_S):
            beat += 1
            try:
                if not self._is_mine():  # this process stood still so long that it was taken for dead
                    return
                self.bucket.write(self.name, self.mine + b" %d" % beat)
            except CacheError as error:  # the next beat may get through; if none does, another computes the column too
                log.warning("%s was not renewed: %s", self.name, error)

    def end(self) -> None:
        self.done.set()
        if self.beats is not None:
            self.beats.join()
        if self._is_mine():
            self.bucket.remove(self.name)
