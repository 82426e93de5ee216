"""What long work shows: a live table in a terminal, plain lines elsewhere.

`Terminal` and `Lines` both are watchers of `kdtune.trial.prepare` and `kdtune.search.run_search`.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.align import Align
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdtune.cache import LogitCache
from kdtune.cli.tables import console, megabytes
from kdtune.data import Dataset
from kdtune.experiment import Experiment
from kdtune.experiment.networks import INLINE
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher

if TYPE_CHECKING:
    from kdtune.search.board import Board, Row

PATIENCE = 1.5  # seconds of reading files that pass without a word
FRAMES = 6  # a second, of the live table
SHOWN_ROWS = 10
STYLES = {
    "waiting": "dim",
    "running": "cyan",
    "complete": "green",
    "stopped": "dim",
    "diverged": "red",
    "failed": "red",
}
ENDED = ("complete", "stopped", "diverged", "failed")


class Lines:
    """One line for each thing worth a line; for logs, pipes and CI."""

    words_apart = 60.0  # seconds from one word about the files read to the next

    def __init__(self) -> None:
        self.console = console()
        self.console.soft_wrap = not sys.stdout.isatty()  # a terminal's lines are broken between words
        self.began = time.monotonic()
        self._reported: set[str] = set()
        self._retries: dict[str, int] = {}  # told already, by trial
        self._due = 0.0  # when a word about the files read is next

    def say(self, text: str) -> None:
        # not as markup: paths and class names may hold brackets
        self.console.print(Text(f"{time.monotonic() - self.began:6.1f} s  ", "dim").append(text, "not dim"))

    def files_read(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0:
            self._due = now + PATIENCE
        elif now >= self._due:
            self._due = now + self.words_apart
            self.say(f"data      reading {total:,} files once, to know them again: {done:,} read")

    def dataset_ready(self, dataset: Dataset) -> None:
        channels, height, width = dataset.shape
        self.say(
            f"data      {dataset.name}: {len(dataset.fit)} images to train on, {len(dataset.validation)} to validate, "
            f"{len(dataset.test.labels)} to test; {channels} x {height} x {width}, {len(dataset.classes)} classes"
        )

    def teacher_epoch(self, name: str, record: EpochRecord) -> None:
        quarter = max(1, record.epochs // 4)
        if record.epoch % quarter == 0 or record.last:
            self.say(
                f"{titled(name)} epoch {record.epoch}/{record.epochs}: loss {record.loss:.3f}, "
                f"validation accuracy {record.val_accuracy:.2%}"
            )

    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None:
        origin = "" if teacher.trained_here else " (brought along: it may have seen the validation images)"
        self.say(
            f"{titled(name)} {teacher.model}: {teacher.val_accuracy:.2%} of {len(dataset.validation)} "
            f"validation images{origin}"
        )

    def cache_column(self, done: int, views: int) -> None:
        if done == views or done % max(1, views // 4) == 0:
            self.say(f"cache     {done} of {views} view columns")

    def cache_ready(self, cache: LogitCache) -> None:
        identity, there = cache.manifest.identity, len(cache.columns())
        count = str(there) if there >= cache.views else f"{there} of {cache.views}"
        size = megabytes(max(there, cache.views) * identity.bytes_of_logits)
        self.say(
            f"cache     of {cache.manifest.teacher_model}: {count} view columns of {identity.rows:,} x "
            f"{identity.top_k or identity.classes:,} logits, {size} in all"
            + (f"; {cache.rows_checked} rows checked against the teacher" if cache.rows_checked else "")
            + ("; the others are computed when first needed" if there < cache.views else "")
        )
        if cache.mended:
            self.say(
                f"cache     damaged columns have been computed again: {', '.join(map(str, sorted(set(cache.mended))))}"
            )
        if cache.views < cache.wanted:
            self.say(f"cache     {fewer_views(cache)}")

    def cache_checked(self, done: int, columns: int) -> None:
        """A column of `kdtune cache verify`; a line for each would be too many."""

    def trial_epoch(self, record: EpochRecord) -> None:
        """An epoch of `kdtune train`."""
        self.say(f"student   {_epoch(record)}")

    def already_finished(self, folder: Path) -> None:
        self.say(f"finished  {folder} holds this very experiment; --set name=... searches anew")

    def assistant_search(self, name: str, experiment: Experiment) -> None:
        self.say(f"assistant {name}: a search of its own, taught by {experiment.teacher_name}")

    def search_knows(self, what: str) -> None:
        self.say(f"search    {what}")

    def search_resumed(self, board: "Board") -> None:
        self._reported = {row.trial for row in board.rows.values() if row.status in ENDED}
        self._retries = {row.trial: row.retries for row in board.rows.values()}
        self.say(f"search    taken up again with {board.ended} of {board.trials} trials done")

    def search_progress(self, board: "Board") -> None:
        row = board.changed
        if row is None:
            return
        self.say_retries(row)
        if row.status in ENDED and row.trial not in self._reported:
            self._reported.add(row.trial)
            self.say(
                f"trial {row.trial} {row.status:<8} epoch {row.epoch}/{board.epochs}, "
                f"{row.val_accuracy:.2%}; {headline(board)}"
            )
            self.say_failure(row)

    def search_ended(self, board: "Board") -> None:
        spent = f"; search.budget.{board.spent} is reached" if board.spent else ""
        self.say(f"search    {headline(board)}{spent}")

    def say_retries(self, row: "Row") -> None:
        if row.retries > self._retries.get(row.trial, 0):
            self._retries[row.trial] = row.retries
            self.say(f"trial {row.trial} was lost after epoch {row.epoch} and is taken up again: {row.error}")

    def say_failure(self, row: "Row") -> None:
        if row.status == "failed":
            self.say(f"trial {row.trial} failed: {row.error}")

    def final_progress(self, done: int, total: int) -> None:
        self.say(f"final     {done} of {total} runs")


class Terminal(Lines):
    """Lines for what is finished, and below them one live picture of what is going on."""

    words_apart = math.inf  # after the first one the picture tells

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0.0  # when the table of trials was
        self.live = Live(console=self.console, refresh_per_second=FRAMES, transient=True)

    def files_read(self, done: int, total: int) -> None:
        super().files_read(done, total)
        if self._due == math.inf:
            self.live.update(_bar(f"data: {done:,}/{total:,} files", done, total) if done < total else Text(""))

    def teacher_epoch(self, name: str, record: EpochRecord) -> None:
        self.live.update(
            _bar(
                f"{titled(name).strip()} epoch {record.epoch}/{record.epochs}, validation accuracy "
                f"{record.val_accuracy:.2%}",
                record.epoch,
                record.epochs,
            )
        )

    def cache_column(self, done: int, views: int) -> None:
        self.live.update(_bar(f"cache: {done}/{views} view columns", done, views))

    def cache_checked(self, done: int, columns: int) -> None:
        self.live.update(_bar(f"cache: {done}/{columns} view columns read", done, columns))

    def trial_epoch(self, record: EpochRecord) -> None:
        self.live.update(_bar(f"student: {_epoch(record)}", record.epoch, record.epochs))

    def cache_ready(self, cache: LogitCache) -> None:
        super().cache_ready(cache)
        self.live.update(Text("getting ready ..."))

    def search_progress(self, board: "Board") -> None:
        row, now = board.changed, time.monotonic()
        if row is not None:
            self.say_retries(row)
            if row.status == "failed" and row.trial not in self._reported:
                self._reported.add(row.trial)
                self.say_failure(row)
        if now - self._drawn > 1 / FRAMES:  # a large search has more results than anybody can see
            self._drawn = now
            self.live.update(board_table(board))

    def final_progress(self, done: int, total: int) -> None:
        self.live.update(_bar(f"final stage: {done}/{total} runs", done, total))
        if done == total:
            self.say(f"final     {total} runs")


def _epoch(record: EpochRecord) -> str:
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in record.shares.items())
    return (
        f"epoch {record.epoch}/{record.epochs}: loss {record.loss:.3f} ({shares}), "
        f"validation accuracy {record.val_accuracy:.2%}"
    )


def fewer_views(cache: LogitCache) -> str:
    """Why there are fewer view columns than epochs, and what can be done."""
    free = cache.store.free()
    return (
        f"only {cache.views} of {cache.wanted} view columns fit the disk ({megabytes(free or 0)} free, "
        f"{megabytes(cache.manifest.identity.bytes_of_logits)} a column): every image is seen in {cache.views} views, "
        f"which take turns. For more of them: keep less of a logit (cache.bits, cache.top_k), or set "
        f"cache.storage to a larger disk; data.views: {cache.views} says that so many are enough"
    )


def titled(name: str) -> str:
    """`teacher  `, or `teacher large`: how lines about a teacher begin."""
    return "teacher  " if name == INLINE else f"teacher {name}:"


@contextmanager
def watcher() -> Iterator[Lines]:
    """The right watcher for where stdout goes."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    terminal = Terminal()
    with terminal.live:
        yield terminal


