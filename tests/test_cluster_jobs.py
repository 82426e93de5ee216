"""A search as a Ray job, on a real head: followed through broken connections, stopped in time, begun or taken up."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from kdtune.cli.options import default_file
from kdtune.cli.remote import on_cluster
from kdtune.cluster import jobs
from kdtune.cluster import remote as remote_module
from kdtune.cluster.files import ClusterFile
from kdtune.cluster.finding import There
from kdtune.cluster.jobs import DIGEST, NAME, STOPPING, connected, details, follow, stop
from kdtune.cluster.remembering import Remembered
from kdtune.cluster.remote import Remote
from kdtune.cluster.shipping import resolve
from kdtune.errors import ClusterError
from kdtune.experiment import load
from kdtune.records import read_lines
from tests.caches import until
from tests.conftest import MakeExperiment
from tests.fake_head import FakeHead, running_head

pytestmark = pytest.mark.faults

Running = tuple[ClusterFile, FakeHead]

TALKATIVE = """
import os, time
for k in range(300): print('line', k, flush=True)
while not os.path.exists({gate!r}): time.sleep(0.05)
for k in range(300, 600): print('line', k, 'über' * 20, flush=True)
print('no newline at the end', end='')
"""
STOPPABLE = """
import signal, time
print('at work', flush=True)
try:
    while True: time.sleep(0.05)
except KeyboardInterrupt:
    time.sleep({seconds})  # longer than Ray's own 3 s: a driver that writes down what it has
    print('written down', flush=True)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_head(tmp_path_factory.mktemp("head")) as found:
        yield found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE_S", 0.05)


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return f"python {path}"


def begun(client: JobSubmissionClient, entrypoint: str, name: str = "any", digest: str = "") -> str:
    return client.submit_job(
        entrypoint=entrypoint, runtime_env={"env_vars": STOPPING}, metadata={NAME: name, DIGEST: digest}
    )


def test_a_log_is_followed_through_cut_connections_and_every_character_comes_once(
    running: Running, tmp_path: Path
) -> None:
    cluster, head = running
    gate, told, text = tmp_path / "gate", list[str](), ""
    with connected(head, cluster.token()) as client:
        job = begun(client, script(tmp_path, TALKATIVE.format(gate=str(gate))))
    for part in follow(head, cluster.token(), job, told.append):
        text += part
        if "line 100" in text and not told and "line 299" not in text:
            head.cut()  # in the middle of what was said already
        elif "line 299" in text and not gate.exists():
            head.cut()  # while nothing is said
            gate.touch()
    with connected(head, cluster.token()) as client:
        assert text == client.get_job_logs(job)
        assert details(client, job).status == JobStatus.SUCCEEDED
    assert text.endswith("no newline at the end")
    assert [line for line in text.splitlines() if line.startswith("line")][599].startswith("line 599")
    assert sum("lost" in line for line in told) == sum("back" in line for line in told) >= 1


def test_a_stop_interrupts_the_driver_and_leaves_it_time_to_write_down_what_it_has(
    running: Running, tmp_path: Path
) -> None:
    cluster, head = running
    with connected(head, cluster.token()) as client:
        job = begun(client, script(tmp_path, STOPPABLE.format(seconds=3.5)))
        until(lambda: "at work" in client.get_job_logs(job))
        assert stop(client, job) == JobStatus.STOPPED
        assert client.get_job_logs(job).splitlines()[-1] == "written down"
        assert stop(client, job) == JobStatus.STOPPED, "a job that has ended already stays as it is"


