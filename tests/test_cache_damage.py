"""Damage of every kind, and columns that are not what they say: found, named, computed again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from kdtune.cache import LogitCache
from kdtune.cache.columns import Column, Draft, open_column
from kdtune.cache.forms import in_steps, largest
from kdtune.cache.logits import TOLERANCE
from kdtune.errors import CacheError
from kdtune.experiment import Cache
from tests.caches import FORMS, ROWS, Bench, a_network, flip_a_byte, garbage, noise, truncate

Damage = Callable[[Path], None]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_seal(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))


def another_size(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "bytes": 1}))


def other_types(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": 3, "bytes": None}))


def lacking(path: Path) -> None:
    path.write_text('{"sha256": "0"}')


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


OF_COLUMNS: list[Damage] = [flip_a_byte, truncate, Path.unlink, garbage, empty]
OF_SEALS: list[Damage] = [
    Path.unlink,
    garbage,
    empty,
    truncate,
    another_seal,
    another_size,
    other_types,
    lacking,
    a_list,
]


def named(damage: Damage) -> str:
    return damage.__name__


# --- damage is mended


@pytest.mark.parametrize("which", ["column", *(f"seal {damage.__name__}" for damage in OF_SEALS)])
def test_every_damage_is_mended_by_computing_that_column_again_and_no_other(
    bench: Bench, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    damages = OF_COLUMNS if which == "column" else [d for d in OF_SEALS if d.__name__ == which.split()[1]]
    for damage in damages:
        bench.build(4)
        whole = [bench.path(view).read_bytes() for view in range(4)]
        damage(bench.path(1) if which == "column" else bench.seal(1))
        before = bench.stamps(0, 2, 3)
        bench.heard.clear()
        with pytest.raises(CacheError, match=r"column 1 is missing or damaged\. Run `kdtune cache build`"):
            bench.read().ensure(1)
        cache = bench.begin(4)
        for view in (0, 1, 2, 3):
            cache.ensure(view)
        assert bench.heard == [1], damage
        assert cache.mended == ([] if damage is Path.unlink and which != "column" else [1])  # without a seal: not there
        assert bench.stamps(0, 2, 3) == before
        assert [bench.path(view).read_bytes() for view in range(4)] == whole
        assert cache.bad_columns() == []
        assert ("column 1 was damaged" in caplog.text) == (cache.mended == [1])
        caplog.clear()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink], ids=named)
def test_a_build_mends_what_the_sampled_rows_stumble_over(bench: Bench, damage: Damage) -> None:
    """A damaged column is no other teacher: the check leaves it to whoever needs it."""
    bench.build(1)
    damage(bench.path(0))
    cache = bench.begin(1)
    cache.check_rows()
    cache.ensure(0)
    assert cache.bad_columns() == []
    cache.check_rows()


def test_the_memory_of_a_damaged_file_is_let_go_once_it_is_mended(bench: Bench) -> None:
    bench.build(1)
    cache, rows = bench.begin(1), torch.arange(ROWS)
    right = cache.teacher_logits(0, rows)
    with bench.path(0).open("r+b") as file:  # all logits, in place: the mapping shows it
        content = file.read()
        file.seek(content.index(right.half().numpy().tobytes()))
        file.write(bytes(ROWS * 3 * 2))
    assert not cache.teacher_logits(0, rows).any()
    cache.ensure(0)
    assert torch.equal(cache.teacher_logits(0, rows), right)


def test_a_column_that_was_mended_meanwhile_keeps_its_seal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its bytes and the claim: the new seal may be equal to the one of the damaged bytes."""
    cache, other = bench.build(1), bench.begin(1)
    seal, before = other.seal(0), bench.stamps(0)
    real, looks = LogitCache._matches, []

    def damaged_at_first(self: LogitCache, view: int, found: object) -> bool:
        looks.append(found)
        return len(looks) > 1 and real(self, view, seal)

    monkeypatch.setattr(LogitCache, "_matches", damaged_at_first)
    other.ensure(0)
    assert (bench.stamps(0), bench.heard) == (before, [0])
    assert cache.bad_columns() == []


def test_a_later_column_without_its_file_is_computed_while_waiting(bench: Bench) -> None:
    """Its seal alone is no column."""
    bench.build(3)
    bench.path(2).unlink()
    bench.seal(0).unlink()
    bench.heard.clear()
    cache = bench.begin(3)
    with cache.store.claim("00000.arrow"):
        assert cache._compute_one_of(range(3))
        assert not cache._compute_one_of(range(3))
    assert (bench.heard, cache.columns()) == ([2], [1, 2])


