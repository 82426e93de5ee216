"""Where a search runs, and why: here, at a running Ray, or on the cluster of a cluster file.

    place = choose(Path.cwd(), local=False, cluster=None, address=None)
    print(place.why)

Never a surprise: what may cost something (a cluster that cannot be asked whether it runs) is an error that names both
ways on, and a search goes to this machine by itself only where no cluster can be running or its provider says so.
"""

import importlib.util
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kdtune.cluster.files import OWN, ClusterFile, read_cluster_file
from kdtune.cluster.ssh import Head, SshHead
from kdtune.errors import ClusterError

DEFAULT = "cluster.yaml"  # in the current folder
PROVIDER_S = 90.0  # how long a provider may take to say which machines run
ANSWER_S = 10.0
NOT_FOUND = "not found"  # how Ray ends its word about a head that is not there, or that has not been set up
NOT_SET_UP = re.compile(r"Head node \(.*\) is in state ([\w-]+)")  # what it says before that of the latter
NEEDS = {"aws": "boto3", "gcp": "googleapiclient"}  # to ask the provider; `ray up` needs the same
INSTALL = {"boto3": "boto3", "googleapiclient": "google-api-python-client"}


@dataclass(frozen=True)
class Here:
    """On this machine."""

    why: str


@dataclass(frozen=True)
class Joined:
    """At a Ray cluster that this machine belongs to."""

    address: str
    why: str


@dataclass(frozen=True)
class There:
    """On the cluster of a cluster file."""

    cluster: ClusterFile
    head: Head
    why: str


def choose(folder: Path, *, local: bool, cluster: Path | None, address: str | None) -> Here | Joined | There:
    """Raises ClusterError where what was asked for is not there, or a cluster cannot be asked whether it runs."""
    given = [name for name, value in (("--local", local), ("--cluster", cluster), ("--address", address)) if value]
    if len(given) > 1:
        raise ClusterError(f"{' and '.join(given)} exclude each other; give one of them")
    if local:
        return Here("here, on this machine (--local)")
    if address:
        _check_answers(address)
        return Joined(address, f"at the Ray cluster of this machine (--address {address})")
    if cluster is not None:
        return running(read_cluster_file(cluster), f"--cluster {cluster}")
    if not (folder / DEFAULT).exists():
        return Here(f"here, on this machine: there is no {DEFAULT} in this folder")
    try:
        found = read_cluster_file(folder / DEFAULT)
        if found.placeholders:
            return Here(
                f"here, on this machine: {DEFAULT} is still to be filled in ({', '.join(found.placeholders)}), so its "
                f"cluster cannot be running"
            )
        return running(found, f"{DEFAULT} in this folder")
    except NotRunningError as error:
        return Here(f"here, on this machine: {error}; Ctrl-C stops this search")
    except ClusterError as error:
        raise ClusterError(
            f"{error}\nNo search begins here by itself while the cluster of {DEFAULT} may be running. --local searches "
            f"on this machine all the same"
        ) from error


def _check_answers(address: str) -> None:
    """Raises ClusterError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nothing answers at {address} ({error}); `ray start --head` there prints the address to give, and `auto` "
            f"finds the Ray of this machine"
        ) from error


class NotRunningError(ClusterError):
    """The cluster is not running, as its provider or its head says."""


def running(cluster: ClusterFile, asked: str) -> There:
    """The cluster, reached. Raises NotRunningError, or ClusterError where that cannot be told."""
    if cluster.placeholders:
        raise ClusterError(f"{cluster.path}: is still to be filled in: {', '.join(cluster.placeholders)}")
    not_running = NotRunningError(
        f"the cluster {cluster.name} ({cluster.where}) is not running; `ray up {cluster.path.name}` starts it"
    )
    host = cluster.provider.get("external_head_ip") or cluster.provider.get("head_ip")
    host = str(host) if cluster.kind == OWN else _ask_provider(cluster)
    if host is None:
        raise not_running
    head = SshHead.of(cluster, host)
    if cluster.kind == OWN:  # machines are always there: Ray may not be
        from kdtune.cluster.jobs import NoRayError, connected

        try:
            with connected(head, cluster.token()):
                pass
        except NoRayError as error:
            raise not_running from error
    return There(cluster, head, f"on the cluster {cluster.name} ({cluster.where}, {asked}), head {host}")


def _ask_provider(cluster: ClusterFile) -> str | None:
    """Address of the running head, or None where the provider says that there is none.

    In a process of its own: providers' clients print, retry for minutes, and look for credentials in many places.
    """
    module = NEEDS.get(cluster.kind)
    if module and importlib.util.find_spec(module) is None:
        raise ClusterError(f"asking {cluster.where} needs {module}: pip install {INSTALL[module]}")
    try:
        done = subprocess.run(
            [*RAY, "get-head-ip", str(cluster.path)], check=False, capture_output=True, text=True, timeout=PROVIDER_S
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{cluster.where} has not answered within {PROVIDER_S:.0f} s") from error
    said = [line.strip() for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines()]
    last = next((line for line in reversed(said) if line), "")
    if done.returncode == 0 and last:
        return last
    if NOT_FOUND in last and "Head node" in last:
        if state := NOT_SET_UP.search(done.stdout + done.stderr):
            raise ClusterError(
                f"the head of {cluster.name} is there, and costs, but has not been set up to its end ({state[1]}): "
                f"`ray up {cluster.path.name}` again, or `ray down {cluster.path.name}`"
            )
        return None
    raise ClusterError(f"{cluster.where} cannot be asked: {last or 'Ray said nothing'}")


RAY = [sys.executable, "-m", "ray.scripts.scripts"]  # the `ray` of this very Python


def take_down(cluster: ClusterFile) -> None:
    """`ray down`, its words going to the terminal. Raises ClusterError where it fails: machines may then still cost."""
    done = subprocess.run([*RAY, "down", "--yes", str(cluster.path)], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ClusterError(
            f"`ray down {cluster.path}` failed: nodes of {cluster.name} may still run, and cost. Try it again"
        )
