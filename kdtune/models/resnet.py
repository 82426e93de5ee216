"""ResNets for 32x32 images (He et al. 2016, section 4.2): 6n+2 layers in three stages of 16, 32 and 64 channels.

Shortcuts that change shape are 1x1 convolutions, and parameters are named as in torchvision (`layer1.0.conv1`,
`downsample`, `fc`), the layout in which checkpoints for these networks are published. The `x4` networks have stages
of 64, 128 and 256 channels behind a 32-channel stem, as in the CIFAR-100 tables of Tian et al. 2020.
"""

from torch import Tensor, nn

from kdtune.models.parts import ImageShape, init_convolutions


class BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        features = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(features)) + shortcut)  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """Taps: `layer1`, `layer2`, `layer3`, the outputs of the stages."""

    taps = ("layer1", "layer2", "layer3")

    def __init__(self, blocks: int, widths: tuple[int, int, int, int], image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, widths[0], widths[1], stride=1)
        self.layer2 = _stage(blocks, widths[1], widths[2], stride=2)
        self.layer3 = _stage(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))  # [B, widths[0], H, W]
        features = self.layer3(self.layer2(self.layer1(features)))  # [B, widths[3], H/4, W/4]
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))  # [B, classes]
        return logits


def _stage(blocks: int, channels: int, width: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
