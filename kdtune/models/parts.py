"""What several networks share: the shape of an image, the smallest one, and how convolutions begin."""

from torch import nn

from kdtune.errors import ModelError

ImageShape = tuple[int, int, int]  # channels, height, width


def need_pixels(image_shape: ImageShape, side: int) -> None:
    """Raises ModelError where pooling would leave nothing of the image; `build_model` puts the model's name before."""
    _, height, width = image_shape
    if min(height, width) < side:
        raise ModelError(
            f"takes images of at least {side}x{side} pixels, given {height}x{width}; smaller ones are pooled to nothing"
        )


def init_convolutions(network: nn.Module) -> None:
    """Normal weights with variance 2 / (kernel area * output channels), biases zero (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(linear: nn.Linear) -> None:
    """Normal weights with standard deviation 0.01, bias zero, as VGG and MobileNet begin."""
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
