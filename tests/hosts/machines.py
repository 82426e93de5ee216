"""Hosts: each has its own address, processes, home folder, /tmp and /dev/shm, and an sshd, all on this machine.

with hosts(2, folder) as made:
    made.run(made.head, "hostname")        # over SSH, as root, with a throw-away key
    made.cut(made.workers[0])              # off the network
    made.kill(made.workers[0])             # out of power

Needs Linux, root, openssh-server, iproute2 and rsync. They see this Python installation, this repository and
`made.shared`, which stands in for NFS; nothing else that one of them writes to its home or /tmp is seen by another.
"""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import network
from tests.hosts.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {
    "/usr/sbin/sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "rsync": "rsync",
    "unshare": "util-linux",
}
SSHD = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
MaxStartups 100
MaxSessions 100
"""


@dataclass
class Host:
    """One of them. `process` holds its namespaces together."""

    number: int
    address: str
    namespace: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"host{self.number}"

    def commands(self) -> list[str]:
        """The command lines of all that runs there; its sshd and what SSH itself starts are left out."""
        lines = [_command_line(pid) for pid in network.processes(self.namespace)]
        return [line for line in lines if line and not line.startswith(("sshd: ", "/usr/sbin/sshd", "unshare "))]


@dataclass(frozen=True)
class Hosts:
    """All of them; the first is the head. `key` logs in as root, `shared` is the same folder on each and here."""

    all: list[Host]
    network: network.Network
    key: Path
    shared: Path

    @property
    def head(self) -> Host:
        return self.all[0]

    @property
    def workers(self) -> list[Host]:
        return self.all[1:]

    def ssh(self, host: Host, *options: str) -> list[str]:
        """The command that logs in; what follows it is run there."""
        quiet = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
        flags = [part for option in quiet for part in ("-o", option)]
        return ["ssh", "-i", str(self.key), *flags, *options, f"root@{host.address}"]

    def run(self, host: Host, command: str, *, timeout: float = 120) -> str:
        """What a command prints on a host, in a login shell, as `ray up` runs its own. RuntimeError if it fails."""
        done = subprocess.run(
            [*self.ssh(host), "bash", "--login", "-i", "-c", shlex.quote(command)],
            check=False, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{host.name}: {command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def cut(self, host: Host) -> None:
        """Pulls its cable out: it runs on, and nobody reaches it."""
        self.network.plug(host.number, "down")

    def mend(self, host: Host) -> None:
        self.network.plug(host.number, "up")

    def kill(self, host: Host) -> None:
        """Ends all its processes at once, as if its power were gone."""
        network.end_all(host.namespace)
        if host.process is not None:
            host.process.wait()

    def boot(self, host: Host) -> None:
        """Starts it; after `kill`, its home folder is as it was, and /tmp and /dev/shm are empty."""
        with (host.folder / "log").open("ab") as log:
            host.process = subprocess.Popen(_start(host, self.shared), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        true = [*self.ssh(host, "-o", "ConnectTimeout=1"), "true"]
        wait_until(
            lambda: subprocess.run(true, check=False, capture_output=True).returncode == 0,
            30,
            lambda: f"{host.name}: sshd does not answer:\n{(host.folder / 'log').read_text()}",
        )


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[Hosts]:
    """`count` hosts that answer over SSH; their files lie in `folder`. All that runs on them ends with the block."""
    _check_machine()
    key, shared = folder / "key", folder / "shared"
    shared.mkdir(parents=True)
    _make_key(key)
    with network.network(count) as net:
        made = [
            Host(index, address, net.namespace(index), folder / f"host{index}")
            for index, address in enumerate(net.addresses)
        ]
        for host in made:
            _furnish(host, made, key)
        cluster = Hosts(made, net, key, shared)
        try:
            for host in made:
                cluster.boot(host)
            yield cluster
        finally:
            for host in made:
                cluster.kill(host)


def _check_machine() -> None:
    """Tests that were asked for are not skipped: what is missing fails them, with what to do."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise RuntimeError("tests on hosts need Linux and root, for network namespaces; deselect them: -m 'not hosts'")
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        raise RuntimeError(f"tests on hosts need programs of {', '.join(missing)}: apt-get install {' '.join(missing)}")


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _furnish(host: Host, everyone: Sequence[Host], key: Path) -> None:
    """What a host finds on its disk: an empty home as a new user has it, who is where, and what its sshd needs."""
    shutil.copytree("/etc/skel", host.folder / "home")
    (host.folder / "tmp").mkdir()
    names = [f"{other.address} {other.name}" for other in everyone]
    (host.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
    (host.folder / "nsswitch.conf").write_text("hosts: files\n")  # no name server is there to be waited for
    _make_key(host.folder / "host_key")
    shutil.copy(key.with_suffix(".pub"), host.folder / "authorized_keys")
    (host.folder / "sshd_config").write_text(SSHD.format(address=host.address, folder=host.folder))


def _start(host: Host, shared: Path) -> list[str]:
    """The command that becomes the host; it ends with this process, whatever ends that."""
    home = pwd.getpwuid(0).pw_dir  # sshd's idea of root's home, whatever $HOME says
    visible = [sys.prefix, sys.base_prefix, REPOSITORY, shared]
    return [
        "setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", host.namespace,
        "unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc",
        "bash", str(Path(__file__).with_name("host.sh")), host.name, str(host.folder), home, *map(str, visible),
    ]  # fmt: skip


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended since
