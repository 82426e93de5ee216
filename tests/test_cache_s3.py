"""A cache on an object store, against moto's server: files whole or absent, columns once, claims of the living only."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtune.cache import Place, bucket, mark_used, open_cache
from kdtune.cache.bucket import Bucket
from kdtune.cache.store import store_at
from kdtune.errors import CacheError
from kdtune.storage import below, names_below
from tests.object_store import (
    ROWS,
    S3,
    ObjectStore,
    a_cache,
    compute_for_ever,
    ensure_columns,
    fresh,
    passes,
    write_for_ever,
)

ALL = torch.arange(ROWS)


def started(function: Any, *arguments: Any) -> Any:  # a process of multiprocessing's
    process = fresh.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


# --- files


def test_what_is_written_is_read_listed_and_removed(s3: S3) -> None:
    store = Bucket(s3.address("caches/one"))
    assert store.sizes() == {}
    store.write("manifest.json", b"{}")
    store.write("empty", b"")
    assert store.read("manifest.json") == b"{}"
    assert store.read("empty") == b""
    store.write("manifest.json", b"{ }")
    assert store.sizes() == {"manifest.json": 3, "empty": 0}
    store.remove("empty")
    assert store.sizes() == {"manifest.json": 3}
    store.remove()
    assert store.sizes() == {}


def test_what_is_missing_is_nothing_and_no_error(s3: S3) -> None:
    store = Bucket(s3.address("caches/one"))
    assert store.read("manifest.json") is None
    assert not store.busy()
    store.remove("manifest.json")
    store.remove()
    with pytest.raises(FileNotFoundError):
        store.copy("00000.arrow", Sink())


def test_what_is_removed_while_it_is_read_is_nothing_and_no_error(
    s3: S3, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow asks for an object's size, then for its bytes; a claim may end between the two."""
    store, other, answer = Bucket(s3.address()), Bucket(s3.address()), object_store.app
    removed = threading.Event()

    def remove_after_head(environ: Any, respond: Any) -> Any:
        answered = answer(environ, respond)
        if environ["REQUEST_METHOD"] == "HEAD" and not removed.is_set():
            removed.set()
            other.remove("x")
        return answered

    store.write("x", b"1")
    monkeypatch.setattr(object_store, "app", remove_after_head)
    assert store.read("x") is None
    assert removed.is_set()


def test_caches_do_not_see_each_other(s3: S3) -> None:
    one, other = (Bucket(below(s3.address(), name)) for name in ("a", "ab"))
    one.write("x", b"1")
    other.write("x", b"22")
    assert one.sizes() == {"x": 1}
    one.remove()
    assert other.sizes() == {"x": 2}
    assert names_below(s3.address()) == ["ab"]
    assert names_below(s3.address("elsewhere")) == []


