"""A laptop's way to a head, over SSH to a real sshd: the tunnel, commands, results, and what is said when it fails."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from kdtune.cluster import ssh
from kdtune.cluster.fetching import fetch
from kdtune.cluster.ssh import SshHead, UnreachableError
from kdtune.errors import ClusterError
from tests.hosts.machines import Hosts, hosts
from tests.hosts.waiting import wait_until

pytestmark = pytest.mark.hosts

WHO = "the dashboard of this host\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """One host, with a web server on its loopback interface where a dashboard would be."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(1, folder / "made") as found:
        serve = f"nohup {sys.executable} -m http.server {ssh.DASHBOARD} --bind 127.0.0.1 < /dev/null > /dev/null 2>&1 &"
        found.run(found.head, f"mkdir site && cd site && printf {WHO!r} > index.html && ({serve})")
        yield found


@pytest.fixture
def head(made: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SshHead:
    """As a laptop knows it that has never been there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return SshHead(made.head.address, "root", (made.key,))


def asked(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def ssh_processes(address: str) -> list[int]:
    """This machine's ssh clients that are connected to a host."""
    found = subprocess.run(["pgrep", "-f", f"^ssh .*-N .*@{address}$"], check=False, capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def test_the_tunnel_leads_to_the_heads_own_loopback_interface_and_ends_with_its_block(head: SshHead) -> None:
    def serves() -> bool:
        with suppress(OSError), head.tunnel() as address:
            return asked(address) == WHO
        return False

    wait_until(serves, 20, lambda: "no web server")
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection((head.host, ssh.DASHBOARD), timeout=5)
    assert not ssh_processes(head.host)


def test_a_tunnel_whose_ssh_has_died_is_made_anew(head: SshHead) -> None:
    with head.tunnel() as address:
        assert asked(address) == WHO
        for pid in ssh_processes(head.host):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(OSError):  # noqa: PT011  # refused or reset, as it happens
            asked(address)
    with head.tunnel() as address:
        assert asked(address) == WHO


def test_a_head_off_the_network_is_unreachable_and_found_again(
    head: SshHead, made: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_S", 2)
    made.cut(made.head)
    try:
        with pytest.raises(UnreachableError, match=f"root@{head.host} cannot be reached by ssh"), head.tunnel():
            pass
    finally:
        made.mend(made.head)

    def back() -> bool:
        with suppress(UnreachableError), head.tunnel() as address:
            return asked(address) == WHO
        return False

    wait_until(back, 30, lambda: "still off")


def test_results_come_through_ssh(head: SshHead, made: Hosts, tmp_path: Path) -> None:
    made.run(
        made.head,
        "mkdir -p store/mini/student ~/.kdtune/runs && cd store/mini && printf '{}' > summary.json && "
        "head -c 5000000 /dev/urandom > student/student.safetensors && ln -sfn $PWD ~/.kdtune/runs/mini",
    )
    fetch(head, "mini", tmp_path / "mini")
    there = made.run(made.head, "sha256sum < store/mini/student/student.safetensors")
    content = (tmp_path / "mini" / "student" / "student.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == there.split()[0]
    with pytest.raises(ClusterError, match="No such file or directory"):
        fetch(head, "other", tmp_path / "other")


def test_another_key_is_refused_and_the_keys_tried_are_named(head: SshHead, tmp_path: Path) -> None:
    key = tmp_path / "another"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    with (
        pytest.raises(UnreachableError, match=f"Permission denied.*Keys tried: {key}"),
        replace(head, keys=(key,)).tunnel(),
    ):
        pass


def test_a_head_that_answers_with_another_host_key_is_not_trusted(head: SshHead, tmp_path: Path) -> None:
    with head.tunnel():
        pass
    known = tmp_path / ".kdtune" / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "host")], check=True)
    kind, key, *_ = (tmp_path / "host.pub").read_text().split()
    known.write_text(f"{head.host} {kind} {key}\n")
    with pytest.raises(UnreachableError, match="ssh-keygen -R"), head.tunnel():
        pass
