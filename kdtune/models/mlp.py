"""Multilayer perceptrons, named for their hidden layers: `mlp-800-800` is the student of Hinton et al. 2015, section 3.

The image is flattened; every hidden layer is a linear layer with ReLU, and dropout after it. `input_dropout` drops
pixels. Both are rates of what is dropped, 0 by default.
"""

from math import prod

from torch import Tensor, nn

from kdtune.models.parts import ImageShape


class MLP(nn.Module):
    """Taps: `hidden.0`, `hidden.1`, ...: each [B, width] after its ReLU and before dropout."""

    def __init__(
        self,
        widths: tuple[int, ...],
        image_shape: ImageShape,
        classes: int,
        *,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (prod(image_shape), *widths)
        self.input_dropout = nn.Dropout(input_dropout)
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(inplace=True))
            for before, after in zip(sizes[:-1], widths, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(sizes[-1], classes)
        self.taps = tuple(f"hidden.{k}" for k in range(len(widths)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.input_dropout(images.flatten(1))  # [B, C*H*W]
        for layer in self.hidden:
            features = self.dropout(layer(features))  # [B, width]
        logits: Tensor = self.fc(features)  # [B, classes]
        return logits
