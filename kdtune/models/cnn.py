"""Small convolutional networks without shortcuts.

`PlainCNN`       `cnn-32-64-64`, named for its widths
`AssistantCNN`   `plain-cnn-2` to `plain-cnn-10`, the plain CNNs of Mirzadeh et al. 2020 (teacher assistants)
`FiveLayerCNN`   `cnn-5-layer`, three convolutions and two linear layers: a shallow student for a deep teacher
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.models.parts import ImageShape, need_pixels


class PlainCNN(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU; each after the first halves the image; then global average pooling.

    Any image size and channel count fits. Taps: `blocks.0`, `blocks.1`, ... (each after its ReLU).
    """

    def __init__(self, widths: tuple[int, ...], image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        channels = image_shape[0]
        blocks = []
        for k, width in enumerate(widths):
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels, width, 3, stride=1 if k == 0 else 2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
            )
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)
        self.taps = tuple(f"blocks.{k}" for k in range(len(widths)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(images)  # [B, widths[-1], H', W']
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))  # [B, classes]
        return logits


# The widths of each stage, by the number of convolutions. The paper has one list for CIFAR-10 and a wider one for
# CIFAR-100; the wider one is taken for more than 10 classes.
Stages = tuple[tuple[int, ...], ...]
UP_TO_10_CLASSES: dict[int, Stages] = {
    2: ((16,), (16,)),
    4: ((16, 16), (32, 32)),
    6: ((16, 16), (32, 32), (64, 64)),
    8: ((16, 16), (32, 32), (64, 64), (128, 128)),
    10: ((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)),
}
MORE_CLASSES: dict[int, Stages] = {
    2: ((32,), (32,)),
    4: ((32, 32), (64, 64)),
    6: ((32, 32), (64, 64), (128, 128)),
    8: ((32, 32), (64, 64), (128, 128), (256, 256)),
    10: ((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)),
}


class AssistantCNN(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU, each stage max-pooled by 2; then one or two linear layers.

    With 8 and 10 convolutions there is a hidden linear layer. The widths depend on the number of classes, see above;
    `plain-cnn-6` for more than 10 classes does not pool its last stage. Taps: the last ReLU of each stage
    (`conv_layers.2`, ...). Parameters are named as in the paper's code, so that its checkpoints load.
    """

    def __init__(self, convolutions: int, image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        wide = classes > 10
        stages = (MORE_CLASSES if wide else UP_TO_10_CLASSES)[convolutions]
        hidden = {8: 64, 10: 512 if wide else 128}.get(convolutions)
        poolings = len(stages) - (wide and convolutions == 6)
        need_pixels(image_shape, 2**poolings)
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        taps = []
        for k, stage in enumerate(stages):
            for filters in stage:
                layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
                channels = filters
            taps.append(f"conv_layers.{len(layers) - 1}")
            if k < poolings:
                layers.append(nn.MaxPool2d(2))
        self.conv_layers = nn.Sequential(*layers)
        flat = channels * (height >> poolings) * (width >> poolings)
        inner = [nn.Linear(flat, hidden), nn.ReLU(inplace=True)] if hidden else []
        self.fc_layers = nn.Sequential(*inner, nn.Linear(hidden or flat, classes))
        self.taps = tuple(taps)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv_layers(images)  # [B, widths[-1], H', W']
        logits: Tensor = self.fc_layers(features.flatten(1))  # [B, classes]
        return logits


class FiveLayerCNN(nn.Module):
    """Three 3x3 convolutions of 32, 64 and 128 channels, each pooled by 2, then a hidden layer of 128 with dropout.

    The network of github.com/haitongli/knowledge-distillation-pytorch; its checkpoints load. Taps: `relu1`, `relu2`,
    `relu3`, after pooling and ReLU.
    """

    taps = ("relu1", "relu2", "relu3")

    def __init__(self, image_shape: ImageShape, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        need_pixels(image_shape, 8)
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(128)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(128 * (height // 8) * (width // 8), 128)
        self.fcbn1 = nn.BatchNorm1d(128)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu1(F.max_pool2d(self.bn1(self.conv1(images)), 2))  # [B, 32, H/2, W/2]
        features = self.relu2(F.max_pool2d(self.bn2(self.conv2(features)), 2))  # [B, 64, H/4, W/4]
        features = self.relu3(F.max_pool2d(self.bn3(self.conv3(features)), 2))  # [B, 128, H/8, W/8]
        hidden = F.relu(self.fcbn1(self.fc1(features.flatten(1))))  # [B, 128]
        logits: Tensor = self.fc2(self.dropout(hidden))  # [B, classes]
        return logits
