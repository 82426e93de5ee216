"""What the tests of tuning share: records of epochs, trials as a stopper sees them, a search without Ray."""

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kdtune.experiment.space import parse
from kdtune.experiment.stopping import ready_epochs
from kdtune.records import EpochRecord
from kdtune.tuning.population import Population
from kdtune.tuning.samplers import Random
from kdtune.tuning.stoppers import Never
from kdtune.tuning.study import DIVERGED, Budget, Seen, Stopper, Study

SPACE, _ = parse({"distill.alpha": {"uniform": [0, 1]}, "distill.temperature": {"loguniform": [1, 20]}})
Line = dict[str, Any]  # of trials.jsonl


def record(
    epoch: int, accuracy: float = 0.5, *, epochs: int = 9, diverged: bool = False, seconds: float = 1.0
) -> EpochRecord:
    loss = math.nan if diverged else 1.0
    return EpochRecord(epoch, epochs, loss, {"cross_entropy": loss}, accuracy, 1.0, 0.1, seconds)


def line(number: int, config: object, told: EpochRecord, **more: object) -> Line:
    return {"trial": f"{number:04d}", "config": config, **told.to_json(), **more}


def new_study(stopper: Stopper | None = None, trials: int = 8, **budget: Any) -> Study:
    return Study(SPACE, Random(SPACE, 0), stopper or Never(), Budget(trials, **budget))


def new_population(members: int = 8, epochs: int = 9, seed: int = 0) -> Study:
    """Compared after every second epoch."""
    return new_study(Population(SPACE, ready_epochs(2, epochs), epochs, members, seed), members)


class Judged:
    """Trials as a study shows them to a stopper, one epoch after the other."""

    def __init__(self, stopper: Stopper, epochs: int = 1000) -> None:
        self.stopper = stopper
        self.epochs = epochs
        self.trials: dict[int, Seen] = {}

    def tell(self, number: int, value: float | None) -> bool:
        """Whether the trial stops after its next epoch; None diverges."""
        seen = self.trials.setdefault(number, Seen(number, {}, {}, status="running"))
        seen.values.append(DIVERGED if value is None else value)
        if value is None:
            seen.status = "diverged"
        return self.stopper.judge(seen)

    def run(self, number: int, values: Iterable[float | None]) -> int:
        """The epoch after which the trial stops, or its last."""
        told = 0
        for told, value in enumerate(values, start=1):  # noqa: B007
            if self.tell(number, value):
                break
        return told


Outcome = Callable[[int, int], float | None]  # number and epoch of a trial -> its accuracy, None where it diverges


def outcomes(salt: int, *, diverging: float = 0.05) -> Outcome:
    """Accuracies out of a handful, so that there are ties; a function of trial and epoch, like training."""

    def of(number: int, epoch: int) -> float | None:
        source = random.Random(f"{salt} {number} {epoch}")
        return None if source.random() < diverging else source.randrange(6) / 5

    return of


def work(
    study: Study, outcome: Outcome, picks: Sequence[int], *, workers: int, lines: list[Line], epochs: int = 9
) -> list[tuple[int, int, bool]]:
    """Simulates workers: each pick is one that does its next epoch. What was told is appended to `lines`.

    A worker that has nothing to do asks first. Returns (number, epoch, ended) of each epoch.
    """
    busy: list[Seen | None] = [None] * workers
    said = []
    for pick in picks:
        k = pick % workers
        seen = busy[k] or study.ask()
        if seen is None:
            continue
        value = outcome(seen.number, seen.epoch + 1)
        told = record(seen.epoch + 1, value or 0.0, epochs=epochs, diverged=value is None)
        ended = study.tell(seen.number, told)
        of, epoch = seen.parent or (None, None)
        parent = {} if of is None else {"parent": {"trial": f"{of:04d}", "epoch": epoch}}
        lines.append(json.loads(json.dumps(line(seen.number, seen.config, told, **parent))))
        said.append((seen.number, told.epoch, ended))
        busy[k] = None if ended else seen
    return said
