"""Where a search stands, as the live table shows it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Row:
    """One trial on the board."""

    trial: str
    config: Mapping[str, Any]
    epoch: int = 0
    val_accuracy: float = 0.0
    status: str = "running"  # or waiting; then: complete, stopped, diverged, failed
    error: str = ""  # of a trial that failed or was retried: the last exception, without its traceback, and where
    retries: int = 0  # how often it was taken up again, from its last state


@dataclass
class Board:
    """The search so far."""

    trials: int
    epochs: int  # of a full trial
    rows: dict[str, Row] = field(default_factory=dict)
    seconds: float = 0.0
    columns: tuple[int, int] = (0, 0)  # of the teachers' caches: there already, and those that there may be
    changed: Row | None = None  # what is new; None: something that is no trial's
    spent: str | None = None  # the part of the budget that is used up

    def count(self, *statuses: str) -> int:
        return sum(row.status in statuses for row in self.rows.values())

    @property
    def ended(self) -> int:
        return self.count("complete", "stopped", "diverged", "failed")

    @property
    def best(self) -> Row | None:
        """Highest accuracy among trials that were not given up, which may still be running."""
        return max(
            (row for row in self.rows.values() if row.status in ("complete", "running") and row.epoch),
            key=lambda row: row.val_accuracy,
            default=None,
        )

    @property
    def seconds_left(self) -> float | None:
        """From the epochs of the trials that have ended; None before the first has."""
        done = sum(row.epoch for row in self.rows.values())
        ended = [row.epoch for row in self.rows.values() if row.status not in ("running", "waiting")]
        if not ended or not done:
            return None
        expected = sum(ended) / len(ended) * self.trials
        return self.seconds / done * max(expected - done, 0)


class BoardWatcher(Protocol):
    """Who looks at the board."""

    def search_resumed(self, board: Board) -> None: ...
    def search_progress(self, board: Board) -> None: ...
    def search_ended(self, board: Board) -> None: ...


def last_error(text: str) -> str:
    """The exception at the end of what Ray has written of a failure, its message, and the node's address."""
    text = re.split(r"^Failure # \d+ .*\n", text, flags=re.MULTILINE)[-1].strip()
    lines = text.splitlines()
    where = re.search(r"^\tip: (\S+)|\bip=([^\s,)]+)", text, flags=re.MULTILINE)
    starts = [k for k, line in enumerate(lines) if re.match(r"[\w.()]+: ", line)]
    if starts:
        shown = "\n".join(lines[starts[-1] :])
    else:  # Ray's own words about a process that is lost, with details that are indented
        shown = " ".join(line for line in lines if line and not line[0].isspace())
    return f"{shown} (node {where[1] or where[2]})" if where else shown
