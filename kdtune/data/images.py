"""Images in memory, and images that stay on disk: which files they are, and how one of them becomes pixels.

square(path, 32)                            # [3, 32, 32] uint8: as folders in memory are decoded
prepare(path, (1, 28, 28), "fit")           # [1, 28, 28] uint8: any file, as a student's training images were made
ImageFiles(root, names, side=224).decode(index, None, flipped=False, scale=(0.08, 1.0))
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdtune.data.views import crop_box
from kdtune.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

CPU = torch.device("cpu")
PLAIN_SCALE = 256 / 224  # a plain view's shorter side before the centre is cut out, as ImageNet is evaluated


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images that are decoded anew whenever they are read; `read` gives them as squares on `device`.

    Their names lie in one array, so that processes which decode share them instead of copying a list of strings.
    """

    root: str
    names: npt.NDArray[np.bytes_]  # [N], relative to `root`
    side: int
    device: torch.device = CPU
    workers: Literal["auto"] | int = "auto"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), as of a tensor of images."""
        return len(self.names), 3, self.side, self.side

    def to(self, device: torch.device) -> "ImageFiles":
        return replace(self, device=device)

    def path(self, index: int) -> Path:
        return Path(self.root) / os.fsdecode(self.names[index])

    def decode(self, index: int, crop: Sequence[int] | None, scale: tuple[float, float], *, flipped: bool) -> Tensor:
        """RGB [3, side, side]: a random resized crop from the numbers `crop`, or the plain image; perhaps mirrored.

        Raises DataError that names the file.
        """
        from PIL import Image

        image = open_rgb(self.path(index))
        if crop is None:
            image = _plain(image, self.side)
        else:
            box = crop_box(crop, image.width, image.height, scale)
            image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box=box)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _tensor(image)


Pixels = Tensor | ImageFiles


@dataclass(frozen=True)
class Images:
    """Labelled images, in an order that never changes."""

    images: Pixels  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64, -1 where an image has none

    @property
    def pixels(self) -> Tensor:
        """The images as a tensor; for those that are in memory."""
        assert isinstance(self.images, Tensor)
        return self.images


def square(file: Path, size: int) -> Tensor:
    """RGB [3, size, size]: the shorter side scaled to `size`, then the centre."""
    return _tensor(_fit(open_rgb(file), size, size))


def prepare(file: Path, shape: tuple[int, int, int], resize: str, *, upright: bool = False) -> Tensor:
    """uint8 [C, H, W] of an image file of any size and mode, made as large as `shape` by one of RESIZES.

    One channel is grey, three are RGB. `upright` turns a photograph as its EXIF orientation says, which training does
    not. Raises DataError that names the file.
    """
    channels, height, width = shape
    image = RESIZES[resize](open_rgb(file, upright=upright), width, height)
    return _tensor(image if channels == 3 else image.convert("L"))


def open_rgb(file: Path, *, upright: bool = False) -> "Image.Image":
    """A decoded image, turned as its EXIF orientation says if `upright`. Raises DataError that names the file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened) if upright else opened
            if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"there is no image {file}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {file}: {error}. Remove or repair it") from error


def _fit(image: "Image.Image", width: int, height: int) -> "Image.Image":
    """The largest centred part of that aspect, scaled."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def _plain(image: "Image.Image", side: int) -> "Image.Image":
    """torchvision's `Resize(round(side * 256 / 224))` and `CenterCrop(side)`."""
    from PIL import Image

    short = round(side * PLAIN_SCALE)
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))


RESIZES: dict[str, Callable[["Image.Image", int, int], "Image.Image"]] = {
    "fit": _fit,  # images in memory
    "centre-crop": lambda image, width, _: _plain(image, width),  # images on disk, which are square
}


def resize_of(images: Pixels) -> str:
    """Which of RESIZES makes a file an image like these, without augmentation."""
    return "centre-crop" if isinstance(images, ImageFiles) else "fit"


def _tensor(image: "Image.Image") -> Tensor:
    values: npt.NDArray[Any] = np.array(image)  # [H, W, 3] uint8, or [H, W]
    return torch.from_numpy(values).view(image.height, image.width, -1).permute(2, 0, 1)
