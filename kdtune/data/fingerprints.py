"""Fingerprints: what makes two data sets the same one. In: labelled images and class names. Out: a SHA-256.

It covers every pixel in memory and every byte of images on disk. Files are read once: their digests are remembered in
the user's cache folder, and hold as long as size, time of modification and time of change are what they were.

    fingerprint(train, test, classes)           # the first time reads every file, afterwards only what has changed
    ls ~/.cache/kdtune/fingerprints             # may be deleted: then every file is read again

The time of change is the file system's own: `cp -p`, `rsync -a` and archives carry over that of modification but not
this one, so a file that was exchanged for another of its size and date is noticed. Inodes are not compared: they tell
nothing more, and on overlay and FUSE file systems they differ from one mount to the next.
"""

import errno
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdtune.data.images import ImageFiles, Images
from kdtune.errors import DataError
from kdtune.records import write_bytes

log = logging.getLogger(__name__)

DIGEST_BYTES = 32
THREADS = 16  # more than cores: on a network file system most of them wait
PIECE = 256  # files that a thread takes at once
KEEP_SECONDS = 60.0  # what has been read is written down this often, so that an interruption loses little
SETTLED = 2 * 10**9  # ns; a file that changed a moment ago may change again without its times telling
KEPT_PARTS = 16  # data-set parts that are remembered, about 120 MB for ImageNet's training images
STAMPS = ("size", "modified", "changed")  # bytes and two times in ns, of one file

Watch = Callable[[int, int], None]  # files read, of how many
Table = npt.NDArray[np.void]  # a row a file: its name, its stamps, its digest
Rows = npt.NDArray[np.intp]
Found = TypeVar("Found")


def fingerprint(train: Images, test: Images, classes: tuple[str, ...], watch: Watch | None = None) -> str:
    """SHA-256 of class names, ordered labels, shapes and pixels, training and test.

    For pixels of images on disk stand names and bytes of their files. Raises DataError that names an unreadable one.
    """
    digest = hashlib.sha256("\0".join(classes).encode())
    for name, part in (("train", train), ("test", test)):
        digest.update(str(tuple(part.images.shape)).encode())
        digest.update(part.labels.numpy().tobytes())
        if isinstance(part.images, ImageFiles):
            digest.update(b"\0".join(part.images.names.tolist()))
            digest.update(file_digests(part.images, name, watch))
        else:
            digest.update(part.images.contiguous().numpy().data)
    return digest.hexdigest()


def file_digests(files: ImageFiles, part: str, watch: Watch | None = None) -> bytes:
    """BLAKE2b of every file's bytes, one after the other; of those that are remembered without reading them.

    `watch` hears how many files have been read, and of how many. Raises DataError that names an unreadable one.
    """
    now = time.time_ns()
    table = _stamped(files)
    settled = table["changed"] < now - SETTLED
    known = _recall(files, part, table)
    unknown = np.flatnonzero(~known)
    if not len(unknown):
        return table["digest"].tobytes()
    done, kept = 0, time.monotonic()
    if watch:
        watch(done, len(unknown))
    try:
        with closing(_in_threads(partial(_digests, files), unknown)) as reading:
            for rows, digests in reading:
                table["digest"][rows] = np.frombuffer(digests, table["digest"].dtype)
                known[rows] = True
                done += len(rows)
                if watch:
                    watch(done, len(unknown))
                if time.monotonic() - kept > KEEP_SECONDS:
                    _remember(files, part, table[known & settled])
                    kept = time.monotonic()
    finally:
        _remember(files, part, table[known & settled])
    return table["digest"].tobytes()


def _stamped(files: ImageFiles) -> Table:
    """The table of all files as they are now, without digests."""
    columns: list[Any] = [("name", files.names.dtype), *((stamp, np.int64) for stamp in STAMPS)]  # as numpy types it
    table = np.zeros(len(files), [*columns, ("digest", f"V{DIGEST_BYTES}")])
    table["name"] = files.names
    with closing(_in_threads(partial(_stamps, files), np.arange(len(files)))) as stamping:
        for rows, stamps in stamping:
            for stamp, values in zip(STAMPS, stamps.T, strict=True):
                table[stamp][rows] = values
    return table


