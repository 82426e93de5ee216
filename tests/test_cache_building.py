"""How a cache comes about: columns one by one, by any number of threads and processes, however they end."""

import errno
import fcntl
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from kdtune.cache import LogitCache
from kdtune.cache.columns import Draft, Sink
from kdtune.cache.store import Folder
from kdtune.errors import CacheError
from kdtune.records import PART
from tests.caches import PROCESSES, ROWS, Bench, a_network, build_elsewhere, noise, told, until

BIG = (2000, 50)  # rows and classes of a column that takes a while to write


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def elsewhere(bench: Bench, log: Path, order: list[int]) -> BaseProcess:
    """Another process that ensures columns of this cache."""
    rows, classes = len(bench.dataset.labels), len(bench.dataset.classes)
    process = PROCESSES.Process(target=build_elsewhere, args=(bench.folder, log, order, rows, classes))
    process.start()
    return process


def all_right(bench: Bench, cache: LogitCache, views: int) -> None:
    """Every column is there and is the teacher's own answers."""
    assert cache.columns() == list(range(views))
    assert cache.bad_columns() == []
    for view in range(views):
        (stored,) = cache.column(view).parts
        torch.testing.assert_close(stored, bench.logits(view).half(), rtol=2e-3, atol=2e-3)


# --- one process


def test_the_manifest_comes_first_and_every_column_before_its_seal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = os.replace

    def replace(self: Path, target: Path) -> None:
        written.append(Path(target).name)
        real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    bench.build(2)
    assert written == ["manifest.json", "00000.arrow", "00000.json", "00001.arrow", "00001.json"]


def test_a_column_without_its_seal_is_not_there(bench: Bench) -> None:
    bench.build(3)
    bench.seal(1).unlink()
    cache = bench.read()
    assert cache.columns() == [0, 2]
    assert cache.seal(1) is None
    with pytest.raises(CacheError, match="has no column 1; `kdtune cache build`"):
        cache.column(1)
    with pytest.raises(CacheError, match="column 1 is missing or damaged"):
        cache.ensure(1)


def test_a_column_is_computed_when_it_is_first_wanted_and_never_again(bench: Bench) -> None:
    cache = bench.begin(4)
    assert (cache.columns(), bench.heard) == ([], [])
    cache.ensure(2)
    assert (cache.columns(), bench.heard) == ([2], [2])
    before = bench.stamps(2)
    for again in (cache, bench.begin(4), bench.read()):
        again.ensure(2)
    assert (bench.heard, bench.stamps(2)) == ([2], before)


def test_the_teacher_is_loaded_when_it_is_first_asked_and_given_back_when_all_columns_are_there(bench: Bench) -> None:
    teacher = bench.answers()
    cache = bench.begin(3)
    cache.teacher = teacher
    cache.check_rows()
    assert (teacher.loads, teacher.loaded) == (0, False)
    for view, loaded in ((0, True), (1, True), (0, True), (2, False), (1, False)):
        cache.ensure(view)
        assert (teacher.loads, teacher.loaded) == (1, loaded)
    other = bench.begin(3)
    for view in range(3):
        other.ensure(view)
    assert isinstance(other.teacher, type(teacher))
    assert other.teacher.loads == 0


def test_other_columns_do_not_count_as_those_that_are_wanted(bench: Bench) -> None:
    bench.begin(9).ensure(7)
    bench.begin(9).ensure(8)
    cache = bench.begin(2)
    cache.ensure(0)
    assert cache.teacher is not None
    assert cache.teacher.loaded
    cache.ensure(1)
    assert not cache.teacher.loaded


def test_more_views_keep_the_columns_that_are_there(bench: Bench) -> None:
    bench.build(2)
    before = bench.stamps(0, 1)
    bench.heard.clear()
    cache = bench.build(5)
    assert bench.heard == [2, 3, 4]
    assert bench.stamps(0, 1) == before
    all_right(bench, cache, 5)


def test_an_interrupted_column_leaves_nothing_and_the_finished_ones_stay(bench: Bench) -> None:
    cache = bench.begin(4)

    def interrupt(view: int) -> None:
        if view == 2:
            raise KeyboardInterrupt

    assert isinstance(cache.teacher, type(bench.answers()))
    cache.teacher.heard = interrupt
    cache.ensure(0)
    cache.ensure(1)
    with pytest.raises(KeyboardInterrupt):
        cache.ensure(2)
    assert cache.columns() == [0, 1]
    assert not list(bench.folder.glob(f".*{PART}"))
    before = bench.stamps(0, 1)
    all_right(bench, bench.build(4), 4)  # the claim went with the interrupt
    assert (bench.heard, bench.stamps(0, 1)) == ([2, 3], before)


