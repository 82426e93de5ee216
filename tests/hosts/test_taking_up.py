"""A search on a cluster of hosts, left and taken up by name from the launching side.

The tests run in their order; the last one takes the cluster of all tests down with --down.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from kdtune.records import read_lines
from tests.hosts.launching import Laptop
from tests.hosts.waiting import wait_until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

EXPERIMENT = """
name: long
data: {dataset: digits, validation: 0.2}
teacher: {model: cnn-8-16, weights: ../elsewhere/teacher.pth}
student: {model: cnn-4-8}
train: {epochs: 100, batch_size: 32, learning_rate: 0.2}
search:
  trials: 8
  stopper: {kind: none}
  space: {distill.temperature.start: {loguniform: [1, 8]}}
final: {seeds: 1, baselines: [student alone]}
"""
TEACHER = """
import torch
from kdtune.cli import main
try:
    main(["teacher", "--set", "storage=elsewhere/runs", "--set", "teacher.model=cnn-8-16",
          "--set", "data.validation=0.2", "--set", "teacher.train.epochs=5"])
except SystemExit as ended:
    assert not ended.code
from pathlib import Path
from safetensors.torch import load_file
(kept,) = Path("elsewhere/runs/.teachers").glob("*/*.safetensors")
torch.save(load_file(kept), "elsewhere/teacher.pth")
"""


class Terminal:
    """One command in a terminal of the laptop, its lines as they come."""

    def __init__(self, laptop: Laptop, *command: str) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            ["kdtune", *command], cwd=laptop.home / "work", env=laptop.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def until(self, word: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if word in line:
                return
        raise AssertionError(f"{word!r} was not said:\n{''.join(self.said)}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.said += self.process.stdout.readlines()
        return self.process.wait()

    def log(self) -> list[str]:
        """What the job itself has said, in its own lines, which begin with seconds."""
        return [line for line in self.said if " s  " in line[:12]]


def typed(laptop: Laptop, *command: str) -> tuple[int, str]:
    terminal = Terminal(laptop, *command)
    return terminal.end(), "".join(terminal.said)


def tunnels(laptop: Laptop) -> list[int]:
    """kdtune's own ssh processes; those of the tests know other host keys."""
    known = str(laptop.home / ".kdtune" / "known_hosts")
    found = subprocess.run(["pgrep", "-f", f"^ssh .*{known}.* -N "], check=False, capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(scope="module")
def work(laptop: Laptop) -> Path:
    """A working folder with an experiment whose teacher lies outside of it."""
    folder, elsewhere = laptop.home / "work", laptop.home / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    (folder / "long.yaml").write_text(EXPERIMENT)
    laptop.must("python", "-c", TEACHER)
    return folder


def search(laptop: Laptop, *more: str) -> tuple[str, ...]:
    return ("search", "long.yaml", "--cluster", str(laptop.cluster_file), *more)


def test_a_search_outlives_its_tunnels_and_ctrl_c_and_is_taken_up_by_name(laptop: Laptop, work: Path) -> None:
    begun = Terminal(laptop, *search(laptop))
    begun.until("complete")  # the first of eight: any may be the slowest
    (tunnel,) = tunnels(laptop)
    os.kill(tunnel, signal.SIGKILL)
    begun.until("connection is back")
    begun.until("complete")
    begun.process.send_signal(signal.SIGINT)
    assert begun.end() == 130
    assert "kdtune attach long" in "".join(begun.said)
    assert not tunnels(laptop)

    code, said = typed(laptop, "status")
    assert code == 0
    assert "running for" in said
    code, said = typed(laptop, "stop", "long")
    assert code == 0
    assert "has stopped" in said
    assert "what has finished is kept" in typed(laptop, "logs", "long")[1]
    code, said = typed(laptop, "fetch", "long")
    assert (code, "was stopped" in said) == (2, True)
    whole = typed(laptop, "logs", "long")[1].splitlines(keepends=True)
    log = begun.log()
    assert log == [line for line in whole if line in log][: len(log)], "nothing was lost, and nothing said twice"
    assert len(set(log)) == len(log)


def test_attach_waits_for_the_results_that_another_terminal_began(laptop: Laptop, work: Path) -> None:
    again = Terminal(laptop, *search(laptop))
    again.until("teacher   cnn-8-16")
    attached = Terminal(laptop, "attach")
    attached.until("teacher   cnn-8-16")
    again.process.kill()
    again.end()
    assert attached.end() == 0
    assert "Test accuracy, last epoch" in "".join(attached.said)
    assert (work / "runs" / "long" / "student" / "student.safetensors").exists()
    epochs = [(line["trial"], line["epoch"]) for line in read_lines(work / "runs" / "long" / "trials.jsonl")]
    assert len(epochs) == len(set(epochs)) == 8 * 100


def test_a_finished_search_takes_the_cluster_down_if_asked(laptop: Laptop, work: Path) -> None:
    code, said = typed(laptop, *search(laptop, "--down"))
    assert code == 0, said
    assert "holds this very experiment" in said
    hosts = laptop.hosts
    wait_until(lambda: not any(host.commands() for host in hosts.all), 180, lambda: str(hosts.head.commands()))
    code, said = typed(laptop, *search(laptop, "--down"))
    assert code == 0, said
    assert "is not running" in said
