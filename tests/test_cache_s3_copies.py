"""Copies of columns of an object store: one a node, never cut, never somebody else's; and processes that end well."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtune.cache import LogitCache
from kdtune.cache.bucket import Bucket
from kdtune.cache.copies import default_copies
from kdtune.cli import main
from kdtune.errors import CacheError
from kdtune.records import locked
from tests.object_store import ROWS, S3, a_cache, fetch, fresh, passes

ALL = torch.arange(ROWS)


@pytest.fixture
def built(s3: S3, tmp_path: Path) -> LogitCache:
    """Three columns in the bucket, computed by a node of its own."""
    (tmp_path / "builder").mkdir()
    cache = a_cache(s3.address(), tmp_path / "builder")
    for view in range(3):
        cache.ensure(view)
    s3.store.asked.clear()
    return cache


def node(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / name


def files_of(folder: Path) -> list[str]:
    """Copies and parts of them; not what is kept beside."""
    return sorted(file.name for file in folder.rglob("*") if file.suffix in (".arrow", ".part"))


def test_each_node_downloads_each_column_once_for_all_its_processes(s3: S3, built: LogitCache, tmp_path: Path) -> None:
    processes = [
        fresh.Process(target=fetch, args=(s3.address(), node(tmp_path, name), 3)) for name in ("one", "two", "one")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    assert [s3.count("GET", f"0000{view}.arrow") for view in range(3)] == [2, 2, 2]
    for name in ("one", "two"):
        assert files_of(tmp_path / name) == ["00000.arrow", "00001.arrow", "00002.arrow"]
        assert passes(tmp_path / name / "asked") == 0


def test_a_column_that_is_being_fetched_does_not_keep_others_waiting(built: LogitCache, tmp_path: Path) -> None:
    cache = a_cache(built.store.address, node(tmp_path, "one"))
    assert cache.copies is not None
    cache.column(0)
    with locked(cache.copies.folder / ".00001.arrow.lock"):
        cache.column(2)


def test_a_damaged_copy_is_fetched_again_and_nothing_computed(s3: S3, built: LogitCache, tmp_path: Path) -> None:
    built.column(1)
    (copy,) = (tmp_path / "builder").rglob("00001.arrow")
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-8] + b"12345678")
    cache = a_cache(s3.address(), tmp_path / "builder")
    cache.ensure(1)
    assert copy.read_bytes() == whole
    assert s3.count("GET", "00001.arrow") == 1
    assert passes(tmp_path / "builder" / "asked") == 3 * ROWS


@pytest.mark.parametrize("cut", [KeyboardInterrupt, CacheError])
def test_a_download_that_breaks_leaves_no_copy_and_the_column_as_it_is(
    built: LogitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: type[BaseException]
) -> None:
    def half(store: Bucket, name: str, sink: Any) -> None:
        content = store.read(name)
        assert content is not None
        sink.write(content[:100])
        raise cut("the line is cut")

    cache = a_cache(built.store.address, node(tmp_path, "one"))
    with monkeypatch.context() as broken:
        broken.setattr(Bucket, "copy", half)
        with pytest.raises(cut, match="the line is cut"):
            cache.ensure(1)
    assert files_of(tmp_path / "one") == []
    assert cache.columns() == [0, 1, 2]
    cache.ensure(1)
    assert passes(tmp_path / "one" / "asked") == 0


def test_what_a_killed_download_left_is_cleared(built: LogitCache, tmp_path: Path) -> None:
    cache = a_cache(built.store.address, node(tmp_path, "one"))
    assert cache.copies is not None
    cache.copies.folder.mkdir(parents=True)
    (cache.copies.folder / ".00001.arrow.4711.part").write_bytes(b"cut")
    cache.ensure(1)
    assert files_of(tmp_path / "one") == ["00001.arrow"]


def test_a_full_disk_is_told_by_the_name_of_the_copy(
    built: LogitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = a_cache(built.store.address, node(tmp_path, "one"))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as error:
            cache.ensure(1)
    assert error.value.errno == errno.ENOSPC
    assert str(error.value.filename).endswith("00001.arrow")
    assert files_of(tmp_path / "one") == []
    assert cache.columns() == [0, 1, 2]


def test_copies_go_to_a_folder_that_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = tmp_path / f"kdtune-{os.getuid()}"
    assert default_copies() == mine / "columns"
    assert mine.stat().st_mode & 0o777 == 0o700
    assert default_copies() == mine / "columns"
    mine.chmod(0o770)
    with pytest.raises(CacheError, match=r"nobody else can write.*cache\.copies"):
        default_copies()
    mine.rmdir()
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "nowhere"):
        mine.symlink_to(tmp_path / target)
        with pytest.raises(CacheError, match=r"cache\.copies"):
            default_copies()
        mine.unlink()
    mine.write_text("a file")
    with pytest.raises(CacheError, match=r"cache\.copies"):
        default_copies()
    mine.unlink()
    mine.mkdir(mode=0o700)
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    mine.rename(tmp_path / f"kdtune-{another}")  # somebody else was there first
    with pytest.raises(CacheError, match=r"cache\.copies"):
        default_copies()


ENDS_WELL = """
import sys, torch
from pathlib import Path
from torch.utils.data import DataLoader
from kdtune.cache import LogitCache, bucket
from tests.object_store import ROWS, Counted, a_cache

class Forks(Counted):  # decoding processes are forked while a claim is being renewed
    def forward(self, images):
        assert list(DataLoader(range(8), num_workers=2, batch_size=None, multiprocessing_context="fork"))
        return super().forward(images)

bucket.BEAT_S, bucket.SETTLE_S = 0.01, 0.1
address, folder = sys.argv[1], Path(sys.argv[2])
cache = a_cache(address, folder, views=2, network=Forks(folder / "asked"))
for view in range(2):
    cache.ensure(view)
    cache.teacher_logits(view, torch.arange(ROWS))
assert cache.bad_columns() == []
"""


def test_a_process_that_used_s3_and_forked_ends_at_once_and_says_nothing(s3: S3, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WELL, s3.address(), str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert passes(tmp_path / "asked") == 2 * ROWS


def test_a_student_is_trained_from_a_bucket(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "storage": tmp_path / "runs",
        "cache.storage": s3.address(),
        "cache.copies": tmp_path / "copies",
        "data.augment": "crop-flip",
        "train.epochs": 3,
        "teacher.train.epochs": 2,
        "search.stopper.grace_epochs": 1,
    }
    with pytest.raises(SystemExit) as exit_:
        main(["train", *(word for name, value in settings.items() for word in ("--set", f"{name}={value}"))])
    assert exit_.value.code in (0, None), capsys.readouterr().err
    assert files_of(tmp_path / "copies") == ["00000.arrow", "00001.arrow", "00002.arrow"]
    assert [s3.count("GET", f"0000{view}.arrow") for view in range(3)] == [1, 1, 1]
    assert not list((tmp_path / "runs").rglob("*.arrow"))
