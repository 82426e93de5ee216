"""What a user can get wrong ends in exit code 2 and a sentence on stderr: never a traceback, never a changed folder."""

import copy
import errno
import io
import os
import resource
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import kdtune
import kdtune.cli.progress
import kdtune.search.run  # imports ray and starts nothing
from kdtune.cli import main
from kdtune.cli.options import default_file
from kdtune.experiment import Experiment, differences, dump, load, parse
from kdtune.models import build_model
from kdtune.report import write_summary
from kdtune.trial import SINGLE, claim

NOBODY = 65534
TINY: dict[str, Any] = {  # `Any`: YAML, to be changed by tests
    "name": "tiny",
    "data": {"dataset": "digits"},
    "teacher": {"model": "cnn-8", "train": {"epochs": 3, "optimizer": "adamw", "learning_rate": 0.02}},
    "student": {"model": "cnn-8"},
    "train": {"epochs": 1},
}

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must be refused, and gives the sentence on stderr."""

    def run(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert stop.value.code == 2
        assert shown.err.startswith("error: ")
        assert "Traceback" not in shown.err + shown.out
        return shown.err

    return run


def write(folder: Path, **values: object) -> Path:
    """A tiny experiment file, stored beside itself; `values` replaces whole sections."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**TINY, "storage": str(folder / "runs"), **values}))
    return path


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that gets past its run folder fails here, before it trains anything or starts Ray."""

    def prepare(*arguments: object, **named: object) -> None:
        raise AssertionError("the search was not refused")

    monkeypatch.setattr("kdtune.search.run.prepare", prepare)


# --- the file


@pytest.mark.parametrize("command", ["search", "train", "teacher"])
def test_a_missing_file_names_the_nearest_one(command: str, tmp_path: Path, refused: Refused) -> None:
    write(tmp_path)
    shown = refused(command, tmp_path / "experimet.yaml")
    assert "experimet.yaml: 1 problem" in shown
    assert "no such file. Did you mean 'experiment.yaml'?" in shown


def test_a_yaml_error_names_its_line_and_column(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path)
    path.write_text("name: tiny\ntrain: {epochs: 3\nstudent: x\n")
    assert "YAML error at line 3, column " in refused("search", path)


def test_an_unknown_model_names_the_nearest_known_one(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path, student={"model": "cnn8"})
    shown = refused("search", path)
    assert "student.model: given 'cnn8', expected a name from `kdtune list models`" in shown
    assert "Did you mean 'cnn-8'?" in shown


def test_every_problem_has_a_line_of_its_own(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path, student={"model": "cnn8"}, train={"epochs": 0, "epoch": 1})
    lines = refused("search", path).splitlines()
    assert lines[0] == f"error: {path}: 3 problems"
    assert [line.split(":")[0] for line in lines[1:]] == ["  - student.model", "  - train.epochs", "  - train.epoch"]


def test_a_bad_override_is_named(tmp_path: Path, refused: Refused) -> None:
    shown = refused("search", write(tmp_path), "--set", "train.epochs", "--set", "train=[")
    assert "expected path=value such as train.epochs=30, given 'train.epochs'" in shown
    assert "the value of train is not YAML: '['" in shown


@pytest.mark.parametrize("command", ["search", "plan"])
def test_an_empty_space_says_what_to_do_instead(
    command: str, tmp_path: Path, refused: Refused, no_search: None
) -> None:
    assert "`kdtune train` trains the one configuration" in refused(command, write(tmp_path))


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_run_that_is_not_there_is_said_to_be_missing(command: str, tmp_path: Path, refused: Refused) -> None:
    assert f"there is no folder {tmp_path / 'digts'}" in refused(command, tmp_path / "digts")


def test_a_training_without_a_search_is_not_one_that_has_not_finished(tmp_path: Path, refused: Refused) -> None:
    folder = claim(load(write(tmp_path)), SINGLE)
    (folder / "student").mkdir()
    assert f"its student is {folder / 'student'}" in refused("export", folder)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == f"kdtune {kdtune.__version__}\n"


def test_a_misspelt_option_names_the_known_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["search", "--sett", "train.epochs=1"])
    assert stop.value.code == 2
    assert "--set" in capsys.readouterr().err.replace("--sett", "")


def test_a_file_that_unfolds_to_more_than_any_memory_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 20)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join([*lines, "train: {epochs: *a19}", ""]))
    done = subprocess.run(
        [sys.executable, "-m", "kdtune", "search", str(path)],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )
    assert done.returncode == 2
    assert "unfolds to more than 100,000 values" in done.stderr
    assert "Traceback" not in done.stderr


# --- the data


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders of three pictures each: train/ant, train/bee, test/ant, test/bee."""
    for k, name in enumerate(("train/ant", "train/bee", "test/ant", "test/bee")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((8, 8, 3), 60 * k + number, dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def of_pictures(pictures: Path) -> dict[str, object]:
    return {"dataset": "folder", "root": str(pictures), "image_size": 8, "validation": 0.34}


@pytest.mark.parametrize("command", ["teacher", "train"])
def test_class_folders_that_differ_are_named(command: str, pictures: Path, refused: Refused) -> None:
    (pictures / "test" / "bee").rename(pictures / "test" / "wasp")
    shown = refused(command, write(pictures.parent, data=of_pictures(pictures)))
    assert "they differ in: bee, wasp" in shown


def test_class_counts_that_differ_are_named(pictures: Path, refused: Refused) -> None:
    (pictures / "train" / "cow").mkdir()
    shown = refused("teacher", write(pictures.parent, data=of_pictures(pictures)))
    assert "train has 3 classes" in shown
    assert "test has 2; they differ in: cow" in shown


def test_an_empty_class_folder_is_named(pictures: Path, refused: Refused) -> None:
    for part in ("train", "test"):
        (pictures / part / "cow").mkdir()
    shown = refused("teacher", write(pictures.parent, data=of_pictures(pictures)))
    assert f"class folder {pictures}/train/cow has no images" in shown


def test_an_unreadable_picture_is_named(pictures: Path, refused: Refused) -> None:
    (pictures / "test" / "ant" / "1.png").write_text("no picture")
    shown = refused("teacher", write(pictures.parent, data=of_pictures(pictures)))
    assert f"cannot read image {pictures}/test/ant/1.png" in shown
    assert "Remove or repair it" in shown


def test_a_data_folder_that_is_not_there_is_named(pictures: Path, refused: Refused) -> None:
    shown = refused("teacher", write(pictures.parent, data=of_pictures(pictures / "none")))
    assert f"data.root: no folder {pictures}/none" in shown


# --- the teacher


def test_a_checkpoint_with_other_shapes_names_the_keys(tmp_path: Path, refused: Refused) -> None:
    torch.save(build_model("cnn-16", (1, 8, 8), 10).state_dict(), tmp_path / "teacher.pt")
    teacher = {"model": "cnn-8-16", "weights": str(tmp_path / "teacher.pt")}
    shown = refused("teacher", write(tmp_path, teacher=teacher))
    assert "blocks.0.0.weight: (16, 1, 3, 3) in the file, (8, 1, 3, 3) in the model" in shown
    assert "missing" in shown
    assert "blocks.1.0.weight" in shown


def test_a_checkpoint_for_other_classes_names_the_last_layer(tmp_path: Path, refused: Refused) -> None:
    torch.save(build_model("cnn-8", (1, 8, 8), 100).state_dict(), tmp_path / "teacher.pt")
    teacher = {"model": "cnn-8", "weights": str(tmp_path / "teacher.pt")}
    shown = refused("teacher", write(tmp_path, teacher=teacher))
    assert "fc.weight: (100, 8) in the file, (10, 8) in the model" in shown
    assert "class counts" in shown
    assert "blocks" not in shown


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, refused: Refused, content: bytes | None) -> None:
    weights = tmp_path / "teacher.pt"
    if content is not None:
        weights.write_bytes(content)
    shown = refused("teacher", write(tmp_path, teacher={"model": "cnn-8", "weights": str(weights)}))
    assert str(weights) in shown


# --- the run folder


def test_a_run_folder_of_another_experiment_is_left_as_it_is(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path)
    folder = claim(load(path), "-train")
    (folder / "trials.jsonl").write_text('{"trial": "0000"}\n')
    before = everything_in(tmp_path)
    shown = refused("train", path, "--set", "train.epochs=2", "--set", "distill.alpha=0.5")
    assert f"{folder} already holds another experiment; nothing was changed" in shown
    assert "train.epochs: 2 against 1" in shown
    assert "distill.alpha: 0.5 against 0.9" in shown
    assert "--set name=" in shown
    assert everything_in(tmp_path) == before


def test_a_search_leaves_a_run_folder_of_another_experiment_alone(
    tmp_path: Path, refused: Refused, no_search: None
) -> None:
    path = write(tmp_path, search={"trials": 3, "space": {"distill.alpha": {"uniform": [0.1, 0.9]}}})
    (claim(load(path)) / "trials.jsonl").write_text("")
    before = everything_in(tmp_path)
    assert "search.trials: 2 against 3" in refused("search", path, "--set", "search.trials=2")
    assert "train.epochs: 9 against" in refused("search", path, "--set", "train.epochs=9", "--set", "search.trials=4")
    assert everything_in(tmp_path) == before


def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "runs" / "tiny-train").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-train" / "thesis.txt").write_text("years of work")
    path = write(tmp_path)
    before = everything_in(tmp_path)
    assert "is no run of kdtune" in refused("train", path)
    assert everything_in(tmp_path) == before


