"""Caches as a whole: what is listed, what may be removed, and what an estimate says."""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kdtune.cache import (
    Answers,
    Estimate,
    Identity,
    Kept,
    LogitCache,
    Manifest,
    Place,
    Speed,
    User,
    begin_cache,
    caches_in,
    column_name,
    copies_in,
    describe,
    identify,
    mark_used,
    remove,
    seal_name,
    short_keys,
    store_at,
    to_remove,
)
from kdtune.data import Dataset
from kdtune.errors import CacheError
from kdtune.experiment import Cache, Data
from kdtune.models import build_model
from kdtune.teacher import Teacher
from kdtune.trial.speed import images_a_second

DATA = Data(dataset="digits", augment="crop-flip", crop_padding=2)
Make = Callable[..., LogitCache]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "caches"


@pytest.fixture
def make(toy: Dataset, storage: Path) -> Make:
    """`make(seed, columns=2)`: the cache of another view_seed, with some columns computed."""
    torch.manual_seed(0)
    network = build_model("cnn-8", (1, 8, 8), 3).eval().requires_grad_(requires_grad=False)

    def begin(seed: int = 0, columns: int = 2, copies: Path | None = None) -> LogitCache:
        data = DATA.model_copy(update={"view_seed": seed})
        teacher = Teacher("", "cnn-8", (1, 8, 8), 3, "its fingerprint", 0.9, trained_here=True)
        identity = identify(toy, data, teacher)
        place = Place(str(storage / identity.key), str(copies) if copies else None)
        answers = Answers(lambda: network, toy, data)
        cache = begin_cache(place, describe(identity, toy, teacher), views=columns, teacher=answers)
        for view in range(columns):
            cache.ensure(view)
        return cache

    return begin


def key_of(cache: LogitCache) -> str:
    return cache.manifest.identity.key


def place_of(cache: LogitCache) -> Place:
    return Place(cache.store.address)


