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
    values = {
        "YOUR-HEAD": hosts.head.address,
        "YOUR-WORKER-1, YOUR-WORKER-2": ", ".join(worker.address for worker in hosts.workers),
        "YOUR-USER": "root",
        "YOUR-SHARED-FOLDER": str(hosts.shared),
        "~/.ssh/kdtune\n": f"{hosts.key}\n",
        "cluster_name: kdtune ": f"cluster_name: {name} ",
    }
    for given, value in values.items():
        assert given in text, f"{SOURCE.name} has no {given!r}"
        text = text.replace(given, value)
    content = yaml.safe_load(text)
    content["setup_commands"] = [_offline(command) for command in content["setup_commands"]]
    target.write_text(yaml.safe_dump(content))
    return target


def _offline(command: str) -> str:
    """The Python that runs the tests instead of a new one: hosts have no way to the internet. pip still compares."""
    link = f"(mkdir -p ~/.kdtune && ln -s {sys.prefix} ~/.kdtune/venv)"
    return command.replace("python3 -m venv ~/.kdtune/venv", link).replace("pip install ", "pip install --no-index ")