def test_a_run_folder_whose_experiment_cannot_be_read_is_left_as_it_is(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path)
    folder = claim(load(path), "-train")
    (folder / "experiment.yaml").write_text("name: tiny\nfuture: 1\n")
    (folder / "trials.jsonl").write_text("")
    before = everything_in(tmp_path)
    assert "holds an experiment that this version cannot read" in refused("train", path)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("what", ["a file", "below a file", "a dead link", "not writable by anyone", "too long", "NUL"])
def test_a_storage_that_cannot_hold_runs_is_refused(what: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    storage = {
        "a file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file" / "runs"),
        "a dead link": str(tmp_path / "link"),
        "not writable by anyone": "/proc/kdtune",
        "too long": str(tmp_path / ("x" * 300)),
        "NUL": "runs\0",
    }[what]
    assert "storage" in refused("train", write(tmp_path, storage=storage))


@pytest.mark.parametrize("name", ["runs[/x]", "runs[bold]"])
def test_a_folder_named_like_markup_is_shown_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["teacher", str(write(tmp_path, storage=str(tmp_path / name)))])
    assert stop.value.code in (0, None)
    assert f"kept in {tmp_path / name}" in capsys.readouterr().out


def test_a_folder_that_is_no_run_cannot_be_exported(tmp_path: Path, refused: Refused) -> None:
    assert "is no run folder: it has no experiment.yaml" in refused("export", tmp_path)


