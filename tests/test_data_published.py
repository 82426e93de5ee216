"""Published data sets, read from small files in their formats; nothing is fetched from anywhere but this disk."""

import gzip
import hashlib
import pickle
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision.datasets
from torch import Tensor

from kdtune.data import Dataset, load_dataset
from kdtune.data.published import NORMALISATION
from kdtune.errors import DataError
from kdtune.experiment import Data

Bytes = npt.NDArray[np.uint8]
TRAIN, TEST = 40, 20  # images
IDX_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
LOADERS = {
    "mnist": torchvision.datasets.MNIST,
    "fashion-mnist": torchvision.datasets.FashionMNIST,
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
}
CIFAR = ("cifar10", "cifar100")


def config_of(name: str, root: Path, **fields: object) -> Data:
    return Data.model_validate({"dataset": name, "root": str(root), "validation": 0.25, **fields})


def random(*shape: int) -> Bytes:
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


def numbered(count: int, classes: int) -> list[int]:
    return [k * 7 % classes for k in range(count)]


# --- IDX


def idx(values: Bytes) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def write_idx_set(folder: Path, *, gzipped: bool = False) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        labels = np.array(numbered(count, 10), np.uint8)
        for name, values in (("images-idx3", random(count, 28, 28)), ("labels-idx1", labels)):
            path = folder / f"{part}-{name}-ubyte{'.gz' if gzipped else ''}"
            path.write_bytes(gzip.compress(idx(values)) if gzipped else idx(values))


@pytest.mark.parametrize("name", IDX_FOLDERS)
def test_idx_files_in_torchvisions_folders_are_read_as_torchvision_reads_them(name: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path / IDX_FOLDERS[name])
    ours = load_dataset(config_of(name, tmp_path))
    for train, images, labels in ((True, ours.pixels, ours.labels), (False, ours.test.pixels, ours.test.labels)):
        theirs = LOADERS[name](str(tmp_path), train=train)
        assert torch.equal(images, theirs.data.unsqueeze(1))
        assert torch.equal(labels, theirs.targets)
    assert ours.shape == (1, 28, 28)
    expected = "0123456789" if name == "mnist" else torchvision.datasets.FashionMNIST.classes
    assert ours.classes == tuple(expected)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("name", IDX_FOLDERS)
def test_idx_files_may_lie_in_the_root_and_be_gzipped(name: str, gzipped: bool, tmp_path: Path) -> None:
    write_idx_set(tmp_path / "own" / IDX_FOLDERS[name])
    write_idx_set(tmp_path / "flat", gzipped=gzipped)
    expected, ours = (load_dataset(config_of(name, tmp_path / at)) for at in ("own", "flat"))
    assert ours.fingerprint == expected.fingerprint


def gzipped_and_cut(content: bytes) -> bytes:
    return gzip.compress(content)[:-20]


def with_another_label(content: bytes) -> bytes:
    return content[:-1] + b"\x0a"


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-1], "holds 31359 values, its header says 31360"),
        ("train-images-idx3-ubyte", lambda content: b"", "does not begin as an IDX file"),
        ("t10k-images-idx3-ubyte", lambda content: b"<html>not found</html>", "does not begin as an IDX file"),
        ("t10k-labels-idx1-ubyte", lambda content: idx(np.zeros(3, np.uint8)), "3 labels for the 20 images"),
        ("t10k-labels-idx1-ubyte", with_another_label, "labels should be 0 to 9"),
        ("train-images-idx3-ubyte.gz", gzipped_and_cut, "is damaged"),
        ("train-images-idx3-ubyte.gz", lambda content: b"<html>", "Not a gzipped file"),
    ],
)
def test_a_damaged_idx_file_is_named(file: str, damage: Callable[[bytes], bytes], why: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path / "raw")
    whole = tmp_path / "raw" / file.removesuffix(".gz")
    content = whole.read_bytes()
    whole.unlink()
    (tmp_path / "raw" / file).write_bytes(damage(content))
    with pytest.raises(DataError, match=rf"(?s)/raw/{file} is damaged: .*Remove it and fetch it again") as caught:
        load_dataset(config_of("mnist", tmp_path / "raw"))
    assert why in str(caught.value)


# --- CIFAR


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Small files in CIFAR's format, and their checksums where torchvision keeps the published ones."""
    loader: Any = LOADERS[name]
    folder = root / loader.base_folder
    folder.mkdir(parents=True)
    classes, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")

    def write(file: str, content: dict[str, Any]) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def part(files: list[list[str]], each: int) -> list[list[str]]:
        labels = numbered(each * len(files), classes)
        pixels = random(each * len(files), 3072)
        return [
            write(file, {"data": pixels[k * each : (k + 1) * each], key: labels[k * each : (k + 1) * each]})
            for k, (file, _) in enumerate(files)
        ]

    names = [f"class {k}" for k in range(classes)]
    meta = write(loader.meta["filename"], {loader.meta["key"]: names})
    monkeypatch.setattr(loader, "train_list", part(loader.train_list, 20 if name == "cifar10" else 300))
    monkeypatch.setattr(loader, "test_list", part(loader.test_list, 100))
    monkeypatch.setattr(loader, "meta", {**loader.meta, "md5": meta[1]})
    return [folder / file for file, _ in (*loader.train_list, *loader.test_list, meta)]


