"""Runs whose storage is an object store: a folder here, its copy there, and who may write it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtune.cli import main
from kdtune.data import Dataset
from kdtune.errors import RunError, StorageError
from kdtune.records import EpochRecord
from kdtune.storage import Mirror, Remote, below, in_step, local_root, mirrored
from kdtune.storage import mirror as mirror_module
from kdtune.storage.mirror import Owned
from kdtune.trial import locate, obtain, working
from tests.conftest import CPU, MakeExperiment
from tests.object_store import S3

Home = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"SETTLE_S": 0.05, "LOOK_EVERY_S": 0.1, "DEAD_S": 1.0, "PUSH_EVERY_S": 0.1}.items():
        monkeypatch.setattr(mirror_module, name, seconds)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """`home("head")`: from now on this is the machine of that name, with a home folder of its own."""

    def move(name: str) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        return tmp_path / name

    return move


def there(address: str) -> dict[str, bytes | None]:
    remote = Remote(address)
    return {name: remote.read(name) for name in remote.names(recursive=True) if name != mirror_module.OWNER}


def test_what_changes_is_pushed_while_the_work_goes_on_and_what_is_removed_goes(s3: S3, tmp_path: Path) -> None:
    address, folder = s3.address("runs/tiny"), tmp_path / "here"
    with mirrored(address, folder) as mirror:
        (folder / "final").mkdir()
        (folder / "final" / "winner.json").write_text("{}")
        (folder / "trials.jsonl").write_text("1\n")
        while there(address) != {"final/winner.json": b"{}", "trials.jsonl": b"1\n"}:
            time.sleep(0.02)
        (folder / "final" / "winner.json").unlink()
        (folder / "trials.jsonl").write_text("1\n2\n")
        (folder / ".trials.jsonl.part").write_text("not whole yet")
        (folder / ".student.part").mkdir()
        (folder / ".student.part" / "config.json").write_text("not whole yet")
        mirror.push()
        assert there(address) == {"trials.jsonl": b"1\n2\n"}
        puts = s3.count("PUT", "trials.jsonl")
        mirror.push()
        assert s3.count("PUT", "trials.jsonl") == puts  # what is the same stays as it is


def test_a_new_machine_goes_on_with_what_the_last_one_left(s3: S3, tmp_path: Path) -> None:
    with mirrored(s3.address("runs/tiny"), tmp_path / "old") as mirror:
        (tmp_path / "old" / "a").mkdir()
        (tmp_path / "old" / "a" / "b").write_bytes(b"\x00" * 9)
        Remote(s3.address("runs/tiny")).write("ray/state", b"Tune's own")
    with mirrored(s3.address("runs/tiny"), tmp_path / "new", apart=("ray",)) as mirror:
        assert (tmp_path / "new" / "a" / "b").read_bytes() == b"\x00" * 9
        assert not (tmp_path / "new" / "ray").exists()
        mirror.push()
    assert "ray/state" in there(s3.address("runs/tiny"))


def test_a_folder_that_was_overtaken_takes_what_is_there_and_keeps_its_own_aside(s3: S3, tmp_path: Path) -> None:
    address = s3.address("runs/tiny")
    with mirrored(address, tmp_path / "first"):
        (tmp_path / "first" / "trials.jsonl").write_text("1\n")
    with mirrored(address, tmp_path / "second"):
        (tmp_path / "second" / "trials.jsonl").write_text("1\n2\n")
    (tmp_path / "first" / "trials.jsonl").write_text("1\nolder\n")
    with mirrored(address, tmp_path / "first"):
        assert (tmp_path / "first" / "trials.jsonl").read_text() == "1\n2\n"
    assert there(address) == {"trials.jsonl": b"1\n2\n"}
    (aside,) = tmp_path.glob("first.older-*")
    assert (aside / "trials.jsonl").read_text() == "1\nolder\n"


def test_files_without_a_mark_are_pulled_and_not_written_over(s3: S3, tmp_path: Path) -> None:
    Remote(s3.address("runs/tiny")).write("trials.jsonl", b"1\n")
    with mirrored(s3.address("runs/tiny"), tmp_path / "here"):
        assert (tmp_path / "here" / "trials.jsonl").read_text() == "1\n"


def test_after_a_crash_the_same_machine_goes_on_at_once_with_what_it_had_not_pushed(s3: S3, tmp_path: Path) -> None:
    crashed = Owned(s3.address("runs/tiny"), tmp_path / "here")
    crashed.take()
    (tmp_path / "here" / "trials.jsonl").write_text("1\n")
    began = time.monotonic()
    with mirrored(s3.address("runs/tiny"), tmp_path / "here"):
        assert time.monotonic() - began < mirror_module.DEAD_S
        assert (tmp_path / "here" / "trials.jsonl").read_text() == "1\n"
    assert there(s3.address("runs/tiny")) == {"trials.jsonl": b"1\n"}


def test_another_machine_waits_until_the_owner_has_ended_and_that_one_never_writes_again(
    s3: S3, tmp_path: Path
) -> None:
    address = s3.address("runs/tiny")
    overtaken = Owned(address, tmp_path / "first")
    overtaken.take()
    (tmp_path / "first" / "trials.jsonl").write_text("1\n")
    overtaken.push()
    began = time.monotonic()
    with mirrored(address, tmp_path / "second"):
        assert time.monotonic() - began >= mirror_module.DEAD_S
        (tmp_path / "second" / "trials.jsonl").write_text("2\n")
    (tmp_path / "first" / "trials.jsonl").write_text("1\n1\n")
    with pytest.raises(RunError, match="was taken up by another kdtune"):
        overtaken.push()
    assert there(address) == {"trials.jsonl": b"2\n"}


def test_while_one_is_at_work_another_is_refused_here_and_elsewhere(s3: S3, tmp_path: Path) -> None:
    address = s3.address("runs/tiny")
    with mirrored(address, tmp_path / "here"):
        for folder in (tmp_path / "here", tmp_path / "elsewhere"):
            with pytest.raises(RunError, match="another kdtune is at work"), mirrored(address, folder):
                raise AssertionError


@pytest.mark.parametrize("ended", [False, True])
def test_who_comes_during_a_long_pull_is_not_written_over(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    address = s3.address("runs/tiny")
    Owned(address, tmp_path / "lost").take()
    slow, quick = (Owned(address, tmp_path / name) for name in ("slow", "quick"))
    pull = slow.pull

    def pull_slowly() -> None:
        pull()
        monkeypatch.setattr(slow, "pull", pull)
        quick.take()
        (tmp_path / "quick" / "trials.jsonl").write_text("1\n")
        quick.push()
        if ended:
            quick.release()
            quick.beat()  # as its thread does once more

    monkeypatch.setattr(slow, "pull", pull_slowly)
    if ended:
        slow.take()
        assert (tmp_path / "slow" / "trials.jsonl").read_text() == "1\n"
    else:
        with pytest.raises(RunError, match="another kdtune is at work"):
            slow.take()
        quick.push()


def test_signs_of_life_go_on_during_a_long_push(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    with mirrored(s3.address("runs/tiny"), tmp_path / "here") as mirror:
        write = mirror.remote.write

        def write_slowly(name: str, content: bytes) -> None:
            if name == "large":
                began, before = time.monotonic(), mark_of(mirror)["beat"]
                while mark_of(mirror)["beat"] < before + 2 and time.monotonic() - began < 10 * mirror_module.DEAD_S:
                    time.sleep(0.02)
                heard.append(mark_of(mirror)["beat"] - before)
            write(name, content)

        monkeypatch.setattr(mirror.remote, "write", write_slowly)
        (tmp_path / "here" / "large").write_text("large")
    assert heard
    assert min(heard) >= 2
    assert mark_of(mirror)["ended"]


def mark_of(mirror: Mirror) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mirror.remote.read(mirror_module.OWNER) or b"")
    return found


def test_who_is_overtaken_in_the_middle_of_a_push_writes_nothing_more_and_says_so_at_the_end(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PUSH_EVERY_S", 3600.0)
    address, another = s3.address("runs/tiny"), {"owner": "another", "beat": 1, "ended": False}

    def overtaken_while_it_pushes() -> None:
        with mirrored(address, tmp_path / "here") as mirror:
            write = mirror.remote.write

            def write_and_lose(name: str, content: bytes) -> None:
                write(name, content)
                write(mirror_module.OWNER, json.dumps(another).encode())

            monkeypatch.setattr(mirror.remote, "write", write_and_lose)
            for name in "ab":
                (tmp_path / "here" / name).write_text(name)
            with pytest.raises(RunError, match="was taken up by another kdtune"):
                mirror.push()
            assert there(address) == {"a": b"a"}

    with pytest.raises(RunError, match="was taken up by another kdtune"):
        overtaken_while_it_pushes()
    assert there(address) == {"a": b"a"}
    assert mark_of(Mirror(address, tmp_path)) == another


def test_what_goes_wrong_with_one_push_does_not_end_the_next_ones(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [PermissionError(13, "Permission denied"), ValueError("no mark")]
    address, look = s3.address("runs/tiny"), Mirror._here

    def look_at_last(mirror: Mirror) -> dict[str, tuple[int, int]]:
        if errors:
            raise errors.pop()
        return look(mirror)

    with in_step(address, tmp_path):
        monkeypatch.setattr(Mirror, "_here", look_at_last)
        (tmp_path / "a").write_text("a")
        began = time.monotonic()
        while not there(address) and time.monotonic() - began < 10:
            time.sleep(0.02)
        assert there(address) == {"a": b"a"}


def test_a_folder_that_is_removed_while_a_push_looks_at_it_is_no_mistake(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, scandir = s3.address("runs/tiny"), os.scandir
    (tmp_path / "going").mkdir()
    (tmp_path / "a").write_text("a")

    def scan(path: Any) -> Any:
        if Path(path).name == "going":
            Path(path).rmdir()
        return scandir(path)

    mirror = Mirror(address, tmp_path)
    monkeypatch.setattr(os, "scandir", scan)
    mirror.push()
    assert not (tmp_path / "going").exists()
    assert there(address) == {"a": b"a"}


def test_a_pull_that_was_interrupted_begins_again(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = s3.address("runs/tiny")
    with mirrored(address, tmp_path / "old"):
        for name in "abc":
            (tmp_path / "old" / name).write_text(name)
    with monkeypatch.context() as cut:
        cut.setattr(Mirror, "_here", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError), mirrored(address, tmp_path / "new"):
            raise AssertionError
    (tmp_path / "new" / "a").write_text("cut")
    with mirrored(address, tmp_path / "new"):
        assert [(tmp_path / "new" / name).read_text() for name in "abc"] == ["a", "b", "c"]
    assert not list(tmp_path.glob("new.older-*"))


def test_a_store_that_cannot_be_used_is_told_with_the_field(s3: S3, tmp_path: Path) -> None:
    address = s3.address("runs/tiny").replace(s3.name, "no-such-bucket")
    with pytest.raises(StorageError, match=r"no bucket 'no-such-bucket'.*correct storage"):
        Mirror(address, tmp_path)


def test_a_teacher_is_kept_on_the_store_with_its_unfinished_training(
    s3: S3, home: Home, make_experiment: MakeExperiment, digits: Dataset
) -> None:
    experiment = make_experiment({"storage": s3.address("runs")})
    heard: list[int] = []

    def hear(name: str, record: EpochRecord) -> None:
        heard.append(record.epoch)

    home("one")
    one = obtain(experiment, digits, CPU, hear)
    assert heard == [1, 2, 3]
    home("other")
    assert locate(experiment, digits)["teacher"].fingerprint == one["teacher"].fingerprint
    other = obtain(experiment, digits, CPU, hear)
    assert heard == [1, 2, 3]
    assert Path(other["teacher"].folder).is_relative_to(home("other"))


def test_what_a_teacher_carries_is_its_network(
    s3: S3, home: Home, make_experiment: MakeExperiment, digits: Dataset
) -> None:
    home("one")
    teacher = obtain(make_experiment(), digits, CPU, lambda name, record: None)["teacher"]
    carried = teacher.carried()
    for file in Path(teacher.folder).iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError):
        teacher.load(CPU)
    images = digits.normalise(digits.pixels[:4])
    assert carried.load(CPU)(images).shape == (4, 10)
    assert carried == teacher


def test_kdtune_train_works_on_a_store_from_any_machine(
    s3: S3, home: Home, tmp_path: Path, make_experiment: MakeExperiment
) -> None:
    from kdtune.experiment import dump

    experiment = make_experiment({"storage": s3.address("runs"), "cache.copies": str(tmp_path / "copies")})
    (tmp_path / "tiny.yaml").write_text(dump(experiment))
    for machine in ("one", "other"):
        home(machine)
        with pytest.raises(SystemExit) as exit_:
            main(["train", str(tmp_path / "tiny.yaml")])
        assert exit_.value.code in (0, None)
    names = there(s3.address("runs/tiny-train")).keys()
    assert {"trials.jsonl", "student/student.safetensors", "experiment.yaml", "materials.json"} <= names
    lines = (there(s3.address("runs/tiny-train"))["trials.jsonl"] or b"").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert not list((tmp_path / "other").rglob("*.older-*"))


def test_the_run_folder_of_a_store_is_one_of_its_own_in_the_home(
    s3: S3, home: Home, make_experiment: MakeExperiment
) -> None:
    one, other = (make_experiment({"storage": s3.address(path)}) for path in ("runs", "other"))
    home("head")
    with working(one) as (folder, mirror), working(other) as (another, _):
        assert mirror is not None
        assert folder != another
        assert folder == local_root(one.storage) / "tiny"
    with in_step(below(one.storage, "tiny"), home("else") / "copy"):
        assert (home("else") / "copy" / "experiment.yaml").exists()
