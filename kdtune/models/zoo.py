"""Every network of kdtune's own by name, and `build_model`, which also builds timm's and the user's.

An entry is called as `MODELS[name](image_shape, classes, **options)`; its keyword-only parameters are the options of
the model, all of them dropout rates so far. Adding one is a line here and its name in `experiment.networks`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from kdtune.errors import ModelError, nearest
from kdtune.models.cnn import AssistantCNN, FiveLayerCNN, PlainCNN
from kdtune.models.densenet import DenseNet
from kdtune.models.foreign import build_foreign
from kdtune.models.mlp import MLP
from kdtune.models.mobile import MobileNetV2, ShuffleNetV2
from kdtune.models.parts import ImageShape
from kdtune.models.preactivation import PreResNet, WideResNet
from kdtune.models.resnet import CifarResNet
from kdtune.models.resnext import CifarResNeXt
from kdtune.models.torchvision_resnet import torchvision_resnet
from kdtune.models.vgg import VGG

OWN_WEIGHTS = ("pretrained", "checkpoint_path")  # options of timm's that load weights
NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn-8": partial(PlainCNN, (8,)),
    "cnn-12": partial(PlainCNN, (12,)),
    "cnn-16": partial(PlainCNN, (16,)),
    "cnn-4-8": partial(PlainCNN, (4, 8)),
    "cnn-8-16": partial(PlainCNN, (8, 16)),
    "cnn-16-32": partial(PlainCNN, (16, 32)),
    "cnn-32-64": partial(PlainCNN, (32, 64)),
    "cnn-32-64-64": partial(PlainCNN, (32, 64, 64)),
    "mlp-800-800": partial(MLP, (800, 800)),
    "mlp-1200-1200": partial(MLP, (1200, 1200)),
    "plain-cnn-2": partial(AssistantCNN, 2),
    "plain-cnn-4": partial(AssistantCNN, 4),
    "plain-cnn-6": partial(AssistantCNN, 6),
    "plain-cnn-8": partial(AssistantCNN, 8),
    "plain-cnn-10": partial(AssistantCNN, 10),
    "cnn-5-layer": FiveLayerCNN,
    "resnet8": partial(CifarResNet, 1, NARROW),
    "resnet14": partial(CifarResNet, 2, NARROW),
    "resnet20": partial(CifarResNet, 3, NARROW),
    "resnet32": partial(CifarResNet, 5, NARROW),
    "resnet44": partial(CifarResNet, 7, NARROW),
    "resnet56": partial(CifarResNet, 9, NARROW),
    "resnet110": partial(CifarResNet, 18, NARROW),
    "resnet8x4": partial(CifarResNet, 1, WIDE),
    "resnet32x4": partial(CifarResNet, 5, WIDE),
    "preresnet110": partial(PreResNet, 18),
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-1": partial(WideResNet, 40, 1),
    "wrn-40-2": partial(WideResNet, 40, 2),
    "wrn-28-10": partial(WideResNet, 28, 10),
    "resnext29-8x64": partial(CifarResNeXt, 8, 64),
    "densenet100-12": partial(DenseNet, 100, 12),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "mobilenetv2-half": partial(MobileNetV2, 0.5),
    "shufflenetv2": ShuffleNetV2,
    "resnet18": partial(torchvision_resnet, 18, False),
    "resnet34": partial(torchvision_resnet, 34, False),
    "resnet50": partial(torchvision_resnet, 50, False),
    "resnet152": partial(torchvision_resnet, 152, False),
    "resnet18-cifar": partial(torchvision_resnet, 18, True),
    "resnet34-cifar": partial(torchvision_resnet, 34, True),
    "resnet50-cifar": partial(torchvision_resnet, 50, True),
    "resnet152-cifar": partial(torchvision_resnet, 152, True),
}


def build_model(
    name: str, image_shape: ImageShape, classes: int, options: Mapping[str, object] | None = None
) -> nn.Module:
    """A freshly initialised model for images (C, H, W); torch's global generator decides the weights.

    `name` is one of MODELS, `timm:<name>` or `module:function`. Raises ModelError where it cannot be built.
    """
    options = dict(options or {})
    if ":" in name:
        return build_foreign(name, image_shape, classes, options)
    if name not in MODELS:
        raise ModelError(
            f"no model is named {name!r}; `kdtune list models` names them, or give timm:name or module:function."
            f"{nearest(name, list(MODELS))}"
        )
    _check_options(name, options)
    try:
        return MODELS[name](image_shape, classes, **options)
    except ModelError as error:
        raise ModelError(f"{name} {error}") from None


def rebuild_model(
    name: str, image_shape: ImageShape, classes: int, options: Mapping[str, object] | None = None
) -> nn.Module:
    """`build_model` for weights that are loaded right afterwards: timm is not asked for its own, and fetches none."""
    options = dict(options or {})
    if name.startswith("timm:"):
        options = {key: value for key, value in options.items() if key not in OWN_WEIGHTS}
    return build_model(name, image_shape, classes, options)


def options_of(name: str) -> tuple[str, ...]:
    """The options that a model of MODELS takes."""
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _check_options(name: str, options: Mapping[str, object]) -> None:
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            raise ModelError(
                f"{name} has no option {option!r}; its options: {', '.join(known) or 'none'}."
                f"{nearest(option, list(known))}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ModelError(f"{name}: option {option!r} is a rate from 0 to below 1, given {value!r}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
