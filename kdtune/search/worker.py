"""What each worker of a group does: take orders from the desk, in step with the others."""

import traceback
from typing import Any

import ray
import ray.train.torch
import torch
import torch.distributed as dist

from kdtune.ranks import joined
from kdtune.search.desk import End, Epoch, Order, Save, Standing, Start, Test
from kdtune.trial import Bench, Trial


def work(config: dict[str, Any]) -> None:  # what Ray Train hands on
    """Until the desk says End. An error is told there before it ends this process."""
    torch.set_num_threads(config["threads"])
    try:
        Worker(config["desk"], ray.get(config["materials"]), ray.train.torch.get_device()).serve()
    except Exception:
        ray.get(config["desk"].report_error.remote(traceback.format_exc()))
        raise


class Worker:
    """One rank. All ranks do the same with every order, and rank 0 answers."""

    def __init__(self, desk: Any, materials: Any, device: torch.device) -> None:
        self.desk = desk
        self.ranks = joined()
        self.bench = Bench(materials, device, self.ranks)
        self.trial: Trial | None = None

    def serve(self) -> None:
        number = self._take_up()
        while True:
            number, order = ray.get(self.desk.take.remote(number))
            if isinstance(order, End):
                return
            answer = self._do(order)
            self.ranks.meet()  # an answer says that all are done
            if self.ranks.rank == 0:
                assert self.trial is not None
                ray.get(self.desk.answer.remote(number, answer, len(self.trial.history)))

    def _take_up(self) -> int:
        """Where the workers before these stood: epochs that were told since the last state are run again, untold."""
        nodes = [""] * self.ranks.count
        dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id(), group=self.ranks.patient)
        first = self.ranks.rank == 0
        told: list[Standing | None] = [ray.get(self.desk.begin.remote(tuple(nodes))) if first else None]
        dist.broadcast_object_list(told, group=self.ranks.patient)
        (standing,) = told
        assert standing is not None
        if standing.start is not None:
            self.trial = self._start(standing.start)
            while len(self.trial.history) < standing.epochs:
                next(self.trial.records)
        return standing.answered

    def _start(self, order: Start) -> Trial:
        trial = self.bench.start(order.experiment, seed=order.seed, alone=order.alone, whole=order.whole)
        if order.state is not None:
            trial.restore(order.state)
        return trial

    def _do(self, order: Order) -> object:
        if isinstance(order, Start):
            self.trial = None  # its memory, before another takes as much
            self.trial = self._start(order)
            return [record.to_json() for record in self.trial.history]
        assert self.trial is not None, "workers that begin again after a trial has failed are told of the next one"
        if isinstance(order, Epoch):
            return next(self.trial.records).to_json()
        if isinstance(order, Test):
            return self.trial.test()
        assert isinstance(order, Save)
        return self.trial.state() if self.ranks.rank == 0 else None
