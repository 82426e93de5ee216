"""Copies of columns on a node's own disk: made once, whole or absent, mended when damaged."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kdtune.cache import LogitCache
from kdtune.cache.columns import Sink
from kdtune.cache.copies import Copies
from kdtune.cache.store import Folder
from kdtune.errors import CacheError
from kdtune.records import PART, locked
from tests.caches import ROWS, Bench, flip_a_byte, until

ALL = torch.arange(ROWS)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were copied from a folder."""
    names: list[str] = []
    real = Folder.copy

    def copy(self: Folder, name: str, sink: Sink) -> None:
        names.append(name)
        real(self, name, sink)

    monkeypatch.setattr(Folder, "copy", copy)
    return names


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Two columns, and copies that are not there yet."""
    bench = Bench(tmp_path / "cache")
    bench.build(2)
    bench.heard.clear()
    bench.copies = tmp_path / "disk" / "copies"
    return bench


def copy_of(bench: Bench, view: int) -> Path:
    assert bench.copies is not None
    return bench.copies / bench.identity.key / f"{view:05d}.arrow"


def right(bench: Bench, cache: LogitCache, view: int) -> bool:
    cache.ensure(view)
    return torch.equal(cache.teacher_logits(view, ALL), bench.logits(view).half().float())


def test_a_file_is_copied_once_for_all_who_read_it(bench: Bench, copied: list[str]) -> None:
    caches = [bench.begin(2) for _ in range(4)]

    def read(cache: LogitCache) -> None:
        for view in (0, 1):
            cache.ensure(view)
            cache.column(view)

    threads = [threading.Thread(target=read, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right(bench, caches[0], 1)
    assert right(bench, bench.read(), 1)
    assert sorted(copied) == ["00000.arrow", "00001.arrow"]
    assert bench.heard == []


def test_who_has_waited_for_a_copy_does_not_make_it_again(
    bench: Bench, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Path] = []
    real = Copies._mine

    @contextmanager
    def mine(self: Copies, name: str) -> Iterator[None]:
        waiting.append(self.folder)
        with real(self, name):
            yield

    monkeypatch.setattr(Copies, "_mine", mine)
    caches = [bench.read() for _ in range(6)]
    threads = [threading.Thread(target=cache.column, args=(0,)) for cache in caches[:3]]
    threads += [threading.Thread(target=cache.ensure, args=(0,)) for cache in caches[3:]]
    copy_of(bench, 0).parent.mkdir(parents=True)
    with locked(copy_of(bench, 0).with_name(".00000.arrow.lock")):
        for thread in threads:
            thread.start()
        until(lambda: len(waiting) == 6)
    for thread in threads:
        thread.join()
    assert copied == ["00000.arrow"]


def test_a_copy_that_is_there_is_read_while_others_are_made(bench: Bench) -> None:
    bench.read().column(0)
    cache = bench.read()
    with locked(copy_of(bench, 0).with_name(".00000.arrow.lock")):
        reading = threading.Thread(target=right, args=(bench, cache, 0), daemon=True)
        reading.start()
        reading.join(60)
        assert not reading.is_alive()


def test_only_what_is_read_is_copied_and_the_copy_is_what_is_mapped(bench: Bench, copied: list[str]) -> None:
    cache = bench.read()
    assert copied == []
    cache.column(1)
    assert (copied, copy_of(bench, 0).exists()) == (["00001.arrow"], False)
    assert copy_of(bench, 1).read_bytes() == bench.path(1).read_bytes()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(copy_of(bench, 1)) in maps.read_text()
        assert str(bench.path(1)) not in maps.read_text()


def test_a_new_column_is_written_to_the_store_and_copied_from_there(bench: Bench, copied: list[str]) -> None:
    cache = bench.begin(3)
    cache.ensure(2)
    assert right(bench, cache, 2)
    assert (bench.heard, copied) == ([2], ["00002.arrow"])
    assert bench.path(2).read_bytes() == copy_of(bench, 2).read_bytes()


def test_a_damaged_copy_is_made_again_and_nothing_is_computed(bench: Bench, copied: list[str]) -> None:
    bench.read().ensure(0)
    flip_a_byte(copy_of(bench, 0))
    before = bench.stamps(0)
    caches = [bench.begin(2), bench.begin(2), bench.read()]
    threads = [threading.Thread(target=cache.ensure, args=(0,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right(bench, cache, 0) for cache in caches)
    assert (copied, bench.heard, bench.stamps(0)) == (["00000.arrow"] * 2, [], before)


def test_a_damaged_copy_is_no_other_teacher(bench: Bench) -> None:
    cache = bench.begin(1)
    cache.ensure(0)
    content = copy_of(bench, 0).read_bytes()
    logits = bench.logits(0).half().numpy().tobytes()
    copy_of(bench, 0).write_bytes(content.replace(logits, bytes(len(logits))))
    assert copy_of(bench, 0).read_bytes() != content
    bench.begin(1).check_rows()
    assert copy_of(bench, 0).read_bytes() == bench.path(0).read_bytes()


def test_a_good_copy_serves_although_its_original_is_damaged(bench: Bench) -> None:
    bench.read().ensure(0)
    flip_a_byte(bench.path(0))
    cache = bench.begin(2)
    cache.ensure(0)
    assert right(bench, cache, 0)
    assert (bench.heard, cache.bad_columns()) == ([], [0])


def test_what_arrives_damaged_is_refused_and_computed_again_by_who_can(bench: Bench) -> None:
    flip_a_byte(bench.path(0))
    with pytest.raises(CacheError, match=r"00000\.arrow is damaged"):
        bench.read().column(0)
    assert not copy_of(bench, 0).exists()
    with pytest.raises(CacheError, match="column 0 is missing or damaged"):
        bench.read().ensure(0)
    cache = bench.begin(2)
    cache.ensure(0)
    assert right(bench, cache, 0)
    assert (bench.heard, cache.bad_columns()) == ([0], [])


def test_an_old_copy_does_not_outlive_a_column_that_is_computed_again(bench: Bench) -> None:
    cache = bench.begin(2)
    cache.ensure(0)
    flip_a_byte(copy_of(bench, 0))
    bench.seal(0).unlink()
    cache = bench.begin(2)
    cache.ensure(0)
    assert bench.heard == [0]
    assert right(bench, cache, 0)


@pytest.mark.parametrize("failure", [CacheError("cannot reach it"), OSError(5, "Input/output error")])
def test_a_copy_is_whole_or_absent_and_what_cannot_be_reached_is_not_damaged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def half(self: Folder, name: str, sink: Sink) -> None:
        sink.write((self.folder / name).read_bytes()[:200])
        raise failure

    before = bench.stamps(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "copy", half)
        with pytest.raises(type(failure)):
            bench.begin(2).ensure(0)
        with pytest.raises(type(failure)):
            bench.read().column(0)
    assert not [file.name for file in copy_of(bench, 0).parent.iterdir() if file.suffix == ".arrow"]
    cache = bench.begin(2)
    cache.ensure(0)
    assert right(bench, cache, 0)
    assert (bench.heard, bench.stamps(0, 1)) == ([], before)


def test_what_a_killed_process_left_of_a_copy_goes_with_the_next_one(bench: Bench) -> None:
    copy_of(bench, 0).parent.mkdir(parents=True)
    cut = copy_of(bench, 0).with_name(f".00001.arrow.0123{PART}")
    cut.write_bytes(b"half")
    bench.read().column(0)
    assert [file.name for file in copy_of(bench, 0).parent.iterdir() if file.suffix == ".arrow"] == ["00000.arrow"]


def test_a_seal_that_is_wrong_about_the_size_is_written_again(bench: Bench) -> None:
    """Opening refuses the column, so computing must not take it for whole."""
    seal = json.loads(bench.seal(1).read_text())
    bench.seal(1).write_text(json.dumps({**seal, "bytes": 1}))
    cache = bench.build(2)
    assert torch.equal(cache.column(1).parts[0], bench.logits(1).half())
    assert json.loads(bench.seal(1).read_text())["bytes"] == seal["bytes"]
