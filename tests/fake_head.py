"""A cluster's head on this machine: a real Ray with its dashboard, token authentication on, in a home of its own.

`running_head(folder)` starts one and ends it. Its tunnel is a TCP proxy of the test's, whose connections can be cut.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import requests

from kdtune.cluster.files import ClusterFile
from tests.caches import until

REPOSITORY = Path(__file__).parents[1]


class FakeHead:
    """What `kdtune.cluster.ssh.Head` asks for, without SSH."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.proxies: list[Proxy] = []

    @contextmanager
    def tunnel(self) -> Iterator[str]:
        with Proxy(self.port) as proxy:
            self.proxies.append(proxy)
            yield f"http://127.0.0.1:{proxy.port}"

    def cut(self) -> None:
        """Every connection breaks off, as those of a laptop that sleeps."""
        for proxy in self.proxies:
            proxy.cut()

    def output(self, command: str, into: IO[bytes]) -> None:
        environment = {**os.environ, "HOME": str(self.home)}
        subprocess.run(["bash", "-c", command], check=True, stdout=into, stderr=subprocess.DEVNULL, env=environment)


class Proxy:
    """Takes connections on a port of its own to another one, until it is cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Proxy":
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        self.cut()
        for thread in self.threads:
            thread.join()

    def cut(self) -> None:
        for end in (self.server, *self.open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _start(self, work: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # a method
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # the proxy was cut
            while True:
                here, _ = self.server.accept()
                there = socket.create_connection(("127.0.0.1", self.target))
                self.open += [here, there]
                self._start(self._pump, here, there)
                self._start(self._pump, there, here)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def running_head(folder: Path) -> Iterator[tuple[ClusterFile, FakeHead]]:
    """The head and the cluster file that a laptop would have of it; all of its processes are gone afterwards."""
    home, token = folder / "home", folder / "auth_token"
    home.mkdir()
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    short = tempfile.mkdtemp(prefix="kd", dir="/tmp")  # Ray's sockets lie in it, and their names may not be long
    port = _free_port()
    process = _start(home, token, port, short)
    try:
        until(lambda: _answers(port) or process.poll() is not None, seconds=120)
        assert process.poll() is None, (folder / "said").read_text()
        raw = {
            "cluster_name": "fake",
            "provider": {"type": "local", "head_ip": "127.0.0.1"},
            "file_mounts": {"~/.ray/auth_token": str(token)},
        }
        path = folder / "cluster.yaml"
        path.write_text(str(raw))  # a Python dict of strings is YAML
        yield ClusterFile(path, raw), FakeHead(home, port)
    finally:
        _end(process, short)
        shutil.rmtree(short, ignore_errors=True)


def _start(home: Path, token: Path, port: int, temporary: str) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "HOME": str(home),
        "KDTUNE_STORAGE": str(home / "storage"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = [f"--{name}=0" for name in ("port", "dashboard-agent-grpc-port", "runtime-env-agent-port")]
    agent = [f"--dashboard-agent-listen-port={_free_port()}", f"--ray-client-server-port={_free_port()}"]
    with (home.parent / "said").open("wb") as said:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={temporary}"),
                *("--metrics-export-port=0", *ports, *agent),
            ],
            env=environment,
            stdout=said,
            stderr=said,
        )


def _answers(port: int) -> bool:
    with suppress(requests.exceptions.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/api/version", timeout=5).status_code in (200, 401)
    return False


def _end(process: "subprocess.Popen[bytes]", temporary: str) -> None:
    """Ends Ray, and whatever of it outlives that, known by its temporary folder."""
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    process.terminate()
    process.wait()
    left = [one for one in psutil.process_iter(["cmdline"]) if temporary in " ".join(one.info["cmdline"] or ())]
    left += [psutil.Process(pid) for pid in family if psutil.pid_exists(pid)]
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
