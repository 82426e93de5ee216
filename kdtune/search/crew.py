"""Processes on a cluster's slots that take one piece of work after another.

crew = Crew(start, most=slots.concurrent)       # start() makes an actor, which has a method `end`
crew.call(3)                                    # as many as there is work for, and slots
actor = crew.idle.pop()
crew.idle.append(actor)                         # or crew.lost(), or crew.retire(actor)
crew.end()

Work is given to those that have arrived, never to one that waits for a node: a node that was lost, or that a cloud
does not have, holds up nothing.
"""

from collections.abc import Callable
from typing import Any

import ray

from kdtune.errors import RunError

ARRIVES_S = 1200.0  # a cloud takes minutes to start a node
LOSSES = 3  # of processes that end before they have arrived
LEAVE_S = 60.0
NOBODY_COMES = (
    f"no process could be started in {ARRIVES_S / 60:.0f} minutes: the cluster's nodes are lost or held by others, or "
    f"the cloud has none to give (no capacity, quota or rights: on the head, /tmp/ray/session_latest/logs/monitor.* "
    f"tells). The same command goes on"
)


class Crew:
    def __init__(self, start: Callable[[], Any], most: int) -> None:
        self.start = start
        self.most = most
        self.idle: list[Any] = []
        self.retired: list[Any] = []
        self.coming: dict[Any, Any] = {}  # a reference that says when -> the actor; ray leaves both untyped
        self.size = 0
        self.losses = 0

    def call(self, wanted: int) -> None:
        """Starts what is missing to `wanted` that have nothing to do."""
        while len(self.idle) + len(self.coming) < wanted and self.size < self.most:
            actor = self.start()
            self.coming[actor.__ray_ready__.remote()] = actor
            self.size += 1

    def next(self, busy: list[Any]) -> Any | None:
        """Which of `busy` has something to say, or None where somebody has arrived instead.

        Raises RunError where nobody comes, or they end before they have arrived.
        """
        ready, _ = ray.wait([*busy, *self.coming], num_returns=1, timeout=None if busy else ARRIVES_S)
        if not ready:
            raise RunError(NOBODY_COMES)
        (said,) = ready
        if said not in self.coming:
            return said
        actor = self.coming.pop(said)
        try:
            ray.get(said)
        except ray.exceptions.RayError as error:
            self.lost()
            self.losses += 1
            if self.losses > LOSSES:
                raise RunError(f"processes end as they start: {error}\nThe same command goes on") from error
        else:
            self.idle.append(actor)
        return None

    def lost(self) -> None:
        """One that was busy is no more, and another may come."""
        self.size -= 1

    def dismiss(self, actor: Any) -> None:
        """One that leaves with what it holds, and another may come."""
        self._leave([actor])
        self.lost()

    def retire(self, actor: Any) -> None:
        """One whose machine fails keeps its slot, so that nobody comes to the same machine, and does nothing more.

        Raises RunError where no other is left.
        """
        self.retired.append(actor)
        if len(self.retired) == self.most:
            raise RunError(f"all {self.most} places of the cluster have failed")

    def end(self) -> None:
        """Everybody leaves."""
        self._leave([*self.idle, *self.retired])
        for actor in self.coming.values():
            ray.kill(actor)

    def _leave(self, actors: list[Any]) -> None:
        leaving = [actor.end.remote() for actor in actors]
        if leaving:  # who is lost has left, with all that it held
            ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S)
        for actor in actors:
            ray.kill(actor)
