"""ResNeXt for 32x32 images (Xie et al. 2017, section 5.3): `resnext29-8x64` has 29 layers and 8 groups of 64 channels.

Three stages of three bottlenecks (1x1, grouped 3x3, 1x1) with 256, 512 and 1024 channels out. Parameters are named as
in prlz77/ResNeXt.pytorch (`stage_1.stage_1_bottleneck_0.conv_reduce`), so that its checkpoints load.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.models.parts import ImageShape, init_convolutions


class GroupedBottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, groups: int, inner: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, width, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()  # identity
        if channels != width:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.bn_reduce(self.conv_reduce(features)), inplace=True)
        inner = F.relu(self.bn(self.conv_conv(inner)), inplace=True)
        inner = self.bn_expand(self.conv_expand(inner))
        return F.relu(self.shortcut(features) + inner, inplace=True)


class CifarResNeXt(nn.Module):
    """Taps: `stage_1`, `stage_2`, `stage_3`."""

    taps = ("stage_1", "stage_2", "stage_3")

    def __init__(self, groups: int, group_width: int, image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        inner = groups * group_width  # doubles with each stage, as the stage's own width does
        self.stage_1 = _stage("stage_1", 64, 256, 1, groups, inner)
        self.stage_2 = _stage("stage_2", 256, 512, 2, groups, 2 * inner)
        self.stage_3 = _stage("stage_3", 512, 1024, 2, groups, 4 * inner)
        self.classifier = nn.Linear(1024, classes)
        init_convolutions(self)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn_1(self.conv_1_3x3(images)), inplace=True)  # [B, 64, H, W]
        features = self.stage_3(self.stage_2(self.stage_1(features)))  # [B, 1024, H/4, W/4]
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))  # [B, classes]
        return logits


def _stage(name: str, channels: int, width: int, stride: int, groups: int, inner: int) -> nn.Sequential:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(3):
        blocks[f"{name}_bottleneck_{k}"] = GroupedBottleneck(channels, width, stride, groups, inner)
        channels, stride = width, 1
    return nn.Sequential(blocks)