def test_a_column_is_refused_whole_where_the_disk_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    cache = bench.begin(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*00000\.arrow'"):
            cache.ensure(0)
    assert sorted(file.name for file in bench.folder.iterdir()) == ["locks", "manifest.json"]
    cache.ensure(0)


def test_a_folder_that_cannot_be_written_is_enough_to_read(bench: Bench) -> None:
    """As if it were somebody else's: whoever runs the tests may write everywhere, but not below a file."""
    bench.build(2)
    shutil.rmtree(bench.folder / "locks")
    (bench.folder / "locks").touch()
    for cache in (bench.begin(2), bench.read()):
        cache.ensure(0)
        cache.ensure(1)
    bench.seal(1).write_text("nonsense")
    with pytest.raises(CacheError, match="column 1 is missing or damaged"):
        bench.read().ensure(1)
    with pytest.raises(FileExistsError, match="locks"):
        bench.begin(2).ensure(1)


# --- several at once


def test_what_another_computes_is_waited_for_and_the_next_missing_column_computed_meanwhile(
    bench: Bench, tmp_path: Path
) -> None:
    twin = Bench(tmp_path / "twin")
    twin.build(1)
    bench.begin(4).ensure(2)
    bench.heard.clear()
    cache = bench.begin(4)
    waiting = threading.Thread(target=cache.ensure, args=(0,), daemon=True)
    with Folder(bench.folder).claim("00000.arrow") as mine:
        assert mine
        waiting.start()
        until(lambda: cache.columns() == [1, 2, 3])
        assert bench.heard == [1, 3]
        assert waiting.is_alive()
        shutil.copy(twin.path(0), bench.path(0))
        assert bench.read().columns() == [1, 2, 3]
        assert waiting.is_alive()
        shutil.copy(twin.seal(0), bench.seal(0))
        waiting.join(60)
        assert not waiting.is_alive()
    assert bench.heard == [1, 3]


def test_what_another_leaves_undone_is_computed(bench: Bench) -> None:
    cache = bench.begin(1)
    waiting = threading.Thread(target=cache.ensure, args=(0,), daemon=True)
    with Folder(bench.folder).claim("00000.arrow"):
        waiting.start()
        assert Folder(bench.folder).busy()
        assert cache.columns() == []
    waiting.join(60)
    assert (cache.columns(), bench.heard) == ([0], [0])
    assert not Folder(bench.folder).busy()


def test_what_another_finished_just_before_the_claim_is_not_computed_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = bench.begin(1), bench.begin(1)
    real = Folder.claim

    def late(self: Folder, name: str) -> AbstractContextManager[bool]:
        monkeypatch.setattr(Folder, "claim", real)
        other.ensure(0)
        return self.claim(name)

    monkeypatch.setattr(Folder, "claim", late)
    cache.ensure(0)
    assert bench.heard == [0]


def test_a_claim_has_one_owner_and_goes_with_it(bench: Bench) -> None:
    with Folder(bench.folder).claim("a.arrow") as first, Folder(bench.folder).claim("a.arrow") as second:
        assert (first, second) == (True, False)
        with Folder(bench.folder).claim("b.arrow") as other:
            assert other
    with Folder(bench.folder).claim("a.arrow") as again:
        assert again


def test_a_claim_is_not_kept_by_a_process_that_was_forked_meanwhile(bench: Bench) -> None:
    """As those are that decode images: they have a copy of every open file."""
    here, there = os.pipe()
    with Folder(bench.folder).claim("a.arrow"):
        child = os.fork()
        if child == 0:
            os.close(there)
            os.read(here, 1)  # until the parent closes its end
            os._exit(0)
    os.close(here)
    try:
        with Folder(bench.folder).claim("a.arrow") as mine:
            assert mine
    finally:
        os.close(there)
        os.waitpid(child, 0)


def test_who_gets_a_claim_removes_what_killed_processes_left_of_that_column(bench: Bench) -> None:
    cache = bench.begin(2)
    cut = [bench.folder / f".{name}.0123abcd{PART}" for name in ("00000.arrow", "00000.json", "00001.arrow")]
    for path in cut:
        path.write_bytes(b"half a col")
    assert cache.columns() == []
    cache.ensure(0)
    assert [path.exists() for path in cut] == [False, False, True]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    cache = bench.begin(1)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CacheError, match=r"without locks.*set cache\.storage to another folder"):
        cache.ensure(0)


