"""What a cache holds, what it belongs to, how it is read: against the teacher's own answers and plain Arrow."""

import dataclasses
import json
import shutil
import weakref
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from kdtune.cache import check_saves, open_cache, views_that_fit
from kdtune.cache.columns import Column
from kdtune.data import DATASETS, Dataset, Images, load_dataset
from kdtune.errors import CacheError
from kdtune.experiment import Cache, Data
from tests.caches import DATA, EIGHT_BITS, FORMS, ROWS, TOP_2, WHOLE, Bench, a_network

Read = tuple[Images, Images, tuple[str, ...]]
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def bench(toy: Dataset, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache", toy)


# --- what is stored


def test_columns_are_the_teachers_own_answers_rounded_to_float16(bench: Bench) -> None:
    cache = bench.build(3)
    stored = []
    for view in range(3):
        (logits,) = cache.column(view).parts
        assert logits.dtype == torch.float16
        assert torch.equal(logits, bench.logits(view).half())
        stored.append(logits)
    assert not torch.equal(stored[0], stored[1])


def test_a_lookup_gives_the_rows_that_were_asked_for_in_their_order(bench: Bench) -> None:
    cache = bench.build(2)
    for view in (1, 0):
        indices = torch.randperm(ROWS, generator=torch.Generator().manual_seed(view))[:40]
        logits = cache.teacher_logits(view, indices)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, bench.logits(view).half().float()[indices])


def test_the_answer_to_some_rows_is_that_of_the_whole_column(bench: Bench) -> None:
    """The same view whatever the batch."""
    rows = torch.tensor([64, 3, 17])
    answers = bench.answers()
    torch.testing.assert_close(torch.cat(list(answers.to(1, rows))), bench.logits(1)[rows])
    assert answers.asked == 3


def test_plain_pyarrow_reads_a_column(bench: Bench) -> None:
    bench.build(1)
    with pa.memory_map(str(bench.path(0))) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.num_rows == ROWS
        assert table.schema.field(0).type == pa.list_(pa.float16(), 3)
        assert table.column(0).null_count == 0
        rows = [[float(value) for value in row] for row in table.column("logits").to_pylist()]
    assert rows == bench.logits(0).half().tolist()


def test_plain_pyarrow_reads_the_largest_logits(bench: Bench) -> None:
    bench.keep = TOP_2
    bench.build(1)
    with pa.memory_map(str(bench.path(0))) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.schema.names == ["values", "classes", "rest"]
        assert table.schema.metadata == {b"kdtune.cache": bench.identity.key.encode(), b"kdtune.view": b"0"}
        classes, rest = table.column("classes").to_pylist(), table.column("rest").to_pylist()
        values = [[float(value) for value in row] for row in table.column("values").to_pylist()]
    logits = bench.logits(0)
    for row in range(ROWS):
        assert values[row] == logits[row, classes[row]].half().tolist()
        (left_out,) = {0, 1, 2} - set(classes[row])
        assert logits[row, left_out] <= logits[row, classes[row]].min()
        assert rest[row] == pytest.approx(float(logits[row, left_out]), abs=1e-4)


@FORMS
def test_every_form_comes_back_as_logits_of_all_classes(bench: Bench, keep: Cache) -> None:
    """Of the top 2 of three classes one is left out, and so is told exactly; 8 bits are within half a step."""
    bench.keep = keep
    cache = bench.build(2)
    indices = torch.tensor([5, 60, 0, 17])
    for view in (1, 0):
        looked_up, logits = cache.teacher_logits(view, indices), bench.logits(view)[indices]
        assert looked_up.dtype == torch.float32
        spread = (logits.amax(dim=1) - logits.amin(dim=1)).max().item()
        torch.testing.assert_close(looked_up, logits, rtol=2e-3, atol=spread / 510 if keep is EIGHT_BITS else 2e-3)
    assert torch.equal(bench.read().teacher_logits(1, indices), cache.teacher_logits(1, indices))


