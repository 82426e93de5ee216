"""Plain CNNs, named for their widths: `cnn-32-64-64` has three convolutions.

Every convolution is 3x3 with BatchNorm and ReLU; each after the first halves the image; then global average pooling
and one linear layer, so that any image size and channel count fits.
"""

from torch import Tensor, nn


class PlainCNN(nn.Module):
    """Taps: `blocks.0`, `blocks.1`, ... (each after its ReLU)."""

    def __init__(self, widths: tuple[int, ...], channels: int, classes: int) -> None:
        super().__init__()
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
