"""Networks for small devices, in the variants for 32x32 images that the tables of Tian et al. 2020 use.

`MobileNetV2`    `mobilenetv2-half` (Sandler et al. 2018): inverted residuals, half as wide, expansion 6
`ShuffleNetV2`   `shufflenetv2` (Ma et al. 2018): width 1, behind a 1x1 stem without pooling

Parameters are named as in RepDistiller, so that its checkpoints load.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.models.parts import ImageShape, init_classifier, init_convolutions


def _conv(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width)]


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 to few without ReLU; the shortcut joins the narrow ends."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.has_shortcut = stride == 1 and channels == width
        self.conv = nn.Sequential(
            *_conv(channels, inner, 1),
            nn.ReLU(inplace=True),
            *_conv(inner, inner, 3, stride, groups=inner),
            nn.ReLU(inplace=True),
            *_conv(inner, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.conv(features)
        return features + inner if self.has_shortcut else inner


# Expansion, width before halving, blocks, stride of the first block. The second stage keeps its size: images are small.
MOBILE_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class MobileNetV2(nn.Module):
    """Taps: `blocks.1`, `blocks.2`, `blocks.4`, `blocks.6`, the last stage at each size of the image."""

    taps = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, widening: float, image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        channels = int(32 * widening)
        self.conv1 = nn.Sequential(*_conv(image_shape[0], channels, 3, stride=2), nn.ReLU(inplace=True))
        stages = []
        for expansion, full_width, count, stride in MOBILE_STAGES:
            width = int(full_width * widening)
            blocks = [InvertedResidual(channels, width, stride, expansion)]
            blocks += [InvertedResidual(width, width, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_conv(channels, 1280, 1), nn.ReLU(inplace=True))
        linear = nn.Linear(1280, classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        init_classifier(linear)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv2(self.blocks(self.conv1(images)))  # [B, 1280, H/16, W/16]
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))  # [B, classes]
        return logits


def _shuffle(features: Tensor) -> Tensor:
    """Channels of the two halves by turns."""
    batch, channels, height, width = features.shape
    halves = features.view(batch, 2, channels // 2, height, width)
    return halves.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleBlock(nn.Module):
    """Half of the channels pass untouched, half go through 1x1, depthwise 3x3, 1x1; then they are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _conv(half, half, 1)
        self.conv2, self.bn2 = _conv(half, half, 3, groups=half)
        self.conv3, self.bn3 = _conv(half, half, 1)

    def forward(self, features: Tensor) -> Tensor:
        kept, used = features.chunk(2, dim=1)
        used = F.relu(self.bn1(self.conv1(used)))
        used = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(used)))))
        return _shuffle(torch.cat((kept, used), dim=1))


class ShuffleDownBlock(nn.Module):
    """Halves the image: all channels go through both branches."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = _conv(channels, channels, 3, stride=2, groups=channels)
        self.conv2, self.bn2 = _conv(channels, half, 1)
        self.conv3, self.bn3 = _conv(channels, half, 1)
        self.conv4, self.bn4 = _conv(half, half, 3, stride=2, groups=half)
        self.conv5, self.bn5 = _conv(half, half, 1)

    def forward(self, features: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(features)))))
        right = F.relu(self.bn3(self.conv3(features)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return _shuffle(torch.cat((left, right), dim=1))


class ShuffleNetV2(nn.Module):
    """Taps: `layer1`, `layer2`, `layer3`."""

    taps = ("layer1", "layer2", "layer3")

    def __init__(self, image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(image_shape[0], 24, 1)
        self.layer1 = self._stage(24, 116, blocks=3)
        self.layer2 = self._stage(116, 232, blocks=7)
        self.layer3 = self._stage(232, 464, blocks=3)
        self.conv2, self.bn2 = _conv(464, 1024, 1)
        self.linear = nn.Linear(1024, classes)

    @staticmethod
    def _stage(channels: int, width: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(ShuffleDownBlock(channels, width), *(ShuffleBlock(width) for _ in range(blocks)))

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))  # [B, 24, H, W]
        features = self.layer3(self.layer2(self.layer1(features)))  # [B, 464, H/8, W/8]
        features = F.relu(self.bn2(self.conv2(features)))  # [B, 1024, H/8, W/8]
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))  # [B, classes]
        return logits
