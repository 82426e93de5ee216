"""The desk between a trial and its workers: one order lies on it at a time, and the answer to the one before.

The trial gives an order and waits for its answer. Every worker takes it, outside any collective, however long that
lasts; the worker of rank 0 answers. Workers may be lost and begin again: the desk remembers the trial that they are
in, its last state, and how far it had been told.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.experiment import Experiment

TRIES = 2  # of an order at which workers report errors, and
LOSSES = 10  # at which they are lost without a word; then the trial cannot go on


@dataclass(frozen=True)
class Start:
    """A trial; from `state`, if there is one. Answered by its history, as JSON."""

    experiment: Experiment
    seed: int
    alone: bool = False
    whole: bool = False
    state: bytes | None = None


@dataclass(frozen=True)
class Epoch:
    """The next epoch. Answered by its record, as JSON."""


@dataclass(frozen=True)
class Save:
    """The trial's state. Answered by its bytes."""


@dataclass(frozen=True)
class Test:
    """On the test set. Answered by `Tested`."""


@dataclass(frozen=True)
class End:
    """No more orders: the workers leave, nobody answers."""


Order = Start | Epoch | Save | Test | End


@dataclass(frozen=True)
class Failed:
    """Instead of an answer: the trial cannot go on."""

    reason: str
    of_machine: bool = False  # another one may do it


@dataclass(frozen=True)
class Standing:
    """Where workers begin that have just come, or come again."""

    answered: int  # the number of the last order that is done with
    start: Start | None  # the trial, with its last state
    epochs: int  # of its history that have been told


class Desk:
    """An actor; see above. Numbers of orders count from 1."""

    def __init__(self) -> None:
        self.given = self.answered = 0
        self.order: Order | None = None
        self.answer_to_it: Any = None
        self.start: Start | None = None
        self.epochs = 0
        self.begun = 0  # how often workers have begun
        self.nodes: tuple[str, ...] = ()  # where they are
        self.begun_before = 0  # of these, before the last answer
        self.errors: dict[int, Failed] = {}  # since the last answer: `begun` -> what the first to fail said
        self.changed = asyncio.Condition()

    async def give(self, order: Order) -> Any:
        """The answer to an order; `Any`: see the orders."""
        async with self.changed:
            if isinstance(order, Start):
                self.start = None
            self.order, self.given = order, self.given + 1
            number = self.given
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self.answered >= number or isinstance(order, End))
            return self.answer_to_it

    async def take(self, after: int) -> tuple[int, Order]:
        """The order that follows number `after`."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.given > after)
            assert self.order is not None
            return self.given, self.order

    async def answer(self, number: int, answer: Any, epochs: int) -> None:
        """From rank 0, once all ranks are done with order `number`; the trial has had `epochs` epochs."""
        async with self.changed:
            if isinstance(self.order, Start):
                self.start = self.order
            elif isinstance(self.order, Save) and self.start is not None:
                self.start = replace(self.start, state=answer)
            self.epochs = epochs
            self._answered(number, answer)

    def _answered(self, number: int, answer: Any) -> None:
        """It goes on: only what fails again and again without an answer in between is given up."""
        self.answered, self.answer_to_it = number, answer
        self.errors, self.begun_before = {}, self.begun
        self.changed.notify_all()

    async def report_error(self, error: Failed) -> None:
        """From a worker that is about to leave because of it; that it takes others along is no further error."""
        self.errors.setdefault(self.begun, error)

    async def begin(self, nodes: tuple[str, ...]) -> Standing:
        """From rank 0, once all ranks are there, on `nodes`: at first and after every loss."""
        async with self.changed:
            self.begun, self.nodes = self.begun + 1, nodes
            self.changed.notify_all()
            lost = self.begun - 1 - self.begun_before
            if self.given > self.answered and (len(self.errors) >= TRIES or lost > LOSSES):
                first = next(iter(self.errors.values()), Failed(f"workers were lost {lost} times", of_machine=True))
                self.start = None
                self._answered(self.given, first)
            return Standing(self.answered, self.start, self.epochs)

    async def arrived(self) -> None:
        """Answers once the workers are there."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.begun > 0)

    async def whereabouts(self) -> tuple[tuple[str, ...], int]:
        """The nodes of the workers, and how often they were lost."""
        return self.nodes, max(0, self.begun - 1)


def open_desk() -> Any:  # an actor's handle, which ray leaves untyped
    """On this machine, which the trial cannot outlive either."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk: Any = ray.remote(num_cpus=0)(Desk)
    return desk.options(scheduling_strategy=here).remote()
