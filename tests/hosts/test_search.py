"""`kdtune search` from the launching side on a cluster of two hosts: shipped, streamed, fetched; hosts that are lost.

Each trial worker asks for all CPUs of a host, so that two of them never share one.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kdtune.export import load_student
from kdtune.records import read_trials
from tests.hosts.launching import Laptop
from tests.hosts.waiting import wait_until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1200)]

EXPERIMENT = """
name: {name}
data: {{dataset: digits, validation: 0.2, augment: crop, crop_padding: 1}}
teacher: {{model: cnn-8-16, train: {{epochs: 2, batch_size: 32, learning_rate: 0.1}}}}
student: {{model: cnn-4-8}}
train: {{epochs: {epochs}, batch_size: 32, learning_rate: 0.2}}
search:
  trials: {trials}
  stopper: {{kind: none}}
  space:
    distill.temperature.start: {{loguniform: [1, 8]}}
final: {{seeds: 1, baselines: [student alone]}}
resources: {{workers_per_trial: {workers}, cpus_per_worker: {cpus}}}
"""


class Search:
    """`kdtune search` of one experiment, in a working folder of its own on the launching side."""

    def __init__(self, laptop: Laptop, name: str, *, epochs: int, trials: int, workers: int) -> None:
        self.laptop = laptop
        self.cwd = laptop.home / f"work-{name}"
        self.cwd.mkdir(exist_ok=True)
        values = {"name": name, "epochs": epochs, "trials": trials, "workers": workers, "cpus": os.cpu_count()}
        (self.cwd / "experiment.yaml").write_text(EXPERIMENT.format(**values))
        self.folder = self.cwd / "runs" / name

    def lines(self) -> Iterator[str]:
        """What the command prints, as it prints it; it must end well."""
        process = subprocess.Popen(
            ["kdtune", "search", "experiment.yaml", "--cluster", str(self.laptop.cluster_file)],
            cwd=self.cwd,
            env=self.laptop.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                yield line
            assert process.wait() == 0, "".join(said)
        finally:
            process.kill()
            process.wait()

    def run(self, when: str = "", do: Callable[[], None] | None = None) -> list[str]:
        """All lines; `do` is done once, when one of them has `when` in it."""
        said = []
        for line in self.lines():
            said.append(line)
            if do is not None and when in line:
                do()
                do = None
        assert do is None, f"nothing said {when!r}:\n{''.join(said)}"
        return said

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return found


def both(laptop: Laptop) -> Search:
    return Search(laptop, "both", epochs=12, trials=2, workers=2)  # long enough to be seen at work


def test_a_trial_of_two_workers_trains_on_both_hosts_and_comes_home(laptop: Laptop) -> None:
    search = both(laptop)
    training: list[str] = []
    at_work = "ray::RayTrainWorker"

    def look() -> None:
        training.extend(host.name for host in laptop.hosts.all if any(at_work in line for line in host.commands()))

    said = search.run("trial 0000 complete", look)
    assert training == [host.name for host in laptop.hosts.all]
    assert laptop.hosts.head.address in next(line for line in said if line.startswith("where"))
    assert any("validation accuracy" in line for line in said)
    assert [trial.complete for trial in read_trials(search.folder / "trials.jsonl")] == [True, True]
    assert {row["name"] for row in search.summary["results"]} == {"teacher", "student alone", "best"}
    assert sum(parameter.numel() for parameter in load_student(search.folder / "student").parameters()) > 0


def test_the_same_command_again_only_shows_what_is_there(laptop: Laptop) -> None:
    before = laptop.ask("/api/jobs/")
    said = both(laptop).run()
    assert any("best" in line for line in said)
    assert not any(line.startswith("job") for line in said)
    assert len(laptop.ask("/api/jobs/")) == len(before)


def test_a_search_goes_on_without_a_host_that_is_cut_off_and_says_what_was_tried_again(laptop: Laptop) -> None:
    search = Search(laptop, "cut", epochs=30, trials=4, workers=1)
    worker = laptop.hosts.workers[0]

    def cut_in_mid_trial() -> None:
        wait_until(lambda: any("_Inner.train" in line for line in worker.commands()), 60, lambda: "no trial is there")
        laptop.hosts.cut(worker)

    said = search.run("trial 0000 complete", cut_in_mid_trial)
    lost = [line for line in said if "is taken up again" in line]
    assert lost, "".join(said)
    assert worker.address in lost[0]
    assert all(trial.complete for trial in read_trials(search.folder / "trials.jsonl"))
    assert search.summary["search"]["retried"]
    laptop.hosts.mend(worker)
    wait_until(lambda: len(laptop.nodes()) == 2, 120, lambda: "the host that is back is not taken in again")


def test_a_host_without_power_in_a_trial_of_both_is_waited_for_and_the_trial_goes_on(laptop: Laptop) -> None:
    """Two workers do not fit on the host that is left; the cluster takes the other in again when it is back."""
    search = Search(laptop, "power", epochs=20, trials=2, workers=2)
    worker = laptop.hosts.workers[0]

    def power_cut() -> None:
        laptop.hosts.kill(worker)
        laptop.hosts.boot(worker)

    search.run("trial 0000 complete", power_cut)
    assert [one["trial"] for one in search.summary["search"]["retried"]] == ["0001"]
    trials = read_trials(search.folder / "trials.jsonl")
    assert [trial.complete for trial in trials] == [True, True]
    for trial in trials:
        assert [record.epoch for record in trial.epochs] == list(range(1, 21))
