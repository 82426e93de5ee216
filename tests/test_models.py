"""The model zoo: shapes, taps, published parameter counts, the residual block against torchvision's.

Shapes: B images, C channels, H x W pixels.
"""

import weakref

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from kdtune.models import MODELS, Tapped, build_model, count_parameters, tap_shapes
from kdtune.models.cnn import PlainCNN
from kdtune.models.resnet import BasicBlock, CifarResNet

# Parameters for 100 classes and RGB images, as the tables of CIFAR-100 distillation have them (Tian et al. 2020).
PUBLISHED = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
}


def taps_of(network: nn.Module) -> tuple[str, ...]:
    taps = network.taps
    assert isinstance(taps, tuple)
    return taps


def ghost(name: str, channels: int, classes: int) -> nn.Module:
    """The model on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return build_model(name, (channels, 8, 8), classes)


@pytest.fixture
def images() -> Tensor:
    return torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_logit_a_class_for_grey_and_colour_images(name: str, channels: int) -> None:
    logits = build_model(name, (channels, 8, 8), 7).eval()(torch.zeros(2, channels, 8, 8))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["cnn-16", "cnn-32-64-64", "resnet8", "resnet8x4"])
@pytest.mark.parametrize("size", [(4, 4), (7, 9), (32, 32)])
def test_a_model_takes_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    assert build_model(name, (3, *size), 5).eval()(torch.zeros(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("name", MODELS)
def test_every_tap_has_the_shape_that_tap_shapes_foretells(name: str) -> None:
    network = build_model(name, (3, 8, 8), 7).eval()
    taps = taps_of(network)
    assert taps
    assert set(taps) <= {module for module, _ in network.named_modules()}
    _, features = Tapped(network, taps)(torch.zeros(2, 3, 9, 12))
    assert [tuple(feature.shape[1:]) for feature in features] == tap_shapes(name, taps, (3, 9, 12))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("cnn-32-64-64", [(32, 8, 8), (64, 4, 4), (64, 2, 2)]),
        ("resnet20", [(16, 8, 8), (32, 4, 4), (64, 2, 2)]),
        ("resnet8x4", [(64, 8, 8), (128, 4, 4), (256, 2, 2)]),
    ],
)
def test_each_stage_after_the_first_halves_the_image(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert tap_shapes(name, taps_of(ghost(name, 1, 2)), (1, 8, 8)) == shapes


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_the_parameters_are_as_many_as_published(name: str, parameters: int) -> None:
    assert count_parameters(ghost(name, 3, 100)) == parameters


def test_a_cnn_has_as_many_parameters_as_worked_out_by_hand() -> None:
    # 3x3 convolutions without bias, two numbers a channel for BatchNorm, a linear layer with bias
    by_hand = (9 * 1 * 4 + 2 * 4) + (9 * 4 * 8 + 2 * 8) + (8 * 10 + 10)
    assert count_parameters(ghost("cnn-4-8", 1, 10)) == by_hand


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "width", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)])
def test_a_residual_block_computes_what_torchvisions_does(
    channels: int, width: int, stride: int, training: bool
) -> None:
    torch.manual_seed(0)
    ours = BasicBlock(channels, width, stride)
    shortcut = (
        None
        if stride == 1 and channels == width
        else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    )
    theirs = TorchvisionBlock(channels, width, stride, shortcut)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are torchvision's too
    ours.train(training)
    theirs.train(training)
    features = torch.randn(4, channels, 6, 6)
    assert torch.equal(ours(features), theirs(features))
    for name, tensor in theirs.state_dict().items():  # BatchNorm's statistics have moved alike
        assert torch.equal(ours.state_dict()[name], tensor)


def test_a_resnet_is_its_parts_one_after_the_other(images: Tensor) -> None:
    torch.manual_seed(0)
    network = build_model("resnet14", (3, 8, 8), 5).eval()
    assert isinstance(network, CifarResNet)
    features = torch.relu(network.bn1(network.conv1(images)))
    expected = []
    for stage in (network.layer1, network.layer2, network.layer3):
        for block in stage:
            features = block(features)
        expected.append(features)
    pooled = torch.nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
    logits, taps = Tapped(network, network.taps)(images)
    torch.testing.assert_close(logits, network.fc(pooled))
    assert all(torch.equal(tap, stage) for tap, stage in zip(taps, expected, strict=True))


def test_a_cnns_taps_are_its_blocks_after_their_relu(images: Tensor) -> None:
    torch.manual_seed(0)
    network = build_model("cnn-8-16", (3, 8, 8), 5).eval()
    assert isinstance(network, PlainCNN)
    state = network.state_dict()
    expected, features = [], images
    for k, stride in enumerate((1, 2)):
        features = torch.nn.functional.conv2d(features, state[f"blocks.{k}.0.weight"], stride=stride, padding=1)
        norm = {part: state[f"blocks.{k}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")}
        features = torch.relu(torch.nn.functional.batch_norm(features, **norm))
        expected.append(features)
    _, taps = Tapped(network, network.taps)(images)
    for tap, block in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap, block)


@pytest.mark.parametrize("name", ["cnn-8-16", "resnet8"])
def test_taps_leave_the_logits_alone(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    network = build_model(name, (3, 8, 8), 5).eval()
    before = network(images)
    logits, _ = Tapped(network, taps_of(network))(images)
    assert torch.equal(logits, before)
    assert torch.equal(network(images), before)


def test_taps_come_in_the_order_in_which_they_were_named(images: Tensor) -> None:
    network = build_model("resnet8", (3, 8, 8), 5).eval()
    _, features = Tapped(network, ["layer3", "layer1"])(images)
    assert [feature.shape[1] for feature in features] == [64, 16]


def test_a_second_forward_gives_fresh_features(images: Tensor) -> None:
    tapped = Tapped(build_model("cnn-8", (3, 8, 8), 5).eval(), ["blocks.0"])
    _, (first,) = tapped(images)
    kept = first.detach().clone()
    _, (second,) = tapped(-images)
    assert torch.equal(first, kept)
    assert not torch.equal(second, kept)


def test_features_live_no_longer_than_whoever_asked_for_them(images: Tensor) -> None:
    tapped = Tapped(build_model("cnn-8", (3, 8, 8), 5).eval(), ["blocks.0"])
    with torch.no_grad():
        _, (features,) = tapped(images)
    alive = weakref.ref(features)
    del features
    assert alive() is None


def test_gradients_flow_through_a_tap(images: Tensor) -> None:
    network = build_model("cnn-8-16", (3, 8, 8), 5)
    _, (features,) = Tapped(network, ["blocks.0"])(images)
    features.square().mean().backward()
    touched = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert touched == {"blocks.0.0.weight", "blocks.0.1.weight", "blocks.0.1.bias"}


def test_a_wrapper_sees_the_features_as_ordinary_outputs(images: Tensor) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = inner

        def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            logits, features = self.module(images)
            return logits, features

    network = build_model("resnet8", (3, 8, 8), 5).eval()
    logits, features = Wrapper(Tapped(network, taps_of(network)))(images)
    plain_logits, plain_features = Tapped(network, taps_of(network))(images)
    assert torch.equal(logits, plain_logits)
    assert all(torch.equal(one, other) for one, other in zip(features, plain_features, strict=True))


def test_a_tap_that_names_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match="CifarResNet has no module 'layer4'"):
        Tapped(ghost("resnet8", 3, 5), ["layer4"])


def test_the_global_seed_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat(
            [parameter.detach().flatten() for parameter in build_model("cnn-8", (1, 8, 8), 3).parameters()]
        )

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
