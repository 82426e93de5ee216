"""The cache against the teacher's own answers, against plain Arrow, and against damage of every kind."""

import dataclasses
import json
import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from kdtune.cache import Identity, LogitCache, answer, build, column_path, identify, open_cache
from kdtune.data import DATASETS, Dataset, Images, augment, load_dataset
from kdtune.errors import CacheError
from kdtune.experiment import Data
from kdtune.models import build_model
from kdtune.teacher import Teacher, fingerprint

DATA = Data(dataset="digits", augment="crop-flip", crop_padding=2, view_seed=11)
Read = tuple[Images, Images, tuple[str, ...]]
DiskUsage = namedtuple("DiskUsage", "total used free")


def silent(done: int, views: int) -> None:
    """Progress that nobody watches."""


def a_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build_model("cnn-8-16", (1, 8, 8), 3).eval()
    return network.requires_grad_(requires_grad=False)


def described(network: nn.Module) -> Teacher:
    return Teacher("", "cnn-8-16", (1, 8, 8), 3, fingerprint("cnn-8-16", network.state_dict()), 0.9, trained_here=True)


@dataclass
class Bench:
    """A toy data set, an untrained teacher that counts its calls, and a folder."""

    folder: Path
    dataset: Dataset
    network: nn.Module
    data: Data = DATA
    calls: int = 0

    def __post_init__(self) -> None:
        self.network.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls += 1

    @property
    def identity(self) -> Identity:
        return identify(self.dataset, self.data, described(self.network))

    def build(self, views: int, progress: Callable[[int, int], None] = silent, *, recheck: bool = False) -> LogitCache:
        teacher = described(self.network)
        return build(
            self.folder, self.identity, views, teacher, self.dataset, self.data, self.network, progress, recheck=recheck
        )

    def answers(self, view: int) -> Tensor:
        """The teacher asked directly, step by step."""
        rows = torch.arange(len(self.dataset.labels))
        with torch.no_grad():
            logits: Tensor = self.network(self.dataset.normalise(augment(self.dataset.pixels, rows, view, self.data)))
        return logits

    def path(self, view: int) -> Path:
        return column_path(self.folder, view)