def _stamps(files: ImageFiles, rows: Rows) -> npt.NDArray[np.int64]:
    """[B, 3]; taken before the bytes are read, so that what changes in between is read again the next time."""
    stamps = []
    for path in _paths(files, rows):
        try:
            found = os.stat(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        stamps.append((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return np.array(stamps, np.int64)


def _digests(files: ImageFiles, rows: Rows) -> bytes:
    digests = []
    for path in _paths(files, rows):
        try:
            with open(path, "rb", buffering=0) as file:
                digests.append(hashlib.blake2b(file.read(), digest_size=DIGEST_BYTES).digest())
        except OSError as error:
            raise _unreadable(path, error) from error
    return b"".join(digests)


def _paths(files: ImageFiles, rows: Rows) -> list[bytes]:
    """As bytes: a million `Path`s take longer than a million calls of `stat`."""
    root = os.fsencode(files.root)
    return [os.path.join(root, name) for name in files.names[rows].tolist()]


def _unreadable(path: bytes, error: OSError) -> DataError:
    return DataError(f"cannot read image {os.fsdecode(path)}: {error.strerror}")


def _in_threads(work: Callable[[Rows], Found], rows: Rows) -> Generator[tuple[Rows, Found], None, None]:
    """Pieces of `rows` and what `work` finds of each, in their order. Leaving early drops what has not begun."""
    pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from zip(pieces, pool.map(work, pieces), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


# --- what is remembered: a checksum, then the table as numpy writes it


def _recall(files: ImageFiles, part: str, table: Table) -> npt.NDArray[np.bool_]:
    """Fills in the digests of files that are as they were when they were read. Returns which rows those are."""
    before = _remembered(files, part)
    if before is None or not len(before):
        return np.zeros(len(table), np.bool_)
    order = np.argsort(before["name"], kind="stable")
    places = np.searchsorted(before["name"], table["name"], sorter=order)
    there = order[places.clip(max=len(before) - 1)]
    known: npt.NDArray[np.bool_] = np.logical_and.reduce(
        [before[column][there] == table[column] for column in ("name", *STAMPS)]
    )
    table["digest"][known] = before["digest"][there[known]]
    return known


def _remembered(files: ImageFiles, part: str) -> Table | None:
    """The table that was written last; none where there is none, or it is damaged."""
    try:
        content = _place(files, part).read_bytes()
    except OSError:
        return None
    checksum, table = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if checksum != _checksum(table):
        return None
    known: Table = np.load(io.BytesIO(table), allow_pickle=False)
    return known


def _remember(files: ImageFiles, part: str, table: Table) -> None:
    """Writes the table down, and lets those go that were not used for longest. Where that fails it is only logged."""
    content = io.BytesIO()
    np.save(content, table, allow_pickle=False)
    try:
        place = _place(files, part)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, _checksum(content.getvalue()) + content.getvalue())
        with suppress(FileNotFoundError):  # another process does the same at this moment
            used = sorted(place.parent.glob(f"*{place.suffix}"), key=lambda file: file.stat().st_atime_ns)
            for file in used[:-KEPT_PARTS]:
                file.unlink()
    except OSError as error:
        _tell_once(str(error))


def _place(files: ImageFiles, part: str) -> Path:
    """Raises OSError where there is no home folder."""
    key = f"{os.path.realpath(files.root)}\0{part}"
    return _folder() / f"{hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()}.digests"


def _folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        caches = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # the specification: ignore relative
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~") from error
    return caches / "kdtune" / "fingerprints"


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


@cache
def _tell_once(reason: str) -> None:
    log.warning(
        "cannot remember the files that were read: %s. They are read again each time the data is loaded", reason
    )