def test_a_machine_whose_locks_are_its_own_may_clear_away_a_column_that_is_being_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS without locks; whoever was interrupted begins again, or takes what the other one made."""
    write, times = Draft.write, 0

    def cleared(draft: Draft, sink: Sink) -> tuple[str, int]:
        nonlocal times
        times += 1
        for path in bench.folder.glob(f".00000.*{PART}") if times == 1 else ():
            path.unlink()
        return write(draft, sink)

    monkeypatch.setattr(Draft, "write", cleared)
    cache = bench.begin(1)
    cache.ensure(0)
    assert bench.heard == [0, 0]
    all_right(bench, cache, 1)


def test_threads_ask_the_teacher_for_every_image_of_every_view_once(bench: Bench) -> None:
    views = 12
    caches = [bench.begin(views) for _ in range(4)]

    def work(number: int) -> None:
        for view in random.Random(number).sample(range(views), views):
            caches[number].ensure(view)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(cache.teacher.asked for cache in caches if cache.teacher is not None) == views * ROWS
    assert sorted(bench.heard) == list(range(views))
    all_right(bench, caches[0], views)


def test_threads_may_begin_one_cache_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        bench = Bench(tmp_path / str(turn))
        failed: list[BaseException] = []
        ready = threading.Barrier(4)

        def begin(bench: Bench = bench, failed: list[BaseException] = failed, ready: threading.Barrier = ready) -> None:
            ready.wait()
            try:
                bench.begin(1)
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


def test_processes_ask_the_teacher_for_every_image_of_every_view_once(tmp_path: Path) -> None:
    """Three that all want every column, in the same order or another, and build one cache at once."""
    views, (rows, classes) = 16, (1000, 10)
    bench, log = Bench(tmp_path / "cache", noise(rows, classes), a_network(0, classes)), tmp_path / "log"
    bench.begin(views)
    forth = list(range(views))
    processes = [elsewhere(bench, log, order) for order in (forth, forth, forth[::-1])]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(told(log, "column")) == forth
    assert sum(told(log, "asked")) == views * rows
    all_right(bench, bench.read(), views)


def moments(folder: Path, more: int) -> list[Callable[[], bool]]:
    """When to kill a process: it writes a column, it writes a seal, the one without the other, `more` are finished."""

    def count(pattern: str) -> int:
        return len(list(folder.glob(pattern)))

    least = count("0*.json") + more
    return [
        lambda: count(f".*.arrow.*{PART}") > 0,
        lambda: count(f".*.json.*{PART}") > 0,
        lambda: count("*.arrow") > count("0*.json"),
        lambda: count("0*.json") >= least,
    ]


def come_or_over(moment: Callable[[], bool], process: BaseProcess) -> bool:
    return moment() or process.exitcode is not None


def test_processes_killed_at_any_moment_cost_one_column_each_and_leave_nothing_wrong(tmp_path: Path) -> None:
    views, kills = 40, 10
    bench, log = Bench(tmp_path / "cache", noise(*BIG), a_network(0, BIG[1])), tmp_path / "log"
    bench.begin(views)
    draw = random.Random(5)
    for turn in range(kills):
        moment = moments(bench.folder, draw.randint(1, 3))[turn % 4]
        process = elsewhere(bench, log, list(range(views)))
        until(partial(come_or_over, moment, process))
        if turn % 2:  # or a little later
            process.join(draw.random() * 0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not Folder(bench.folder).busy()  # the claim went with the process
        assert bench.read().bad_columns() == []
    there = bench.read().columns()
    assert len(told(log, "column")) <= len(there) + kills
    assert len(there) < views, "they were killed too late: nothing is left to go on with"
    before = bench.stamps(*there)
    cache = bench.build(views)
    assert bench.heard == [view for view in range(views) if view not in there]
    assert bench.stamps(*there) == before
    all_right(bench, cache, views)
    assert not list(bench.folder.glob(f".*{PART}"))
