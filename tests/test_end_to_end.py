"""`kdtune search` as a person types it, with real Ray on this machine: stopped, killed, taken up, finished, read.

One search is carried through all of it, since starting Ray is what costs time here: `pytest -m slow`.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import kdtune
from kdtune.cli import main
from kdtune.data import load_dataset
from kdtune.experiment import Experiment, load
from kdtune.records import read_lines, read_trials
from kdtune.report import unpacked

pytestmark = pytest.mark.slow

# feature_weight is searched too, so trials from the cache and with the live teacher share a process
EXPERIMENT = """
name: small
data: {dataset: digits, validation: 0.2, augment: crop, crop_padding: 1}
teacher: {model: cnn-8-16, train: {epochs: 4, batch_size: 32, learning_rate: 0.1}}
student: {model: cnn-4-8}
train: {epochs: 6, batch_size: 32, learning_rate: 0.2}
search:
  trials: 8
  stopper: {kind: asha, reduction_factor: 2, grace_epochs: 2}
  space:
    distill.temperature.kind: {choice: [fixed, exponential]}
    distill.temperature.start: {loguniform: [1, 8]}
    distill.temperature.end_ratio: {loguniform: [0.25, 1], when: {distill.temperature.kind: exponential}}
    distill.feature_weight: {choice: [0, {loguniform: [0.1, 1]}]}
  points:
    - {distill.temperature.kind: fixed, distill.temperature.start: 2, distill.feature_weight: 0.5}
final: {seeds: 2}
"""


class Run:
    """A run folder under way: the same command as often as it is called."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder
        self.folder = folder / "runs" / "small"
        (folder / "small.yaml").write_text(EXPERIMENT)

    def search(self, until: str | None = None, send: signal.Signals | None = None) -> tuple[int, str]:
        """Exit code and output; `send` goes to the command's whole group, as Ctrl-C does, once `until` is printed."""
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "kdtune", "search", "small.yaml"],
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if send is not None and until is not None and until in line:
                if send == signal.SIGKILL:
                    process.kill()
                else:
                    os.killpg(process.pid, send)
                send = None
        assert send is None, output
        return process.wait(timeout=60), output

    @property
    def experiment(self) -> Experiment:
        return load(self.folder / "experiment.yaml")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, tuple[int, str]]]:
    """A search stopped by Ctrl-C, killed, stopped in its final stage, finished, and asked for once more."""
    run = Run(tmp_path_factory.mktemp("search"))
    stages = {
        "stopped": run.search("trial 0001", signal.SIGINT),
        "killed": run.search("done,", signal.SIGKILL),
        "stopped in the final stage": run.search("final     1 of", signal.SIGINT),
        "finished": run.search(),
        "asked again": run.search(),
    }
    return run, stages


Stages = tuple[Run, dict[str, tuple[int, str]]]


def test_ctrl_c_exits_130_and_says_how_to_go_on(stages: Stages) -> None:
    for stage in ("stopped", "stopped in the final stage"):
        code, output = stages[1][stage]
        assert code == 130, output
        assert "The same command takes it up again" in output
        assert "Traceback" not in output


def test_the_same_command_takes_up_what_was_done_and_finishes(stages: Stages) -> None:
    _, output = stages[1]["stopped in the final stage"]
    assert "taken up again with" in output
    code, output = stages[1]["finished"]
    assert code == 0, output
    assert "student alone" in output
    assert "Traceback" not in output


def test_a_finished_search_is_only_read(stages: Stages) -> None:
    code, output = stages[1]["asked again"]
    assert code == 0
    assert "holds this very experiment" in output
    assert "trial 0" not in output


def test_the_teacher_was_trained_once_and_its_accuracy_came_first(stages: Stages) -> None:
    _, first = stages[1]["stopped"]
    assert first.index("validation images") < first.index("trial 0")
    for stage in ("killed", "stopped in the final stage", "finished"):
        assert "teacher   epoch" not in stages[1][stage][1]


