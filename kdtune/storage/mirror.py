"""A folder on this machine whose other copy lies on an object store: what a search appends to and reads at once stays
here, and goes there soon.

    with in_step(address, folder) as mirror:      # pulled first; what changes is pushed every few seconds
        mirror.push()                             # or now
    with mirrored(address, folder) as mirror:     # for one process at a time, on whatever machine

Who holds the copy has a mark there, the object `.owner`, and renews it, however long a push takes. The folder that
held it last goes on at once, even after a crash. Any other waits until the mark stays as it is, and takes what is there
instead of its own. A process that was overtaken in this way, having stood still for a minute, never writes there again.
"""

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kdtune.errors import KdtuneError, RunError
from kdtune.records import PART, locked, write_bytes, write_text
from kdtune.storage.remote import Remote

log = logging.getLogger(__name__)

PUSH_EVERY_S = 10.0
DEAD_S = 60.0  # a mark that has not changed for so long is that of a process that has ended
LOOK_EVERY_S = 2.0
SETTLE_S = 0.5  # after this long a new mark is read again: of two that came at once the later one holds
OWNER = ".owner"


class Mirror:
    """Raises StorageError while the store is out of reach."""

    def __init__(self, address: str, folder: Path, *, apart: tuple[str, ...] = ()) -> None:
        self.remote = Remote(address)
        self.folder = folder
        self.apart = apart  # names of folders that are none of the mirror's, wherever they are
        self.pushed: dict[str, tuple[int, int]] = {}  # by name: time of change (ns) and bytes
        self.lock = threading.Lock()

    def pull(self) -> None:
        """Every file that is there, instead of the one here."""
        for name in self.remote.names(recursive=True):
            content = self.remote.read(name) if self._is_ours(name) else None
            if content is not None:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self.folder / name, content)
        self.pushed = self._here()

    def push(self) -> None:
        """What has changed, in the order in which it was written: no file is there before what it relies on."""
        with self.lock:
            here = self._here()
            for mark, name in sorted((mark, name) for name, mark in here.items() if self.pushed.get(name) != mark):
                try:
                    content = (self.folder / name).read_bytes()
                except FileNotFoundError:  # removed meanwhile
                    continue
                self.check()
                self.remote.write(name, content)
                self.pushed[name] = mark
            for name in [name for name in self.pushed if name not in here]:
                self.check()
                self.remote.delete(name)
                del self.pushed[name]

    def check(self) -> None:
        """Raises RunError where this process may not write there; asked before each time it does."""

    def _here(self) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, _, files in os.walk(self.folder, onerror=_unless_removed):
            for path in (Path(folder, file) for file in files):
                name = path.relative_to(self.folder).as_posix()
                try:
                    if self._is_ours(name) and path.is_file():
                        found[name] = (path.stat().st_mtime_ns, path.stat().st_size)
                except FileNotFoundError:  # removed meanwhile
                    continue
        return found

    def _is_ours(self, name: str) -> bool:
        *folders, last = name.split("/")
        whole = not any(part.endswith(PART) for part in (*folders, last))
        return whole and last not in (OWNER, "lock", ".lock") and not any(folder in self.apart for folder in folders)