def test_a_search_that_has_not_finished_cannot_be_exported(tmp_path: Path, refused: Refused) -> None:
    folder = claim(load(write(tmp_path)))
    assert "its search has not finished" in refused("export", folder)


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_cache_that_was_not_built_is_not_described(command: str, tmp_path: Path, refused: Refused) -> None:
    assert "`kdtune teacher` makes it" in refused("cache", command, write(tmp_path))
    assert not (tmp_path / "runs").exists()


# --- permissions


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may do everything, so root becomes nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can enter and read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_storage_that_may_not_be_written_is_named(public: Path, refused: Refused) -> None:
    path = write(public)
    (public / "runs").mkdir(mode=0o555)
    with ordinary_user():
        shown = refused("train", path)
    assert f"cannot write the run folder {public}/runs/tiny-train: Permission denied" in shown
    assert "--set storage=DIR" in shown
    assert everything_in(public / "runs") == {}


def test_a_run_folder_that_may_no_longer_be_written_is_named(public: Path, refused: Refused) -> None:
    path = write(public)
    folder = claim(load(path), "-train")
    folder.chmod(0o555)
    before = everything_in(public)
    with ordinary_user():
        shown = refused("train", path)
    folder.chmod(0o755)
    assert f"cannot write the run folder {folder}: Permission denied" in shown
    assert everything_in(public) == before