def test_a_column_is_mapped_not_read(bench: Bench) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's mappings")
    cache = bench.build(2)
    assert str(bench.path(1)) not in maps.read_text()
    before = pa.total_allocated_bytes()
    column = cache.column(1)
    assert str(bench.path(1)) in maps.read_text()
    assert str(bench.path(0)) not in maps.read_text()
    assert pa.total_allocated_bytes() == before
    assert column.parts[0].shape == (ROWS, 3)


def test_a_column_is_opened_once(bench: Bench) -> None:
    cache = bench.build(1)
    assert cache.column(0) is cache.column(0)


@FORMS
@pytest.mark.parametrize("value", [1e6, float("nan"), -float("inf")])
def test_logits_that_do_not_fit_are_refused_and_leave_no_column(bench: Bench, value: float, keep: Cache) -> None:
    bench.keep = keep
    bench.network.get_parameter("fc.bias").data[:] = value
    cache = bench.begin(2)
    if value == 1e6 and keep is EIGHT_BITS:  # a million is a step like any other
        cache.ensure(0)
        return
    with pytest.raises(CacheError, match="do not fit float16"):
        cache.ensure(0)
    assert sorted(file.name for file in bench.folder.iterdir()) == ["locks", "manifest.json"]


@pytest.mark.parametrize(("keep", "bytes_an_image"), [(WHOLE, 20), (EIGHT_BITS, 18), (TOP_2, 12)])
def test_the_size_is_that_of_the_numbers_and_a_small_overhead(
    toy: Dataset, tmp_path: Path, keep: Cache, bytes_an_image: int
) -> None:
    rows, views, classes = 20_000, 3, 10
    generator = torch.Generator().manual_seed(0)
    dataset = dataclasses.replace(
        toy,
        images=torch.randint(0, 256, (rows, 1, 4, 4), generator=generator, dtype=torch.uint8),
        labels=torch.arange(rows) % classes,
        classes=tuple("0123456789"),
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    bench = Bench(tmp_path / "cache", dataset, network, keep=keep)
    bench.build(views)
    size = sum(file.stat().st_size for file in bench.folder.iterdir() if file.is_file())
    ideal = views * bench.identity.bytes_of_logits
    assert ideal == views * rows * bytes_an_image
    assert ideal < size <= 1.01 * ideal + 6144


def test_columns_seals_and_the_manifest_are_all_that_is_left(bench: Bench) -> None:
    cache = bench.build(2)
    names = ["00000.arrow", "00000.json", "00001.arrow", "00001.json", "locks", "manifest.json"]
    assert sorted(file.name for file in bench.folder.iterdir()) == names
    for view in range(2):
        seal = cache.seal(view)
        assert seal is not None
        assert (seal.bytes, seal.device) == (bench.path(view).stat().st_size, "cpu")


def test_files_of_others_in_the_folder_are_let_be(bench: Bench) -> None:
    bench.build(2)
    for name in ("x.arrow", "1.arrow", "000001.arrow", "notes.txt", "x.json", "used-by-ab", ".hidden", "-0001.arrow"):
        (bench.folder / name).write_text("mine")
    (bench.folder / "00007.arrow").mkdir()
    before = {file.name for file in bench.folder.iterdir()}
    cache = bench.build(2)
    assert cache.columns() == [0, 1]
    assert cache.bad_columns() == []
    assert {file.name for file in bench.folder.iterdir()} == before


# --- what it belongs to


def test_a_cache_opens_for_its_own_identity(bench: Bench) -> None:
    bench.build(2)
    cache = open_cache(bench.place, bench.identity)
    assert torch.equal(cache.column(1).parts[0], bench.logits(1).half())
    assert cache.manifest.identity == bench.identity
    assert (cache.manifest.data, cache.manifest.teacher_model) == ("digits", "cnn-8-16")
    assert {"python", "torch", "pyarrow"} <= set(cache.manifest.versions)


def given(read: Read, config: Data) -> Read:
    """A data set's reader that has read already."""
    return read


def reordered(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Dataset]:
    """The toy set loaded as data sets are, in its own order and with two images exchanged."""
    loaded = []
    for order in (list(range(66)), [3, 1, 2, 0, *range(4, 66)]):  # 0 and 3 are of one class
        read = (Images(toy.pixels[order], toy.labels[order]), toy.test, toy.classes)
        monkeypatch.setitem(DATASETS, "digits", partial(given, read))
        loaded.append(load_dataset(DATA))
    assert torch.equal(loaded[0].labels, loaded[1].labels)
    return loaded[0], loaded[1]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("augmentation", {"augment": "crop"}),
        ("augmentation", {"augment": "none"}),
        ("augmentation", {"crop_padding": 3}),
        ("view_seed", {"view_seed": 12}),
    ],
)
def test_other_views_are_refused_by_the_name_of_the_field(bench: Bench, field: str, values: dict[str, Any]) -> None:
    bench.build(1)
    bench.data = DATA.model_copy(update=values)
    refused_by_name(bench, field)


