"""Where a search stands: what the live table shows, and what `trials.jsonl` is written from.

`Recorder` is a Tune callback. It appends one line an epoch, keeps the `Board` up to date, tells the watcher, deletes
the checkpoints of trials that have ended, and saves the scheduler's rungs with Tune's own snapshots (Tune saves the
sampler but forgets the scheduler, ray#30838). Tune takes a snapshot every ten seconds or more seldom; the recorder asks
for one whenever a trial has ended, so that after a crash no trial runs twice.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pyarrow import fs
from ray import tune
from ray.tune.experiment import Trial

from kdtune.cache import LogitCache
from kdtune.errors import CacheError, RunError
from kdtune.experiment import Experiment
from kdtune.experiment.space import active, parse
from kdtune.records import EpochRecord, append_line, last_epochs, mend, take_back
from kdtune.search.asha import Whole

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0  # at the columns of caches
PAUSES = 5  # times as long as a snapshot takes there is none that is asked for


@dataclass
class Row:
    """One trial on the board."""

    trial: str
    config: Mapping[str, Any]
    epoch: int = 0
    val_accuracy: float = 0.0
    status: str = "running"  # then: complete, stopped, diverged, failed
    error: str = ""  # of a trial that failed or was retried: the last exception, without its traceback, and where
    retries: int = 0  # how often it was taken up again, from its last checkpoint


@dataclass
class Board:
    """The search so far."""

    trials: int
    epochs: int  # of a full trial
    rows: dict[str, Row] = field(default_factory=dict)
    seconds: float = 0.0
    columns: tuple[int, int] = (0, 0)  # of the teachers' caches: there already, and those that there may be

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
        ended = [row.epoch for row in self.rows.values() if row.status != "running"]
        if not ended or not done:
            return None
        expected = sum(ended) / len(ended) * self.trials
        return self.seconds / done * max(expected - done, 0)


Place = tuple[fs.FileSystem, str]  # a trial's folder, where Tune keeps it


def remove_checkpoints(trials: Sequence[Place]) -> None:
    """An ended trial is not taken up again."""
    for files, path in trials:
        try:
            entries = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
            for entry in entries:
                if entry.base_name.startswith("checkpoint_"):
                    files.delete_dir(entry.path)
        except OSError as error:  # a storage that fails for a while: they take room and do no harm
            log.warning("checkpoints of an ended trial stay in %s: %s", path, error)


def last_error(text: str) -> str:
    """The exception at the end of what Tune has written of a trial's failures, its message, and the node's address."""
    text = re.split(r"^Failure # \d+ .*\n", text, flags=re.MULTILINE)[-1].strip()
    lines = text.splitlines()
    where = re.search(r"^\tip: (\S+)|\bip=([^\s,)]+)", text, flags=re.MULTILINE)
    starts = [k for k, line in enumerate(lines) if re.match(r"[\w.()]+: ", line)]
    if starts:
        shown = "\n".join(lines[starts[-1] :])
    else:  # Ray's own words about a process that is lost, with details that are indented
        shown = " ".join(line for line in lines if line and not line[0].isspace())
    return f"{shown} (node {where[1] or where[2]})" if where else shown


class BoardWatcher(Protocol):
    """Who looks at the board."""

    def search_resumed(self, board: Board) -> None: ...
    def search_progress(self, board: Board) -> None: ...


def _why(trial: Trial) -> str:
    # get_error() reads the copy in storage, which is made only later
    return last_error(Path(trial.error_file).read_text()) if trial.error_file else "no reason was recorded"


LOST = "workers were lost, and others went on from the trial's last state"


class Recorder(tune.Callback):
    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        scheduler: Whole,
        watch: BoardWatcher,
        *,
        resumed: bool,
        caches: Sequence[LogitCache] = (),
        before_snapshot: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.experiment = experiment
        self.parameters, _ = parse(experiment.search.space)
        self.scheduler = scheduler
        self.watch = watch
        self.board = Board(experiment.search.trials, experiment.train.epochs)
        self.caches = caches
        self.looked = 0.0  # when the caches were looked at
        self.resumed = resumed
        self.restored = False
        self.before_snapshot = before_snapshot  # records are on the storage before Tune's state that relies on them
        self.ended: list[list[Place]] = [[], [], []]  # since the last snapshot, before it, before the one before it
        self.unsaved = False  # whether a trial has ended since the last snapshot
        self.save_again = 0.0  # not before this time
        self.numbers: dict[str, str] = {}
        self.failure: OSError | None = None
        self.before = 0.0  # seconds of the runs that this one resumes
        self.began = time.monotonic()
        mend(path)
        self.said = last_epochs(path)  # in the records, by number of the trial

    def setup(self, *_: Any, **info: Any) -> None:
        """Tune calls it once it has tried to restore; where that failed it would start over without a word."""
        if self.resumed and not self.restored:
            raise RunError(
                f"Ray Tune's state in {self.path.parent / 'ray'} cannot be read. Remove that folder to search anew; "
                f"teacher and cache stay"
            )

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ten times a second. Columns grow while no trial has anything to report, and that is worth seeing."""
        if time.monotonic() - self.looked > LOOK_EVERY_S and self._count_columns():
            self._tell()
        began = time.monotonic()
        if self.unsaved and began >= self.save_again:
            self.scheduler.controller.checkpoint(force=True)
            ended = time.monotonic()
            self.save_again = ended + PAUSES * (ended - began)  # on a slow storage it waits for the snapshot before

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

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._row(trials, trial).status = "running"
        self._tell()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        row = self._row(trials, trial)
        try:
            if self.said.get(row.trial, 0) >= result["epoch"]:
                take_back(self.path, row.trial, result["epoch"])
            append_line(self.path, {"trial": row.trial, "config": row.config, **result["record"]})
            self.said[row.trial] = result["epoch"]
        except OSError as error:  # Tune would pass it on as text only
            self.failure = error
            raise
        row.epoch, row.val_accuracy = result["epoch"], result["val_accuracy"]
        if result["lost"]:
            row.error, row.retries = LOST, row.retries + result["lost"]
        self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = EpochRecord.from_json(trial.last_result["record"])
        row = self._row(trials, trial)
        row.status = "diverged" if record.diverged else "complete" if record.last else "stopped"
        assert trial.storage is not None
        self.ended[0].append((trial.storage.storage_filesystem, trial.storage.trial_fs_path))
        self.unsaved = True
        self._count_columns()  # a line about its end should not tell of seconds ago
        self._tell()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        row = self._row(trials, trial)
        row.error, row.retries = _why(trial), row.retries + 1
        self._tell()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        row = self._row(trials, trial)
        row.status, row.error = "failed", _why(trial)
        self.unsaved = True
        self._tell()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        remove_checkpoints([place for places in self.ended for place in places])

    def get_state(self) -> dict[str, Any]:
        """Called for each snapshot. Checkpoints go only when one that knows of their end is whole: two snapshots on."""
        self.before_snapshot()
        new, known, whole = self.ended
        remove_checkpoints(whole)
        self.ended, self.unsaved = [[], new, known], False
        return {
            "rungs": self.scheduler.state(),
            "numbers": self.numbers,
            "rows": self.board.rows,
            "seconds": self.seconds,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.restored = True
        if state["rungs"]:
            self.scheduler.restore_state(state["rungs"])
        self.numbers = state["numbers"]
        # failed trials are tried again
        self.board.rows = {number: row for number, row in state["rows"].items() if row.status != "failed"}
        self.before = state["seconds"]
        self.watch.search_resumed(self.board)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _row(self, trials: list[Trial], trial: Trial) -> Row:
        for one in trials if trial.trial_id not in self.numbers else ():  # in the order of their proposal
            self.numbers.setdefault(one.trial_id, f"{len(self.numbers):04d}")
        number = self.numbers[trial.trial_id]
        if number not in self.board.rows:
            values = active(self.parameters, trial.config, self.experiment)
            self.board.rows[number] = Row(number, values)
        return self.board.rows[number]

    def _tell(self) -> None:
        self.board.seconds = self.seconds
        self.watch.search_progress(self.board)
