"""DenseNet for 32x32 images (Huang et al. 2017): `densenet100-12` is DenseNet-BC with 100 layers, 12 channels a layer.

Three dense blocks of bottleneck layers (1x1 then 3x3, its output put beside its input); between them a 1x1 convolution
halves the channels and average pooling the image. Parameters are named as in bearpaw/pytorch-classification, so that
its checkpoints load.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.models.parts import ImageShape, init_convolutions, need_pixels


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(features)))
        new = self.dropout(self.conv2(F.relu(self.bn2(new))))
        return torch.cat((features, new), dim=1)


class Transition(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(features))), 2)


class DenseNet(nn.Module):
    """Taps: `dense1`, `dense2`, `dense3`. `dropout` comes after every 3x3 convolution."""

    taps = ("dense1", "dense2", "dense3")

    def __init__(self, depth: int, growth: int, image_shape: ImageShape, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        need_pixels(image_shape, 4)
        layers = (depth - 4) // 6
        channels = 2 * growth
        self.conv1 = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False)
        self.dense1 = _dense(layers, channels, growth, dropout)
        channels += layers * growth
        self.trans1 = Transition(channels, channels // 2)
        channels //= 2
        self.dense2 = _dense(layers, channels, growth, dropout)
        channels += layers * growth
        self.trans2 = Transition(channels, channels // 2)
        channels //= 2
        self.dense3 = _dense(layers, channels, growth, dropout)
        channels += layers * growth
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trans1(self.dense1(self.conv1(images)))  # [B, 108, H/2, W/2]
        features = self.trans2(self.dense2(features))  # [B, 150, H/4, W/4]
        features = F.relu(self.bn(self.dense3(features)))  # [B, 342, H/4, W/4]
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))  # [B, classes]
        return logits


def _dense(layers: int, channels: int, growth: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(channels + k * growth, growth, dropout) for k in range(layers)))
