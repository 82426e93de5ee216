"""`Trial`: one student in training, which can be saved between two epochs and taken up again."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kdtune.data import Dataset
from kdtune.distill import Student, distill
from kdtune.experiment import Experiment
from kdtune.ranks import ALONE, Ranks
from kdtune.records import EpochRecord
from kdtune.training import load_state, save_state

SAVE_EVERY_S = 30.0


class Trial:
    """One student in training. Between two records it can be saved, and loaded into an equal trial.

    `records` yields what is still to come, `history` holds what has been, a loaded trial's past included.
    """

    def __init__(
        self,
        student: Student,
        experiment: Experiment,
        dataset: Dataset,
        *,
        seed: int,
        whole: bool = False,
        alone: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.student = student
        self.history: list[EpochRecord] = []
        self._again = partial(distill, student, experiment, dataset, seed=seed, whole=whole, alone=alone, ranks=ranks)
        self.records = self._records()

    def _records(self) -> Iterator[EpochRecord]:
        for record in self._again():
            self.history.append(record)
            yield record

    def save(self, path: Path) -> None:
        """State after the last record: whole or absent."""
        history = [record.to_json() for record in self.history]
        save_state(path, {"training": self.student.state.state_dict(), "history": history})

    def load(self, path: Path) -> None:
        """Continues where a saved trial of the same configuration and seed stood."""
        saved = load_state(path, next(self.student.network.parameters()).device)
        self.student.state.load_state_dict(saved["training"])
        self.history = [EpochRecord.from_json(line) for line in saved["history"]]
        self.records = self._records()

    def resumable(self, path: Path) -> Iterator[EpochRecord]:
        """The records still to come, from where `path` says; saved there every half a minute and at the end."""
        if path.exists():
            self.load(path)
            if self.history and self.history[-1].last:  # diverged runs end before their last epoch
                return
        saved = time.monotonic()
        for record in self.records:
            yield record
            if record.last or time.monotonic() - saved > SAVE_EVERY_S:
                self.save(path)
                saved = time.monotonic()
