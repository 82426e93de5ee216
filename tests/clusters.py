"""A Ray cluster of several nodes on this machine, and searches on it that can be watched and hurt.

with cluster(folder, workers=2) as nodes:                       # a head without CPUs, and nodes of one CPU each
    search = nodes.search(EXPERIMENT)                           # a driver of its own process
    search.wait_for("trial 0001")
    os.kill(nodes.processes()[-1], signal.SIGKILL)
    search.end()

`python -m tests.clusters FILE ADDRESS` is such a driver. Its students are slow, and leave a mark of each step.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from kdtune.records import read_lines

# Of EXPERIMENT: trials, epochs of each, runs of the final stage, steps of an epoch
TRIALS, EPOCHS, RUNS, STEPS = 5, 8, 4, 34

EXPERIMENT = """
name: hurt
data: {dataset: digits, validation: 0.2, augment: crop, crop_padding: 1}
teacher: {model: cnn-8-16, train: {epochs: 3, batch_size: 32, learning_rate: 0.1}}
student: {model: "slow:student"}
train: {epochs: 8, batch_size: 32, learning_rate: 0.1}
search:
  trials: 5
  stopper: {kind: none}
  space: {distill.temperature.start: {loguniform: [1, 8]}}
final: {seeds: 2, baselines: [student alone]}
resources: {gpus_per_worker: 0}
"""

# A student that takes a while, in a process that saves it after every epoch.
SLOW = """
import os, time
from pathlib import Path
import ray
from torch import nn
import kdtune.search.final, kdtune.search.notice, kdtune.search.trainable
from kdtune.models import build_model

kdtune.search.final.SAVE_EVERY_S = kdtune.search.trainable.SAVE_EVERY_S = {save_every}
kdtune.search.notice.HOLD_S = 3.0
MARKS = Path({marks!r})

class Slow(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        if self.training:
            if ray.is_initialized():
                with (MARKS / str(os.getpid())).open("a") as file:
                    file.write(ray.get_runtime_context().get_node_id()[:8] + "\\n")
            time.sleep(0.015)
        return self.network(images)

def student(image_shape, classes):
    return Slow(build_model("cnn-4-8", image_shape, classes))
"""


class Driver:
    """A search in a process of its own, with what it prints."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.output = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def wait_until(self, happened: Callable[[], bool], patience: float = 240) -> None:
        began = time.monotonic()
        while not happened():
            assert self.process.poll() is None, self.output
            assert time.monotonic() - began < patience, self.output
            time.sleep(0.02)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.output)

    def end(self, code: int = 0) -> str:
        assert self.process.wait(timeout=400) == code, self.output
        self.reader.join()
        return self.output

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Nodes:
    """A running cluster."""

    def __init__(self, folder: Path, workers: int, *, dashboard: bool) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.marks = folder / "marks"
        self.drivers: list[Driver] = []
        head = {"num_cpus": 0, "include_dashboard": dashboard}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.workers: list[Any] = []
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def run(self) -> Path:
        """The run folder, as whoever fetches it finds it on the head."""
        return self.home / ".kdtune" / "runs" / "hurt"

    def search(self, experiment: str = EXPERIMENT, home: str = "home") -> Driver:
        """`home` says which machine the driver is on."""
        self.home = self.folder / home
        file = self.folder / "hurt.yaml"
        file.write_text(experiment)
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.clusters", str(file), self.address],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.drivers.append(Driver(process))
        return self.drivers[-1]

    def add(self, **variables: str) -> Any:  # of ray
        """A further node, with environment variables of its own."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            self.workers.append(self.cluster.add_node(num_cpus=1))
        return self.workers[-1]

    def steps(self) -> dict[int, list[str]]:
        """By process: of each step of training the node on which it was done."""
        return {int(file.name): file.read_text().split() for file in self.marks.iterdir()}

    def processes(self, *, since: Mapping[int, list[str]] | None = None) -> list[int]:
        """Those that train now: alive, and further than they were."""
        before = since or {}
        return [pid for pid, steps in self.steps().items() if _alive(pid) and len(steps) > len(before.get(pid, []))]

    def node_of(self, pid: int) -> Any:  # of ray
        name = self.steps()[pid][-1]
        return next(node for node in self.workers if node.node_id.startswith(name))

    def give_notice(self, node: Any, seconds: float) -> None:
        """What a cloud says of a spot instance before it takes it."""
        deadline = int((time.time() + seconds) * 1000)
        preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
        assert GcsClient(address=self.address).drain_node(node.node_id, preemption, "spot", deadline)[0]

    def epochs(self) -> dict[str, list[int]]:
        """Of each trial the epochs in the records, in order of the file."""
        found: dict[str, list[int]] = {}
        for line in read_lines(self.run / "trials.jsonl"):
            found.setdefault(line["trial"], []).append(line["epoch"])
        return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def cluster(
    folder: Path,
    workers: int = 2,
    *,
    save_every: float = 0.2,
    variables: Mapping[str, str] | None = None,
    dashboard: bool = False,
) -> Iterator[Nodes]:
    """Everything that runs is gone with the block."""
    (folder / "marks").mkdir(parents=True)
    (folder / "shared").mkdir()
    (folder / "slow.py").write_text(SLOW.format(marks=str(folder / "marks"), save_every=save_every))
    # Ray's sockets need a short path, and other clusters of this machine a folder of their own
    with tempfile.TemporaryDirectory(prefix="kt-") as ray, pytest.MonkeyPatch.context() as patch:
        (Path(ray) / "ray").mkdir()
        patch.setenv("RAY_TMPDIR", ray)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("KDTUNE_STORAGE", str(folder / "shared"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parents[1])]))
        for name, value in (variables or {}).items():
            patch.setenv(name, value)
        nodes = Nodes(folder, workers, dashboard=dashboard)
        try:
            yield nodes
        finally:
            for driver in nodes.drivers:
                driver.kill()
            nodes.cluster.shutdown()


def check_whole(nodes: Nodes) -> dict[str, Any]:
    """The summary of a search that lost nothing and told nothing twice."""
    assert nodes.epochs() == {f"{k:04d}": list(range(1, EPOCHS + 1)) for k in range(TRIALS)}
    lines = Counter((line["name"], line["seed"]) for line in read_lines(nodes.run / "final.jsonl"))
    assert lines == Counter((name, seed) for name in ("best", "student alone") for seed in (1, 2))
    assert not list((nodes.run / "final").glob("*.pt"))
    assert (nodes.run / "student" / "student.safetensors").exists()
    summary: dict[str, Any] = json.loads((nodes.run / "summary.json").read_text())
    assert summary["search"]["trials"] == TRIALS
    assert summary["search"]["epochs_run"] == TRIALS * EPOCHS
    return summary


def trained(nodes: Nodes) -> float:
    """Epochs that all processes together have trained."""
    return sum(map(len, nodes.steps().values())) / STEPS


def beyond(nodes: Nodes, epoch: int) -> bool:
    return any(max(epochs) >= epoch for epochs in nodes.epochs().values())


def main(file: str, address: str) -> None:
    from kdtune.cli.progress import Lines
    from kdtune.cli.results import retried
    from kdtune.experiment import load
    from kdtune.report import read_summary
    from kdtune.search.run import run_search
    from kdtune.storage import mirror

    mirror.PUSH_EVERY_S, mirror.DEAD_S = 2.0, 15.0  # of 10 and 60: a head that follows a lost one waits so long
    folder = run_search(load(Path(file)), Lines(), address)
    print("\n".join(retried(read_summary(folder))))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