def test_resized_crops_belong_to_their_scale_and_to_no_padding(bench: Bench) -> None:
    resized = {"augment": "random-resized-crop", "crop_scale": (0.3, 1.0)}
    described = []
    for values in (resized, {**resized, "crop_padding": 1}, {**resized, "crop_scale": (0.4, 1.0)}):
        bench.data = DATA.model_copy(update=values)
        described.append(bench.identity.augmentation)
    assert described[0] == described[1] == "random-resized-crop scale [0.3, 1.0]"
    assert described[2] == "random-resized-crop scale [0.4, 1.0]"


@pytest.mark.parametrize("values", [{"mean": (0.5,)}, {"std": (0.5,)}])
def test_another_normalisation_is_refused_by_name(bench: Bench, values: dict[str, Any]) -> None:
    bench.build(1)
    bench.dataset = dataclasses.replace(bench.dataset, **values)
    refused_by_name(bench, "normalisation")


def test_another_teacher_is_refused_by_name(bench: Bench) -> None:
    bench.build(1)
    bench.network = a_network(1)
    refused_by_name(bench, "teacher")


def test_a_reordered_data_set_is_refused_by_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.dataset, other = reordered(bench.dataset, monkeypatch)
    bench.build(1)
    bench.dataset = other
    refused_by_name(bench, "dataset")


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (WHOLE, TOP_2, "top_k"),
        (TOP_2, WHOLE, "top_k"),
        (TOP_2, Cache.model_construct(top_k=1), "top_k"),
        (WHOLE, EIGHT_BITS, "dtype"),
        (EIGHT_BITS, WHOLE, "dtype"),
    ],
)
def test_another_form_is_refused_by_name(bench: Bench, before: Cache, after: Cache, field: str) -> None:
    bench.keep = before
    bench.build(1)
    bench.keep = after
    refused_by_name(bench, field)


def test_every_field_of_an_identity_tells_caches_apart_and_is_named(bench: Bench) -> None:
    identity = bench.identity
    others: dict[str, Any] = {"view_seed": 1, "rows": 1, "classes": 1, "top_k": 1, "format": 1}
    for field in dataclasses.fields(identity):
        other = dataclasses.replace(identity, **{field.name: others.get(field.name, "other")})
        assert other.key != identity.key
        assert [line.split(":")[0] for line in identity.differences(other)] == [field.name]


@pytest.mark.parametrize("top_k", [2, 3, 100])
def test_a_top_k_that_saves_nothing_is_refused(toy: Dataset, top_k: int) -> None:
    check_saves(Cache(), toy)
    check_saves(Cache.model_construct(top_k=1), toy)
    with pytest.raises(CacheError, match=f"cache.top_k is {top_k}, but digits has 3 classes"):
        check_saves(Cache.model_construct(top_k=top_k), toy)


