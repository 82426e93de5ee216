"""A group of workers that train students together, one after the other: a Ray Train run that outlives its trials.

    group = Group(materials, slots)
    trial = group.start(experiment, seed=0)                  # as `Bench.start`
    for record in trial.records: ...                         # to stop early is to start the next one
    group.end()

Starting it costs seconds; a further trial costs an order. A worker that is lost takes the others with it: Ray Train
starts them again, on whatever nodes there are, and they go on from the trial's last state.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.torch.config import _TorchBackend
from ray.train.v2.api.config import FailureConfig  # what ray.train exports; types know only the first version

from kdtune.errors import RunError, WorkersLostError
from kdtune.experiment import Experiment
from kdtune.records import EpochRecord
from kdtune.search.desk import End, Epoch, Failed, Order, Save, Start, Test, open_desk
from kdtune.search.placing import Slots
from kdtune.search.worker import bind_gloo, work
from kdtune.trial import Tested

LOOK_EVERY_S = 1.0  # whether the group is still there
LOSSES = 50  # of workers in a group's life; the desk gives up a trial that does not get on long before
LEAVE_S = 30.0  # that workers may take to leave
WAITS = 3  # for nodes, before the group is given up

# Ray Train hands these on from the process that starts a group; a value that the user has set stays.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # of 2: this long a group outlives its end
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a group; trials look for a notice themselves
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",  # of 60: nodes of a cloud may have to start first
}


class GroupTrial:
    """A trial whose student is with the workers; from here it looks like `Trial`."""

    def __init__(self, group: "Group", start: Start) -> None:
        self.group = group
        self.start = start
        self._begin(start)

    def _begin(self, start: Start) -> None:
        self.history = [EpochRecord.from_json(line) for line in self.group.order(start)]
        self.records = self._records()

    def _records(self) -> Iterator[EpochRecord]:
        while not (self.history and self.history[-1].last):
            record = EpochRecord.from_json(self.group.order(Epoch()))
            self.history.append(record)
            yield record

    def state(self) -> bytes:
        state: bytes = self.group.order(Save())
        return state

    def restore(self, state: bytes) -> None:
        self._begin(replace(self.start, state=state))

    def stop(self) -> None:
        """The workers let go of it when the next one begins."""

    def test(self) -> Tested:
        tested: Tested = self.group.order(Test())
        return tested


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # as Ray Train calls it
        worker_group.execute(bind_gloo)
        super().on_start(worker_group, backend_config)


class OnRaysNetwork(ray.train.torch.TorchConfig):
    """torch's process group, with gloo on the network that Ray uses."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class Group:
    """`slots.workers` workers, which hold what `slots` says until `end`. `materials` is in Ray's object store."""

    def __init__(self, materials: Any, slots: Slots) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.desk = open_desk()
        self.lost: BaseException | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="kdtune-group-")  # Ray Train insists on one
        settings = {"desk": self.desk, "materials": materials, "threads": slots.threads}
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=settings,
            torch_config=OnRaysNetwork(backend="nccl" if slots.gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=slots.workers,
                use_gpu=bool(slots.gpus),
                resources_per_worker={"CPU": slots.cpus, "GPU": slots.gpus},
            ),
            run_config=ray.train.RunConfig(
                name="group",
                storage_path=self.folder.name,
                failure_config=FailureConfig(max_failures=LOSSES, controller_failure_limit=WAITS),
            ),
        )
        self.thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self.thread.start()

    def _fit(self, trainer: ray.train.torch.TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  # whatever it is, `order` raises it where somebody listens
            self.lost = error

    def start(self, experiment: Experiment, *, seed: int, alone: bool = False, whole: bool = False) -> GroupTrial:
        return GroupTrial(self, Start(experiment, seed, alone=alone, whole=whole))

    def order(self, order: Order) -> Any:
        """The workers' answer; see the orders. Raises RunError where the trial or the whole group cannot go on."""
        answer = self._wait_for(self.desk.give.remote(order))
        if isinstance(answer, Failed):
            raise (WorkersLostError if answer.of_machine else RunError)(answer.reason)
        return answer

    def wait(self) -> None:
        """Returns once all workers have their places. Raises RunError where they do not come."""
        self._wait_for(self.desk.arrived.remote())

    def _wait_for(self, answer: Any) -> Any:
        while not ray.wait([answer], timeout=LOOK_EVERY_S)[0]:
            if not self.thread.is_alive():
                raise WorkersLostError(f"the workers of a trial are lost: {self.lost}") from self.lost
        return ray.get(answer)

    def whereabouts(self) -> tuple[tuple[str, ...], int]:
        """The ids of its nodes, this one's included, and how often workers were lost."""
        nodes, losses = ray.get(self.desk.whereabouts.remote())
        return (*nodes, ray.get_runtime_context().get_node_id()), losses

    def end(self) -> None:
        """The workers leave, and everything that they held is free."""
        with suppress(ray.exceptions.RayActorError):  # a desk that is lost takes the workers' orders with it
            ray.get(self.desk.give.remote(End()))
        self.thread.join(LEAVE_S)
        ray.kill(self.desk)
        self.folder.cleanup()
