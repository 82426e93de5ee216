"""The hosts themselves: apart from each other, cut off, out of power, and gone without a trace."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.machines import REPOSITORY, Hosts, hosts
from tests.hosts.network import ip
from tests.hosts.waiting import wait_until

pytestmark = pytest.mark.hosts
MAKE = """
import sys
from pathlib import Path
from tests.hosts.machines import hosts
with hosts(1, Path(sys.argv[1])) as made:
    print(made.head.namespace, flush=True)
    sys.stdin.read()
"""


def left_of(namespace: str) -> list[str]:
    """The namespaces and links of the run that a namespace belongs to."""
    uplink = namespace.partition("-")[0]
    names = [entry["name"] for entry in json.loads(ip("-j", "netns", "list") or "[]")]
    names += [link["ifname"] for link in json.loads(ip("-j", "link", "show"))]
    return [name for name in names if name == uplink or name.startswith(f"{uplink}-")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(2, tmp_path_factory.mktemp("machines") / "made") as made:
        yield made


def test_each_has_a_name_an_address_and_processes_of_its_own(two: Hosts) -> None:
    for host in two.all:
        assert two.run(host, "hostname") == f"{host.name}\n"
        assert two.run(host, "ip -4 route get 1.1.1.1").split("src ")[1].startswith(host.address)
    assert two.run(two.head, "sleep 1000 > /dev/null 2>&1 & ls /proc | grep -c '^[0-9]'")
    assert two.head.commands() == ["sleep 1000"]
    assert two.workers[0].commands() == []


@pytest.mark.parametrize("folder", ["~", "/tmp", "/dev/shm"])
def test_what_one_writes_is_not_seen_by_the_other(two: Hosts, folder: str) -> None:
    two.run(two.head, f"touch {folder}/mine && ls {folder}/mine")
    with pytest.raises(RuntimeError, match="No such file"):
        two.run(two.workers[0], f"ls {folder}/mine")


def test_the_shared_folder_is_one_folder(two: Hosts) -> None:
    two.run(two.head, f"echo here > {two.shared}/file")
    assert two.run(two.workers[0], f"cat {two.shared}/file") == "here\n"
    assert (two.shared / "file").read_text() == "here\n"


def test_one_that_is_cut_off_runs_on_unreached_until_it_is_mended(two: Hosts) -> None:
    worker = two.workers[0]
    two.run(worker, "sleep 2000 > /dev/null 2>&1 &")
    ask = f"timeout 2 bash -c 'true > /dev/tcp/{worker.name}/22' 2> /dev/null && echo answers || echo silent"
    two.cut(worker)
    assert two.run(two.head, ask) == "silent\n"
    assert worker.commands() == ["sleep 2000"]
    two.mend(worker)
    wait_until(lambda: two.run(two.head, ask) == "answers\n", 10, lambda: "still cut off")


def test_one_without_power_loses_its_processes_and_keeps_its_home(two: Hosts) -> None:
    worker = two.workers[0]
    two.run(worker, "echo kept > ~/kept; touch /tmp/lost; sleep 3000 > /dev/null 2>&1 &")
    two.kill(worker)
    assert worker.commands() == []
    two.boot(worker)
    assert two.run(worker, "cat ~/kept; ls /tmp/lost 2> /dev/null || true") == "kept\n"


def test_nothing_is_left_of_hosts_that_are_no_longer_needed(tmp_path: Path) -> None:
    with hosts(1, tmp_path / "made") as made:
        made.run(made.head, "sleep 4000 > /dev/null 2>&1 &")
        namespace = made.head.namespace
    assert not left_of(namespace)


def test_a_run_that_was_killed_leaves_no_process_and_the_next_one_clears_its_network(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(tmp_path / "killed")],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdout is not None
    namespace = maker.stdout.readline().strip()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    wait_until(lambda: not ip("netns", "pids", namespace).split(), 10, lambda: "its hosts live on")
    assert left_of(namespace)
    with hosts(1, tmp_path / "next"):
        pass  # perhaps by the same names, which were free again
    assert not left_of(namespace)
