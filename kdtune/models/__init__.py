"""The model zoo: `build_model(name, image_shape, classes, options)`, and taps on the feature maps inside.

A model takes images [B, C, H, W] and gives logits [B, classes]. `name` is one of MODELS, `timm:<name>` or
`module:function`. `check_model` refuses beforehand what cannot be built; `stages_of` names a model's taps.

    zoo              MODELS by name, `build_model`
    mlp, cnn, resnet, preactivation, resnext, densenet, vgg, mobile, torchvision_resnet    the networks
    foreign          timm's models, and functions of your own
    taps, probe      feature maps; a model tried with one image
    layout           channels last in memory
    costs            parameters, bytes, operations and milliseconds an image
"""

from kdtune.models.costs import cost_of, costs, flops, latency_ms
from kdtune.models.layout import channels_last
from kdtune.models.parts import ImageShape
from kdtune.models.probe import check_model, stages, tap_shapes
from kdtune.models.taps import Tapped, stages_of
from kdtune.models.zoo import MODELS, build_model, count_parameters, options_of, rebuild_model

__all__ = [
    "MODELS",
    "ImageShape",
    "Tapped",
    "build_model",
    "channels_last",
    "check_model",
    "cost_of",
    "costs",
    "count_parameters",
    "flops",
    "latency_ms",
    "options_of",
    "rebuild_model",
    "stages",
    "stages_of",
    "tap_shapes",
]
