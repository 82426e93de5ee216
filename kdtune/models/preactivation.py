"""Residual networks whose blocks normalise first: pre-activation ResNets and wide ResNets, for 32x32 images.

`PreResNet`    `preresnet110` (He et al. 2016, "Identity mappings in deep residual networks"): basic blocks, stages of
               16, 32 and 64 channels
`WideResNet`   `wrn-D-K` (Zagoruyko and Komodakis 2016): D = 6n + 4 layers, stages K times as wide, optional dropout

Taps are the outputs of the stages as they stand, before the next block's BatchNorm and ReLU.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.models.parts import ImageShape, init_convolutions


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice. Shortcuts that change shape are 1x1 convolutions of the block's input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = self.conv1(F.relu(self.bn1(features)))
        return self.conv2(F.relu(self.bn2(inner))) + shortcut  # type: ignore[no-any-return]


class PreResNet(nn.Module):
    """6n + 2 layers of basic blocks. Taps: `layer1`, `layer2`, `layer3`.

    Parameters are named as in bearpaw/pytorch-classification. That code gives networks of 44 layers and more
    bottleneck blocks (its "110" has 164 layers and as many parameters): those checkpoints do not load.
    """

    taps = ("layer1", "layer2", "layer3")

    def __init__(self, blocks: int, image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
        self.layer1 = self._stage(blocks, 16, 16, stride=1)
        self.layer2 = self._stage(blocks, 16, 32, stride=2)
        self.layer3 = self._stage(blocks, 32, 64, stride=2)
        self.bn = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, classes)
        init_convolutions(self)

    @staticmethod
    def _stage(blocks: int, channels: int, width: int, stride: int) -> nn.Sequential:
        first = PreActivationBlock(channels, width, stride)
        return nn.Sequential(first, *(PreActivationBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))  # [B, 64, H/4, W/4]
        logits: Tensor = self.fc(F.relu(self.bn(features)).mean(dim=(2, 3)))  # [B, classes]
        return logits


class WideBlock(nn.Module):
    """As above, with dropout between the convolutions; a shortcut that changes width starts after the first ReLU."""

    def __init__(self, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if channels != width:
            self.convShortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        inner = F.relu(self.bn2(self.conv1(active)))
        shortcut = features if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(self.dropout(inner)) + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Taps: `block1`, `block2`, `block3`. Parameters are named as in RepDistiller, so that its checkpoints load."""

    taps = ("block1", "block2", "block3")

    def __init__(
        self, depth: int, widening: int, image_shape: ImageShape, classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        assert rest == 0
        widths = (16 * widening, 32 * widening, 64 * widening)
        self.conv1 = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
        self.block1 = self._stage(blocks, 16, widths[0], 1, dropout)
        self.block2 = self._stage(blocks, widths[0], widths[1], 2, dropout)
        self.block3 = self._stage(blocks, widths[1], widths[2], 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(blocks: int, channels: int, width: int, stride: int, dropout: float) -> nn.Sequential:
        first = WideBlock(channels, width, stride, dropout)
        rest = (WideBlock(width, width, 1, dropout) for _ in range(blocks - 1))
        return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.block3(self.block2(self.block1(self.conv1(images))))  # [B, widths[2], H/4, W/4]
        logits: Tensor = self.fc(F.relu(self.bn1(features)).mean(dim=(2, 3)))  # [B, classes]
        return logits