class Sink:
    """Collects what it is given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, content: Any) -> None:
        self.pieces.append(bytes(content))


def test_a_file_of_several_pieces_comes_back_as_it_was(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PIECE", 1 << 20)
    store, content = Bucket(s3.address()), os.urandom(21 << 20)
    with store.writing("large") as file:
        for start in range(0, len(content), 8 << 20):
            file.write(content[start : start + (8 << 20)])
    sink = Sink()
    store.copy("large", sink)
    assert b"".join(sink.pieces) == content
    assert max(map(len, sink.pieces)) == 1 << 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), SystemExit])
@pytest.mark.parametrize("size", [10, 12 << 20])
def test_an_upload_that_is_interrupted_leaves_nothing(s3: S3, error: Any, size: int) -> None:
    def write() -> None:
        with store.writing("00000.arrow") as file:
            file.write(b"x" * size)
            raise error

    store = Bucket(s3.address())
    with pytest.raises(error if isinstance(error, type) else type(error)) as raised:
        write()
    assert not isinstance(raised.value, CacheError)
    assert store.sizes() == {}


def test_an_upload_whose_process_is_killed_leaves_nothing(s3: S3, tmp_path: Path) -> None:
    begun = fresh.Event()
    process = started(write_for_ever, s3.address(), begun)
    assert begun.wait(60)
    kill(process)
    assert Bucket(s3.address()).sizes() == {}
    cache = a_cache(s3.address(), tmp_path, views=1)
    cache.ensure(0)
    assert cache.bad_columns() == []


# --- a whole cache


def test_a_cache_built_here_is_read_elsewhere(s3: S3, tmp_path: Path) -> None:
    address = below(s3.address(), "key")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    built = a_cache(address, here)
    for view in range(3):
        built.ensure(view)
    assert passes(here / "asked") == 3 * ROWS
    cache = open_cache(Place(address, str(elsewhere)), built.manifest.identity)
    assert cache.columns() == [0, 1, 2]
    assert cache.bad_columns() == []
    for view in range(3):
        cache.ensure(view)
        assert torch.equal(cache.teacher_logits(view, ALL), built.teacher_logits(view, ALL))
    assert not torch.equal(cache.teacher_logits(0, ALL), cache.teacher_logits(1, ALL))
    built.check_rows()
    assert not cache.store.busy()


def test_a_run_is_written_down_and_caches_are_found(s3: S3, tmp_path: Path) -> None:
    address = below(s3.address(), "key")
    a_cache(address, tmp_path)
    mark_used(Place(address), tmp_path)
    assert names_below(s3.address()) == ["key"]
    assert sorted(name[:8] for name in store_at(address).sizes()) == ["manifest", "used-by-"]


def test_another_teachers_rows_are_told(s3: S3, tmp_path: Path) -> None:
    a_cache(s3.address(), tmp_path).ensure(0)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(CacheError, match="the teacher now answers differently"):
        a_cache(s3.address(), tmp_path, network=other).check_rows()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "without its seal", "a seal that is no JSON"])
def test_a_damaged_column_is_told_and_computed_again(s3: S3, tmp_path: Path, damage: str) -> None:
    cache = a_cache(s3.address(), tmp_path, views=2)
    for view in range(2):
        cache.ensure(view)
    whole = cache.store.read("00001.arrow")
    assert whole is not None
    damages = {
        "flipped": lambda: cache.store.write("00001.arrow", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]),
        "truncated": lambda: cache.store.write("00001.arrow", whole[:-100]),
        "missing": lambda: cache.store.remove("00001.arrow"),
        "without its seal": lambda: cache.store.remove("00001.json"),
        "a seal that is no JSON": lambda: cache.store.write("00001.json", b"{"),
    }
    damages[damage]()
    (tmp_path / "elsewhere").mkdir()
    again = a_cache(s3.address(), tmp_path / "elsewhere", views=2)
    assert again.bad_columns() == ([] if damage == "without its seal" else [1])
    with pytest.raises(CacheError, match="kdtune cache build"):
        again.column(1)
    again.ensure(0)
    again.ensure(1)
    assert passes(tmp_path / "elsewhere" / "asked") == ROWS
    assert cache.store.read("00001.arrow") == whole
    assert again.bad_columns() == []


# --- claims


def test_two_processes_that_want_the_same_columns_compute_each_once(s3: S3, tmp_path: Path) -> None:
    both = [started(ensure_columns, s3.address(), tmp_path, 3, 60.0) for _ in range(2)]
    for process in both:
        process.join(100)
        assert process.exitcode == 0
    assert passes(tmp_path / "asked") == 3 * ROWS
    assert a_cache(s3.address(), tmp_path).bad_columns() == []


def test_of_claims_that_come_at_once_one_is_held(s3: S3) -> None:
    together, held = threading.Barrier(4), []

    def claim() -> None:
        store = Bucket(s3.address())
        together.wait()
        with store.claim("x") as mine:
            held.append(mine)
            together.wait()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == [False, False, False, True]
    assert not Bucket(s3.address()).names()


def test_the_claim_of_a_killed_process_is_taken_over_and_not_before(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fresh.Event()
    process = started(compute_for_ever, s3.address(), tmp_path, 1.5, asked)
    assert asked.wait(60)
    monkeypatch.setattr(bucket, "DEAD_S", 1.5)
    cache = a_cache(s3.address(), tmp_path, views=1)
    began = time.monotonic()
    while time.monotonic() < began + 3:  # however long the owner takes
        with cache.store.claim("00000.arrow") as mine:
            assert not mine
    kill(process)
    began = time.monotonic()
    cache.ensure(0)
    assert time.monotonic() - began > 1
    assert passes(tmp_path / "asked") == ROWS


def test_what_was_claimed_looks_busy_until_its_owner_has_been_dead_for_long(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "DEAD_S", 2.0)
    store = Bucket(s3.address())
    with store.claim("x"):
        assert store.busy()
    assert not store.busy()
    store.write("x.claim", b"of one that was killed")
    assert store.busy()
    deadline = time.monotonic() + 20
    while store.busy():
        assert time.monotonic() < deadline
    assert list(store.sizes()) == []


def test_claims_do_not_ask_what_time_it_is(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "time", SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep))
    store, other = Bucket(s3.address()), Bucket(s3.address())
    with store.claim("x") as mine, other.claim("x") as others:
        assert (mine, others, other.busy()) == (True, False, True)


def test_a_claim_that_was_lost_is_left_to_its_new_owner(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "BEAT_S", 0.05)
    store = Bucket(s3.address())
    with store.claim("x") as mine:
        assert mine
        claim = next(thread for thread in threading.enumerate() if thread.name.endswith("(_renew)"))
        store.write("x.claim", b"another's")
        claim.join(10)
        assert not claim.is_alive()
    assert store.read("x.claim") == b"another's"


def test_a_beat_that_does_not_get_through_is_not_the_last(
    s3: S3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bucket, "BEAT_S", 0.05)
    store = Bucket(s3.address())
    with store.claim("x"):
        first = store.read("x.claim")
        with monkeypatch.context() as broken:
            broken.setattr(bucket._Claim, "_is_mine", refuse)
            wait_for(lambda: "was not renewed" in caplog.text)
        wait_for(lambda: store.read("x.claim") != first)


def refuse(claim: object) -> bool:
    raise CacheError("no connection")


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
