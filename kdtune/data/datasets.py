"""Data sets as uint8 tensors: the whole set in memory, moved to the device once.

`load_dataset(config)` gives a `Dataset`: training images split (stratified) into `fit` and `validation`, and test
images that only the final stage reads. Shapes: N images, C channels, H x W pixels.

    >>> from kdtune.experiment import Data
    >>> load_dataset(Data(dataset="digits")).images.shape
    torch.Size([1347, 1, 8, 8])
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtune.errors import DataError
from kdtune.experiment import Data

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
DIGITS_TEST_SHARE = 0.25
TEST_SEED = 0  # digits' test images are the same whatever the experiment's split_seed


@dataclass(frozen=True)
class Images:
    """Labelled images, in an order that never changes."""

    images: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64


@dataclass(frozen=True)
class Dataset:
    """What training, validation and test see. `fit` and `validation` index the training images."""

    name: str
    classes: tuple[str, ...]
    images: Tensor  # [N, C, H, W] uint8, the training images
    labels: Tensor  # [N] int64
    test: Images
    fit: Tensor  # [F] int64, ascending
    validation: Tensor  # [N - F] int64, ascending
    mean: tuple[float, ...]  # per channel, in 0..1
    std: tuple[float, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            test=Images(self.test.images.to(device), self.test.labels.to(device)),
            fit=self.fit.to(device),
            validation=self.validation.to(device),
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32, (x / 255 - mean) / std."""
        scale, shift = self._affine
        return torch.addcmul(shift, images.to(torch.float32), scale)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        """On the device, made once: a step copies nothing from the host."""
        scale, shift = affine(self.mean, self.std)
        return scale.to(self.images.device), shift.to(self.images.device)


def affine(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Scale and shift [1, C, 1, 1] that take 0..255 to normalised values in one multiplication and addition."""
    means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return 1 / (255 * stds), -means / stds


def load_dataset(config: Data) -> Dataset:
    """The data set of an experiment. Raises DataError naming the folder or file that is wrong."""
    train, test, classes = DATASETS[config.dataset](config)
    fit, validation = split(train.labels, classes, config.validation, config.split_seed)
    mean, std = _measure(train.images)
    channels = train.images.shape[1]
    for name, given in (("mean", config.mean), ("std", config.std)):
        if given is not None and len(given) != channels:
            raise DataError(
                f"data.{name} has {len(given)} values, but images of {config.dataset} have {channels} channels"
            )
    return Dataset(
        name=config.dataset,
        classes=classes,
        images=train.images,
        labels=train.labels,
        test=test,
        fit=fit,
        validation=validation,
        mean=config.mean or mean,
        std=config.std or std,
        fingerprint=_fingerprint(train, test, classes),
    )


def split(labels: Tensor, classes: Sequence[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of a stratified share: the same share of every class, at least one image.

    Raises DataError where a class has too few images to be in both.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, taken = [], []
    for label, name in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(f"class {name} has {len(members)} training images; a split needs at least 2")
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(taken).sort().values


def _measure(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation in 0..1, from exact integer counts of the 256 values."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).to(torch.float64)
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(round(mean.item(), 6))
        stds.append(max(round(variance.sqrt().item(), 6), 1e-3))  # a constant channel stays constant
    return tuple(means), tuple(stds)


def _fingerprint(train: Images, test: Images, classes: tuple[str, ...]) -> str:
    """SHA-256 of class names, ordered labels, shapes and pixels, training and test."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for part in (train, test):
        digest.update(str(tuple(part.images.shape)).encode())
        digest.update(part.labels.numpy().tobytes())
        digest.update(part.images.contiguous().numpy().data)
    return digest.hexdigest()


def _digits(config: Data) -> tuple[Images, Images, tuple[str, ...]]:
    """scikit-learn's copy of the UCI optical digits: 1,797 images, 8x8, 17 grey levels (0 to 16)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    classes = tuple("0123456789")
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # [1797, 1, 8, 8]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = split(labels, classes, DIGITS_TEST_SHARE, TEST_SEED)
    return Images(images[train], labels[train]), Images(images[test], labels[test]), classes


def _folder(config: Data) -> tuple[Images, Images, tuple[str, ...]]:
    """`root/train/<class>/*.jpg` and `root/test/<class>/*.jpg`, torchvision's ImageFolder layout."""
    assert config.root is not None
    assert config.image_size is not None
    try:
        return _read_folders(Path(config.root), config.image_size)
    except OSError as error:
        raise DataError(f"data.root: cannot read {error.filename}: {error.strerror}") from error


def _read_folders(root: Path, size: int) -> tuple[Images, Images, tuple[str, ...]]:
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root} (from {Path.cwd()}); it should hold train/ and test/")
    train = _subfolder(root, ("train",))
    test = _subfolder(root, ("test", "val", "valid", "validation"))
    classes = _classes(train)
    if _classes(test) != classes:
        odd = sorted(set(_classes(test)) ^ set(classes))
        raise DataError(
            f"{train} has {len(classes)} classes and {test} has {len(_classes(test))}; "
            f"they differ in: {', '.join(odd[:10])}"
        )
    return _read(train, classes, size), _read(test, classes, size), classes


def _subfolder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder {' or '.join(names)}; expected {root}/{names[0]}/<class>/<image>")


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folders; expected at least 2, one a class")
    return names


def _read(folder: Path, classes: tuple[str, ...], size: int) -> Images:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images_below(folder / name))
        if not found:
            known = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"class folder {folder / name} has no images (looked for {known}); fill or remove it")
        files += found
        labels += [label] * len(found)
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter lock
        decoded = list(pool.map(lambda file: _decode(file, size), files))
    return Images(torch.stack(decoded), torch.tensor(labels))


def _images_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk passes over folders that it may not read

    for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (Path(parent) / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)


def _decode(file: Path, size: int) -> Tensor:
    """RGB [3, size, size]: the shorter side scaled to `size`, then the centre."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
            pixels: Tensor = pil_to_tensor(square)
            return pixels
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {file}: {error}. Remove or repair it") from error


DATASETS: dict[str, Callable[[Data], tuple[Images, Images, tuple[str, ...]]]] = {"digits": _digits, "folder": _folder}