def test_every_trial_is_recorded_once_with_its_epochs_in_a_row(stages: Stages) -> None:
    trials = read_trials(stages[0].folder / "trials.jsonl")
    assert sorted(trial.trial for trial in trials) == [f"{k:04d}" for k in range(8)]
    for trial in trials:
        assert [record.epoch for record in trial.epochs] == list(range(1, len(trial.epochs) + 1))
        assert trial.complete or len(trial.epochs) in (2, 4)  # rungs of grace 2, factor 2
    assert any(trial.config["distill.feature_weight"] for trial in trials)


def test_textbook_kd_came_first_and_then_the_files_own_points(stages: Stages) -> None:
    trials = {trial.trial: trial.config for trial in read_trials(stages[0].folder / "trials.jsonl")}
    textbook = {"distill.temperature.kind": "fixed", "distill.temperature.start": 4.0, "distill.feature_weight": 0}
    assert trials["0000"] == textbook
    assert trials["0001"] == textbook | {"distill.temperature.start": 2.0, "distill.feature_weight": 0.5}


def test_no_run_of_the_final_stage_is_repeated(stages: Stages) -> None:
    lines = list(read_lines(stages[0].folder / "final.jsonl"))
    assert Counter((line["name"], line["seed"]) for line in lines) == Counter(
        (name, seed) for name in ("best", "student alone", "textbook KD") for seed in (1, 2)
    )
    assert all(len(line["epochs"]) == 6 for line in lines)


def test_the_summary_agrees_with_the_records(stages: Stages) -> None:
    run, _ = stages
    summary = json.loads((run.folder / "summary.json").read_text())
    trials = read_trials(run.folder / "trials.jsonl")
    assert set(summary) == {"search", "best", "results", "latency_on", "classes", "confusion", "pareto", "calibration",
                            "time", "verdict"}  # fmt: skip
    assert summary["time"]["training"] == pytest.approx(sum(r.seconds for t in trials for r in t.epochs), abs=1e-2)
    assert all(seconds is not None for seconds in summary["time"].values())
    assert summary["verdict"] in stages[1]["finished"][1]
    assert summary["search"]["trials"] == 8
    assert summary["search"]["epochs_run"] == sum(len(trial.epochs) for trial in trials)
    assert summary["search"]["epochs_full"] == 8 * 6
    assert summary["search"]["stopped_early"] == sum(not trial.complete for trial in trials)
    assert [row["name"] for row in summary["results"]] == ["teacher", "student alone", "textbook KD", "best"]
    lines = list(read_lines(run.folder / "final.jsonl"))
    for row in summary["results"][1:]:
        said = {line["seed"]: line["test_accuracy"] for line in lines if line["name"] == row["name"]}
        assert row["test_accuracy"] == [said[1], said[2]]
        assert row["mean"] == pytest.approx(sum(said.values()) / 2)
    best = max((trial for trial in trials if trial.complete), key=lambda trial: trial.val_accuracy)
    assert summary["best"]["val_accuracy"] == best.val_accuracy


def test_trials_began_with_one_column_of_answers_and_computed_the_others_when_they_needed_them(stages: Stages) -> None:
    run, outputs = stages
    assert "1 of 6 view columns" in outputs["stopped"][1]
    (manifest,) = (run.cwd / "runs" / ".caches").glob("*/manifest.json")
    seals = {file.stem: json.loads(file.read_text()) for file in manifest.parent.glob("0*.json")}
    assert sorted(seals) == [f"{view:05d}" for view in range(6)]
    assert len({seal["by"] for seal in seals.values()}) > 1
    trials = read_trials(run.folder / "trials.jsonl")
    assert all(record.waited >= 0 for trial in trials for record in trial.epochs)


