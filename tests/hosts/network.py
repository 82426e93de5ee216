"""A bridge and network namespaces: addresses for hosts on this machine, reached from here and from each other only.

with network(2) as net: ...     # net.gateway is this machine, net.addresses are the hosts', net.namespace(0) the first

Each run of the tests has a number of its own, in the names of its bridge `kdt<n>`, its namespaces `kdt<n>-<i>` and its
subnet 10.77.<n>.0/24. The bridge's alias says whose it is, so that what a crashed run has left is found and removed.
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

LOCK = Path("/run/lock/kdtune-hosts")
NUMBERS = range(256)


@dataclass(frozen=True)
class Network:
    """Run `number`'s subnet with `count` hosts."""

    number: int
    count: int

    @property
    def bridge(self) -> str:
        return f"kdt{self.number}"

    @property
    def gateway(self) -> str:
        return f"10.77.{self.number}.254"

    @property
    def addresses(self) -> list[str]:
        return [f"10.77.{self.number}.{index + 1}" for index in range(self.count)]

    def namespace(self, index: int) -> str:
        return f"{self.bridge}-{index}"

    def plug(self, index: int) -> str:
        """The bridge's end of a host's cable."""
        return f"{self.bridge}p{index}"


@contextmanager
def network(count: int) -> Iterator[Network]:
    """`count` addresses, with `lo` and a default route each; everything is removed at the end, processes included."""
    with _alone():
        for number in _left_behind():
            remove(number)
        net = Network(_free_number(), count)
        ip("link", "add", net.bridge, "type", "bridge")
        ip("link", "set", net.bridge, "alias", json.dumps(_this_process()))
    try:
        ip("addr", "add", f"{net.gateway}/24", "dev", net.bridge)
        ip("link", "set", net.bridge, "up")
        for index in range(count):
            _connect(net, index)
        yield net
    finally:
        remove(net.number)


def _connect(net: Network, index: int) -> None:
    space, plug = net.namespace(index), net.plug(index)
    ip("netns", "add", space)
    ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", space)
    ip("link", "set", plug, "master", net.bridge)
    ip("link", "set", plug, "up")
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
    """Ends every process in the run's namespaces, and removes these, their cables and the bridge."""
    bridge = f"kdt{number}"
    for space in [name for name in _namespaces() if name.startswith(f"{bridge}-")]:
        end_all(space)
        for cable in json.loads(ip("-n", space, "-j", "link", "show", "type", "veth") or "[]"):
            ip("-n", space, "link", "del", cable["ifname"])  # at once: the namespace may live on until sockets time out
        ip("netns", "del", space)
    ip("link", "del", bridge)


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


def _namespaces() -> list[str]:
    return [entry["name"] for entry in json.loads(ip("-j", "netns", "list") or "[]")]


def _bridges() -> dict[int, str]:
    """The numbers of the runs that have a bridge, with its alias."""
    links = json.loads(ip("-j", "link", "show", "type", "bridge") or "[]")
    named = {link["ifname"].removeprefix("kdt"): link.get("ifalias", "") for link in links if "ifname" in link}
    return {int(name): alias for name, alias in named.items() if name.isdigit()}


def _left_behind() -> list[int]:
    """Numbers of runs whose process is gone. An unfinished bridge has no alias: the lock says that nobody makes it."""
    return [number for number, alias in _bridges().items() if not alias or not _alive(*json.loads(alias))]


def _free_number() -> int:
    taken = _bridges()
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
