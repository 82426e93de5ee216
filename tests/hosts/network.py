"""A switch and network namespaces: addresses for hosts on this machine, reached from here and from each other only.

with network(2) as net: ...     # net.gateway is this machine, net.addresses are the hosts', net.namespace(0) the first

Each run of the tests has a number of its own, in the names of this machine's cable to the switch `kdt<n>`, the
namespaces `kdt<n>-<i>` and the subnet 10.77.<n>.0/24. The cable's alias says whose it is, so that what a crashed run
has left is found and removed. The switch is a bridge in a namespace of its own: between hosts, this machine's firewall
(as Docker sets it up) has no say.
"""

import fcntl
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = Path("/run/lock/kdtune-hosts")
NUMBERS = range(256)


@dataclass(frozen=True)
class Network:
    """Run `number`'s subnet with `count` hosts."""

    number: int
    count: int

    @property
    def uplink(self) -> str:
        """This machine's cable."""
        return f"kdt{self.number}"

    @property
    def switch(self) -> str:
        return f"{self.uplink}-switch"

    @property
    def gateway(self) -> str:
        return f"10.77.{self.number}.254"

    @property
    def addresses(self) -> list[str]:
        return [f"10.77.{self.number}.{index + 1}" for index in range(self.count)]

    def namespace(self, index: int) -> str:
        return f"{self.uplink}-{index}"

    def plug(self, index: int, state: str) -> None:
        """Sets a host's cable at the switch `up` or `down`."""
        ip("-n", self.switch, "link", "set", f"host{index}", state)


@contextmanager
def network(count: int) -> Iterator[Network]:
    """`count` addresses, with `lo` and a default route each; everything is removed at the end, processes included."""
    with _alone():
        for number in _left_behind():
            remove(number)
        net = Network(_free_number(), count)
        ip("link", "add", net.uplink, "type", "veth", "peer", "name", f"{net.uplink}u")
        ip("link", "set", net.uplink, "alias", json.dumps(_this_process()))
    try:
        _build(net)
        yield net
    finally:
        remove(net.number)


def _build(net: Network) -> None:
    ip("netns", "add", net.switch)
    ip("link", "set", f"{net.uplink}u", "netns", net.switch)
    ip("addr", "add", f"{net.gateway}/24", "dev", net.uplink)
    ip("link", "set", net.uplink, "up")
    ip("-n", net.switch, "link", "add", "bridge", "type", "bridge")
    ip("-n", net.switch, "link", "set", "bridge", "up")
    ip("-n", net.switch, "link", "set", f"{net.uplink}u", "master", "bridge", "up")
    for index in range(net.count):
        space, cable = net.namespace(index), f"host{index}"
        ip("netns", "add", space)
        ip("-n", net.switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", net.switch, "link", "set", cable, "master", "bridge", "up")
        ip("-n", space, "addr", "add", f"{net.addresses[index]}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "link", "set", "eth0", "up")
        # Ray and gloo ask which address the way out has; without one they take 127.0.0.1
        ip("-n", space, "route", "add", "default", "via", net.gateway)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def processes(namespace: str) -> list[int]:
    """The processes in a network namespace, as this machine numbers them."""
    return [int(pid) for pid in ip("netns", "pids", namespace).split()]


def remove(number: int) -> None:
    """Ends every process in the run's namespaces, and removes these, with the switch and its cables."""
    uplink = f"kdt{number}"
    for space in [entry["name"] for entry in _json("netns", "list") if entry["name"].startswith(f"{uplink}-")]:
        end_all(space)
        ip("netns", "del", space)
    try:
        ip("link", "del", uplink)
    except subprocess.CalledProcessError:
        # its other end went with a namespace, and the kernel takes these away in its own time
        if uplink in [link["ifname"] for link in _json("link", "show")]:
            raise


def end_all(namespace: str) -> None:
    """Kills every process of a network namespace, and waits until none is left."""
    while pids := processes(namespace):
        for pid in pids:
            _end(pid)


def _end(pid: int) -> None:
    """Kills a process and waits until it is gone: with a PID namespace's first process, all of them are."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], 30)[0]:
            raise TimeoutError(f"process {pid} was killed and does not end")
    except ProcessLookupError:
        return  # it was faster
    finally:
        os.close(handle)


def _uplinks() -> dict[int, str]:
    """The numbers of the runs that have a cable on this machine, with its alias."""
    named = {link["ifname"].removeprefix("kdt"): link.get("ifalias", "") for link in _json("link", "show")}
    return {int(name): alias for name, alias in named.items() if name.isdigit()}


def _json(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip("-j", *arguments) or "[]")
    return found


def _left_behind() -> list[int]:
    """Numbers of runs whose process is gone. An unfinished cable has no alias: the lock says that nobody makes it."""
    return [number for number, alias in _uplinks().items() if not alias or not _alive(*json.loads(alias))]


def _free_number() -> int:
    taken = _uplinks()
    return next(number for number in NUMBERS if number not in taken)


def _this_process() -> tuple[int, str]:
    return os.getpid(), _started(os.getpid())


def _alive(pid: int, started: str) -> bool:
    try:
        return _started(pid) == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot: a number that is used again is another process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@contextmanager
def _alone() -> Iterator[None]:
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