def refused_by_name(bench: Bench, field: str) -> None:
    """By opening and by building, naming this field alone; and its folder would have been another."""
    before = {file.name: file.read_bytes() for file in bench.folder.iterdir() if file.is_file()}
    kept = open_cache(bench.place).manifest.identity
    assert [line.split(":")[0] for line in kept.differences(bench.identity)] == [field]
    refused = f"belongs to something else: {field}: .* Remove it to build it anew"
    with pytest.raises(CacheError, match=refused):
        bench.read()
    for views in (1, 5):
        with pytest.raises(CacheError, match=refused):
            bench.begin(views)
    assert bench.identity.key != kept.key
    assert {file.name: file.read_bytes() for file in bench.folder.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"identity": 3, "sha256": []}', "null", "\x00" * 40])
def test_a_damaged_manifest_is_named(bench: Bench, content: str) -> None:
    bench.build(1)
    (bench.folder / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        bench.read()
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        bench.begin(1)


def test_a_manifest_of_a_later_version_is_refused(bench: Bench) -> None:
    bench.build(1)
    path = bench.folder / "manifest.json"
    raw = json.loads(path.read_text())
    raw["identity"]["format"] += 1
    path.write_text(json.dumps(raw))
    with pytest.raises(CacheError, match="format: 3 in the cache, 2 here"):
        bench.read()
    path.write_text(json.dumps({**raw, "compression": "zstd"}))
    with pytest.raises(CacheError, match="of another version"):
        bench.read()


def test_a_folder_without_a_manifest_is_no_cache(bench: Bench) -> None:
    with pytest.raises(CacheError, match=r"holds no cache \(no manifest\.json\); run `kdtune cache build`"):
        bench.read()
    assert not bench.folder.exists()


# --- how many columns the disk can hold

COLUMN = ROWS * 3 * 2  # bytes of logits


def disk_with(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free, and a tenth more: the share that is left to the rest of the run."""
    free = int(free / 0.9) + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - free, free))


def test_a_full_disk_is_refused_before_anything_is_computed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = bench.begin(4)
    disk_with(4 * COLUMN - 9, monkeypatch)
    with pytest.raises(CacheError, match=r"4 view columns need .* more .*lower data\.views"):
        views_that_fit(4, [cache], fewer_will_do=False)
    assert views_that_fit(4, [cache], fewer_will_do=True) == 3
    disk_with(COLUMN - 9, monkeypatch)
    with pytest.raises(CacheError, match=r"1 view column needs "):
        views_that_fit(4, [cache], fewer_will_do=True)
    assert bench.heard == []


def test_more_views_need_room_only_for_what_is_missing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = bench.build(3)
    disk_with(2 * COLUMN, monkeypatch)
    assert views_that_fit(5, [cache], fewer_will_do=False) == 5
    assert views_that_fit(6, [cache], fewer_will_do=True) == 5
    disk_with(0, monkeypatch)
    assert views_that_fit(3, [cache], fewer_will_do=False) == 3


def test_caches_of_several_teachers_share_the_disk(
    bench: Bench, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Bench(tmp_path / "other", toy, a_network(1))
    caches = [bench.build(1), other.begin(4)]
    disk_with(5 * COLUMN, monkeypatch)
    assert views_that_fit(4, caches, fewer_will_do=True) == 3


def test_columns_of_longer_runs_do_not_count_for_a_shorter_one(bench: Bench) -> None:
    bench.build(4)
    cache = bench.begin(3)
    assert (cache.columns(), cache.there()) == ([0, 1, 2, 3], 3)
    bench.seal(1).unlink()
    assert (cache.columns(), cache.there()) == ([0, 2, 3], 2)


def test_a_device_holds_no_more_than_one_column(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = bench.build(3)
    held: list[weakref.ref[Column]] = []
    move = Column.to

    def moved(column: Column, device: torch.device) -> Column:
        assert all(reference() is None for reference in held)
        copy = move(column, device)
        held.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(Column, "to", moved)
    for view in (0, 0, 1, 2):
        assert cache.teacher_logits(view, torch.arange(5, device="meta")).shape == (5, 3)
    assert len(held) == 3
