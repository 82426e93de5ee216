"""`kdtune cache ...` as a person types it, on a small experiment: what each command prints, writes and leaves alone."""

import json
import os
import platform
import re
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdtune.cache import column_name, seal_name, store_at
from kdtune.cli import main

SHORT: dict[str, Any] = {"epochs": 3, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.02}
TINY: dict[str, Any] = {  # `Any`: YAML, to be changed by tests
    "name": "tiny",
    "data": {"dataset": "digits", "augment": "crop-flip", "crop_padding": 1},
    "teacher": {"model": "cnn-8", "train": {**SHORT}},
    "student": {"model": "cnn-4-8"},
    "train": {**SHORT},
    "search": {"trials": 4, "space": {"distill.alpha.start": {"uniform": [0.2, 0.9]}}},
    "final": {"seeds": 2},
}
DiskUsage = namedtuple("DiskUsage", "total used free")
Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Runs `kdtune cache ...`; stdout, or stderr where `code` is not 0."""

    def run(*arguments: str | Path, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["cache", *(str(argument) for argument in arguments)])
        told = capsys.readouterr()
        assert stop.value.code in (code, None if code == 0 else code), told.err
        assert "Traceback" not in told.out + told.err
        return told.err if code else told.out

    return run


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own copies are none of these tests' business, and speeds may be rough."""
    temporary = tmp_path.parent / f"{tmp_path.name}-temporary"
    temporary.mkdir()  # libraries make folders there as they are imported
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("kdtune.trial.speed.LONG_ENOUGH_S", 0.01)


