"""The head of a cluster as a laptop reaches it: a tunnel to its dashboard, and commands, both through SSH.

    with head.tunnel() as address:        # http://127.0.0.1:40123, which is the head's own 127.0.0.1:8265
    head.output("ls ~/.kdtune", file)     # what a command on the head prints

The dashboard listens on the head's loopback interface alone, so whoever has no SSH key of the cluster has no access.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from kdtune.cluster.files import ClusterFile
from kdtune.errors import ClusterError

DASHBOARD = 8265
CONNECT_S = 15
# A connection that has died unseen (the laptop slept, its network changed) is noticed after 3 x 10 s.
ALIVE_S, ALIVE_COUNT = 10, 3


class UnreachableError(ClusterError):
    """The head does not answer; it may later."""


class Head(Protocol):
    """A cluster's head; raises UnreachableError where it does not answer."""

    def tunnel(self) -> AbstractContextManager[str]:
        """The address of the head's dashboard, for as long as the block lasts or the connection holds."""
        ...

    def output(self, command: str, into: IO[bytes]) -> None:
        """Runs a command on the head and writes what it prints. Raises ClusterError where it fails."""
        ...


@dataclass(frozen=True)
class SshHead:
    """A head with an SSH server. Its host key is learned at the first connection and must stay the same afterwards."""

    host: str
    user: str
    keys: Sequence[Path] = ()
    proxy: str | None = None  # an SSH ProxyCommand

    @classmethod
    def of(cls, cluster: ClusterFile, host: str) -> "SshHead":
        return cls(host, cluster.user, tuple(cluster.keys), cluster.auth.get("ssh_proxy_command"))

    def command(self, *arguments: str) -> list[str]:
        """ssh with everything it needs; never asks anything."""
        if shutil.which("ssh") is None:
            raise ClusterError("this machine has no ssh; install OpenSSH's client, or search here with --local")
        known = Path("~/.kdtune/known_hosts").expanduser()
        known.parent.mkdir(parents=True, exist_ok=True)
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": f'"{known}"',
            "ExitOnForwardFailure": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": str(ALIVE_S),
            "ServerAliveCountMax": str(ALIVE_COUNT),
            **({"IdentitiesOnly": "yes"} if self.keys else {}),
            **({"ProxyCommand": self.proxy} if self.proxy else {}),
        }
        given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        identities = [part for key in self.keys for part in ("-i", str(key))]
        return ["ssh", *given, *identities, *arguments, f"{self.user}@{self.host}"]

    @contextmanager
    def tunnel(self) -> Iterator[str]:
        port = _free_port()
        forward = f"127.0.0.1:{port}:127.0.0.1:{DASHBOARD}"
        with tempfile.TemporaryFile() as said:
            # a session of its own: Ctrl-C at the terminal is for kdtune, which ends the tunnel itself
            process = subprocess.Popen(
                self.command("-N", "-L", forward),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            try:
                self._wait_until_open(process, port, said)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                process.wait()

    def _wait_until_open(self, process: "subprocess.Popen[bytes]", port: int, said: IO[bytes]) -> None:
        deadline = time.monotonic() + CONNECT_S + 5
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said.seek(0)
                raise self._unreachable(said.read())
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)  # ssh listens as soon as it has logged in
            else:
                return
        raise self._unreachable(b"no answer")

    def output(self, command: str, into: IO[bytes]) -> None:
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [*self.command(), command], check=False, stdin=subprocess.DEVNULL, stdout=into, stderr=said
            )
            said.seek(0)
            if done.returncode == 255:  # of ssh itself
                raise self._unreachable(said.read())
            if done.returncode:
                raise ClusterError(f"on {self.host}, `{command}` failed: {_last_line(said.read())}")

    def _unreachable(self, said: bytes) -> UnreachableError:
        hint = ""
        if b"HOST IDENTIFICATION HAS CHANGED" in said:
            hint = (
                f". It answers with another host key than before: if another machine has its address now, forget the "
                f"old key (ssh-keygen -R {self.host} -f ~/.kdtune/known_hosts)"
            )
        elif b"Permission denied" in said:
            hint = f". Keys tried: {', '.join(map(str, self.keys)) or 'those of ssh itself'} (auth.ssh_private_key)"
        return UnreachableError(f"the head {self.user}@{self.host} cannot be reached by ssh: {_last_line(said)}{hint}")


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _free_port() -> int:
    """A port that nobody has now. ssh says so, and is tried again, if somebody has it a moment later."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