def test_a_search_is_stopped_taken_up_again_and_comes_home_with_its_table(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, head = running
    monkeypatch.chdir(tmp_path)
    short = ("search.trials=6", "train.epochs=60", "teacher.train.epochs=4", "final.seeds=1", "name=mini")
    experiment = load(default_file(), short)
    remote = Remote(cluster, head)
    search = remote.begin(experiment, tmp_path, print)
    for text in remote.follow(search, print):
        if re.search(r"trial \d+ (complete|stopped)", text):
            assert remote.stop(search) == JobStatus.STOPPED
            break
    assert "what has finished is kept" in remote.log(search)
    assert not (search.folder / "summary.json").exists()

    there = There(cluster, head, "on a cluster of this test's")
    on_cluster(there, experiment, down=False)
    said = capsys.readouterr().out
    assert "search    taken up again with" in said
    assert said.count("Test accuracy, last epoch") == 1, "whoever fetches prints the table, and the job does not"
    assert f"Student: {search.folder / 'student'}" in said
    assert (search.folder / "student" / "student.safetensors").exists()
    trials = [line["trial"] for line in read_lines(search.folder / "trials.jsonl")]
    epochs = [(line["trial"], line["epoch"]) for line in read_lines(search.folder / "trials.jsonl")]
    assert len(set(trials)) == 6
    assert len(set(epochs)) == len(epochs), "no epoch was run twice"

    on_cluster(there, experiment, down=False)
    said = capsys.readouterr().out
    assert f"kdtune-mini-{search.digest[:6]}-2 has finished" in said
    assert "Running entrypoint" not in said, "it was only fetched"


def test_without_the_token_the_head_answers_nobody(running: Running) -> None:
    _, head = running
    with pytest.raises(ClusterError, match="asks for its token"), connected(head, None):
        pass
    with pytest.raises(ClusterError, match="the token is another"), connected(head, "0" * 64):
        pass


def test_a_head_without_ray_is_told_from_one_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(jobs.NoRayError), connected(FakeHead(tmp_path, port=1), None):
        pass


def test_a_job_of_a_cluster_that_was_started_anew_is_not_waited_for(running: Running) -> None:
    cluster, head = running
    with pytest.raises(ClusterError, match="has no job kdtune-gone-1"):
        list(follow(head, cluster.token(), "kdtune-gone-1", print))


def test_the_same_search_attaches_another_one_of_its_name_is_refused(
    running: Running, tmp_path: Path, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, head = running
    monkeypatch.chdir(tmp_path)
    remote, told = Remote(cluster, head), list[str]()
    experiment = make_experiment({"name": "twice", "storage": "runs"})
    digest = resolve(experiment, tmp_path).digest
    with connected(head, cluster.token()) as client:
        job = begun(client, script(tmp_path, STOPPABLE.format(seconds=0)), name="twice", digest=digest)
        until(lambda: "at work" in client.get_job_logs(job))
    found = remote.begin(experiment, tmp_path, told.append)
    assert found == Remembered(tmp_path / "runs" / "twice", "twice", cluster.path, job, digest)
    assert told == [f"attached to {job}, which is running"]
    with pytest.raises(ClusterError, match="with another experiment of the name twice"):
        remote.begin(make_experiment({"name": "twice", "storage": "runs", "train.epochs": 7}), tmp_path, print)
    with pytest.raises(ClusterError, match="still running"):
        remote.bring_home(found)
    with pytest.raises(ClusterError, match=f"left running, since others use it: {job}"):
        remote.down(Remembered(tmp_path, "mine", cluster.path, "kdtune-mine-1", ""))
    assert remote.stop(found) == JobStatus.STOPPED
    with pytest.raises(ClusterError, match="was stopped"):
        remote.bring_home(found)


def test_machines_that_have_yet_to_join_are_waited_for_and_not_for_ever(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, head = running
    monkeypatch.setattr(remote_module, "JOINING_S", 0.5)
    told = list[str]()
    alone = ClusterFile(cluster.path, {**cluster.raw, "provider": {"type": "local", "worker_ips": []}})
    with_two = ClusterFile(cluster.path, {**cluster.raw, "provider": {"type": "local", "worker_ips": ["a", "b"]}})
    with connected(head, cluster.token()) as client:
        for file in (alone, with_two):
            Remote(file, head)._wait_for_machines(client, told.append)
    assert told == [
        "waiting for machines to join: 1 of 3 have",
        "only 1 of 3 machines have joined the cluster; the search does with them",
    ]