def used_by(cache: LogitCache, run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    mark_used(place_of(cache), run)
    return run


def used_elsewhere(cache: LogitCache, run: str) -> None:
    cache.store.write("used-by-0123456789abcdef", json.dumps({"run": run, "host": "another"}).encode())


def going(storage: Path, *keys: str, finished: bool = False) -> dict[str, str]:
    """By key what would be removed, and why."""
    return {one.kept.key: one.why for one in to_remove(caches_in(str(storage))[0], keys, finished=finished)}


# --- what is there


def test_caches_are_listed_with_their_columns_bytes_and_users(make: Make, storage: Path, tmp_path: Path) -> None:
    first, second = make(0, columns=3), make(1, columns=1)
    used_by(first, tmp_path / "runs" / "digits")
    found = {one.key: one for one in caches_in(str(storage))[0]}
    assert found.keys() == {key_of(first), key_of(second)}
    one = found[key_of(first)]
    assert (one.columns, one.trouble, one.manifest) == (3, "", first.manifest)
    files = [file for file in (storage / one.key).iterdir() if file.is_file()]
    assert one.bytes == sum(file.stat().st_size for file in files) > 3 * 66 * 3 * 2
    assert [(user.name, user.state) for user in one.users] == [("digits", "unfinished")]
    assert found[key_of(second)].users == ()


def test_a_column_without_its_seal_is_not_counted(make: Make, storage: Path) -> None:
    cache = make(columns=3)
    cache.store.remove(seal_name(1))
    assert caches_in(str(storage))[0][0].columns == 2


@pytest.mark.parametrize("content", ["", "{}", '{"identity": {"format": 1}}', None])
def test_a_cache_without_a_readable_manifest_is_named_as_damaged(
    content: str | None, make: Make, storage: Path
) -> None:
    cache = make()
    path = storage / key_of(cache) / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    (kept,), others = caches_in(str(storage))
    assert (kept.key, kept.manifest, others) == (key_of(cache), None, [])
    assert "manifest.json" in kept.trouble


def test_a_cache_under_another_name_is_of_no_use_and_said_to_be(make: Make, storage: Path) -> None:
    cache = make()
    (storage / key_of(cache)).rename(storage / ("0" * 16))
    assert caches_in(str(storage))[0][0].trouble == f"its manifest.json is that of {key_of(cache)}"


def test_folders_that_kdtune_has_not_made_are_neither_listed_nor_removed(make: Make, storage: Path) -> None:
    make()
    strangers = {"website": "manifest.json", "measurements": "00000.arrow", "f" * 16: "photo.jpg"}
    for name, file in strangers.items():
        (storage / name).mkdir()
        (storage / name / file).write_text("{}")
    (storage / "a file").write_text("")
    kept, others = caches_in(str(storage))
    assert len(kept) == 1
    assert sorted(others) == sorted(strangers)
    assert not going(storage).keys() & strangers.keys()


def test_a_storage_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert caches_in(str(tmp_path / "nowhere")) == ([], [])


def test_an_address_is_listed_and_pruned_like_a_folder(make: Make, storage: Path) -> None:
    cache = make()
    (kept,), _ = caches_in(f"file://{storage}")
    assert (kept.key, kept.columns) == (key_of(cache), 2)
    remove(kept)
    assert not (storage / kept.key).exists()


def test_short_keys_tell_caches_apart() -> None:
    def kept(key: str) -> Kept:
        return Kept(store_at(key), key, None, "", 0, 0, ())

    assert short_keys([]) == {}
    assert short_keys([kept("0123456789abcdef")]) == {"0123456789abcdef": "01234567"}
    assert set(short_keys([kept("0123456789abcdef"), kept("0123456788abcdef")]).values()) == {
        "0123456789",
        "0123456788",
    }


# --- who uses it


def state_of(run: Path) -> str:
    return User(str(run), platform.node()).state


def test_a_run_is_finished_when_it_has_its_summary_or_its_student(tmp_path: Path) -> None:
    run = tmp_path / "a"
    assert state_of(run) == "gone"
    (run / "student").mkdir(parents=True)
    assert state_of(run) == "unfinished"
    (run / "student" / "config.json").touch()  # `kdtune train` writes no summary
    assert state_of(run) == "finished"
    (tmp_path / "summary.json").touch()
    assert state_of(tmp_path) == "finished"


def test_an_assistants_search_is_finished_with_the_whole_run(tmp_path: Path) -> None:
    folder = tmp_path / "chain" / "assistants" / "small"
    folder.mkdir(parents=True)
    user = User(str(folder), platform.node())
    assert (user.name, user.state) == ("chain/small", "unfinished")
    (tmp_path / "chain" / "summary.json").touch()
    assert state_of(folder) == "finished"


def test_nothing_is_known_of_a_run_on_another_machine(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()  # of a run of this machine in the same place
    assert User(str(tmp_path), "another").state == "elsewhere"


# --- what may be removed


def test_only_caches_that_no_run_uses_any_more_go(make: Make, storage: Path, tmp_path: Path) -> None:
    gone, running, never, elsewhere = (make(seed, columns=1) for seed in range(4))
    used_by(gone, tmp_path / "gone").rmdir()
    used_by(running, tmp_path / "gone too").rmdir()
    used_by(running, tmp_path / "running")
    used_elsewhere(elsewhere, "/not/here")
    assert going(storage) == {key_of(gone): "all its runs are gone", key_of(never): "no run has used it"}


def test_finished_runs_let_go_of_their_caches_when_that_is_asked_for(make: Make, storage: Path, tmp_path: Path) -> None:
    done, half = make(0, columns=1), make(1, columns=1)
    for cache in (done, half):
        (used_by(cache, tmp_path / "finished") / "summary.json").touch()
    used_by(half, tmp_path / "running")
    assert going(storage) == {}
    assert going(storage, finished=True) == {key_of(done): "all its runs are finished"}


def test_a_run_that_cannot_be_read_counts_as_one_that_goes_on(make: Make, storage: Path) -> None:
    cache = make()
    (storage / key_of(cache) / "used-by-0123456789abcdef").write_text("{")
    assert going(storage, finished=True) == {}


def test_a_named_cache_goes_even_if_it_is_used(make: Make, storage: Path, tmp_path: Path) -> None:
    cache, other = make(0), make(1)
    used_by(cache, tmp_path / "running")
    assert going(storage, key_of(cache)[:6]).keys() == {key_of(cache)}
    for kept in caches_in(str(storage))[0]:
        if kept.key == key_of(cache):
            remove(kept)
    assert [one.key for one in caches_in(str(storage))[0]] == [key_of(other)]


def test_unknown_keys_are_refused_with_the_nearest_one(make: Make, storage: Path) -> None:
    key = key_of(make())
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    with pytest.raises(CacheError, match=f"no cache has the key '{wrong}'.*Did you mean '{key}'"):
        going(storage, wrong)


def test_a_beginning_that_several_keys_have_is_refused(storage: Path) -> None:
    for key in ("ab" + "0" * 14, "ab" + "1" * 14):
        (storage / key).mkdir(parents=True)
        (storage / key / "manifest.json").touch()
    with pytest.raises(CacheError, match=r"'ab' begins 2 keys: ab0000.*, ab1111"):
        going(storage, "ab")
    with pytest.raises(CacheError, match="no cache has the key ''"):
        going(storage, "")


def test_a_cache_that_is_being_computed_is_busy_even_if_it_is_named(make: Make, storage: Path) -> None:
    cache = make()
    with cache.store.claim(column_name(7)):
        (unused,) = to_remove(caches_in(str(storage))[0], (), finished=False)
        (named,) = to_remove(caches_in(str(storage))[0], [key_of(cache)], finished=False)
    assert unused.busy
    assert named.busy
    (later,) = to_remove(caches_in(str(storage))[0], (), finished=False)
    assert not later.busy


def test_copies_of_a_cache_that_is_no_more_are_orphans(make: Make, storage: Path, tmp_path: Path) -> None:
    cache = make(copies=tmp_path / "copies")
    cache.column(0)
    (copied,) = copies_in(tmp_path / "copies")
    assert (copied.key, copied.origin) == (key_of(cache), cache.store.address)
    assert copied.bytes > 66 * 3 * 2
    assert not copied.orphaned()
    remove(caches_in(str(storage))[0][0])
    assert copied.orphaned()
    assert copied.remove()
    assert list(copies_in(tmp_path / "copies")) == []


def test_copies_whose_origin_cannot_be_asked_are_no_orphans(tmp_path: Path) -> None:
    folder = tmp_path / ("0" * 16)
    folder.mkdir()
    (folder / "origin").write_text("nosuchservice://bucket/caches")
    (tmp_path / "something else").mkdir()
    (copied,) = copies_in(tmp_path)
    assert not copied.orphaned()


# --- what it will cost


def test_an_estimate_counts_bytes_passes_and_the_break_even() -> None:
    identity = Identity("d", "t", "flip", "n", 0, rows=1000, classes=1000, top_k=None)
    one = Estimate(identity, views=10, there=4, epochs=5, images=800)
    assert (one.bytes, one.bytes_missing) == (10 * 2_000_000, 6 * 2_000_000)
    assert (one.passes, one.live_passes, one.break_even) == (6000, 4000, 1.5)
    speed = Speed(answered=100.0, cached=400.0, live=80.0)
    assert one.seconds_to_build(speed) == 60.0
    assert one.seconds_an_epoch(speed, cached=True) == 2.0
    assert one.seconds_an_epoch(speed, cached=False) == 10.0
    top = one.keeping(Cache(top_k=100))
    assert (top.bytes, top.there) == (10 * 1000 * (4 * 100 + 4), 0)


def test_a_speed_is_the_median_of_runs_that_last_long_enough() -> None:
    counts: list[int] = []

    def work(count: int) -> float:
        counts.append(count)
        stumble = {1: 1.0, 6: 0.2}.get(len(counts), 0.0)
        return count / 1000 + stumble

    assert images_a_second(work, 8) == pytest.approx(1000)  # neither the first time nor a stumble counts
    assert counts[:2] == [8, 8]
    assert counts[-1] / 1000 >= 0.4
    assert all(count % 8 == 0 for count in counts)


def test_work_that_takes_long_is_measured_once() -> None:
    counts: list[int] = []

    def slow(count: int) -> float:
        counts.append(count)
        return 20.0

    assert images_a_second(slow, 10) == 0.5
    assert counts == [10]


def test_a_manifest_reads_what_it_writes(make: Make) -> None:
    manifest = make(columns=0).manifest
    assert Manifest.of(manifest.to_bytes(), "here") == manifest


def test_a_teacher_is_loaded_only_when_it_is_asked(toy: Dataset) -> None:
    def load() -> nn.Module:
        raise AssertionError("loaded")

    assert not Answers(load, toy, DATA).loaded


def test_a_teacher_that_needs_gradients_to_be_built_can_be_asked(toy: Dataset) -> None:
    def load() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        network(torch.zeros(2, 1, 8, 8)).sum().backward()
        return network

    (logits,) = Answers(load, toy, DATA).to(0, torch.arange(5))
    assert logits.shape == (5, 3)
