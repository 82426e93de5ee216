"""What the fingerprint of images on disk covers, and what is remembered so that their files are read once only."""

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtune.data import ImageFiles, fingerprints, load_dataset
from kdtune.data.fingerprints import file_digests
from kdtune.errors import DataError
from kdtune.experiment import Data

COUNT = 12
PIECE = 3  # files that a thread takes at once, here


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own cache folder. Files count as settled at once; there is more than one piece of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(fingerprints, "SETTLED", -(10**12))
    monkeypatch.setattr(fingerprints, "PIECE", PIECE)
    return tmp_path / "caches" / "kdtune" / "fingerprints"


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """Files of equal size; they need not be pictures: nothing here decodes."""
    names = [f"train/{'ab'[k % 2]}/{k:02}.jpg" for k in range(COUNT)]
    for name in names:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(f"bytes of {name}".encode())
    return ImageFiles(str(tmp_path / "root"), np.array([os.fsencode(name) for name in names]), side=8)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of the images that are opened, in any way that Python knows."""
    names: list[str] = []
    listening = True

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and isinstance(arguments[0], bytes | str):
            path = os.fsdecode(arguments[0])
            if path.endswith(".jpg"):
                names.append(Path(path).name)

    sys.addaudithook(listen)  # for good: it can only be made deaf
    yield names
    listening = False


def by_hand(files: ImageFiles) -> bytes:
    return b"".join(hashlib.blake2b(files.path(k).read_bytes(), digest_size=32).digest() for k in range(len(files)))


def change(path: Path, *, times: bool = True) -> None:
    """Other bytes, as many as before; with `times` false the time of modification is put back."""
    before = path.stat()
    content = bytes(reversed(path.read_bytes()))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems tick slowly
        path.write_bytes(content)
    assert path.stat().st_size == before.st_size
    if not times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def make_pictures(folder: Path) -> Data:
    for part in ("train", "test"):
        for name in ("ant/0", "ant/1", "bee/0", "bee/1"):
            path = folder / "pictures" / part / f"{name}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    augment = {"image_size": 8, "augment": "random-resized-crop"}
    return Data.model_validate({"dataset": "folder", "root": str(folder / "pictures"), **augment})


# --- what it covers


def test_digests_are_of_every_files_bytes_in_order_in_any_number_of_threads(
    files: ImageFiles, monkeypatch: pytest.MonkeyPatch, memory: Path
) -> None:
    for threads, piece in ((1, 1), (2, 5), (16, 100)):
        monkeypatch.setattr(fingerprints, "THREADS", threads)
        monkeypatch.setattr(fingerprints, "PIECE", piece)
        assert file_digests(files, "train") == by_hand(files)
        shutil.rmtree(memory)
    turned = ImageFiles(files.root, files.names[::-1].copy(), side=8)
    assert file_digests(turned, "train") == by_hand(turned) != by_hand(files)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_picture_exchanged_for_one_of_equal_size_is_another_data_set(tmp_path: Path, part: str) -> None:
    config = make_pictures(tmp_path)
    before = load_dataset(config).fingerprint
    picture = tmp_path / "pictures" / part / "ant" / "0.bmp"
    content = picture.read_bytes()
    picture.write_bytes(content[:-1] + b"\xff")
    assert load_dataset(config).fingerprint != before
    picture.write_bytes(content)
    assert load_dataset(config).fingerprint == before


def test_the_same_pictures_elsewhere_are_the_same_data_set(tmp_path: Path) -> None:
    config = make_pictures(tmp_path)
    shutil.copytree(tmp_path / "pictures", tmp_path / "copy")
    elsewhere = config.model_copy(update={"root": str(tmp_path / "copy")})
    assert load_dataset(elsewhere).fingerprint == load_dataset(config).fingerprint


def test_loading_tells_whoever_watches_of_both_parts(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    load_dataset(make_pictures(tmp_path), lambda *counts: heard.append(counts))
    assert heard == [(0, 4), (3, 4), (4, 4)] * 2


# --- what is remembered


def test_files_are_read_once(files: ImageFiles, opened: list[str]) -> None:
    first = file_digests(files, "train")
    assert sorted(opened) == [f"{number:02}.jpg" for number in range(COUNT)]
    opened.clear()
    assert file_digests(files, "train") == first
    assert opened == []


@pytest.mark.parametrize("times", [True, False], ids=["of another date", "of the same date"])
def test_only_what_has_changed_is_read_again(files: ImageFiles, opened: list[str], times: bool) -> None:
    file_digests(files, "train")
    change(files.path(7), times=times)
    expected = by_hand(files)
    opened.clear()
    assert file_digests(files, "train") == expected
    assert opened == ["07.jpg"]


def test_where_a_file_system_keeps_no_time_of_change_that_of_modification_tells(
    files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = fingerprints._stamps
    monkeypatch.setattr(fingerprints, "_stamps", lambda files, rows: stamps(files, rows) * np.array([1, 1, 0]))
    file_digests(files, "train")
    change(files.path(7))
    assert file_digests(files, "train") == by_hand(files)


def test_a_file_that_was_only_touched_keeps_its_digest(files: ImageFiles, opened: list[str]) -> None:
    first = file_digests(files, "train")
    os.utime(files.path(4), ns=(0, 0))
    opened.clear()
    assert file_digests(files, "train") == first
    assert opened == ["04.jpg"]


def test_files_that_come_go_or_move_to_another_place_in_the_order_cost_no_more_than_themselves(
    files: ImageFiles, opened: list[str]
) -> None:
    file_digests(ImageFiles(files.root, files.names[:-2], side=8), "train")
    other = ImageFiles(files.root, np.roll(files.names, 5)[1:], side=8)
    expected = by_hand(other)
    opened.clear()
    assert file_digests(other, "train") == expected
    assert sorted(opened) == ["10.jpg", "11.jpg"]


def test_files_of_equal_size_and_times_are_told_apart_by_their_names(
    files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_stamps", lambda files, rows: np.zeros((len(rows), 3), np.int64))
    for some in (files.names[::2], files.names[1::2], files.names[:-1]):
        part = ImageFiles(files.root, some, side=8)
        assert file_digests(part, "train") == by_hand(part)


def test_parts_and_roots_are_remembered_apart(files: ImageFiles, tmp_path: Path, memory: Path) -> None:
    shutil.copytree(files.root, tmp_path / "copy", copy_function=shutil.copy2)
    copy = ImageFiles(str(tmp_path / "copy"), files.names, side=8)
    change(copy.path(3), times=False)
    for some, part in ((files, "train"), (copy, "train"), (files, "test")):
        assert file_digests(some, part) == by_hand(some)
    assert len(list(memory.iterdir())) == 3


def test_a_file_that_changed_a_moment_ago_is_read_again(
    files: ImageFiles, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED", 3600 * 10**9)
    first = file_digests(files, "train")
    opened.clear()
    assert file_digests(files, "train") == first
    assert len(opened) == COUNT


def test_data_sets_that_were_not_used_for_longest_are_forgotten(
    files: ImageFiles, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "KEPT_PARTS", 2)
    places = {}
    for part, used in (("in use", 2), ("long unused", 1), ("new", 3)):
        before = set(memory.glob("*"))
        file_digests(files, part)
        (places[part],) = set(memory.iterdir()) - before
        os.utime(places[part], (used, 0))
    assert set(memory.iterdir()) == {places["in use"], places["new"]}


# --- what may go wrong


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c[:100] + b"?" + c[101:], lambda c: b"", lambda c: c[:-40] + bytes(40)]
)
def test_what_is_damaged_is_ignored_and_made_anew(
    files: ImageFiles, memory: Path, opened: list[str], damage: Callable[[bytes], bytes]
) -> None:
    first = file_digests(files, "train")
    (remembered,) = memory.iterdir()
    whole = remembered.read_bytes()
    remembered.write_bytes(damage(whole))
    opened.clear()
    assert file_digests(files, "train") == first
    assert len(opened) == COUNT
    assert remembered.read_bytes() == whole


def test_without_a_folder_to_write_files_are_read_each_time_and_one_warning_says_so(
    files: ImageFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    opened: list[str],
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with caplog.at_level(logging.WARNING):
        first, again = file_digests(files, "train"), file_digests(files, "train")
    assert len(opened) == 2 * COUNT
    assert first == again == by_hand(files)
    assert len(caplog.messages) == 1
    assert "cannot remember" in caplog.messages[0]
    assert str(tmp_path / "a file") in caplog.messages[0]


def test_a_user_without_a_home_reads_files_each_time(
    files: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.chdir(tmp_path)
    fingerprints._tell_once.cache_clear()
    assert file_digests(files, "train") == by_hand(files)
    assert "no home folder" in caplog.text
    assert not (tmp_path / "relative").exists()


def test_an_interrupted_pass_goes_on_where_it_was(files: ImageFiles, opened: list[str]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > COUNT / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file_digests(files, "train", interrupt)
    heard: list[tuple[int, int]] = []
    expected = by_hand(files)
    opened.clear()
    assert file_digests(files, "train", lambda *counts: heard.append(counts)) == expected
    assert heard == [(0, PIECE), (PIECE, PIECE)]
    assert len(opened) == PIECE


def test_what_was_read_is_written_down_now_and_then(
    files: ImageFiles, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "KEEP_SECONDS", -1.0)
    sizes: list[int] = []

    def watch(done: int, total: int) -> None:
        sizes.append(sum(file.stat().st_size for file in memory.iterdir()) if memory.exists() else 0)

    file_digests(files, "train", watch)
    assert sizes[:2] == [0, 0]
    assert 0 < sizes[2] < sizes[3] < sizes[4]


def test_a_write_that_fails_halfway_leaves_what_was_there(
    files: ImageFiles, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_digests(files, "train")
    (remembered,) = memory.iterdir()
    whole = remembered.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    change(files.path(0))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert file_digests(files, "train") == by_hand(files)
    assert [file.read_bytes() for file in memory.iterdir()] == [whole]


@pytest.mark.parametrize("kind", ["gone", "a folder"])
def test_a_file_that_cannot_be_read_is_named(files: ImageFiles, kind: str) -> None:
    files.path(8).unlink()
    if kind == "a folder":
        files.path(8).mkdir()
    with pytest.raises(DataError, match=r"^cannot read image .*/root/train/a/08\.jpg: \w+"):
        file_digests(files, "train")


def test_whoever_watches_hears_how_many_files_are_left_and_nothing_when_there_are_none(files: ImageFiles) -> None:
    heard: list[tuple[int, int]] = []
    for _ in range(2):
        file_digests(files, "train", lambda *counts: heard.append(counts))
    assert heard == [(done, COUNT) for done in range(0, COUNT + 1, PIECE)]