def _unless_removed(error: OSError) -> None:
    """Of a folder that cannot be walked: what was removed meanwhile is no mistake."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


class Owned(Mirror):
    """A mirror of one process at a time."""

    def __init__(self, address: str, folder: Path, *, apart: tuple[str, ...] = ()) -> None:
        super().__init__(address, folder, apart=apart)
        self.marking = threading.Lock()
        self.mine, self.beats = "", 0
        self.overtaken = self.ended = False

    def take(self) -> None:
        """Raises RunError while another process holds the copy."""
        mine = self._known()
        mark = self._mark()
        if mark and mark["owner"] != mine and not mark["ended"]:
            mark = self._wait(mark)
        if mine is None or (mark and mark["owner"] != mine):
            self._set_aside(mine)
            self._pull_as_of(mark)
        self.mine = mine or uuid.uuid4().hex
        self._renew()
        time.sleep(SETTLE_S)
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / OWNER, self.mine)

    def push(self) -> None:
        """Raises RunError where another machine has taken the copy meanwhile."""
        self.check()
        super().push()

    def beat(self) -> None:
        """A sign of life. Raises RunError where another machine has taken the copy meanwhile."""
        with self.marking:
            if not self.ended:
                self._check()
                self._renew()

    def check(self) -> None:
        with self.marking:
            self._check()

    def release(self) -> None:
        """What is left, and that nobody need wait."""
        self.push()
        with self.marking:
            self._check()
            self.ended = True
            self._renew()

    def _known(self) -> str | None:
        try:
            return (self.folder / OWNER).read_text()
        except FileNotFoundError:
            return None

    def _mark(self) -> dict[str, Any] | None:
        content = self.remote.read(OWNER)
        return None if content is None else json.loads(content)

    def _renew(self) -> None:
        self.beats += 1
        mark = {"owner": self.mine, "beat": self.beats, "ended": self.ended}
        self.remote.write(OWNER, json.dumps(mark).encode())

    def _check(self) -> None:
        mark = None if self.overtaken else self._mark()
        self.overtaken = self.overtaken or bool(mark and mark["owner"] != self.mine)
        if self.overtaken:
            raise RunError(
                f"{self.remote.address} was taken up by another kdtune, on another machine, while this one could not "
                f"reach it; what it has done since is in {self.folder}"
            )

    def _pull_as_of(self, mark: dict[str, Any] | None) -> None:
        """What is there while the mark is `mark`: during a pull, which may be long, others may come, and end."""
        self.pull()
        now = self._mark()
        while now != mark:
            if now and not now["ended"]:
                raise self._at_work()
            mark = now
            self._set_aside(None)
            self.pull()
            now = self._mark()

    def _at_work(self) -> RunError:
        return RunError(
            f"another kdtune is at work in {self.remote.address}; wait for it, or choose another name (--set name=...)"
        )

    def _wait(self, seen: dict[str, Any]) -> dict[str, Any]:
        """Until a mark counts as that of a process that has ended; the mark then."""
        log.warning("%s is held by another machine; waiting %.0f s for a sign of life", self.remote.address, DEAD_S)
        began = time.monotonic()
        while time.monotonic() - began < DEAD_S:
            time.sleep(LOOK_EVERY_S)
            now = self._mark()
            if now and now["ended"]:
                return now
            if now != seen:
                raise self._at_work()
        return seen

    def _set_aside(self, mine: str | None) -> None:
        """What is here makes room. Without a mark of its own it was being pulled when that was interrupted."""
        if mine is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        older = self.folder.with_name(f"{self.folder.name}.older-{uuid.uuid4().hex[:8]}")
        self.folder.rename(older)
        log.warning("%s was continued elsewhere; what was here is kept in %s", self.remote.address, older)


@contextmanager
def in_step(address: str, folder: Path) -> Iterator[Mirror]:
    """A folder filled with what is at the address, and pushed there while the block lasts and at its end."""
    mirror = Mirror(address, folder)
    mirror.pull()
    with _repeating(mirror.push):
        yield mirror
    mirror.push()


@contextmanager
def mirrored(address: str, folder: Path, *, apart: tuple[str, ...] = ()) -> Iterator[Mirror]:
    """Like `in_step`, for one process at a time. Raises RunError while another one, here or elsewhere, has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), wait=False))
        except BlockingIOError as error:
            raise RunError(f"another kdtune is at work in {address}; wait for it, or choose another name") from error
        mirror = Owned(address, folder, apart=apart)
        mirror.take()
        stack.enter_context(_repeating(mirror.beat))  # until after the last push, which may take long
        try:
            with _repeating(mirror.push):
                yield mirror
        except BaseException:
            _try(mirror.release)  # what ended the block is what is told
            raise
        mirror.release()


@contextmanager
def _repeating(act: Callable[[], None]) -> Iterator[None]:
    """`act` every PUSH_EVERY_S, in a thread of its own, until it finds that the mirror was overtaken."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(PUSH_EVERY_S) and _try(act):
            pass

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _try(act: Callable[[], None]) -> bool:
    """A store that is out of reach for a while ends nothing: the next push brings what this one did not.

    False where the mirror was overtaken: that is for good, and the next push of the main thread raises it.
    """
    try:
        act()
    except (KdtuneError, OSError, ValueError) as error:
        log.warning("%s", error)
        return not isinstance(error, RunError)
    return True
