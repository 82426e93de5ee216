"""The model zoo: `build_model(name, image_shape, classes)`, and taps on the feature maps inside.

A model takes images [B, C, H, W] and gives logits [B, classes]; its `taps` name the modules whose outputs are its
feature maps. Adding one is a line here and its name in `experiment.models.ModelName`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from kdtune.models.cnn import PlainCNN
from kdtune.models.resnet import CifarResNet
from kdtune.models.taps import Tapped

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn-8": partial(PlainCNN, (8,)),
    "cnn-12": partial(PlainCNN, (12,)),
    "cnn-16": partial(PlainCNN, (16,)),
    "cnn-4-8": partial(PlainCNN, (4, 8)),
    "cnn-8-16": partial(PlainCNN, (8, 16)),
    "cnn-16-32": partial(PlainCNN, (16, 32)),
    "cnn-32-64": partial(PlainCNN, (32, 64)),
    "cnn-32-64-64": partial(PlainCNN, (32, 64, 64)),
    "resnet8": partial(CifarResNet, 1, NARROW),
    "resnet14": partial(CifarResNet, 2, NARROW),
    "resnet20": partial(CifarResNet, 3, NARROW),
    "resnet32": partial(CifarResNet, 5, NARROW),
    "resnet44": partial(CifarResNet, 7, NARROW),
    "resnet56": partial(CifarResNet, 9, NARROW),
    "resnet110": partial(CifarResNet, 18, NARROW),
    "resnet8x4": partial(CifarResNet, 1, WIDE),
    "resnet32x4": partial(CifarResNet, 5, WIDE),
}


def build_model(
    name: str, image_shape: tuple[int, int, int], classes: int, options: Mapping[str, object] | None = None
) -> nn.Module:
    """A freshly initialised model for images (C, H, W); torch's global generator decides the weights."""
    return MODELS[name](image_shape[0], classes)


def tap_shapes(
    name: str, taps: Sequence[str], image_shape: tuple[int, int, int], options: Mapping[str, object] | None = None
) -> list[tuple[int, ...]]:
    """Shape of each tap's output for one image (C, H, W), found on the meta device: nothing is computed."""
    with torch.device("meta"), torch.no_grad():
        ghost = Tapped(build_model(name, image_shape, classes=2, options=options), taps).eval()
        _, features = ghost(torch.empty((1, *image_shape)))
    return [tuple(feature.shape[1:]) for feature in features]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


__all__ = ["MODELS", "Tapped", "build_model", "count_parameters", "tap_shapes"]
