"""What a search knows, and what follows from it.

    study = Study(parameters, sampler, stopper, Budget(trials=60))
    study.replay(read_lines(folder / "trials.jsonl"))
    seen = study.ask()                                  # a configuration to run, or None
    ended = study.tell(seen.number, record, at=12.5)    # after every epoch

A study is a function of the experiment and of what it was told, in that order: it keeps nothing on disk and needs no
random state. `replay` tells it the lines of the records again.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.experiment.space import Parameter, active, encoded
from kdtune.records import EpochRecord

Sample = Mapping[str, float]  # by label of a parameter; only of those that are active
Status = Literal["waiting", "running", "complete", "stopped", "diverged", "failed"]
DAMAGED = "the file was edited or damaged. Put it back, or choose another name"
FORKS_FROM = 100_000  # their numbers: a sampler is asked by the number of a trial, and forks are none of its
DIVERGED = 0.0  # stands for the accuracy of a trial that diverged: as bad as can be, and a number


@dataclass
class Seen:
    """A trial as samplers and stoppers know it."""

    number: int
    config: Mapping[str, Any]  # {path: value}
    sample: Sample
    values: list[float] = field(default_factory=list)  # validation accuracy of each epoch so far
    status: Status = "waiting"
    cost: float | None = None  # in the unit of `search.second_objective`
    run: str | None = None  # a former search, whose accuracies are on a scale of their own; None is this one
    parent: tuple[int, int] | None = None  # (number, epoch) of the state that it goes on from; values begin with its

    @property
    def epoch(self) -> int:
        return len(self.values)

    @property
    def ended(self) -> bool:
        return self.status in ("complete", "stopped", "diverged", "failed")


class Sampler(Protocol):
    """Who proposes. A proposal is a function of the sampler's settings, the number and the trials, in any process."""

    def propose(self, number: int, trials: Sequence[Seen]) -> Sample | None:
        """A number for every label for the trial `number`, given all trials so far in order of their numbers, running
        ones included, and before them those of former searches (`Seen.run`); None where there is nothing left to
        propose."""
        ...


class Stopper(Protocol):
    """Who ends trials early. What it remembers is what it was asked before."""

    def judge(self, seen: Seen) -> bool:
        """Whether the trial stops here; called once for each epoch of each trial, in the order of the records. The
        status says already that a trial is complete or has diverged, where what is answered changes nothing."""
        ...


@dataclass(frozen=True)
class Fork:
    """A trial that goes on from another's state, with another configuration from there on."""

    parent: tuple[int, int]  # number, and epochs that it has behind it
    config: Mapping[str, Any]
    values: Sequence[float] = field(default=(), compare=False)  # of those epochs


@runtime_checkable
class Forking(Stopper, Protocol):
    """A stopper that has something better to do than what it stops."""

    ready: Sequence[int]  # epochs of a run after which a fork may go on

    def fork(self, seen: Seen) -> Fork:
        """What takes the place of a trial that was just stopped."""
        ...

    def wanted(self) -> set[tuple[int, int]]:
        """All states, by number and epoch, that a fork may still go on from."""
        ...


@dataclass(frozen=True)
class Budget:
    """When no further trial is begun, and running ones end with their epoch."""

    trials: int  # without forks
    epochs: int | None = None  # of all trials together
    seconds: float | None = None
    gpu_hours: float | None = None
    accuracy: float | None = None  # on validation images, of a trial that ran in full