def test_a_seal_of_a_later_version_is_a_seal(bench: Bench) -> None:
    bench.build(1)
    bench.seal(0).write_text(json.dumps({**json.loads(bench.seal(0).read_text()), "watts": 300}))
    before = bench.stamps(0)
    bench.begin(1).ensure(0)
    assert (bench.heard, bench.stamps(0)) == ([0], before)


# --- damage is found


@FORMS
def test_bad_columns_are_those_whose_bytes_are_not_what_was_written(bench: Bench, keep: Cache) -> None:
    bench.keep = keep
    cache = bench.build(6)
    assert cache.bad_columns() == []
    flip_a_byte(bench.path(1))
    truncate(bench.path(2))
    garbage(bench.seal(4))
    another_seal(bench.seal(5))
    heard: list[tuple[int, int]] = []
    for handle in (cache, bench.read()):
        assert handle.bad_columns(lambda done, total: heard.append((done, total))) == [1, 2, 4, 5]
    assert heard == 2 * [(done, 6) for done in range(1, 7)]


def test_a_truncated_column_is_named_when_it_is_opened(bench: Bench) -> None:
    bench.build(3)
    truncate(bench.path(1))
    cache = bench.read()
    with pytest.raises(CacheError, match=r"00001\.arrow has \d+ bytes, its seal 00001\.json says \d+.*cache build"):
        cache.teacher_logits(1, torch.arange(3))
    assert torch.equal(cache.column(2).parts[0], bench.logits(2).half())


def test_a_column_of_the_right_size_that_is_no_arrow_is_named(bench: Bench) -> None:
    bench.build(1)
    garbage(bench.path(0))
    with pytest.raises(CacheError, match=r"00000\.arrow is damaged"):
        bench.read().column(0)


def test_a_missing_column_is_named(bench: Bench) -> None:
    bench.build(2)
    bench.path(1).unlink()
    with pytest.raises(CacheError, match=r"00001\.arrow is missing"):
        bench.read().column(1)


@FORMS
def test_no_flipped_byte_and_no_length_crashes_whoever_opens_a_column(
    bench: Bench, tmp_path: Path, keep: Cache
) -> None:
    """Arrow would end the process over some of them. What only changes numbers is for the seal to find."""
    bench.dataset, bench.keep = noise(2, 3), keep
    identity, path = bench.identity, tmp_path / "column"
    draft = Draft(identity, 0, torch.device("cpu"))
    draft.add(bench.logits(0))
    draft.check()
    with path.open("wb") as file:
        draft.write(file)
    content = path.read_bytes()
    refused = 0
    flipped = [content[:k] + bytes([content[k] ^ 0xFF]) + content[k + 1 :] for k in range(len(content))]
    for damaged in (*flipped, *(content[:k] for k in range(0, len(content), 7))):
        path.unlink()
        path.write_bytes(damaged)
        try:
            column = open_column(path, identity, 0)
        except CacheError:
            refused += 1
        else:
            column.differs(torch.arange(2), bench.logits(0), 0.1)
    assert refused > len(content) / 7


# --- columns that are not what they say


def test_a_column_that_is_another_under_its_name_is_refused(bench: Bench) -> None:
    bench.build(3)
    shutil.copy(bench.path(1), bench.path(2))
    shutil.copy(bench.seal(1), bench.seal(2))
    for cache in (bench.read(), bench.begin(3)):
        cache.ensure(2)  # its bytes are those of its seal
        with pytest.raises(CacheError, match=r"00002\.arrow is not view 2 of cache .*b'1'.* Remove 00002\.arrow"):
            cache.teacher_logits(2, torch.arange(3))
    with pytest.raises(CacheError, match=r"00002\.arrow is not view 2"):
        bench.begin(3).check_rows()
    bench.path(2).unlink()  # as the error says
    cache = bench.build(3)
    assert torch.equal(cache.column(2).parts[0], bench.logits(2).half())


def test_a_column_of_another_cache_is_refused(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path / "other", network=a_network(1))
    bench.build(1)
    other.build(1)
    shutil.copy(other.path(0), bench.path(0))
    shutil.copy(other.seal(0), bench.seal(0))
    with pytest.raises(CacheError, match=f"not view 0 of cache {bench.identity.key}.*{other.identity.key}"):
        bench.read().column(0)