@pytest.fixture
def bench(toy: Dataset, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache", toy, a_network(0))


def flip_a_byte(path: Path) -> None:
    """In the middle of the logits; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def stamps(bench: Bench, views: int) -> list[int]:
    return [bench.path(view).stat().st_mtime_ns for view in range(views)]


# --- what is stored


def test_columns_are_the_teachers_own_answers_rounded_to_float16(bench: Bench) -> None:
    cache = bench.build(3)
    for view in range(3):
        assert cache.column(view).dtype == torch.float16
        assert torch.equal(cache.column(view), bench.answers(view).half())
    assert not torch.equal(cache.column(0), cache.column(1))


def test_a_lookup_gives_the_rows_that_were_asked_for_in_their_order(bench: Bench) -> None:
    cache = bench.build(2)
    for view in (1, 0):
        indices = torch.randperm(66, generator=torch.Generator().manual_seed(view))[:40]
        logits = cache.teacher_logits(view, indices)
        assert logits.dtype == torch.float32
        for row, index in enumerate(indices.tolist()):
            assert torch.equal(logits[row], cache.column(view)[index].float())
        torch.testing.assert_close(logits, bench.answers(view)[indices], rtol=1e-3, atol=1e-3)


def test_the_answer_to_some_rows_is_that_of_the_whole_column(bench: Bench) -> None:
    """The same view whatever the batch."""
    rows = torch.tensor([64, 3, 17])
    one_by_one = answer(bench.network, bench.dataset, bench.data, 1, rows)
    torch.testing.assert_close(one_by_one, bench.answers(1)[rows])


def test_plain_pyarrow_reads_a_column(bench: Bench) -> None:
    bench.build(1)
    with pa.memory_map(str(bench.path(0))) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.num_rows == 66
        assert table.schema.field(0).type == pa.list_(pa.float16(), 3)
        assert table.column(0).null_count == 0
        rows = [[float(value) for value in row] for row in table.column(0).to_pylist()]
    assert rows == bench.answers(0).half().tolist()


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
    assert column.shape == (66, 3)


def test_a_column_is_opened_once(bench: Bench) -> None:
    cache = bench.build(1)
    assert cache.column(0).data_ptr() == cache.column(0).data_ptr()


def test_the_size_is_that_of_the_numbers_and_a_small_overhead(toy: Dataset, tmp_path: Path) -> None:
    rows, views, classes = 20_000, 3, 10
    generator = torch.Generator().manual_seed(0)
    dataset = dataclasses.replace(
        toy,
        images=torch.randint(0, 256, (rows, 1, 4, 4), generator=generator, dtype=torch.uint8),
        labels=torch.arange(rows) % classes,
        classes=tuple("0123456789"),
    )
    bench = Bench(tmp_path / "cache", dataset, nn.Sequential(nn.Flatten(), nn.Linear(16, classes)))
    bench.build(views)
    size = sum(file.stat().st_size for file in bench.folder.iterdir())
    ideal = rows * views * classes * 2
    assert ideal < size <= 1.01 * ideal + 4096


def test_no_partial_files_are_left(bench: Bench) -> None:
    bench.build(2)
    assert sorted(file.name for file in bench.folder.iterdir()) == [
        "00000.arrow",
        "00001.arrow",
        "lock",
        "manifest.json",
    ]


# --- what it belongs to


def test_a_cache_opens_for_its_own_identity(bench: Bench) -> None:
    bench.build(2)
    cache = open_cache(bench.folder, bench.identity)
    assert cache.manifest.views == 2
    assert torch.equal(cache.column(1), bench.answers(1).half())
    assert cache.manifest.identity == bench.identity


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


def refused_by_name(bench: Bench, field: str) -> None:
    """By opening and by building, naming this field alone; and its folder would have been another."""
    before = {file.name: file.read_bytes() for file in bench.folder.iterdir()}
    kept = open_cache(bench.folder).manifest.identity
    assert [line.split(":")[0] for line in kept.differences(bench.identity)] == [field]
    refused = f"belongs to something else: {field}:"
    with pytest.raises(CacheError, match=refused):
        open_cache(bench.folder, bench.identity)
    for views in (1, 5):
        with pytest.raises(CacheError, match=refused):
            bench.build(views)
    assert bench.identity.key != kept.key
    assert {file.name: file.read_bytes() for file in bench.folder.iterdir()} == before


# --- damage


def test_a_flipped_byte_is_found(bench: Bench) -> None:
    cache = bench.build(3)
    assert cache.bad_columns() == []
    flip_a_byte(bench.path(1))
    assert cache.bad_columns() == [1]


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_recheck_computes_the_damaged_column_again_and_no_other(bench: Bench, damage: Callable[[Path], None]) -> None:
    bench.build(3)
    whole = [bench.path(view).read_bytes() for view in range(3)]
    damage(bench.path(1))
    written = [bench.path(view).stat().st_mtime_ns for view in (0, 2)]
    bench.calls = 0
    cache = bench.build(3, recheck=True)
    assert bench.calls == 1
    assert [bench.path(view).stat().st_mtime_ns for view in (0, 2)] == written
    assert [bench.path(view).read_bytes() for view in range(3)] == whole
    assert cache.bad_columns() == []
    assert torch.equal(cache.column(1), bench.answers(1).half())


def test_without_a_recheck_a_finished_cache_costs_nothing(bench: Bench) -> None:
    bench.build(3)
    bench.calls = 0
    heard: list[tuple[int, int]] = []
    before = stamps(bench, 3)
    bench.build(2, lambda done, views: heard.append((done, views)))
    assert (bench.calls, heard, stamps(bench, 3)) == (0, [], before)


def test_a_truncated_column_is_named_when_it_is_opened(bench: Bench) -> None:
    bench.build(3)
    truncate(bench.path(1))
    cache = open_cache(bench.folder, bench.identity)
    with pytest.raises(CacheError, match=r"00001\.arrow has \d+ bytes, its manifest says \d+.*kdtune cache build"):
        cache.teacher_logits(1, torch.arange(3))
    assert torch.equal(cache.column(2), bench.answers(2).half())


def test_a_column_of_the_right_size_that_is_no_arrow_is_named(bench: Bench) -> None:
    bench.build(1)
    size = bench.path(0).stat().st_size
    bench.path(0).write_bytes(b"x" * size)
    with pytest.raises(CacheError, match=r"00000\.arrow is damaged"):
        open_cache(bench.folder).column(0)


def test_a_missing_column_is_named(bench: Bench) -> None:
    bench.build(2)
    bench.path(1).unlink()
    cache = open_cache(bench.folder)
    assert cache.bad_columns() == [1]
    with pytest.raises(CacheError, match=r"00001\.arrow is missing"):
        cache.column(1)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"identity": 3, "sha256": []}', "null", "\x00" * 40])
def test_a_damaged_manifest_is_named(bench: Bench, content: str) -> None:
    bench.build(1)
    (bench.folder / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        open_cache(bench.folder)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        bench.build(1)


def test_a_manifest_of_a_later_version_is_refused(bench: Bench) -> None:
    bench.build(1)
    path = bench.folder / "manifest.json"
    raw = json.loads(path.read_text())
    raw["identity"]["format"] += 1
    path.write_text(json.dumps(raw))
    with pytest.raises(CacheError, match="format: 2 in the cache, 1 here"):
        open_cache(bench.folder, bench.identity)
    path.write_text(json.dumps({**raw, "compression": "zstd"}))
    with pytest.raises(CacheError, match="of another version"):
        open_cache(bench.folder, bench.identity)


def test_a_folder_without_a_manifest_is_no_cache(bench: Bench) -> None:
    with pytest.raises(CacheError, match="no finished cache"):
        open_cache(bench.folder)


def test_the_sampled_rows_of_the_same_teacher_agree(bench: Bench) -> None:
    bench.build(2).check_rows(bench.network, bench.dataset, bench.data)


def test_the_sampled_rows_tell_another_teacher(bench: Bench) -> None:
    cache = bench.build(2)
    with pytest.raises(CacheError, match=r"00000\.arrow: the teacher now answers differently to image \d+"):
        cache.check_rows(a_network(1), bench.dataset, bench.data)


def test_the_sampled_rows_tell_another_view_in_the_last_column(bench: Bench) -> None:
    cache = bench.build(3)
    shutil.copy(bench.path(1), bench.path(2))
    with pytest.raises(CacheError, match=r"00002\.arrow"):
        cache.check_rows(bench.network, bench.dataset, bench.data)


# --- building in parts


def interrupt_after(columns: int) -> Callable[[int, int], None]:
    def progress(done: int, views: int) -> None:
        if done == columns:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_build_does_not_compute_finished_columns_again(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.build(4, interrupt_after(2))
    assert bench.calls == 2
    with pytest.raises(CacheError, match="no finished cache"):
        open_cache(bench.folder)
    before = stamps(bench, 2)
    heard: list[tuple[int, int]] = []
    cache = bench.build(4, lambda done, views: heard.append((done, views)))
    assert bench.calls == 4
    assert stamps(bench, 2) == before
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert cache.bad_columns() == []
    assert all(torch.equal(cache.column(view), bench.answers(view).half()) for view in range(4))


def test_more_views_keep_the_columns_that_are_there(bench: Bench) -> None:
    before = bench.build(2).manifest
    written = stamps(bench, 2)
    bench.calls = 0
    cache = bench.build(5)
    assert bench.calls == 3
    assert stamps(bench, 2) == written
    assert cache.manifest.views == 5
    assert cache.manifest.sha256[:2] == before.sha256
    assert open_cache(bench.folder, bench.identity).bad_columns() == []


def test_fewer_views_leave_the_others_alone(bench: Bench) -> None:
    bench.build(3)
    assert bench.build(1).manifest.views == 3
    flip_a_byte(bench.path(2))
    mended = bench.build(1, recheck=True)
    assert mended.manifest.views == 3
    assert mended.bad_columns() == []


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_more_views_beside_a_damaged_first_column_are_whole(bench: Bench, damage: Callable[[Path], None]) -> None:
    """The size of a column in the manifest is not that of whatever lies there as the first."""
    bench.build(2)
    damage(bench.path(0))
    cache = bench.build(3)
    for view in (1, 2):
        assert torch.equal(cache.column(view), bench.answers(view).half())


def test_two_builders_share_the_work(bench: Bench) -> None:
    """The second waits for the first and finds everything done."""
    built: list[LogitCache] = []
    threads = [threading.Thread(target=lambda: built.append(bench.build(4))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.calls == 4
    assert [cache.bad_columns() for cache in built] == [[], []]


# --- what cannot be built


@pytest.mark.parametrize("value", [1e6, float("nan")], ids=["too large", "not a number"])
def test_logits_that_do_not_fit_float16_are_refused(bench: Bench, value: float) -> None:
    with torch.no_grad():
        bench.network.get_parameter("fc.bias")[1] = value
    with pytest.raises(CacheError, match="do not fit float16"):
        bench.build(2)
    assert [file.name for file in bench.folder.iterdir()] == ["lock"]


def disk_with(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - free, free))


COLUMN = 66 * 3 * 2  # bytes of logits


def test_a_full_disk_is_refused_before_anything_is_computed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(4 * COLUMN - 1, monkeypatch)
    with pytest.raises(CacheError, match=r"needs .* GB more in .*lower data\.views"):
        bench.build(4)
    assert bench.calls == 0


def test_more_views_need_room_only_for_what_is_missing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.build(3)
    disk_with(2 * COLUMN, monkeypatch)
    assert bench.build(4).manifest.views == 4


def test_an_interrupted_build_needs_room_only_for_what_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.build(4, interrupt_after(3))
    disk_with(2 * COLUMN, monkeypatch)
    assert bench.build(4).manifest.views == 4


def test_the_manifest_comes_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = os.replace

    def replace(self: Path, target: Path) -> None:
        written.append(Path(target).name)
        real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    bench.build(3)
    assert written == ["00000.arrow", "00001.arrow", "00002.arrow", "manifest.json"]
