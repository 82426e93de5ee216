"""The launching side: `ray up` and whatever else a person types on a laptop, against hosts of the tests.

with launched(made, folder) as laptop:     # `ray up`, all nodes alive
    laptop.must("kdtune", "search", "small.yaml", "--cluster", str(laptop.cluster_file))
"""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts.cluster_file import derive
from tests.hosts.machines import REPOSITORY, Hosts
from tests.hosts.waiting import wait_until

DASHBOARD = 8265


@dataclass(frozen=True)
class Laptop:
    """A home folder with the cluster's token in it, a cluster file, and a way to the dashboard."""

    hosts: Hosts
    home: Path
    cluster_file: Path
    dashboard: str

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of whoever runs the tests: neither home, nor token, nor what Ray keeps of other clusters."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "KDTUNE_", "PYTEST_"))
        }
        programs = str(Path(sys.executable).parent)
        return kept | {
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "RAY_TMPDIR": str(self.home / "tmp"),
            "PATH": f"{programs}{os.pathsep}{kept['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_UP_enable_autoscaler_v2": "0",
        }

    def run(self, *command: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """What a command prints, its errors among it, and its exit code."""
        return subprocess.run(
            command,
            cwd=self.home,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def must(self, *command: str, timeout: float = 300, **environment: str) -> str:
        done = self.run(*command, timeout=timeout, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def up(self) -> None:
        self.must("ray", "up", "--yes", "--no-config-cache", str(self.cluster_file))

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text()

    def ask(self, path: str, token: str | None = None) -> Any:
        """The dashboard's answer, as JSON, through SSH; with the cluster's token unless another is given."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        request = urllib.request.Request(f"{self.dashboard}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def nodes(self) -> list[str]:
        """The addresses of the nodes that are alive, as the head knows it."""
        known = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        return sorted(node["node_ip"] for node in known if node["state"] == "ALIVE")


@contextmanager
def launched(hosts: Hosts, folder: Path) -> Iterator[Laptop]:
    """`ray up`: a cluster of all hosts, every node alive. It ends with the hosts, or by `down`."""
    home, port = folder / "laptop", _free_port()
    (home / "tmp").mkdir(parents=True)
    laptop = Laptop(hosts, home, home / "cluster.yaml", f"http://127.0.0.1:{port}")
    derive(hosts, laptop.cluster_file, f"kdtune-{os.getpid()}-{hosts.head.namespace}")
    laptop.must("ray", "get-auth-token", "--generate")
    (home / ".ray" / "auth_token").chmod(0o600)
    laptop.up()
    everyone = sorted(host.address for host in hosts.all)
    with _tunnel(hosts, port):
        wait_until(lambda: laptop.nodes() == everyone, 180, lambda: f"only {laptop.nodes()} came:\n{_log(hosts)}")
        yield laptop


@contextmanager
def _tunnel(hosts: Hosts, port: int) -> Iterator[None]:
    """This port of this machine leads to the head's dashboard through SSH."""
    forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:127.0.0.1:{DASHBOARD}"]
    process = subprocess.Popen(hosts.ssh(hosts.head, *forward), stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers("127.0.0.1", port), 20, lambda: "the tunnel does not open")
        yield
    finally:
        process.terminate()
        process.wait()


def answers(address: str, port: int) -> bool:
    """Whether somebody takes a connection there."""
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log(hosts: Hosts) -> str:
    return hosts.run(hosts.head, "tail -n 100 /tmp/ray/session_latest/logs/monitor.*")
