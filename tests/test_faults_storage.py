"""Storage that fails in the middle of a search, a head that is lost with its disk, a disk that is full; and what is
left when all goes well: nothing. They take minutes: `pytest -m faults`.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import fs

from kdtune.records import read_trials
from kdtune.search.session import session
from kdtune.search.states import States
from kdtune.search.trials import run_trials
from kdtune.storage import Remote
from kdtune.trial import Materials
from tests.clusters import EPOCHS, EXPERIMENT, RUNS, TRIALS, beyond, check_whole, cluster, trained
from tests.conftest import MakeExperiment
from tests.object_store import ENVIRONMENT
from tests.test_recorder import Unwatched

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


class Store:
    """moto's S3 server, which can be away for a while; what was kept is there again afterwards."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    def stop(self) -> None:
        listening: Any = self.server._server  # which moto leaves open
        self.server.stop()
        listening.server_close()

    def bucket(self, name: str) -> str:
        options = {"endpoint_override": f"127.0.0.1:{self.port}", "scheme": "http", "region": "us-east-1"}
        fs.S3FileSystem(**options, allow_bucket_creation=True).create_dir(name)
        return f"s3://{name}/kdtune?" + "&".join(f"{key}={value}" for key, value in options.items())


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    running = Store()
    yield running
    running.stop()


def test_a_search_outlasts_a_storage_that_fails_and_a_head_that_is_lost(tmp_path: Path, store: Store) -> None:
    address = store.bucket("outage")
    with cluster(tmp_path, variables={"KDTUNE_STORAGE": address, "TMPDIR": str(tmp_path)}) as nodes:
        search = nodes.search()
        search.wait_until(lambda: beyond(nodes, 4))
        store.stop()
        away = sum(map(len, nodes.epochs().values()))
        time.sleep(10)  # the failure itself: long enough for several saves and snapshots to fail
        store.start()
        search.wait_until(lambda: sum(map(len, nodes.epochs().values())) > away + 4)
        there = Remote(address.replace("/kdtune?", "/kdtune/runs/hurt?"))
        search.wait_until(lambda: len(ended_in(there)) >= 2)
        search.kill()
        ended = ended_in(there)
        output = nodes.search(home="other").end()  # a new head has nothing of the run
        assert nodes.run.resolve().is_relative_to(tmp_path / "other")
        assert "teacher   epoch" not in output
        assert not [trial for trial in ended if f"trial {trial} complete" in output]
        summary = check_whole(nodes)
        assert trained(nodes) < TRIALS * EPOCHS + RUNS * EPOCHS * 1.3 + 3 * 2 * 2
        assert json.loads(there.read("summary.json") or b"") == summary
        assert (there.read("student/student.safetensors") or b"")[:1]
        assert len([name for name in there.names(recursive=True) if name.startswith("states/")]) == 1  # of the best


def ended_in(there: Remote) -> list[str]:
    """Trials that have ended, as the records on the storage tell."""
    lines = [json.loads(line) for line in (there.read("trials.jsonl") or b"").splitlines()]
    return [line["trial"] for line in lines if line["epoch"] == EPOCHS]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB: for two columns."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("needs to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_on_one_node_is_named_and_its_trials_go_on_elsewhere(
    tmp_path: Path, store: Store, tiny_disk: Path
) -> None:
    caches = store.bucket("caches")
    (tmp_path / "disk-of-head").mkdir()
    with cluster(tmp_path / "all", workers=1, variables={"TMPDIR": str(tmp_path / "disk-of-head")}) as nodes:
        nodes.add(TMPDIR=str(tiny_disk))
        output = nodes.search(EXPERIMENT + f"cache: {{storage: '{caches}'}}\n").end()
        summary = json.loads((nodes.run / "summary.json").read_text())
        retried = summary["search"]["retried"]
        assert retried, output
        for one in retried:
            assert "No space left on device" in one["error"], one
            assert str(tiny_disk) in one["error"]
            assert "(node " in one["error"]
        complete = [trial for trial in read_trials(nodes.run / "trials.jsonl") if trial.complete]
        assert len(complete) >= 3
        assert {row["name"]: len(row["test_accuracy"]) for row in summary["results"]} == {
            "teacher": 1,
            "student alone": 2,
            "best": 2,
        }


def test_fifty_early_stops_leave_nothing_behind(
    tmp_path: Path, materials: Materials, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment(
        {
            "train.epochs": 3,
            "resources.gpus_per_worker": 0,
            "search.trials": 80,
            "search.space": {"distill.temperature.start": {"loguniform": [1, 8]}},
            "search.sampler": "random",
            "search.stopper": {"kind": "asha", "grace_epochs": 1, "reduction_factor": 8},
        }
    )
    with cluster(tmp_path / "all") as nodes, session(experiment.resources, nodes.address) as slots:
        states = States(str(tmp_path / "states"))
        board = run_trials(tmp_path, experiment, materials, slots, Unwatched(), states, lambda: True)
        assert board.count("stopped") >= 50
        began = time.monotonic()
        while left := held():
            assert time.monotonic() - began < 5, left
            time.sleep(0.1)


def held() -> list[str]:
    """Placement groups, actors, processes and CPUs that a search holds."""
    state: Any = ray  # parts of which have no types
    groups, actors = state.util.placement_group_table(), state._private.state.actors()
    return [
        *(f"group {name}" for name, group in groups.items() if group["state"] != "REMOVED"),
        *(f"actor {name}" for name, actor in actors.items() if actor["State"] != "DEAD"),
        *(f"process {pid}" for pid in trial_processes()),
        *(["CPUs"] if state.available_resources().get("CPU") != state.cluster_resources()["CPU"] else []),
    ]


def trial_processes() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = os.environ["KDTUNE_STORAGE"].encode() in (entry / "environ").read_bytes()
                if ours and b"StudentTrial" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # ended while we looked
                continue
    return found
