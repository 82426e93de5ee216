"""The repository's cluster.local.yaml with the hosts' own addresses, key, shared folder and Python in it.

Everything else stays as a user gets it, so that the file in the repository is what is tested. A text that is no longer
there to be replaced is an error.
"""

import sys
from pathlib import Path

import yaml

from tests.hosts.machines import REPOSITORY, Hosts

SOURCE = REPOSITORY / "cluster.local.yaml"


def derive(hosts: Hosts, target: Path, name: str) -> Path:
    """Writes `target`, the cluster file of these hosts; `name` is the cluster's, and nobody else's on this machine."""
    text = SOURCE.read_text()
    for before, after in (
        ("192.168.1.10", hosts.head.address),
        ("[192.168.1.11, 192.168.1.12]", str([worker.address for worker in hosts.workers])),
        ("ssh_user: ubuntu", "ssh_user: root"),
        ("~/.ssh/kdtune\n", f"{hosts.key}\n"),
        ("KDTUNE_STORAGE=/mnt/kdtune ", f"KDTUNE_STORAGE={hosts.shared} "),
        ("cluster_name: kdtune ", f"cluster_name: {name} "),
    ):
        assert before in text, f"{SOURCE.name} has no {before!r}"
        text = text.replace(before, after)
    content = yaml.safe_load(text)
    content["setup_commands"] = [_offline(command) for command in content["setup_commands"]]
    target.write_text(yaml.safe_dump(content))
    return target


def _offline(command: str) -> str:
    """The Python that runs the tests instead of a new one: hosts have no way to the internet. pip still compares."""
    command = command.replace(
        "python3 -m venv ~/.kdtune/venv", f"mkdir -p ~/.kdtune && ln -s {sys.prefix} ~/.kdtune/venv"
    )
    return command.replace("pip install ", "pip install --no-index ")
