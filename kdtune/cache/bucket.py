"""A cache on an object store that `pyarrow.fs` knows: S3 and what speaks like it, Google's, Azure's.

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
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from kdtune.cache.columns import Sink
from kdtune.cache.store import PIECE
from kdtune.errors import CacheError
from kdtune.experiment.caching import check_address

log = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
CONNECT_S, ANSWER_S, TRIES = 3.0, 10.0, 3  # until a store counts as out of reach; Arrow's own end after 100 s
GOOGLE_S = 15  # in all
UNDER_WAY = 16  # pieces that wait for being uploaded; Arrow alone would copy a whole column into memory
BEAT_S = 10.0  # how often a claim is renewed
DEAD_S = 60.0
SETTLE_S = 0.5  # after this long a new claim is read again: of two that came at once the later one holds
CLAIM = ".claim"  # ends the name of a claim


class Bucket:
    """A cache under an address of `pyarrow.fs`. Raises CacheError where the address cannot be understood or reached."""

    patience = 2.0

    def __init__(self, address: str) -> None:
        self.address = address
        self.files, self.root = self._opened()
        bucket = self.root.partition("/")[0]
        with self._told("reach"):
            there = self.files.get_file_info(bucket).type == fs.FileType.Directory
        if not there:
            raise CacheError(
                f"cannot use {address}: there is no bucket {bucket!r}. Create it, or correct cache.storage"
            )
        self.seen: dict[str, tuple[bytes, float]] = {}  # claims of others, and since when they are the same

    def _opened(self) -> tuple[fs.FileSystem, str]:
        """The file system, and the cache's path in it."""
        try:
            check_address(self.address)
        except ValueError as error:
            raise CacheError(str(error)) from error
        if urlsplit(self.address).scheme not in SCHEMES:
            raise CacheError(
                f"cannot use {self.address}: caches lie in a folder (a path or file:///folder), or at an address of "
                f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}. Correct cache.storage"
            )
        with self._told("reach"):
            files, root = fs.FileSystem.from_uri(_patient(self.address))
            if files.type_name == "s3":
                _, (options,) = files.__reduce__()  # what it was made from; an address cannot say how long to wait
                options |= {"connect_timeout": CONNECT_S, "request_timeout": ANSWER_S, "allow_delayed_open": True}
                files = fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES))
        if not root.strip("/"):
            raise CacheError(f"cannot use {self.address}: it names no bucket, as in s3://bucket/caches")
        return files, root.rstrip("/")

    def sizes(self) -> dict[str, int]:
        return {file.base_name: file.size for file in self._listed() if not file.base_name.endswith(CLAIM)}

    def _listed(self) -> list[fs.FileInfo]:
        with self._told("list"):
            found = self.files.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return [file for file in found if file.is_file]

    def read(self, name: str) -> bytes | None:
        for attempt in range(1, TRIES + 1):
            try:
                with self._told("read"), self.files.open_input_stream(self._path(name)) as file:
                    content: bytes = file.read()
                return content
            except FileNotFoundError:
                break
            except CacheError:  # Arrow asks twice; of what is removed in between it says something about a stream
                with self._told("read"):
                    there = self.files.get_file_info(self._path(name)).is_file
                if not there:
                    break
                if attempt == TRIES:
                    raise
        return None

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        path = self._path(name)
        with self._told("write"):
            file = self.files.open_output_stream(path)
        try:
            yield _Upload(self, file)
        except BaseException:
            with suppress(OSError):  # where it cannot be ended there is nothing to take away
                file.close()  # Arrow cannot give up an upload: an object appears, cut where it was
                self.files.delete_file(path)
            raise
        with self._told("write"):
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
        with self._told("read"):
            file = self.files.open_input_stream(self._path(name))
        with file:
            while True:
                with self._told("read"):
                    piece = file.read(PIECE)
                if not piece:
                    return
                sink.write(piece)  # a full disk is no fault of the store

    def remove(self, name: str | None = None) -> None:
        with suppress(FileNotFoundError), self._told("remove"):
            if name is None:
                self.files.delete_dir(self.root)
            else:
                self.files.delete_file(self._path(name))

    def free(self) -> int | None:
        return None

    def busy(self) -> bool:
        """Claims of processes that were killed stay: what counts is renewed, by the clock of the store itself."""
        claims = [file for file in self._listed() if file.base_name.endswith(CLAIM)]
        if not claims:
            return False
        probe = f"{uuid.uuid4().hex}.clock"
        self.write(probe, b"")
        with self._told("read"):
            now = self.files.get_file_info(self._path(probe)).mtime
        self.remove(probe)
        return any((now - claim.mtime).total_seconds() < DEAD_S for claim in claims)

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
                f"cannot {doing} {self.address}: {error}. Check the address (cache.storage), its region and "
                f"endpoint_override, and this machine's network and credentials (AWS_ACCESS_KEY_ID, ~/.aws, ...)"
            ) from error


def _patient(address: str) -> str:
    """With the end of Google's tries, which would go on for a quarter of an hour."""
    parts = urlsplit(address)
    if parts.scheme not in ("gs", "gcs") or "retry_limit_seconds" in parts.query:
        return address
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, f"retry_limit_seconds={GOOGLE_S}"]))))


class _Upload:
    """An object that is being written."""

    def __init__(self, bucket: Bucket, file: pa.NativeFile) -> None:
        self.bucket = bucket
        self.file = file
        self.waiting = 0

    def write(self, content: bytes | pa.Buffer) -> None:
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), PIECE):
            with self.bucket._told("write"):
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


def folders_below(address: str) -> list[str]:
    """Names of what looks like folders below an address."""
    bucket = Bucket(address)
    with bucket._told("list"):
        found = bucket.files.get_file_info(fs.FileSelector(bucket.root, allow_not_found=True))
    return sorted(entry.base_name for entry in found if not entry.is_file)
