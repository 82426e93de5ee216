"""What a model does, tried on the CPU with one image.

`check_model` says before a search whether a model can be built and fits the images; `tap_shapes` foretells feature
maps. torch's global generator stays as it was. The meta device would compute nothing, but the first convolution on it
imports sympy and torch's compiler: three seconds, where ResNet-50 is built and asked in two.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdtune.errors import ModelError
from kdtune.models.parts import ImageShape
from kdtune.models.taps import Tapped, stages_of
from kdtune.models.zoo import build_model

T = TypeVar("T")


def check_model(name: str, image_shape: ImageShape, classes: int, options: Mapping[str, object] | None = None) -> None:
    """Raises ModelError unless the model can be built and gives [B, classes] for images (C, H, W)."""
    logits = _try(name, image_shape, classes, options, lambda network, images: network(images))
    if not isinstance(logits, Tensor):
        raise ModelError(f"{name} gives {type(logits).__name__}, expected one tensor of logits [images, classes]")
    if tuple(logits.shape) != (1, classes):
        given = ", ".join(str(size) for size in logits.shape)
        raise ModelError(f"{name} gives [{given}] for one image of {_pixels(image_shape)}, expected [1, {classes}]")


def tap_shapes(
    name: str,
    taps: Sequence[str],
    image_shape: ImageShape,
    options: Mapping[str, object] | None = None,
    classes: int = 2,
) -> list[tuple[int, ...]]:
    """Shape of each tap's output for one image (C, H, W).

    `classes` matters to networks whose widths depend on it: `plain-cnn-2` to `plain-cnn-10`, and perhaps your own.
    """

    def features_of(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        _, features = Tapped(network, taps)(images)
        return features  # type: ignore[no-any-return]

    features = _try(name, image_shape, classes, options, features_of)
    for tap, feature in zip(taps, features, strict=True):
        if not isinstance(feature, Tensor):
            raise ModelError(f"{name}: tap {tap!r} gives {type(feature).__name__}, expected a tensor")
    return [tuple(feature.shape[1:]) for feature in features]


def stages(
    name: str, image_shape: ImageShape, options: Mapping[str, object] | None = None, classes: int = 2
) -> tuple[str, ...]:
    """The own taps of a model by name, as `stages_of` finds them in a network."""
    return _try(name, image_shape, classes, options, lambda network, images: stages_of(network, image_shape))


def _try(
    name: str,
    image_shape: ImageShape,
    classes: int,
    options: Mapping[str, object] | None,
    use: Callable[[nn.Module, Tensor], T],
) -> T:
    """`use` of the model and one image."""
    wanted = {
        key: value for key, value in (options or {}).items() if not (name.startswith("timm:") and key == "pretrained")
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_model(name, image_shape, classes, wanted).eval()
        try:
            return use(network, torch.zeros((1, *image_shape)))
        except ModelError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if name.startswith("timm:"):
                reason += f" (some of timm's models take options: {{img_size: {image_shape[1]}}})"
            raise ModelError(f"{name} cannot take images of {_pixels(image_shape)}: {reason}") from error


def _pixels(image_shape: ImageShape) -> str:
    channels, height, width = image_shape
    return f"{height}x{width} pixels and {channels} channel{'s' if channels > 1 else ''}"