def test_an_experiment_file_that_may_not_be_read_is_named(public: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(public)
    path.chmod(0o000)
    with ordinary_user(), pytest.raises(SystemExit) as stop:
        main(["train", str(path)])
    assert stop.value.code == 2
    assert f"{path}' is not readable" in capsys.readouterr().err  # typer looks before kdtune does


@pytest.mark.parametrize("closed", [".", "train", "train/ant", "train/ant/0.png"])
def test_data_that_may_not_be_read_is_named_and_not_taken_for_the_storage(
    closed: str, public: Path, refused: Refused, request: pytest.FixtureRequest
) -> None:
    for name in ("train/ant", "train/bee", "test/ant", "test/bee"):
        (public / "pictures" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(public / "pictures" / name / f"{number}.png")
    shut = public / "pictures" / closed
    path = write(public, data=of_pictures(public / "pictures"))
    shut.chmod(0o000)
    request.addfinalizer(lambda: shut.chmod(0o755))
    with ordinary_user():
        shown = refused("teacher", path)
    assert str(shut) in shown
    assert "Permission denied" in shown
    assert "storage" not in shown


# --- a full disk


def disk_full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_half_of_an_experiment(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        shown = refused("train", path)
    assert "No space left on device. Free some space; the same command then takes up what is finished" in shown
    assert everything_in(tmp_path / "runs") == {"tiny-train": None, "tiny-train/.lock": b""}  # no half of anything
    assert (claim(load(path), "-train") / "experiment.yaml").exists()  # the same command then goes on


def test_a_disk_that_fills_while_the_teacher_is_kept_leaves_no_half_of_a_teacher(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("kdtune.teacher.kept.write_bytes", disk_full)
        assert "No space left on device. Free some space" in refused("teacher", path)
    kept = [name for name, content in everything_in(tmp_path / "runs").items() if content is not None]
    assert not any(name.endswith(("teacher.json", "teacher.safetensors")) for name in kept)
    with pytest.raises(SystemExit) as stop:
        main(["teacher", str(path)])
    assert stop.value.code in (0, None)
    assert "teacher" in capsys.readouterr().out


# --- whatever a file may hold


@dataclass(frozen=True)
class Outcome:
    code: object
    out: str
    err: str
    searched: list[Experiment]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a summary: what a search hands back."""
    folder = tmp_path_factory.mktemp("finished")
    row = {"test_accuracy": [0.5], "mean": 0.5, "std": None, "parameters": 1, "latency_ms": 1.0, "size_mb": 1.0}
    results = [{"name": name, "model": "cnn-8", **row} for name in ("teacher", "student alone", "best")]
    search = {"trials": 1, "epochs_run": 1, "epochs_full": 1, "seconds": 1.0, "stopped_early": 0}
    best = {"config": {"distill.alpha.start": 0.5}, "val_accuracy": 0.5}
    write_summary(folder, {"search": search, "best": best, "results": results, "classes": [], "confusion": {}})
    return folder


def run(arguments: list[str], finished_run: Path) -> Outcome:
    """Runs a command line whose search only notes down what it was given."""
    searched: list[Experiment] = []

    def run_search(experiment: Experiment, watch: kdtune.cli.progress.Lines) -> Path:
        searched.append(experiment)
        return finished_run

    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(kdtune.search.run, "run_search", run_search)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
    return Outcome(stop.value.code, out.getvalue(), err.getvalue(), searched)


def check(outcome: Outcome) -> None:
    """Either a valid experiment was searched, or a sentence says why not."""
    assert "Traceback" not in outcome.err + outcome.out
    if outcome.searched:
        (experiment,) = outcome.searched
        assert outcome.code in (0, None)
        assert outcome.err == ""
        # the run folder's experiment.yaml is this experiment: the same command takes the run up again
        assert differences(parse(yaml.safe_load(dump(experiment))), experiment) == []
    else:
        assert outcome.code == 2
        assert outcome.err.startswith("error: ")
        assert len(outcome.err.splitlines()) >= 2


text = st.text(st.characters(exclude_categories=()), max_size=8) | st.text(string.ascii_lowercase, max_size=8)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.dates() | st.datetimes() | st.binary(max_size=4)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.integers() | st.none(), inner, max_size=3),
    max_leaves=6,
)
plausible: list[Any] = [0, 1, -1, 2, 0.5, 1.5, 1e9, 10**30, "auto", "none", "fixed", "sgd", "1e-3", "digits", "cnn-8"]
plausible += [
    [],
    {},
    {"uniform": [0.1, 0.5]},
    {"choice": ["fixed", "linear"]},
    {"kind": "linear", "start": 1, "end": 0},
]
near = st.sampled_from(plausible).map(copy.deepcopy)
DIGITS: dict[str, Any] = yaml.safe_load(default_file().read_text())


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a YAML value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        found.append((value, key))
        spots(child, found)
    return found


@st.composite
def mutated_experiments(draw: st.DrawFn) -> str:
    """The digits experiment with a few things in it deleted, renamed, replaced or added."""
    raw = copy.deepcopy(DIGITS)
    for _ in range(draw(st.integers(1, 3))):
        places = spots(raw, [])
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["delete", "rename", "replace", "replace", "add"]))
        if action == "delete":
            del container[key]
        elif action == "replace":
            container[key] = draw(near | anything)
        elif isinstance(container, list):
            container.append(draw(near | anything))
        else:
            keys = [place[1] for place in places if isinstance(place[1], str)]
            name = draw(st.sampled_from(keys) | st.just(str(key)[:-1]) | text | st.integers() | st.none())
            container[name] = container.pop(key) if action == "rename" else draw(near | anything)
    return yaml.safe_dump(raw, sort_keys=False)


@st.composite
def mistyped_texts(draw: st.DrawFn) -> str:
    """The text of the digits file with a piece cut out and something else typed there."""
    whole = default_file().read_text()
    begin = draw(st.integers(0, len(whole)))
    end = min(len(whole), begin + draw(st.sampled_from([0, 1, 2, 10, 300])))
    typed = draw(st.text(" \n\t:,{}[]-#&*!|>'\"%@`?0aA.\0\ufeff\u2028é", max_size=4))
    return whole[:begin] + typed + whole[end:]


RELAXED = settings(suppress_health_check=[HealthCheck.too_slow])


@settings(RELAXED, max_examples=200)
@given(text=mutated_experiments())
@example(text=default_file().read_text())
def test_whatever_a_file_holds_is_either_searched_or_refused_with_a_sentence(text: str, finished_run: Path) -> None:
    path = finished_run / "mutated.yaml"
    path.write_text(text)
    check(run(["search", str(path)], finished_run))


@settings(RELAXED, max_examples=100)
@given(content=mistyped_texts().map(str.encode) | st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_whatever_is_typed_into_a_file_is_either_searched_or_refused_with_a_sentence(
    content: bytes, finished_run: Path
) -> None:
    path = finished_run / "typed.yaml"
    path.write_bytes(content)
    check(run(["search", str(path)], finished_run))


def paths_of(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, child in value.items():
        yield prefix + key
        if isinstance(child, dict):
            yield from paths_of(child, f"{prefix}{key}.")


@settings(RELAXED, max_examples=100)
@given(
    path=st.sampled_from([*paths_of(DIGITS), "distill.alpha.end", "data.views", "teacher.weights"]) | text,
    value=st.sampled_from(["0", "1", "-1", "1e3", "null", "[", "{}", "{a: 1, a: 2}", "~", "'", "!!binary x"])
    | text
    | (near | anything).map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
)
@example(path="train.epochs", value=f"0x{'F' * 5_000}")  # Python refuses to print so long a number
def test_whatever_is_set_is_either_searched_or_refused_with_a_sentence(
    path: str, value: str, finished_run: Path
) -> None:
    check(run(["search", "--set", f"{path}={value}"], finished_run))


def test_the_default_file_is_searched(finished_run: Path) -> None:
    outcome = run(["search"], finished_run)
    assert outcome.searched == [load(default_file())]
    assert "student alone" in outcome.out
