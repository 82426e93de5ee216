"""A cluster file as `ray up` reads it: who the head is, how to log in, what the cluster may grow to.

    cluster = read_cluster_file(Path("cluster.yaml"))
    cluster.nodes()        # [{"cpus": 4, "gpus": 1, "count": 8}], the limits of autoscaling

Only Ray knows all of the format (`ray up` checks it); here is as much as reaching the cluster takes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdtune.errors import ClusterError

PLACEHOLDER = re.compile(r"\bYOUR-[A-Z0-9-]+")
TOKEN_FILE = Path("~/.ray/auth_token")  # Ray's own default, on either side
CLOUDS = {"aws": "AWS", "gcp": "Google Cloud", "azure": "Azure"}
OWN = "local"  # the provider of machines that one owns


@dataclass(frozen=True)
class ClusterFile:
    """One file; `raw` is its YAML."""

    path: Path
    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["cluster_name"])

    @property
    def provider(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.raw["provider"]
        return found

    @property
    def kind(self) -> str:
        return str(self.provider["type"])

    @property
    def where(self) -> str:
        """In a person's words: whose machines they are."""
        return "your own machines" if self.kind == OWN else CLOUDS.get(self.kind, self.kind)

    @property
    def placeholders(self) -> list[str]:
        """What is left to fill in, such as YOUR-BUCKET: a cluster of this file cannot have been started."""
        return sorted(set(PLACEHOLDER.findall(yaml.safe_dump(dict(self.raw)))))

    @property
    def user(self) -> str:
        return str(self.auth.get("ssh_user", "ubuntu"))

    @property
    def auth(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.raw.get("auth") or {}
        return found

    @property
    def keys(self) -> list[Path]:
        """Private keys to log in with: the file's own, or those that `ray up` makes where the file names none."""
        if given := self.auth.get("ssh_private_key"):
            return [Path(given).expanduser()]
        region, home = self.provider.get("region"), Path("~/.ssh").expanduser()
        if self.kind == "aws":
            name = (self.provider.get("key_pair") or {}).get("key_name")
            patterns = [f"{name}.pem", f"{name}_key-*.pem"] if name else [f"ray-autoscaler*_{region}.pem"]
        elif self.kind == "gcp":
            patterns = [f"ray-autoscaler_gcp_{region}_{self.provider.get('project_id')}_{self.user}_*.pem"]
        else:
            patterns = []
        return sorted(key for pattern in patterns for key in home.glob(pattern))

    def token(self) -> str | None:
        """What the cluster asks for, from the local side of the file's token mount; None where there is none."""
        mounts: Mapping[str, str] = self.raw.get("file_mounts") or {}
        mounted = [local for remote, local in mounts.items() if Path(remote).name == TOKEN_FILE.name]
        path = Path(mounted[0] if mounted else TOKEN_FILE).expanduser()
        try:
            return path.read_text().strip() or None
        except FileNotFoundError:
            if not mounted:
                return None
            raise ClusterError(
                f"{self.path}: its token file {path} is not there; `ray get-auth-token --generate` makes one, or copy "
                f"the one that the cluster was started with"
            ) from None

    def nodes(self) -> list[dict[str, float]] | None:
        """CPUs, GPUs and number of each kind of node that the cluster may grow to; None for machines one owns.

        Several worker types share `max_workers`: those with GPUs are counted first. Raises ClusterError where a type
        does not say what it has, since then nothing can be placed before it is running.
        """
        types: Mapping[str, Mapping[str, Any]] | None = self.raw.get("available_node_types")
        if not types:
            return None
        left = int(self.raw.get("max_workers", 2))  # Ray's default
        found = []
        head = types.get(str(self.raw.get("head_node_type")))
        if head is not None:
            found.append({**self._resources(str(self.raw["head_node_type"]), head), "count": 1})
        workers = [(self._resources(name, one), int(one.get("max_workers", left))) for name, one in types.items()]
        for resources, most in sorted(workers, key=lambda pair: (-pair[0]["gpus"], -pair[0]["cpus"])):
            count = min(most, left)
            left -= count
            if count:
                found.append({**resources, "count": count})
        return [node for node in found if node["cpus"] or node["gpus"]]

    @property
    def machines(self) -> int | None:
        """How many machines of one's own the file names, its head included; None for a cloud's, which come and go."""
        return 1 + len(self.provider.get("worker_ips") or ()) if self.kind == OWN else None

    def _resources(self, name: str, node_type: Mapping[str, Any]) -> dict[str, float]:
        resources: Mapping[str, float] | None = node_type.get("resources")
        if not resources or "CPU" not in resources:
            raise ClusterError(
                f"{self.path}: available_node_types.{name} has no `resources`; say what a node has, such as "
                f"{{CPU: 4, GPU: 1}}, so that trials can be placed before it is started"
            )
        return {"cpus": float(resources["CPU"]), "gpus": float(resources.get("GPU", 0))}


def read_cluster_file(path: Path) -> ClusterFile:
    """Raises ClusterError where the file cannot be read, or is no cluster file of `ray up`."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClusterError(f"{path}: is not YAML: {error}") from error
    if isinstance(raw, dict) and raw.get("kind") == "RayJob":
        raise ClusterError(
            f"{path}: is a RayJob of KubeRay, which brings its own cluster: `kubectl apply -f {path}` starts it"
        )
    if not isinstance(raw, dict) or "cluster_name" not in raw or "type" not in (raw.get("provider") or {}):
        raise ClusterError(
            f"{path}: is no cluster file of `ray up`: it has no cluster_name, or no provider with a type. An "
            f"experiment goes first: kdtune search EXPERIMENT --cluster CLUSTER-FILE"
        )
    if raw.get("docker"):
        raise ClusterError(
            f"{path}: runs Ray in containers (docker), where kdtune does not look for results; install what nodes need "
            f"in setup_commands instead, as kdtune's own cluster files do"
        )
    return ClusterFile(path.resolve(), raw)


def nodes_json(nodes: list[dict[str, float]]) -> str:
    """As the environment variable KDTUNE_NODES holds them."""
    return json.dumps(nodes)
