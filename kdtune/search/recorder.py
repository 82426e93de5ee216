"""What a search writes down, epoch by epoch, and what of it others see.

    trials.jsonl   one line an epoch: the only truth of a search, from which a later process rebuilds its study
    errors.jsonl   one line for each trial that failed, or was lost and taken up again
    states/        of each trial that has not ended, and of the best: what it goes on from

An epoch is in the records before anything follows from it. A state may be older than the records (its trial tells
some epochs again, which change nothing) or newer (it tells those that are missing): both are whole.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtune.cache import LogitCache
from kdtune.errors import CacheError, StorageError
from kdtune.records import EpochRecord, append_line, mend, read_lines
from kdtune.search.board import Board, BoardWatcher, Row, last_error
from kdtune.search.states import States, kept_name, name_of, state_name
from kdtune.tuning.study import Seen, Study

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0  # at the columns of caches
PAUSES = 5  # times as long as a push takes there is none that is asked for
ERRORS = "errors.jsonl"
LOST = "workers were lost, and others went on from the trial's last state"


class Recorder:
    def __init__(
        self,
        folder: Path,
        study: Study,
        board: Board,
        watch: BoardWatcher,
        states: States,
        *,
        caches: Sequence[LogitCache] = (),
        keep: int = 0,
        push: Callable[[], bool] = lambda: True,
    ) -> None:
        """`push` says whether the records have reached the storage; states of the best `keep` trials stay."""
        self.path = folder / "trials.jsonl"
        self.errors = folder / ERRORS
        self.study = study
        self.board = board
        self.watch = watch
        self.states = states
        self.caches = caches
        self.keep = keep
        self.push = push
        self.looked = 0.0  # when the caches were looked at
        self.ended = False  # whether a trial has ended since the last push
        self.push_again = 0.0  # not before this time
        self.kept: set[str] = set()  # states that there may be

    def begin(self) -> None:
        """Takes the search up where the records leave it."""
        mend(self.path)
        mend(self.errors)
        self.study.replay(read_lines(self.path))
        self.kept = self.states.names()
        for seen in self.study.trials.values():
            self._show(seen)
        for line in read_lines(self.errors):
            row = self.board.rows.get(line["trial"])
            if row is not None:
                row.error, row.retries = line["error"], row.retries + line["times"]
        self.board.trials = self.study.planned
        self.spent()
        if self.board.rows:
            self.board.seconds = self.study.seconds
            self.watch.search_resumed(self.board)

    def started(self, number: int) -> None:
        seen = self.study.trials[number]
        self.kept.add(state_name(number, seen.config))
        self._tell(self._show(seen))

    def result(self, number: int, told: Mapping[str, Any], lost: int, cost: float | None = None) -> bool:
        """Writes down what a trial tells of an epoch, and whether it is to end. `cost` is its student's."""
        record = EpochRecord.from_json(told)
        if self.study.is_news(number, record):
            seen = self.study.trials[number]
            line = {"trial": name_of(number), "config": seen.config, "at": round(self.study.seconds, 3), **told}
            if cost is not None:
                line["cost"] = cost
            if seen.parent is not None:
                line["parent"] = {"trial": name_of(seen.parent[0]), "epoch": seen.parent[1]}
            append_line(self.path, line)
        if record.epoch in self.study.saved_epochs:  # an epoch that is told again was saved again
            self.kept.add(kept_name(number, self.study.trials[number].config, record.epoch))
        ended = self.study.tell(number, record, cost)
        if lost:
            self._note(number, LOST, lost)
        row = self._show(self.study.trials[number])
        if ended:
            self.ended = True
            self._count_columns()  # a line about its end should not tell of seconds ago
        self._tell(row)
        return ended or self.spent()

    def spent(self) -> bool:
        """Whether a budget is used up; from then on the search ends, whatever the clock says."""
        self.board.spent = self.board.spent or self.study.spent
        return self.board.spent is not None

    def lost(self, number: int, error: str) -> None:
        """The trial's process is lost, and another takes it up."""
        self._note(number, last_error(error), 1)
        self._tell(self._show(self.study.trials[number]))

    def failed(self, number: int, error: str) -> None:
        self.study.failed(number)
        self._note(number, last_error(error), 0, error)
        self.ended = True
        self._tell(self._show(self.study.trials[number]))

    def _note(self, number: int, error: str, times: int, text: str | None = None) -> None:
        epoch, at = self.study.trials[number].epoch, round(self.study.seconds, 3)
        line = {"trial": name_of(number), "error": error, "times": times, "epoch": epoch, "at": at}
        append_line(self.errors, line if text is None else {**line, "text": text})
        row = self._show(self.study.trials[number])
        row.error, row.retries = error, row.retries + times

    def look(self) -> None:
        """Now and then. Columns grow while no trial has anything to report, and that is worth seeing."""
        if time.monotonic() - self.looked > LOOK_EVERY_S and self._count_columns():
            self._tell(None)
        if self.ended and time.monotonic() >= self.push_again:
            self.settle()

    def settle(self) -> None:
        """States go once the storage has the records that say they are not needed."""
        began = time.monotonic()
        self.ended = False
        if self.push():
            for name in sorted(self.kept - self._wanted()):
                try:
                    self.states.delete(name)
                except (OSError, StorageError) as error:  # a storage that fails for a while: it takes room, no harm
                    log.warning("the state of an ended trial stays in %s: %s", self.states.address, error)
                self.kept.discard(name)
        taken = time.monotonic() - began
        self.push_again = time.monotonic() + PAUSES * taken  # a slow storage is not asked all the time

    def _wanted(self) -> set[str]:
        """Names of states that stay: of what may go on, and of the best."""
        trials = self.study.trials.values()
        best = sorted((seen for seen in trials if seen.status == "complete"), key=lambda seen: -seen.values[-1])
        going = [seen for seen in trials if not seen.ended or seen.status == "failed"]
        names = {state_name(seen.number, seen.config) for seen in [*going, *best[: self.keep]]}
        parents = self.study.wanted_states()
        # a trial may be ahead of the records, and what it has left behind is not known yet
        parents |= {(seen.number, epoch) for seen in going for epoch in self.study.saved_epochs if epoch > seen.epoch}
        return names | {kept_name(number, self.study.trials[number].config, epoch) for number, epoch in parents}

    def _count_columns(self) -> bool:
        """Whether there was anything to count: once all columns are there, they stay."""
        there, views = self.board.columns
        if not self.caches or (views and there == views):
            return False
        self.looked = time.monotonic()
        try:
            counts = [(cache.there(), cache.views) for cache in self.caches]
        except (CacheError, OSError):  # a storage that fails for a while: this is only a picture
            return False
        self.board.columns = sum(there for there, _ in counts), sum(views for _, views in counts)
        return True

    def _show(self, seen: Seen) -> Row:
        row = self.board.rows.setdefault(name_of(seen.number), Row(name_of(seen.number), seen.config))
        row.epoch, row.status = seen.epoch, seen.status
        row.val_accuracy = seen.values[-1] if seen.values else 0.0
        return row

    def _tell(self, row: Row | None) -> None:
        self.board.changed = row
        self.board.trials = self.study.planned
        self.board.seconds = self.study.seconds
        self.spent()
        self.watch.search_progress(self.board)
