"""`Trial`: one student in training, which can be saved between two epochs and taken up again."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import safetensors.torch
from torch import Tensor

from kdtune.cache import LogitCache
from kdtune.data import Dataset
from kdtune.distill import Student, distill
from kdtune.experiment import Experiment
from kdtune.ranks import ALONE, Ranks
from kdtune.records import EpochRecord, write_bytes
from kdtune.teacher import weights_of
from kdtune.training import evaluate, from_bytes, to_bytes

SAVE_EVERY_S = 30.0


class Trial:
    """One student in training. Between two records it can be saved, and restored into an equal trial.

    `records` yields what is still to come, `history` holds what has been, a restored trial's past included.
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
        cache: LogitCache | None = None,
    ) -> None:
        """`cache` is where the student finds its teacher's answers, or computes what is missing."""
        self.student = student
        self.dataset = dataset
        self.ranks = ranks
        self.cache = cache
        self.history: list[EpochRecord] = []
        self._again = partial(distill, student, experiment, dataset, seed=seed, whole=whole, alone=alone, ranks=ranks)
        self.records = self._records()

    def _records(self) -> Generator[EpochRecord, None, None]:
        if self.history and self.history[-1].last:  # diverged trials end before their last epoch
            return
        computing = self._computing_s()
        for record in self._again():
            before, computing = computing, self._computing_s()
            self.history.append(replace(record, computed=computing - before))
            yield self.history[-1]

    def _computing_s(self) -> float:
        return 0.0 if self.cache is None else self.cache.computing_s

    def state(self) -> bytes:
        """All that is needed to go on after the last record."""
        history = [record.to_json() for record in self.history]
        return to_bytes({"training": self.student.state.state_dict(), "history": history})

    def restore(self, state: bytes) -> None:
        """Continues where an equal trial, of the same configuration and seed, stood."""
        saved = from_bytes(state, next(self.student.network.parameters()).device)
        self.student.state.load_state_dict(saved["training"])
        self.history = [EpochRecord.from_json(line) for line in saved["history"]]
        self.records = self._records()

    def stop(self) -> None:
        """Lets go of what the suspended epoch holds, so that its memory is free as soon as nobody holds the trial."""
        self.records.close()

    def save(self, path: Path) -> None:
        """State after the last record: whole or absent."""
        write_bytes(path, self.state())

    def resumable(self, path: Path) -> Iterator[EpochRecord]:
        """The records still to come, from where `path` says; saved there every half a minute and at the end."""
        if path.exists():
            self.restore(path.read_bytes())
        saved = time.monotonic()
        for record in self.records:
            yield record
            if record.last or time.monotonic() - saved > SAVE_EVERY_S:
                self.save(path)
                saved = time.monotonic()

    def test(self) -> "Tested":
        """On the test set, which is read once. All ranks call it."""
        test, network = self.dataset.test, self.student.network
        found = evaluate(network, self.dataset, test.images, test.labels, ranks=self.ranks)
        weights = safetensors.torch.save(weights_of(network))
        return Tested(found.accuracy, found.predictions.cpu(), found.confidences.cpu(), weights)


@dataclass(frozen=True)
class Tested:
    """What a student that is done says to the test set, and the student alone."""

    accuracy: float
    predictions: Tensor  # [N] int64, on the CPU: it goes to processes without a GPU
    confidences: Tensor  # [N] float32, likewise: probabilities of the predictions
    weights: bytes  # safetensors
