"""The exported student, and reading it back from its folder.

student/
  student.safetensors    the student alone: no projectors, no wrapper prefixes
  config.json            architecture, classes, image size, normalisation, fingerprint, provenance, what was measured
  README.md              model card
  student.onnx, ...      other formats (formats.py), where they were asked for

student = kdtune.load_student("runs/digits/student")
logits = student(images)      # uint8 [B, C, H, W], or floats in 0..1
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdtune.data import RESIZES, affine
from kdtune.errors import ExportError, KdtuneError
from kdtune.models import rebuild_model
from kdtune.teacher import fingerprint

log = logging.getLogger(__name__)

FORMAT = 3
READABLE = (2, 3)  # format 2 does not say how its images were prepared, nor how well it was read back
WEIGHTS = "student.safetensors"
CONFIG_KEYS = ("format", "model", "options", "fingerprint", "image_shape", "classes", "mean", "std")
FIT = "fit"
NEVER_CUT = ((1, 28, 28), (3, 32, 32))  # MNIST's and CIFAR's shapes: images that are not on disk


class ExportedStudent(nn.Module):
    """A student with its preprocessing: takes images as they are decoded, gives logits [B, classes].

    `network` is the bare student, `classes` the names of its outputs, `resize` how its images were made that large.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        resize: str = FIT,
    ) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.network = network
        self.classes = tuple(classes)
        self.image_shape = image_shape
        self.resize = resize
        scale, shift = affine(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits for uint8 images [B, C, H, W], or float images in 0..1."""
        scaled = images.to(torch.float32) if images.dtype == torch.uint8 else images * 255
        logits: Tensor = self.network(torch.addcmul(self.shift, scaled, self.scale))
        return logits


@dataclass(frozen=True)
class Description:
    """What every file of a student says about itself, so that it can be used without its folder."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # C, H, W
    resize: str  # one of data.RESIZES
    model: str
    fingerprint: str  # of the weights

    def to_json(self) -> str:
        return json.dumps(
            {"input": "images: uint8 [batch, C, H, W]", "output": "logits [batch, classes]"} | asdict(self)
        )

    @classmethod
    def from_json(cls, text: str, where: Path) -> Self:
        """Raises ExportError where the text is no description."""
        try:
            raw = json.loads(text)
            channels, height, width = raw["image_shape"]
            shape = (int(channels), int(height), int(width))
            if raw["resize"] not in RESIZES:
                raise ValueError(f"resize is {raw['resize']!r}, known are {', '.join(RESIZES)}")
            return cls(tuple(raw["classes"]), shape, raw["resize"], str(raw["model"]), str(raw["fingerprint"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ExportError(
                f"{where} is no student of kdtune: it does not say what its classes are ({error})"
            ) from None


def load_student(path: str | Path, *, allow_code: bool = False) -> ExportedStudent:
    """The student of an export folder (or of one .safetensors file in it), in eval mode on the CPU, in float32.

    Raises ExportError where it is damaged. A model that is a function of somebody's module (`module:function`) is
    called only with `allow_code`.
    """
    given = Path(path)
    folder, name = (given.parent, given.name) if given.suffix == ".safetensors" else (given, WEIGHTS)
    config, weights = _read(folder, name)
    if ":" in config["model"] and not config["model"].startswith("timm:") and not allow_code:
        raise ExportError(
            f"{folder}: its model is code of its own, {config['model']}; if you trust it, load with allow_code=True "
            f"(--allow-code)"
        )
    if fingerprint(config["model"], weights, config["options"]) != _fingerprint_in(config, name):
        raise ExportError(f"{folder}: {name} is not the file that config.json describes (fingerprint)")
    try:
        channels, height, width = config["image_shape"]
        if not len(config["mean"]) == len(config["std"]) == channels:
            raise ValueError(f"mean and std are not of {channels} channels")
        resize = config["resize"] if "resize" in config else _not_told(folder, (channels, height, width))
        if resize not in RESIZES:
            raise ValueError(f"resize is {resize!r}, known are {', '.join(RESIZES)}")
        network = rebuild_model(config["model"], (channels, height, width), len(config["classes"]), config["options"])
        network.load_state_dict({key: _widened(tensor) for key, tensor in weights.items()})
        shape = (channels, height, width)
        student = ExportedStudent(network, config["classes"], shape, config["mean"], config["std"], resize)
    except (TypeError, ValueError, RuntimeError, KdtuneError) as error:
        raise ExportError(f"{folder} is damaged: config.json and {name} do not fit: {error}") from error
    return student.eval().requires_grad_(requires_grad=False)


def _not_told(folder: Path, shape: tuple[int, int, int]) -> str:
    """How image files are prepared for an export of format 2, with a warning where its training images may have been
    cut otherwise: those on disk were, and these are RGB and square."""
    channels, height, width = shape
    if channels == 3 and height == width and shape not in NEVER_CUT:
        log.warning(
            "%s does not say how its training images were prepared. If they were ImageNet's or random crops "
            "(data.augment), image files are prepared otherwise now, and answers are worse: export it again "
            "(kdtune export RUN)",
            folder,
        )
    return FIT


def _read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights, with the keys and the format that this version reads. Raises ExportError."""
    for needed in ("config.json", name):
        if not (folder / needed).is_file():
            inner = folder / "student"
            hint = f". Did you mean {inner}?" if (inner / "config.json").is_file() else ""
            raise ExportError(f"{folder} is no export: {folder / needed} is missing{hint}")
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = safetensors.torch.load_file(folder / name)
    except (ValueError, SafetensorError) as error:
        raise ExportError(f"{folder} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{folder} is damaged: config.json is no mapping")
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise ExportError(f"{folder} is no export: config.json has no {', '.join(missing)}")
    if config["format"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise ExportError(f"{folder} is of format {config['format']}; this version reads formats {known}")
    return config, weights


def _fingerprint_in(config: Mapping[str, Any], name: str) -> object:
    """What config.json says of a file of weights; nothing of one that is not of this export."""
    if name == WEIGHTS:
        return config["fingerprint"]
    files = config.get("files")
    return files.get(name, {}).get("fingerprint") if isinstance(files, dict) else None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
