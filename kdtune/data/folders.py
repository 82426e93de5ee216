"""Class folders: `root/train/<class>/*` and `root/test/<class>/*`, torchvision's ImageFolder layout.

Small images are decoded into memory; large ones stay on disk. `root/unlabelled/`, if there is one, holds more training
images without a label, directly or in folders of any depth.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtune.data.images import ImageFiles, Images, square
from kdtune.errors import DataError
from kdtune.experiment import Data

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val", "valid", "validation")
IMAGENET_TEST_FOLDERS = ("val", "test")  # ImageNet's own test/ has no labels and is often there beside val/


@dataclass(frozen=True)
class Listing:
    """Files and their labels, class after class; -1 is no label.

    Files are strings: for the million of ImageNet, `Path`s would take longer than all the rest of loading.
    """

    files: Sequence[str]
    labels: Sequence[int]

    def images(self, config: Data) -> Images:
        labels = torch.tensor(self.labels)
        return Images(self._files(config) if config.on_disk else self._decoded(config.side), labels)

    def _files(self, config: Data) -> ImageFiles:
        assert config.root is not None
        above = os.path.join(Path(config.root), "")
        names = np.array([os.fsencode(file.removeprefix(above)) for file in self.files])
        return ImageFiles(config.root, names, config.side, workers=config.decode_workers)

    def _decoded(self, size: int) -> Tensor:
        with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter lock
            return torch.stack(list(pool.map(lambda file: square(Path(file), size), self.files)))


def read_folder(config: Data) -> tuple[Images, Images, tuple[str, ...]]:
    """The images of class folders; the test images may be in test/, val/, valid/ or validation/."""
    return _reading(config, TEST_FOLDERS)


def read_imagenet(config: Data) -> tuple[Images, Images, tuple[str, ...]]:
    """ImageNet as class folders, train/ and val/; its images stay on disk."""
    return _reading(config, IMAGENET_TEST_FOLDERS)


def _reading(config: Data, test_folders: tuple[str, ...]) -> tuple[Images, Images, tuple[str, ...]]:
    assert config.root is not None
    try:
        train, test, classes = _list(Path(config.root), test_folders)
        return train.images(config), test.images(config), classes
    except OSError as error:
        raise DataError(f"data.root: cannot read {error.filename}: {error.strerror}") from error


def _list(root: Path, test_folders: tuple[str, ...]) -> tuple[Listing, Listing, tuple[str, ...]]:
    if not root.is_dir():
        raise DataError(
            f"data.root: no folder {root} (from {Path.cwd()}); it should hold train/ and {test_folders[0]}/"
        )
    train = _subfolder(root, ("train",))
    test = _subfolder(root, test_folders)
    classes = _classes(train)
    if _classes(test) != classes:
        odd = sorted(set(_classes(test)) ^ set(classes))
        raise DataError(
            f"{train} has {len(classes)} classes and {test} has {len(_classes(test))}; "
            f"they differ in: {', '.join(odd[:10])}"
        )
    labelled, unlabelled = _labelled(train, classes), root / "unlabelled"
    if unlabelled.is_dir():
        more = _found(unlabelled, "folder")
        labelled = Listing([*labelled.files, *more], [*labelled.labels, *[-1] * len(more)])
    return labelled, _labelled(test, classes), classes


def list_classes(folder: Path) -> tuple[Listing, tuple[str, ...]]:
    """The files of `folder/<class>/*` and the names of the classes. Raises DataError where there are none."""
    try:
        classes = _named(folder)
        if not classes:
            raise DataError(f"{folder} has no class folders; expected {folder}/<class>/<image>")
        return _labelled(folder, classes), classes
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and those in it, by the names of folders, then of files. Raises DataError."""
    try:
        return sorted(map(Path, _images_below(folder)))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def _subfolder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder {' or '.join(names)}; expected {root}/{names[0]}/<class>/<image>")


def _classes(folder: Path) -> tuple[str, ...]:
    names = _named(folder)
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folders; expected at least 2, one a class")
    return names


def _named(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _labelled(folder: Path, classes: tuple[str, ...]) -> Listing:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _found(folder / name, "class folder")
        files += found
        labels += [label] * len(found)
    return Listing(files, labels)


def _found(folder: Path, what: str) -> list[str]:
    """In the order of `Path`s: by the names of folders, then of files."""
    found = sorted(_images_below(folder), key=lambda file: file.split(os.sep))
    if not found:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{what} {folder} has no images (looked for {known}); fill or remove it")
    return found


def _images_below(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk passes over folders that it may not read

    for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.join(parent, name)


FOLDERS: dict[str, Callable[[Data], tuple[Images, Images, tuple[str, ...]]]] = {
    "folder": read_folder,
    "imagenet": read_imagenet,
}