def headline(board: "Board") -> str:
    """Trials done, running, stopped, best so far, time left."""
    best = f"best {board.best.val_accuracy:.2%} (trial {board.best.trial})" if board.best else "no result yet"
    failed = board.count("failed", "diverged")
    running = "" if board.spent else f"{board.count('running')} running, "
    left = board.seconds_left
    there, views = board.columns
    return (
        f"{board.ended}/{board.trials} done, {running}{board.count('stopped')} stopped early"
        + (f", {failed} failed or diverged" if failed else "")
        + f", {best}"
        + (f", cache {there}/{views} columns" if there < views else "")
        + (f", about {duration(left)} left" if left and board.ended < board.trials and not board.spent else "")
    )


def board_table(board: "Board") -> RenderableType:
    """The running trials and the best of the others."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    table.add_column("trial", width=6, justify="right")
    table.add_column("status", width=8)
    table.add_column("epoch", width=9, justify="right")
    table.add_column("accuracy", width=8, justify="right")
    table.add_column("configuration", ratio=1, overflow="ellipsis", no_wrap=True)
    running = [row for row in board.rows.values() if row.status == "running"]
    others = [row for row in board.rows.values() if row.status != "running"]
    others.sort(key=lambda row: (row.status == "complete", row.val_accuracy), reverse=True)
    for row in [*running, *others][:SHOWN_ROWS]:
        best = board.best is not None and row.trial == board.best.trial
        accuracy = Text(f"{row.val_accuracy:.2%}" if row.epoch else "", "bold green" if best else "")
        status = Text(row.status, STYLES[row.status])
        table.add_row(row.trial, status, f"{row.epoch}/{board.epochs}", accuracy, Text(short_config(row.config)))
    return Group(_bar(headline(board), board.ended, board.trials), table)


def short_config(config: Mapping[str, Any]) -> str:
    """`temperature exponential 4 → 1, alpha 0.9`: each schedule in a few words; values are whatever was sampled."""
    schedules: dict[str, dict[str, Any]] = {}
    for path, value in config.items():
        section, _, rest = path.partition(".")
        owner, _, name = (rest or section).partition(".")
        fields = value if isinstance(value, Mapping) else {name or "start": "null" if value is None else value}
        schedules.setdefault(owner, {}).update(fields)
    words = []
    for owner, fields in schedules.items():
        kind, start = fields.pop("kind", "fixed"), fields.pop("start", None)
        if start is not None and "end_ratio" in fields:
            fields["end"] = start * fields.pop("end_ratio")
        end = fields.pop("end", None)
        shown = [owner, *([kind] if kind != "fixed" else [])]
        shown += [_number(start)] if start is not None else []
        shown += [f"→ {_number(end)}"] if end is not None else []
        shown += [f"→ {_number(later)}" for later in fields.pop("values", ())]
        words.append(" ".join([*shown, *(f"{name} {_number(value)}" for name, value in fields.items())]))
    return ", ".join(words)


def _number(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_number, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _bar(text: str, done: int, total: int) -> Group:
    return Group(Text(text), Align.left(ProgressBar(total=max(total, 1), completed=done, width=60)))
