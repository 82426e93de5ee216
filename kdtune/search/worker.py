"""What each worker of a group does: take orders from the desk, in step with the others."""

import fcntl
import os
import socket
import struct
import traceback
from contextlib import suppress
from typing import Any

import ray
import ray.train.torch
import torch
import torch.distributed as dist

from kdtune.ranks import joined
from kdtune.search.desk import End, Epoch, Failed, Order, Save, Standing, Start, Test
from kdtune.search.notice import OF_A_MACHINE
from kdtune.trial import Bench, Trial

SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def work(config: dict[str, Any]) -> None:  # what Ray Train hands on
    """Until the desk says End. An error is told there before it ends this process."""
    torch.set_num_threads(config["threads"])
    try:
        Worker(config["desk"], config["materials"], ray.train.torch.get_device()).serve()
    except Exception as error:
        told = Failed(traceback.format_exc(), of_machine=isinstance(error, OF_A_MACHINE))
        ray.get(config["desk"].report_error.remote(told))
        raise


def bind_gloo() -> None:
    """Has gloo talk over the network that Ray uses. Its own choice is the address of the machine's name, which on many
    machines is 127.0.1.1, where no other machine finds it."""
    interface = _interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _interface_of(address: str) -> str | None:
    """The network interface with an IPv4 address; None where none has it, or the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                told = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(told[20:24]) == address:
                    return name
    return None


class Worker:
    """One rank. All ranks do the same with every order, and rank 0 answers."""

    def __init__(self, desk: Any, materials: Any, device: torch.device) -> None:
        self.desk = desk
        self.ranks = joined()
        self.materials = materials
        self.device = device
        self.bench: Bench | None = None
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
        self.bench = Bench(ray.get(self.materials), self.device, self.ranks)  # what fails from here on counts
        if standing.start is not None:
            self.trial = self._start(standing.start)
            for _ in range(standing.epochs - len(self.trial.history)):
                next(self.trial.records, None)
        return standing.answered

    def _start(self, order: Start) -> Trial:
        assert self.bench is not None
        trial = self.bench.start(order.experiment, seed=order.seed, alone=order.alone, whole=order.whole)
        if order.state is not None:
            trial.restore(order.state)
        return trial

    def _do(self, order: Order) -> object:
        if isinstance(order, Start):
            if self.trial is not None:  # its memory, before another takes as much
                self.trial.stop()
                self.trial = None
            self.trial = self._start(order)
            return [record.to_json() for record in self.trial.history]
        assert self.trial is not None, "workers that begin again after a trial has failed are told of the next one"
        if isinstance(order, Epoch):
            return next(self.trial.records).to_json()
        if isinstance(order, Test):
            return self.trial.test()
        assert isinstance(order, Save)
        return self.trial.state() if self.ranks.rank == 0 else None