@pytest.mark.parametrize(("rows", "kind"), [(ROWS, pa.float32()), (ROWS, pa.float16()), (ROWS - 1, pa.float16())])
def test_a_column_of_another_form_is_refused_even_if_it_says_that_it_belongs_here(
    bench: Bench, rows: int, kind: pa.DataType
) -> None:
    bench.build(1)
    with pa.memory_map(str(bench.path(0))) as source:
        schema = pa.ipc.open_file(source).schema
    width = 4 if rows == ROWS and kind == pa.float16() else 3
    values = pa.array([[0.0] * width] * rows, pa.list_(kind, width))
    table = pa.table({"logits": values}).replace_schema_metadata(schema.metadata)
    with pa.ipc.new_file(str(bench.path(0)), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(CacheError, match=r"holds \d+ rows of logits: fixed_size_list"):
        open_column(bench.path(0), bench.identity, 0)


# --- the teacher asked again


@FORMS
def test_the_sampled_rows_of_the_same_teacher_agree(bench: Bench, keep: Cache) -> None:
    bench.keep = keep
    bench.build(6)
    for _ in range(5):
        bench.begin(6).check_rows()


def test_a_check_asks_about_few_rows_of_random_columns(bench: Bench) -> None:
    bench.dataset = noise(500)
    bench.build(12)
    seen = set()
    for _ in range(12):
        bench.heard.clear()
        cache = bench.begin(12)
        cache.check_rows()
        assert cache.teacher is not None
        assert cache.teacher.asked == 64
        assert len(set(bench.heard)) == len(bench.heard) == 4
        seen |= set(bench.heard)
    assert len(seen) > 8


def test_a_check_of_a_fresh_cache_asks_nothing(bench: Bench) -> None:
    cache = bench.begin(3)
    cache.check_rows()
    assert bench.heard == []
    assert cache.teacher is not None
    assert not cache.teacher.loaded


@FORMS
def test_the_sampled_rows_tell_another_teacher(bench: Bench, keep: Cache) -> None:
    bench.keep = keep
    bench.build(2)
    cache = bench.begin(2)
    assert cache.teacher is not None
    cache.teacher.load = lambda: a_network(1)
    with pytest.raises(CacheError, match=r"0000\d\.arrow: the teacher now answers differently to image \d+"):
        cache.check_rows()
    assert cache.columns() == [0, 1]


@FORMS
def test_the_sampled_rows_tell_another_view(bench: Bench, keep: Cache) -> None:
    """As if what makes views had changed."""
    bench.keep = keep
    bench.build(2)
    cache = bench.begin(2)
    assert cache.teacher is not None
    cache.teacher.data = bench.data.model_copy(update={"view_seed": 12})
    with pytest.raises(CacheError, match="the teacher now answers differently"):
        cache.check_rows()


def test_sampled_rows_are_compared_where_columns_lie(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving columns of gigabytes to a device for a few rows would read all of them."""

    def moved(column: Column, device: torch.device) -> Column:
        raise AssertionError(f"a whole column was moved to {device}")

    bench.build(2)
    monkeypatch.setattr(Column, "to", moved)
    bench.begin(2).check_rows()


def kept(logits: Tensor, form: str) -> Column:
    if form == "top 2":
        return Column(tuple(largest(logits, 2)), logits.shape[1])
    return Column(tuple(in_steps(logits)) if form == "8 bits" else (logits.half(),), logits.shape[1])


@pytest.mark.parametrize("form", ["16 bits", "8 bits", "top 2"])
def test_another_device_may_move_every_logit_by_a_share_of_the_largest(form: str) -> None:
    """Two rows whose logits are as far apart as those of a teacher that is certain."""
    logits = torch.tensor([[25.0, -11.0, 0.3, 0.1], [0.2, 31.0, -0.1, -14.0]])
    noise = torch.tensor(
        [[0.04, -0.05, 0.05, -0.04], [-0.06, 0.05, 0.04, 0.06]]
    )  # 0.2 % of the largest: TF32 in deep ResNets
    column, rows = kept(logits, form), torch.arange(2)
    assert column.differs(rows, logits + noise, TOLERANCE).tolist() == [False, False]
    assert column.differs(rows, logits + torch.tensor([[2.0], [0.0]]), TOLERANCE).tolist() == [True, False]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", ["16 bits", "8 bits", "top 2"])
def test_what_is_no_number_differs(form: str, number: float) -> None:
    logits = torch.tensor([[5.0, 3.0, 1.0, -1.0], [4.0, 2.0, 0.0, -2.0]])
    broken = logits.clone()
    broken[1, 1] = number
    assert kept(logits, form).differs(torch.arange(2), broken, TOLERANCE).tolist() == [False, True]
    if form == "16 bits":
        assert kept(broken, form).differs(torch.arange(2), logits, TOLERANCE).tolist() == [False, True]