def test_of_the_trials_states_only_that_of_the_best_is_left(stages: Stages) -> None:
    folder = stages[0].folder
    (state,) = (folder / "states").iterdir()
    best = json.loads((folder / "final" / "winner.json").read_text())["trial"]
    assert state.name.startswith(f"{best}-")
    assert not (folder / "ray").exists()


def test_the_exported_student_answers_like_the_one_that_was_trained(stages: Stages) -> None:
    run, _ = stages
    student = kdtune.load_student(run.folder / "student")
    trained = load_file(run.folder / "final" / "best.safetensors")
    exported = load_file(run.folder / "student" / "student.safetensors")
    assert trained.keys() == exported.keys()
    assert all(torch.equal(trained[key], exported[key]) for key in trained)
    assert student(torch.zeros((3, 1, 8, 8), dtype=torch.uint8)).shape == (3, 10)


def test_what_is_kept_of_the_answers_to_the_test_set_is_what_the_student_answers(stages: Stages) -> None:
    run, _ = stages
    test = load_dataset(run.experiment.data).test
    (line,) = [line for line in read_lines(run.folder / "final.jsonl") if (line["name"], line["seed"]) == ("best", 1)]
    logits = kdtune.load_student(run.folder / "student")(test.pixels)
    answers = unpacked(line["answers"])
    assert torch.equal(answers, logits.argmax(dim=1))
    assert line["test_accuracy"] == (answers == test.labels).double().mean()
    assert [sum(row) for row in line["confusion"]] == test.labels.bincount().tolist()
    assert sum(right for _, _, right in line["calibration"]) == (answers == test.labels).sum()
    confident = sum(confidence for _, confidence, _ in line["calibration"])
    assert confident == pytest.approx(logits.softmax(dim=1).amax(dim=1).sum().item(), rel=1e-4)


def test_export_writes_the_student_again_elsewhere(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = stages
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(run.folder), "--to", str(tmp_path / "copy")])
    assert exit_.value.code in (0, None)
    assert "largest difference" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {"student.safetensors", "config.json", "README.md"}


README_PLACES = {"runs/digits": "runs/small", "runs/first": "runs/small", "runs/second": "runs/other"}


def readme_commands() -> list[str]:
    """What the README does with a finished run; figures as files are drawn by Chrome, which not everybody has."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    sections = re.findall(
        r"^## (?:The report|The student as files)$(.*?)(?=^## )", text, flags=re.MULTILINE | re.DOTALL
    )
    lines = [line.split("#")[0].strip() for section in sections for line in section.splitlines()]
    return [line for line in lines if line.startswith("kdtune ") and "--png" not in line]


def test_what_the_readme_does_with_a_run_works(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stages[0].folder, tmp_path / "runs" / "small")
    shutil.copytree(stages[0].folder, tmp_path / "runs" / "other")
    test = load_dataset(stages[0].experiment.data).test
    for k, (image, label) in enumerate(zip(test.pixels[:40], test.labels[:40].tolist(), strict=True)):
        path = tmp_path / "photographs" / str(label) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    shutil.copy(path, tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert len(commands) == 5
    for command in commands:
        for written, here in README_PLACES.items():
            command = command.replace(written, here)
        with pytest.raises(SystemExit) as exit_:
            main(shlex.split(command)[1:])
        assert exit_.value.code in (0, None), f"{command}\n{capsys.readouterr().err}"
    for made in ("runs/small/report.html", "study.db", "compare.html", "runs/small/student/student.int8.onnx"):
        assert (tmp_path / made).exists()
    assert "accuracy" in capsys.readouterr().out


def test_no_process_outlives_its_command(stages: Stages) -> None:
    deadline = time.monotonic() + 30  # Ray's own processes notice within seconds that a killed command is gone
    while alive := processes_in(stages[0].cwd):
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def processes_in(folder: Path) -> list[bytes]:
    """Command lines of processes that were started in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                    found.append((entry / "cmdline").read_bytes())
            except OSError:  # ended while we looked, or not ours to see
                continue
    return found
