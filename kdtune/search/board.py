"""Where a search stands: what the live table shows, and what `trials.jsonl` is written from.

`Recorder` is a Tune callback. It appends one line an epoch, keeps the `Board` up to date, tells the watcher, deletes
the checkpoints of trials that have ended, and saves the scheduler's rungs with Tune's own snapshots (Tune saves the
sampler but forgets the scheduler, ray#30838).
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from kdtune.cache import LogitCache
from kdtune.errors import CacheError, RunError
from kdtune.experiment import Experiment
from kdtune.experiment.space import active, parse
from kdtune.records import EpochRecord, append_line, mend
from kdtune.search.asha import Asha

LOOK_EVERY_S = 5.0  # at the columns of caches


@dataclass
class Row:
    """One trial on the board."""

    trial: str
    config: Mapping[str, Any]
    epoch: int = 0
    val_accuracy: float = 0.0
    status: str = "running"  # then: complete, stopped, diverged, failed
    error: str = ""  # of a failed trial: the exception, without its traceback


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


def remove_checkpoints(trials: list[Path]) -> None:
    """An ended trial is not taken up again."""
    for trial in trials:
        for checkpoint in trial.glob("checkpoint_*"):
            shutil.rmtree(checkpoint)


def last_error(text: str) -> str:
    """The exception at the end of a traceback, with its message."""
    lines = text.strip().splitlines()
    starts = [k for k, line in enumerate(lines) if line and not line[0].isspace() and ":" in line]
    return "\n".join(lines[starts[-1] :] if starts else lines[-1:])


class BoardWatcher(Protocol):
    """Who looks at the board."""

    def search_resumed(self, board: Board) -> None: ...
    def search_progress(self, board: Board) -> None: ...


class Recorder(tune.Callback):
    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        scheduler: Asha | None,
        watch: BoardWatcher,
        *,
        resumed: bool,
        caches: Sequence[LogitCache] = (),
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
        self.ended: list[Path] = []  # folders of trials that have ended since the last snapshot
        self.spent: list[Path] = []  # of trials that had ended when it was taken
        self.numbers: dict[str, str] = {}
        self.failure: OSError | None = None
        self.before = 0.0  # seconds of the runs that this one resumes
        self.began = time.monotonic()
        mend(path)

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
            append_line(self.path, {"trial": row.trial, "config": row.config, **result["record"]})
        except OSError as error:  # Tune would pass it on as text only
            self.failure = error
            raise
        row.epoch, row.val_accuracy = result["epoch"], result["val_accuracy"]
        self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = EpochRecord.from_json(trial.last_result["record"])
        row = self._row(trials, trial)
        row.status = "diverged" if record.diverged else "complete" if record.last else "stopped"
        assert trial.storage is not None
        self.ended.append(Path(trial.storage.trial_fs_path))
        self._count_columns()  # a line about its end should not tell of seconds ago
        self._tell()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        row = self._row(trials, trial)
        # get_error() reads the copy in storage, which is made only later
        text = Path(trial.error_file).read_text() if trial.error_file else "no reason was recorded"
        row.status, row.error = "failed", last_error(text)
        self._tell()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        remove_checkpoints([*self.spent, *self.ended])

    def get_state(self) -> dict[str, Any]:
        """Called for each snapshot. Checkpoints go only when a snapshot that knows of their end is on disk."""
        remove_checkpoints(self.spent)
        self.spent, self.ended = self.ended, []
        return {
            "rungs": self.scheduler.state() if self.scheduler else None,
            "numbers": self.numbers,
            "rows": self.board.rows,
            "seconds": self.seconds,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.restored = True
        if self.scheduler and state["rungs"]:
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
