"""What shells are offered for the beginning of a word, through the very machinery that they ask."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdtune.cli import app


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs: one that is over, one under way, and what is none."""
    for file in (
        "runs/digits/experiment.yaml", "runs/digits/student/config.json", "runs/digits/student/student.onnx",
        "runs/deep/experiment.yaml", "runs/deep/cluster.json", "runs/.teachers/teacher.json",
        "elsewhere/mine/experiment.yaml",
    ):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(*words: str) -> dict[str, str]:
    """The environment in which bash asks for the last of the words."""
    line = " ".join(["kdtune", *words])
    return {"_KDTUNE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}


def offered(*words: str) -> list[str]:
    return CliRunner().invoke(app, [], prog_name="kdtune", env=asked(*words)).stdout.split()


@pytest.mark.parametrize("command", ["report", "export", "compare"])
def test_runs_are_offered_where_a_run_is_taken(command: str) -> None:
    assert offered(command, "") == ["runs/deep", "runs/digits"]
    assert offered(command, "runs/di") == ["runs/digits"]
    assert offered(command, "r") == ["runs/deep", "runs/digits", "runs/"]
    assert offered(command, "el") == ["elsewhere/"]
    assert offered(command, "elsewhere/") == ["elsewhere/mine"]


def test_paths_from_the_root_are_followed_too(here: Path) -> None:
    assert offered("report", f"{here}/run") == [f"{here}/runs/"]
    assert offered("report", f"{here}/runs/d") == [f"{here}/runs/deep", f"{here}/runs/digits"]


def test_what_was_typed_stays_as_it_was_typed() -> None:
    assert offered("report", "./el") == ["./elsewhere/"]
    assert offered("report", "./runs/di") == ["./runs/digits"]
    assert offered("report", "~nobody-of-this-name/") == []


def test_students_are_offered_as_folders_and_as_files() -> None:
    assert offered("evaluate", "") == ["runs/digits/student"]
    assert offered("predict", "runs/digits/student/student.o") == ["runs/digits/student/student.onnx"]


def test_former_runs_models_data_sets_and_searches_on_clusters_are_offered() -> None:
    assert offered("search", "--warm-start", "runs/de") == ["runs/deep"]
    assert offered("init", "--student", "resnet3") == ["resnet32", "resnet32x4", "resnet34", "resnet34-cifar"]
    assert offered("init", "--teacher", "mlp-1") == ["mlp-1200-1200"]
    assert offered("init", "--dataset", "cif") == ["cifar10", "cifar100"]
    assert offered("attach", "") == ["deep"]


def test_a_shell_does_not_wait_for_torch_or_ray() -> None:
    code = (
        "import atexit, sys; from kdtune.cli import main; atexit.register(lambda: print([name for name in "
        "('ray', 'torch', 'pandas') if name in sys.modules])); main()"
    )
    env = {**os.environ, **asked("init", "--student", "resnext"), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split("\n")[:2] == ["resnext29-8x64", "[]"]
