"""torchvision's own ResNets (He et al. 2016): `resnet18`, `resnet34`, `resnet50`, `resnet152`, and a stem for CIFAR.

The stem for ImageNet is a 7x7 convolution of stride 2 and max-pooling; `-cifar` has a 3x3 convolution of stride 1 and
no pooling, for 32x32 images. Parameters are torchvision's, so that its checkpoints load, all but `conv1` where the
stem or the number of channels differs. Taps: `layer1` to `layer4`.

torchvision is imported when a network is built: importing it takes longer than everything else here.
"""

from torch import nn

from kdtune.models.parts import ImageShape, init_convolutions


def torchvision_resnet(depth: int, cifar_stem: bool, image_shape: ImageShape, classes: int) -> nn.Module:
    from torchvision.models import resnet

    network: nn.Module = getattr(resnet, f"resnet{depth}")(weights=None, num_classes=classes)
    channels = image_shape[0]
    if cifar_stem:
        stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        stem = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if cifar_stem or channels != 3:
        init_convolutions(stem)
        network.conv1 = stem
    network.taps = ("layer1", "layer2", "layer3", "layer4")  # type: ignore[assignment]  # typed as parts of the network
    return network
