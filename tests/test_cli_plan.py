"""`kdtune plan`: what a search asks of a cluster, what cannot be placed, and hours that can be followed by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdtune.cli import main
from kdtune.cli.plan import _basis, _hours, _in_words, _share
from kdtune.search.placing import Slots
from tests.conftest import MakeExperiment

TOP = Path(__file__).parents[1]
ABSENT = TOP / "search_spaces" / "shallow_resnet18_cnn5.yaml"  # its data are not on a machine that only tests


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(ABSENT), *arguments])
    return int(ended.value.code or 0)


def test_for_a_cluster_it_counts_what_that_may_grow_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned("--cluster", str(TOP / "cluster.yaml"), "--set", "resources.workers_per_trial=4") == 0
    said = capsys.readouterr().out
    assert "up to 8 x 4 CPUs and 1 GPU" in said
    assert "2 trials, each 4 workers of 1 CPU and 1 GPU; 8 GPUs in all" in said
    assert "none: the data set is not on this machine (data), so nothing can be measured" in said
    assert not list(folder.iterdir()), "planning writes and fetches nothing"


def test_what_cannot_be_placed_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned("--cluster", str(TOP / "cluster.yaml"), "--set", "resources.workers_per_trial=9") == 2
    assert "9 workers of 1 CPUs and 1 GPUs each, of which 8 fit" in capsys.readouterr().err


def test_a_file_that_is_still_to_be_filled_in_is_planned_for_only_when_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (TOP / "cluster.yaml").read_text()
    (folder / "cluster.yaml").write_text(text)
    assert planned() == 0
    assert "cluster.yaml is still to be filled in (--cluster cluster.yaml plans for it)" in capsys.readouterr().out
    (folder / "cluster.yaml").write_text(text.replace("YOUR-AMI", "ami-1").replace("YOUR-BUCKET", "mine"))
    assert planned() == 0
    assert "the cluster kdtune (AWS, " in capsys.readouterr().out
    assert planned("--local") == 0
    assert "this machine\n" in capsys.readouterr().out


def test_the_share_of_epochs_is_that_of_successive_halving(make_experiment: MakeExperiment) -> None:
    values: dict[str, object] = {
        "train.epochs": 27,
        "search": {"space": {"distill.alpha": {"uniform": [0, 1]}}, "stopper": {"grace_epochs": 3}},
    }
    # all run to 3, a third on to 9, a ninth to the end
    assert _share(make_experiment(values)) == pytest.approx((3 + 6 / 3 + 18 / 9) / 27)
    values["search"] = {"space": {"distill.alpha": {"uniform": [0, 1]}}, "stopper": {"kind": "none"}}
    assert _share(make_experiment(values)) == 1


def test_hours_are_those_of_one_worker_whatever_runs_at_a_time_here(make_experiment: MakeExperiment) -> None:
    values: dict[str, object] = {
        "train.epochs": 9,
        "search": {"trials": 10, "space": {"distill.alpha": {"uniform": [0, 1]}}, "stopper": {"grace_epochs": 3}},
    }
    speed = SimpleNamespace(cached=1000.0)  # images a second
    estimate = SimpleNamespace(images=50_000, seconds_to_build=lambda speed: 600.0)
    trials, final = 10 * 9 * 50.0, 1000.0  # seconds
    forecast: Any = SimpleNamespace(
        experiment=make_experiment(values),
        caches={"teacher": SimpleNamespace(estimate=estimate, speed=speed)},
        slots=2,
        epochs=9,
        seconds=lambda *, cached: 600.0 + (trials + final) / 2,
    )
    share = (3 + 6 / 3) / 9
    assert _hours(forecast) == pytest.approx(((600 + trials + final) / 3600, (600 + trials * share + final) / 3600))


@pytest.mark.parametrize(
    ("hours", "gpus", "told"),
    [
        (2.0, 0.0, "2 hours of one worker"),
        (0.05, 0.0, "3 minutes of one worker"),
        (3.0, 0.5, "1.5 GPU hours"),
        (1.5, 0.5, "45 GPU minutes"),
    ],
)
def test_less_than_an_hour_is_told_in_minutes(hours: float, gpus: float, told: str) -> None:
    assert _in_words(hours, Slots(cpus=1, gpus=gpus, concurrent=8)) == told


def test_what_hours_are_based_on_is_said() -> None:
    gpus, cpus = Slots(cpus=1, gpus=1, concurrent=8), Slots(cpus=1, gpus=0, concurrent=8)
    assert _basis("NVIDIA A10G", gpus).startswith("the speed of this machine's NVIDIA A10G, assumed of the others too")
    assert "a GPU is assumed to be as fast as one worker's CPUs here" in _basis(None, gpus)
    assert "GPU is" not in _basis(None, cpus)
