"""What a run writes down: `EpochRecord`s as JSON lines, and the summary.

    trials.jsonl   one line an epoch of every trial: {"trial": "0007", "config": {...}, "epoch": 12, ...}
    final.jsonl    one line a run of the final stage: {"name": "best", "seed": 3, "test_accuracy": 0.91, ...}
    summary.json   the numbers people quote

JSON lines are the truth, everything else is a view of them. A line is written whole with one call; a last line cut
by a crash is dropped on reading. No epoch of a trial is told twice.
"""

import errno
import fcntl
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from kdtune.errors import RunError

# Rows of the results table, and who a run of the final stage is for.
TEACHER, ALONE, TEXTBOOK_KD, BEST = "teacher", "student alone", "textbook KD", "best"
PART = ".part"  # ends the name of a file that is not whole yet
DISTILLED = "distilled"  # instead of the best, where nothing was searched: the file's own configuration


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one student (or teacher). Accuracies are fractions, losses are means over steps."""

    epoch: int  # 1-based: how many epochs this run has behind it
    epochs: int  # planned
    loss: float
    terms: Mapping[str, float]  # weighted, they add up to the loss
    val_accuracy: float | None  # None where a run trains on the validation images too
    val_loss: float | None
    learning_rate: float  # at the end of the epoch
    seconds: float  # training and validation
    waited: float = 0.0  # seconds before that: for the teacher's answers, which it may have computed itself
    temperature: float | None = None  # None for a student alone or a teacher
    alpha: float | None = None
    feature_weight: float | None = None
    computed: float | None = None  # seconds of `waited` in which it did so; earlier versions did not say

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss)

    @property
    def last(self) -> bool:
        """Nothing comes after: the run is complete or has diverged."""
        return self.diverged or self.epoch >= self.epochs

    @property
    def shares(self) -> dict[str, float]:
        """Each term's share of the loss: a temperature that moves shifts the balance through its factor T^2."""
        return {name: term / self.loss if self.loss else 0.0 for name, term in self.terms.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: numbers that are not finite become null."""
        return {name: _finite(value) for name, value in {**asdict(self), "shares": self.shares}.items()}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "EpochRecord":
        """The record of a line. Raises KeyError or TypeError where it is none."""
        later = {"waited": 0.0, "computed": None}  # runs that were begun by an earlier version have none
        given = {field.name: line[field.name] for field in fields(cls) if field.name not in later}
        given |= {name: line.get(name, missing) for name, missing in later.items()}
        given["loss"] = math.nan if given["loss"] is None else given["loss"]
        given["terms"] = {name: math.nan if term is None else term for name, term in given["terms"].items()}
        return cls(**given)


def _finite(value: Any) -> Any:  # any JSON value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class TrialRecord:
    """A trial as its lines tell it: the sampled `{path: value}` and its epochs in order."""

    trial: str
    config: Mapping[str, Any]
    epochs: tuple[EpochRecord, ...]

    @property
    def complete(self) -> bool:
        """Whether it ran to its end, planned or diverged."""
        return self.epochs[-1].last

    @property
    def val_accuracy(self) -> float:
        """Of the last epoch; a diverged trial counts as 0."""
        last = self.epochs[-1]
        return 0.0 if last.diverged or last.val_accuracy is None else last.val_accuracy


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """One JSON object as one line, handed to the system in one write."""
    with _named(path), path.open("ab") as file:
        file.write((json.dumps(line, allow_nan=False) + "\n").encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line; a last line without its newline was cut by a crash and is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RunError(f"{path}, line {number} is not JSON: the file was edited or damaged") from error


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises RunError where it is none, FileNotFoundError where it is not there."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is not JSON: the file was edited or damaged") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is no JSON object: the file was edited or damaged")
    return found


def mend(path: Path) -> None:
    """Drops a cut last line, so that what is appended next starts on a line of its own."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def read_trials(path: Path) -> list[TrialRecord]:
    """Trials of a trials.jsonl in the order in which they first appeared."""
    epochs: dict[str, list[EpochRecord]] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            trial, config, record = str(line["trial"]), line["config"], EpochRecord.from_json(line)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}, line {number} is no epoch of a trial: the file was edited or damaged") from error
        configs[trial] = config
        said = epochs.setdefault(trial, [])
        while said and said[-1].epoch >= record.epoch:
            said.pop()
        said.append(record)
    return [TrialRecord(trial, configs[trial], tuple(said)) for trial, said in epochs.items()]


def write_text(path: Path, text: str) -> None:
    """The whole file or nothing: written beside, flushed to disk, renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Like `write_text`."""
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to be written: there as a whole once the block has ended, and not at all where it raises."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # threads, and nodes on one disk, share process ids
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        with _named(path), beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock file `path`, which goes with the process. Raises BlockingIOError if another has it, or waits."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:  # closing is not enough: a process that was forked meanwhile holds the same open file
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives an error of the operating system the name of the file that was being written, for the message."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
