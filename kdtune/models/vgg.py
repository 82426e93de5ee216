"""VGG for small images (Simonyan and Zisserman 2015), with BatchNorm and one linear layer, as in Tian et al. 2020.

Five blocks of 3x3 convolutions; max-pooling by 2 after the first three, and after the fourth for images of 64 pixels
and more; global average pooling after the last. Parameters are named as in RepDistiller, so that its checkpoints load.
"""

from torch import Tensor, nn

from kdtune.models.parts import ImageShape, init_classifier, init_convolutions, need_pixels

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Taps: `block0` to `block4`, each after its last ReLU and before pooling."""

    taps = tuple(f"block{k}" for k in range(5))

    def __init__(self, depths: tuple[int, int, int, int, int], image_shape: ImageShape, classes: int) -> None:
        super().__init__()
        need_pixels(image_shape, 8)
        before = (image_shape[0], *WIDTHS[:-1])
        self.block0 = _block(depths[0], before[0], WIDTHS[0])
        self.block1 = _block(depths[1], before[1], WIDTHS[1])
        self.block2 = _block(depths[2], before[2], WIDTHS[2])
        self.block3 = _block(depths[3], before[3], WIDTHS[3])
        self.block4 = _block(depths[4], before[4], WIDTHS[4])
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(WIDTHS[4], classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.block0(images))  # [B, 64, H/2, W/2]
        features = self.pool(self.block1(features))  # [B, 128, H/4, W/4]
        features = self.pool(self.block2(features))  # [B, 256, H/8, W/8]
        features = self.block3(features)  # [B, 512, H/8, W/8]
        if min(images.shape[2:]) >= 64:
            features = self.pool(features)
        features = self.block4(features)  # [B, 512, H', W']
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))  # [B, classes]
        return logits


def _block(depth: int, channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)