def write(folder: Path, **values: object) -> Path:
    """The tiny experiment's file; `values` replaces whole sections."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**TINY, "storage": str(folder / "runs"), **values}))
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with experiment.yaml, its teacher, and its cache of three columns. Tests change a copy of it."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.raises(SystemExit) as stop:
        main(["cache", "build", str(write(folder))])
    assert stop.value.code in (0, None)
    return folder


@pytest.fixture
def file(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return write(tmp_path / "copy")


def cache_of(file: Path) -> Path:
    (folder,) = (file.parent / "runs" / ".caches").iterdir()
    return folder


def use(file: Path, run: Path, host: str = platform.node()) -> Path:
    """As a run does that begins."""
    run.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"run": str(run), "host": host}).encode()
    store_at(str(cache_of(file))).write(f"used-by-{len(list(cache_of(file).iterdir())):016x}", content)
    return run


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# --- build, info, verify


def test_building_computes_every_column_and_says_where(file: Path, shown: Shown) -> None:
    assert {column_name(view) for view in range(3)} < {path.name for path in cache_of(file).iterdir()}
    before = everything_in(cache_of(file))
    told = shown("build", file)  # once more: nothing to do
    assert f"kept in {cache_of(file)}" in told
    assert "3 view columns of 1,347 x 10 logits, 80.8 kB in all; 64 rows checked against the teacher" in told
    assert "damaged" not in told
    assert everything_in(cache_of(file)) == before


def test_building_again_tells_which_columns_were_damaged(file: Path, shown: Shown) -> None:
    (cache_of(file) / column_name(1)).write_bytes(b"x")
    (cache_of(file) / seal_name(2)).write_bytes(b"x")
    told = shown("verify", file, code=2)
    assert "2 of 3 view columns are damaged: 1, 2. `kdtune cache build` computes them again" in told
    assert "damaged columns have been computed again: 1, 2" in shown("build", file)
    assert "all 3 view columns" in shown("verify", file)


def test_info_tells_what_a_cache_holds_and_who_uses_it(file: Path, shown: Shown) -> None:
    use(file, file.parent / "runs" / "mine")
    told = shown("info", file)
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in told.splitlines())
    assert facts["key"] == cache_of(file).name
    assert facts["columns"] == "3, all that are needed"
    assert facts["used by"] == "mine (unfinished)"
    size = sum(path.stat().st_size for path in cache_of(file).iterdir() if path.is_file())
    assert f"{size:,} bytes" in facts["size"]
    assert "on cpu" in facts["computed in"]
    assert "torch" in facts["made with"]
    assert facts["teacher"].startswith("teacher: cnn-8, validation accuracy")


def test_info_of_a_longer_run_says_how_many_columns_are_missing(file: Path, shown: Shown) -> None:
    assert re.search(r"columns +3, of 5 that the experiment asks for", shown("info", file, "--set", "train.epochs=5"))


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_cache_that_has_not_begun_is_said_to_be_so(command: str, file: Path, shown: Shown) -> None:
    shutil.rmtree(cache_of(file))
    before = everything_in(file.parent)
    told = shown(command, file, code=2)
    assert "has not begun; run `kdtune cache build`" in told
    assert everything_in(file.parent) == before


def test_a_run_with_fewer_views_than_epochs_is_told_why_and_what_to_do(
    file: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(cache_of(file))
    column = 1347 * 10 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: DiskUsage(0, 0, round(2.5 * column)))
    told = shown("build", file)
    assert "only 2 of 3 view columns fit the disk" in told
    for remedy in ("cache.top_k", "cache.storage", "data.views: 2"):
        assert remedy in told
    assert not (cache_of(file) / column_name(2)).exists()


# --- list


def test_a_list_names_every_cache_with_its_users_and_the_total(file: Path, shown: Shown) -> None:
    runs = file.parent / "runs"
    (use(file, runs / "done") / "summary.json").touch()
    use(file, runs / "deleted").rmdir()
    use(file, runs / "[bold]")
    use(file, runs / "far", host="another")
    told = shown("list", file)
    row = next(line for line in told.splitlines() if line.startswith(cache_of(file).name[:8]))
    assert re.search(r"digits +crop-flip padding 1 +cnn-8 +\d+\.\d% +3 +all, 16 bits +8\d\.\d kB", row)
    words = re.sub(r"\s+", " ", told)
    for user in ("done (finished)", "deleted (gone)", "[bold] (unfinished)", "far (on another)"):
        assert user in words
    assert f"in {runs / '.caches'}" in told


def test_a_list_of_a_storage_needs_no_experiment_and_names_what_is_damaged_or_foreign(file: Path, shown: Shown) -> None:
    (cache_of(file) / "manifest.json").write_text("{")
    storage, key = cache_of(file).parent, cache_of(file).name
    (storage / "holiday").mkdir()
    for given in (storage, file.parent / "runs"):
        told = shown("list", "--storage", given)
        assert f"{key} is of no use to any run: its manifest.json is damaged" in told
        assert "no caches, left alone: holiday" in told


def test_nothing_and_nowhere_are_told_apart(tmp_path: Path, shown: Shown) -> None:
    assert "0 caches, 0 MB" in shown("list", write(tmp_path))
    assert "there is no folder" in shown("list", "--storage", tmp_path / "nowhere", code=2)
    assert "there is no folder" in shown("prune", "--storage", tmp_path / "nowhere", code=2)


def test_copies_on_this_machine_are_listed_and_go_with_their_cache(file: Path, shown: Shown) -> None:
    copies = Path(tempfile.gettempdir()) / f"kdtune-{os.getuid()}" / "columns"
    folder = copies / cache_of(file).name
    folder.mkdir(parents=True)
    (folder / column_name(0)).write_bytes(b"x" * 5_000_000)
    (folder / "origin").write_text(str(cache_of(file)))
    told = shown("list", file)
    assert f"copies on this machine, 5.0 MB, in {copies}" in told
    assert "no more" not in told
    own = shutil.copytree(folder, file.parent / "scratch" / folder.name)  # cache.copies
    rest = ("--storage", cache_of(file).parent, "--set", f"cache.copies={own.parent}")
    assert "would remove copies" in shown("prune", *rest, "--dry-run")
    assert folder.exists()
    assert own.exists()
    told = shown("prune", *rest)
    for each in (folder, own):
        assert f"removed copies in {each}, 5.0 MB" in told
        assert not each.exists()


# --- prune


def test_a_dry_run_says_what_would_go_and_removes_nothing(file: Path, shown: Shown) -> None:
    before = everything_in(file.parent)
    storage = cache_of(file).parent
    told = shown("prune", "--storage", storage, "--dry-run")
    assert f"would remove {cache_of(file).name} (digits, cnn-8)" in told
    assert "no run has used it" in told
    assert "would be freed; 0 caches stay" in told
    assert everything_in(file.parent) == before


def test_pruning_removes_what_no_run_uses_and_says_why(file: Path, shown: Shown) -> None:
    cache = cache_of(file)
    run = use(file, file.parent / "runs" / "mine")
    assert "0 MB freed; 1 cache stays" in shown("prune", "--storage", cache.parent)
    (run / "summary.json").touch()
    assert "0 MB freed" in shown("prune", "--storage", cache.parent)
    assert "all its runs are finished" in shown("prune", "--storage", cache.parent, "--finished", "--dry-run")
    shutil.rmtree(run)
    told = shown("prune", "--storage", cache.parent)
    assert "all its runs are gone" in told
    assert re.search(r"8\d\.\d kB freed; 0 caches stay", told)
    assert not cache.exists()


def test_a_named_cache_goes_though_a_run_uses_it_but_not_while_one_computes(file: Path, shown: Shown) -> None:
    cache = cache_of(file)
    use(file, file.parent / "runs" / "mine")
    with store_at(str(cache)).claim(column_name(9)):
        assert "stays: a process is computing a column now" in shown("prune", cache.name, "--storage", cache.parent)
    assert cache.exists()
    told = shown("prune", cache.name[:5], "--storage", cache.parent)
    assert "named on the command line; used by mine (unfinished)" in told
    assert not cache.exists()


def test_an_unknown_key_removes_nothing_at_all(file: Path, shown: Shown) -> None:
    cache = cache_of(file)
    told = shown("prune", cache.name, "zzzz", "--storage", cache.parent, code=2)
    assert f"no cache has the key 'zzzz'; there are {cache.name}" in told
    assert cache.exists()


# --- estimate


def facts_of(told: str) -> dict[str, str]:
    pairs = (re.split(r"  +", line.strip(), maxsplit=1) for line in told.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_an_estimate_before_there_is_a_teacher_trains_and_writes_nothing(tmp_path: Path, shown: Shown) -> None:
    facts = facts_of(shown("estimate", write(tmp_path)))
    assert facts["teacher"] == "teacher: cnn-8, not there yet"
    assert facts["view columns"] == "3, 0 there already"
    assert facts["size"].startswith("80.8 kB: 1,347 images x 10 logits, 26.9 kB a column; 80.8 kB still to come")
    assert facts["teacher passes"] == "4,041 images still to answer; a live teacher answers 3,633 a trial"
    assert facts["break-even"] == "after 1.1 trials of full length"
    assert re.match(r"about \d.* from the cache, \d.* with a live teacher", facts["an epoch"])
    assert facts["search"].startswith("4 trials x 3 epochs, and 6 runs of the final stage")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.yaml"]


def test_an_estimate_sees_what_is_there(file: Path, shown: Shown) -> None:
    before = everything_in(file.parent)
    facts = facts_of(shown("estimate", file))
    assert facts["teacher"] == "teacher: cnn-8, kept already"
    assert facts["view columns"] == "3, 3 there already"
    assert facts["break-even"] == "at once: all of it is there"
    facts = facts_of(shown("estimate", file, "--set", "train.epochs=7"))
    assert facts["view columns"] == "7, 3 there already"
    assert everything_in(file.parent) == before


def test_an_estimate_of_a_full_disk_says_how_many_columns_fit_or_that_none_does(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = 1347 * 10 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: DiskUsage(0, 0, round(2.5 * column)))
    assert facts_of(shown("estimate", write(tmp_path)))["view columns"].startswith("2 of 3 that 3 epochs want")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: DiskUsage(0, 0, column // 2))
    assert "1 view column needs" in facts_of(shown("estimate", write(tmp_path)))["no room"]


def test_an_estimate_takes_assistants_ensembles_and_models_from_elsewhere(tmp_path: Path, shown: Shown) -> None:
    teachers = {
        "large": {"model": "timm:test_resnet", "train": {**SHORT}},
        "small": {
            "model": "cnn-4-8",
            "taught_by": "large",
            "train": {**SHORT},
            "search": {"trials": 2, "space": {"distill.alpha.start": {"uniform": [0.2, 0.9]}}},
        },
        "both": {"ensemble": ["large", "small"]},
        "peers": {"peers": ["cnn-8"]},
    }
    final = {"seeds": 1, "rows": {"online": {"teacher": "peers"}, "plain": {"teacher": None}}}
    data = {"dataset": "digits", "image_size": None}
    told = shown("estimate", write(tmp_path, data=data, teachers=teachers, teacher="both", final=final))
    assert "teacher         large: timm:test_resnet, not there yet" in told  # of the assistant's own search
    assert "teacher         both: large + small, not there yet" in told
    assert "tiny.small" in told.splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.yaml"]


def test_an_estimate_refuses_what_a_run_would_refuse(tmp_path: Path, shown: Shown) -> None:
    told = shown("estimate", write(tmp_path), "--set", "cache.top_k=100", code=2)
    assert "digits has 10 classes" in told


def test_an_estimate_of_peers_says_that_nothing_is_kept(tmp_path: Path, shown: Shown) -> None:
    assert "no teacher whose answers could be kept" in shown("estimate", write(tmp_path, teacher={"peers": ["cnn-8"]}))


@pytest.mark.parametrize("command", ["build", "info", "verify", "list", "estimate"])
def test_a_mistake_in_the_file_is_told_before_anything_runs(command: str, tmp_path: Path, shown: Shown) -> None:
    path = write(tmp_path, student={"model": "cnn8"})
    assert "Did you mean 'cnn-8'?" in shown(command, path, code=2)