def brute_force(paths: list[Path]) -> tuple[Tensor, list[int]]:
    """Pixel by pixel: a row holds 1,024 reds, greens and blues, row by row."""
    contents = [pickle.loads(path.read_bytes()) for path in paths]
    rows = np.concatenate([content["data"] for content in contents])
    labels = [label for content in contents for label in content.get("labels") or content["fine_labels"]]
    images = torch.zeros(len(rows), 3, 32, 32, dtype=torch.uint8)
    for channel in range(3):
        for y in range(32):
            start = 1024 * channel + 32 * y
            images[:, channel, y] = torch.from_numpy(rows[:, start : start + 32])
    return images, labels


@pytest.mark.parametrize("name", CIFAR)
def test_cifars_pickles_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_cifar(tmp_path, name, monkeypatch)
    ours = load_dataset(config_of(name, tmp_path))
    for files, images, labels in (
        (paths[:-2], ours.pixels, ours.labels),
        (paths[-2:-1], ours.test.pixels, ours.test.labels),
    ):
        expected = brute_force(files)
        assert torch.equal(images, expected[0])
        assert labels.tolist() == expected[1]
    assert ours.classes == tuple(f"class {k}" for k in range(len(ours.classes)))
    assert len(ours.classes) == (10 if name == "cifar10" else 100)


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("number", [0, -2, -1], ids=["training", "test", "meta"])
def test_a_damaged_cifar_file_is_named(name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_cifar(tmp_path, name, monkeypatch)[number]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} is damaged: its checksum is not the published one. Remove it"):
        load_dataset(config_of(name, tmp_path, download=True))


# --- missing, and fetched


def write(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    if name in CIFAR:
        return write_cifar(root, name, monkeypatch)
    write_idx_set(root / IDX_FOLDERS[name])
    return sorted((root / IDX_FOLDERS[name]).iterdir())


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_data_set_says_where_it_was_looked_for_and_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = r"(?s)there is no {title} in {root} .*looked for .*{file}.*--set data\.download=true"
    title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    paths = write(name, tmp_path / "data", monkeypatch)
    load_dataset(config_of(name, tmp_path / "data"))
    paths[1].unlink()
    for root in (tmp_path / "nowhere", tmp_path / "data"):
        with pytest.raises(DataError, match=advice.format(title=title, root=root, file=paths[1].name)):
            load_dataset(config_of(name, root))
    assert not (tmp_path / "nowhere").exists()


def without_network(name: str, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision fetches from `at`."""
    if name in CIFAR:
        monkeypatch.setattr(LOADERS[name], "url", f"{at}/archive.tar.gz")
    else:
        monkeypatch.setattr(LOADERS[name], "mirrors", [f"{at}/"])


@pytest.mark.parametrize("name", LOADERS)
def test_a_data_set_that_cannot_be_fetched_says_why(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_network(name, (tmp_path / "no such mirror").as_uri(), monkeypatch)
    with pytest.raises(DataError, match=r"(?s)data\.download: cannot fetch .* into .*/data: .*no such|No such"):
        load_dataset(config_of(name, tmp_path / "data", download=True))


@pytest.mark.parametrize("name", LOADERS)
def test_a_data_set_is_fetched_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fetchable(name, tmp_path, monkeypatch)
    config = config_of(name, tmp_path / "data", download=True)
    assert load_dataset(config).fingerprint == expected.fingerprint
    without_network(name, (tmp_path / "gone").as_uri(), monkeypatch)
    assert load_dataset(config).fingerprint == expected.fingerprint


def fetchable(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Puts archives as they are published into `folder`/mirror."""

    def retrieve(url: str, path: Path) -> None:  # torchvision's own asks for a length, which only HTTP has
        with urllib.request.urlopen(url) as response:
            Path(path).write_bytes(response.read())

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", retrieve)
    mirror = folder / "mirror"
    paths = write(name, folder / "source", monkeypatch)
    mirror.mkdir()
    without_network(name, mirror.as_uri(), monkeypatch)
    loader: Any = LOADERS[name]
    if name in CIFAR:
        with tarfile.open(mirror / "archive.tar.gz", "w:gz") as archive:
            archive.add(paths[0].parent, loader.base_folder)
        monkeypatch.setattr(loader, "tgz_md5", hashlib.md5((mirror / "archive.tar.gz").read_bytes()).hexdigest())
    else:
        for path in paths:
            (mirror / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        md5s = [(file, hashlib.md5((mirror / file).read_bytes()).hexdigest()) for file, _ in loader.resources]
        monkeypatch.setattr(loader, "resources", md5s)
    return load_dataset(config_of(name, folder / "source"))


# --- normalisation


@pytest.mark.parametrize("name", LOADERS)
def test_published_normalisation_is_used_unless_another_is_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path, monkeypatch)
    ours = load_dataset(config_of(name, tmp_path))
    assert (ours.mean, ours.std) == NORMALISATION[name]
    given = tuple(0.25 for _ in ours.mean)
    ours = load_dataset(config_of(name, tmp_path, mean=given, std=given))
    assert (ours.mean, ours.std) == (given, given)
    with pytest.raises(DataError, match=r"data\.mean has 2 values"):
        load_dataset(config_of(name, tmp_path, mean=[0.5, 0.5], std=[0.5, 0.5]))
