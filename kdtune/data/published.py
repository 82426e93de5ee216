"""Published data sets in their own formats: MNIST and Fashion-MNIST (IDX), CIFAR-10 and CIFAR-100 (pickles).

Folders are torchvision's, which also does the fetching: `root/MNIST/raw`, `root/FashionMNIST/raw`,
`root/cifar-10-batches-py`, `root/cifar-100-python`. IDX files, gzipped or not, may also lie in `root` itself.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdtune.data.images import Images
from kdtune.errors import DataError
from kdtune.experiment import Data
from kdtune.records import locked

NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {  # mean and standard deviation
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
UNSIGNED_BYTES = 8  # IDX's code for the type of its values
Read = tuple[Images, Images, tuple[str, ...]]


class _MissingError(DataError):
    """The data set is not there; fetching it would help."""


@dataclass(frozen=True)
class Published:
    """How a data set is called, and its class in torchvision.datasets."""

    title: str
    torchvision: str
    read: Callable[["Published", Path], Read]

    @property
    def loader(self) -> Any:  # torchvision has no types
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision)


def read_published(published: Published, config: Data) -> Read:
    """Reads the data set, after fetching it where it is missing and `data.download` asks for that. Raises DataError."""
    assert config.root is not None
    root = Path(config.root)
    try:
        try:
            return published.read(published, root)
        except _MissingError:
            if not config.download:
                raise
        _fetch(published, root)
        return published.read(published, root)
    except OSError as error:
        raise DataError(f"data.root: cannot read {error.filename}: {error.strerror}") from error


def _fetch(published: Published, root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / ".lock"):  # a second process waits for the first to fetch what they share
            for train in (True, False):
                published.loader(str(root), train=train, download=True)
    except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"data.download: cannot fetch {published.title} into {root}: {str(error).strip()}. "
            f"Fetch it elsewhere and point data.root to the folder that holds it"
        ) from error


def _missing(published: Published, root: Path, looked_for: str) -> _MissingError:
    return _MissingError(
        f"data.root: there is no {published.title} in {root} (from {Path.cwd()}; looked for {looked_for}). Point "
        f"data.root to the folder that holds it, or have it fetched: data.download: true in the experiment file, "
        f"or --set data.download=true"
    )


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Remove it and fetch it again (data.download: true does that)")


# --- IDX


def _read_idx_set(published: Published, root: Path) -> Read:
    folders = (root / published.torchvision / "raw", root)
    names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    for folder in folders:
        paths = [_plain_or_gzipped(folder / name) for name in names]
        whole = [path for path in paths if path is not None]
        if len(whole) == len(names):
            return _labelled_images(*whole[:2]), _labelled_images(*whole[2:]), IDX_CLASSES[published.torchvision]
    places = " or ".join(str(folder) for folder in folders)
    raise _missing(published, root, f"{', '.join(names)}, each perhaps .gz, in {places}")


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((found for found in (path, path.with_name(f"{path.name}.gz")) if found.is_file()), None)


def _labelled_images(images: Path, labels: Path) -> Images:
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise _damaged(labels, f"it holds {len(numbers)} labels for the {len(pixels)} images of {images.name}")
    if len(numbers) == 0 or int(numbers.max()) > 9:
        raise _damaged(labels, "labels should be 0 to 9, and there should be some")
    return Images(pixels.unsqueeze(1), numbers.to(torch.int64))


def read_idx(path: Path, dimensions: int) -> Tensor:
    """uint8 values of an IDX file (http://yann.lecun.com/exdb/mnist), gzipped or not. Raises DataError."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]):
        raise _damaged(path, f"it does not begin as an IDX file of bytes in {dimensions} dimension(s)")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    count = int(np.prod(shape, dtype=object))
    if len(content) - start != count:
        raise _damaged(path, f"it holds {len(content) - start} values, its header says {count}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


IDX_CLASSES = {
    "MNIST": tuple("0123456789"),
    "FashionMNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}

# --- CIFAR


def _read_cifar(published: Published, root: Path) -> Read:
    """torchvision's loader, which compares checksums before it unpickles anything."""
    loader = published.loader
    try:
        train, test = loader(str(root), train=True), loader(str(root), train=False)
    except RuntimeError:  # missing or damaged, it does not say which
        _find_what_is_wrong(published, root, loader)
        raise
    parts = [
        Images(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return parts[0], parts[1], tuple(train.classes)


def _find_what_is_wrong(published: Published, root: Path, loader: Any) -> None:
    """Raises DataError for the first file that is missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    folder = root / loader.base_folder
    checksums = [*loader.train_list, *loader.test_list, (loader.meta["filename"], loader.meta["md5"])]
    absent = [name for name, _ in checksums if not (folder / name).is_file()]
    if absent:
        raise _missing(published, root, f"{', '.join(absent)} in {folder}")
    for name, md5 in checksums:
        if not check_integrity(str(folder / name), md5):
            raise _damaged(folder / name, "its checksum is not the published one")


PUBLISHED: dict[str, Callable[[Data], Read]] = {
    "mnist": partial(read_published, Published("MNIST", "MNIST", _read_idx_set)),
    "fashion-mnist": partial(read_published, Published("Fashion-MNIST", "FashionMNIST", _read_idx_set)),
    "cifar10": partial(read_published, Published("CIFAR-10", "CIFAR10", _read_cifar)),
    "cifar100": partial(read_published, Published("CIFAR-100", "CIFAR100", _read_cifar)),
}
