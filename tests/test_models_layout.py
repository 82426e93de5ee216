"""Channels last: every network gives what it gave, and one that needs the other layout keeps it."""

import pytest
import torch
from torch import Tensor, nn

from kdtune.models import MODELS, build_model, channels_last
from kdtune.models.foreign import build_foreign

SHAPE = (3, 32, 32)


class Viewing(nn.Module):
    """As many tutorials write it: the feature map is flattened by a `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.classifier = nn.Linear(4 * 32 * 32, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        logits: Tensor = self.classifier(features.view(len(images), -1))
        return logits


def viewing(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Viewing()


class Merging(nn.Module):
    """Right for one image in any layout, for several only in the usual one; and it draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        halves = features.view(2 * len(images), 2, 32, 32) + torch.rand(1)
        logits: Tensor = halves.mean(dim=(2, 3)).view(len(images), 4)
        return logits


def merging(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Merging()


def not_to_be_copied(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    network = Viewing()
    network.kept = network.convolution.weight * 1  # a tensor that is no leaf: deepcopy refuses it
    return network


def is_channels_last(network: nn.Module) -> bool:
    kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "mobilenetv2-half", "cnn-4-8", "resnet18-cifar"])
def test_a_network_gives_the_same_logits_and_gradients_in_either_layout(name: str) -> None:
    torch.manual_seed(0)
    plain = build_model(name, SHAPE, 5)
    other = channels_last(build_model(name, SHAPE, 5))
    other.load_state_dict(plain.state_dict())
    assert is_channels_last(other)
    assert not is_channels_last(plain)
    images = torch.randn(4, *SHAPE)
    for network in (plain, other):
        network.eval()(images).square().sum().backward()
    torch.testing.assert_close(other(images), plain(images), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in MODELS if "152" not in name])
def test_every_network_of_the_zoo_takes_it(name: str) -> None:
    network = channels_last(build_model(name, SHAPE, 5)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, *SHAPE)).shape == (1, 5)


@pytest.mark.parametrize("name", ["viewing", "merging", "not_to_be_copied"])
def test_a_network_that_needs_its_layout_or_cannot_be_tried_keeps_it(name: str) -> None:
    network = channels_last(build_foreign(f"{__name__}:{name}", SHAPE, 5, {}))
    assert not is_channels_last(network)
    assert len(network(torch.zeros(4, *SHAPE))) == 4


def test_what_is_drawn_afterwards_does_not_depend_on_the_trial_of_a_network_from_elsewhere() -> None:
    drawn = []
    for lay_out in (channels_last, lambda network: network):
        torch.manual_seed(0)
        lay_out(build_foreign(f"{__name__}:merging", SHAPE, 5, {}))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_timm_network_takes_it() -> None:
    assert is_channels_last(channels_last(build_model("timm:resnet10t", SHAPE, 5)))