class Study:
    def __init__(
        self,
        parameters: Sequence[Parameter],
        sampler: Sampler,
        stopper: Stopper,
        budget: Budget,
        *,
        points: Sequence[Sample] = (),
        known: Sequence[Seen] = (),
        base: Experiment | None = None,
        gpus: float = 0.0,
    ) -> None:
        """`points` come first; `known` are trials of former searches, numbered below 0; `base` answers conditions on
        what is not searched; `gpus` are those of a trial."""
        self.parameters = parameters
        self.sampler = sampler
        self.stopper = stopper
        self.forking = stopper if isinstance(stopper, Forking) else None
        self.forks: list[Fork] = []  # that have not begun
        self.forked = 0  # that have
        self.budget = budget
        self.points = points
        self.known = known
        self.base = base
        self.gpus = gpus
        self.trials: dict[int, Seen] = {}
        self.going: dict[int, Seen] = {}  # those that have not ended: few, however many there were
        self.free = {0: 0, FORKS_FROM: FORKS_FROM}  # from each of these on, no number below it is free
        self.epochs = 0
        self.trial_seconds = 0.0  # of all trials, one beside another
        self.best = 0.0  # of trials that ran in full
        self.before = 0.0  # seconds of the search before this process
        self.began = time.monotonic()
        self.exhausted = False  # the sampler has nothing left

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """What the records say, told again. Trials that had not ended wait to be asked for.

        Raises RunError where a line is no epoch of a trial, or an epoch is missing: no crash leaves that.
        """
        for count, line in enumerate(lines, start=1):
            problem = self._replay(line)
            if problem is not None:
                raise RunError(f"trials.jsonl, line {count} {problem}: {DAMAGED}")
        for seen in self.going.values():
            seen.status = "waiting"

    def _replay(self, line: Mapping[str, Any]) -> str | None:
        """What is wrong with the line, if anything."""
        try:
            number, config, record = int(line["trial"]), dict(line["config"]), EpochRecord.from_json(line)
            parent = (int(line["parent"]["trial"]), int(line["parent"]["epoch"])) if "parent" in line else None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            return f"is no epoch of a trial ({type(error).__name__}: {error})"
        if number not in self.trials:
            fork = None if parent is None else Fork(parent, config)
            if fork is not None and fork not in self.forks:
                return f"tells of the fork {line['trial']}, to which nothing before it led"
            self._add(number, config, fork and self.forks.pop(self.forks.index(fork)))
        seen = self.trials[number]
        if record.epoch > seen.epoch + 1:
            return f"tells of epoch {record.epoch} of trial {line['trial']} after epoch {seen.epoch}"
        self.tell(number, record, line.get("cost"))
        self.before = max(self.before, line.get("at", 0.0))  # earlier versions did not say
        return None

    @property
    def seconds(self) -> float:
        """That the search has taken, in all processes that worked at it one after the other."""
        return self.before + time.monotonic() - self.began

    def ask(self) -> Seen | None:
        """What to run next; None where nothing is to be begun now."""
        if self.spent is not None:
            return None
        waiting = min((n for n, seen in self.going.items() if seen.status == "waiting"), default=None)
        seen = self._proposed() if waiting is None else self.trials[waiting]
        if seen is not None:
            seen.status = "running"
        return seen

    def _proposed(self) -> Seen | None:
        if self.forks:
            fork = self.forks.pop(0)
            return self._add(self._free(FORKS_FROM), fork.config, fork)
        number = self._free(0)
        if number >= self.budget.trials:
            return None
        if number < len(self.points):
            sample: Sample | None = self.points[number]
        else:
            asked = [self.trials[n] for n in sorted(self.trials) if n < FORKS_FROM]
            sample = self.sampler.propose(number, [*self.known, *asked])
        if sample is None:
            self.exhausted = True
            return None
        return self._add(number, active(self.parameters, sample, self.base))

    def _free(self, first: int) -> int:
        """The first number from there on that no trial has."""
        while self.free[first] in self.trials:
            self.free[first] += 1
        return self.free[first]

    def _add(self, number: int, config: Mapping[str, Any], fork: Fork | None = None) -> Seen:
        seen = Seen(number, config, encoded(self.parameters, config))
        if fork is not None:
            seen.parent, seen.values = fork.parent, list(fork.values)
            self.forked += 1
        self.trials[number] = self.going[number] = seen
        return seen

    def tell(self, number: int, record: EpochRecord, cost: float | None = None) -> bool:
        """Whether the trial has ended. An epoch that is told again, by a trial that was taken up from before it,
        changes nothing, unless the trial diverges there. `cost` is the student's, measured once a trial."""
        seen = self.trials[number]
        if cost is not None and seen.cost is None:
            seen.cost = cost
        if self.is_news(number, record):
            del seen.values[record.epoch - 1 :]
            assert seen.epoch == record.epoch - 1
            seen.values.append(DIVERGED if record.diverged else record.val_accuracy or 0.0)
            self.epochs += 1
            self.trial_seconds += record.seconds + record.waited
            if record.last:
                seen.status = "diverged" if record.diverged else "complete"
            if self.stopper.judge(seen) and not record.last:
                seen.status = "stopped"
                if self.forking is not None:
                    self.forks.append(self.forking.fork(seen))
            if seen.status == "complete":
                self.best = max(self.best, seen.values[-1])
            if seen.ended:
                del self.going[number]
        return seen.ended

    def is_news(self, number: int, record: EpochRecord) -> bool:
        seen = self.trials[number]
        return not seen.ended and (record.epoch > seen.epoch or record.diverged)

    def failed(self, number: int) -> None:
        """The trial cannot be run."""
        self.going.pop(number, None)
        self.trials[number].status = "failed"

    @property
    def spent(self) -> str | None:
        """The part of the budget that is used up, if any but the number of trials."""
        budget = self.budget
        limits = {
            "epochs": (self.epochs, budget.epochs),
            "seconds": (self.seconds, budget.seconds),
            "gpu_hours": (self.trial_seconds * self.gpus / 3600, budget.gpu_hours),
            "accuracy": (self.best, budget.accuracy),
        }
        return next((name for name, (used, limit) in limits.items() if limit is not None and used >= limit), None)

    @property
    def saved_epochs(self) -> Sequence[int]:
        """Epochs after which a trial's state is kept under (number, epoch), before that epoch is told."""
        return self.forking.ready if self.forking is not None else ()

    def wanted_states(self) -> set[tuple[int, int]]:
        """Of the states of epochs that were told, those that must still be there."""
        if self.forking is None or self.ran:
            return set()
        parents = [fork.parent for fork in self.forks]
        parents += [seen.parent for seen in self.going.values() if seen.parent is not None]
        return {*parents, *self.forking.wanted()}

    @property
    def planned(self) -> int:
        """Trials in all, as far as it is known: each fork is one more."""
        return self.budget.trials + self.forked + len(self.forks)

    @property
    def _begun(self) -> bool:
        """Whether the sampler is asked no more."""
        return self.exhausted or len(self.trials) - self.forked >= self.budget.trials

    @property
    def ran(self) -> bool:
        return self._begun and not self.forks and not self.going

    @property
    def closed(self) -> bool:
        """Whether nothing more will be asked for."""
        if self.spent is not None or self.ran:
            return True
        if self.forking is not None:  # whatever runs may be stopped, and a fork takes its place
            return False
        return self._begun and all(seen.status != "waiting" for seen in self.going.values())

    @property
    def over(self) -> bool:
        """Whether there is nothing more to run."""
        return self.spent is not None or self.ran
