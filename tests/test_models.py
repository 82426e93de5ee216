"""The model zoo: shapes, options, published parameter counts and outputs, residual blocks against torchvision's.

Shapes: B images, C channels, H x W pixels.
"""

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from kdtune.errors import ModelError
from kdtune.experiment.networks import MODEL_NAMES
from kdtune.models import MODELS, Tapped, build_model, check_model, count_parameters, options_of, stages_of, tap_shapes
from kdtune.models.cnn import PlainCNN
from kdtune.models.resnet import BasicBlock, CifarResNet

# Parameters by (model, classes) for RGB images: the tables of CIFAR-100 distillation (Tian et al. 2020), torchvision's
# documentation, and the networks of the papers as their public code builds them.
PUBLISHED = {
    ("resnet20", 100): 278_324,
    ("resnet32", 100): 472_756,
    ("resnet56", 100): 861_620,
    ("resnet110", 100): 1_736_564,
    ("resnet8x4", 100): 1_233_540,
    ("resnet32x4", 100): 7_433_860,
    ("wrn-16-2", 100): 703_284,
    ("wrn-40-1", 100): 569_780,
    ("wrn-40-2", 100): 2_255_156,
    ("wrn-28-10", 10): 36_479_194,
    ("preresnet110", 10): 1_730_522,
    ("resnext29-8x64", 10): 34_426_698,
    ("densenet100-12", 10): 769_162,
    ("vgg8", 100): 3_965_028,
    ("vgg13", 100): 9_462_180,
    ("mobilenetv2-half", 100): 812_836,
    ("shufflenetv2", 100): 1_355_528,
    ("cnn-5-layer", 10): 357_514,
    ("plain-cnn-2", 10): 13_082,
    ("plain-cnn-4", 10): 37_338,
    ("plain-cnn-6", 10): 82_778,
    ("plain-cnn-8", 10): 327_962,
    ("plain-cnn-10", 10): 2_487_850,
    ("plain-cnn-2", 100): 215_172,
    ("plain-cnn-4", 100): 475_652,
    ("plain-cnn-6", 100): 1_107_204,
    ("plain-cnn-8", 100): 1_246_276,
    ("plain-cnn-10", 100): 2_931_460,
    ("resnet18", 1000): 11_689_512,
    ("resnet18", 10): 11_181_642,
    ("resnet34", 1000): 21_797_672,
    ("resnet50", 1000): 25_557_032,
    ("resnet152", 1000): 60_192_808,
}

# The first three of so many logits that the public code gives, its weights and image set by `set_by_rule`.
REFERENCE = {
    "wrn-16-2": (100, (-0.11479, 0.043332, 0.16823)),
    "wrn-40-1": (100, (-0.36379, 0.42397, -0.69201)),
    "wrn-28-10": (10, (0.11797, -0.074689, -0.046808)),
    "vgg8": (100, (0.85877, -0.19484, -0.02848)),
    "vgg13": (100, (0.97649, 0.045208, -0.063791)),
    "mobilenetv2-half": (100, (0.69282, 0.0080795, 0.070973)),
    "shufflenetv2": (100, (1.2826, -0.093206, -0.0051562)),
    "cnn-5-layer": (10, (0.065464, -0.093445, 0.045589)),
    "preresnet110": (10, (-5.746, -9.3566, -1.805)),
    "resnext29-8x64": (10, (3.5016, 0.23822, -0.13249)),
    "densenet100-12": (10, (0.50388, -0.12341, 0.13191)),
    "plain-cnn-2": (10, (-0.075439, -0.77326, 0.19431)),
    "plain-cnn-4": (10, (-0.075265, -0.04739, 0.20967)),
    "plain-cnn-6": (10, (-0.073834, 0.027686, 0.14068)),
    "plain-cnn-8": (10, (-0.017172, 0.071787, -0.027474)),
    "plain-cnn-10": (10, (-0.32163, -0.0094614, 0.0109)),
}
WITH_DROPOUT = [name for name in MODELS if "dropout" in options_of(name)]


def ghost(name: str, channels: int, classes: int, side: int = 32) -> nn.Module:
    """The model on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return build_model(name, (channels, side, side), classes)


def set_by_rule(network: nn.Module) -> None:
    """Weights that depend on nothing but the names and shapes of the parameters."""
    state = network.state_dict()
    for k, name in enumerate(sorted(state)):
        tensor = state[name]
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) ** 2 * 0.7 + k).reshape(tensor.shape)
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.copy_(1 + 0.2 * wave)
        elif tensor.dim() > 1:
            tensor.copy_(wave / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.1 * wave)


@pytest.fixture
def images() -> Tensor:
    return torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def test_the_zoo_has_the_models_that_an_experiment_can_name() -> None:
    assert tuple(MODELS) == MODEL_NAMES


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_logit_a_class_for_grey_images_and_the_taps_that_tap_shapes_foretells(name: str) -> None:
    shape = (1, 16, 20)
    with torch.device("meta"):
        network = build_model(name, shape, 7)
    taps = stages_of(network)
    with torch.no_grad():  # shapes do not depend on the weights, which take long to draw
        logits, features = Tapped(network.to_empty(device="cpu").eval(), taps)(torch.zeros(2, *shape))
    assert logits.shape == (2, 7)
    assert len(features) > 0
    assert [tuple(feature.shape[1:]) for feature in features] == tap_shapes(name, taps, shape)


@pytest.mark.parametrize(
    "name", ["mlp-800-800", "plain-cnn-6", "cnn-5-layer", "densenet100-12", "vgg8", "mobilenetv2-half", "shufflenetv2",
             "resnet8", "wrn-16-2", "resnext29-8x64", "resnet18", "resnet18-cifar"],
)  # fmt: skip
def test_models_of_every_kind_take_images_of_8x8(name: str) -> None:
    check_model(name, (3, 8, 8), 10)


@pytest.mark.parametrize("name", ["cnn-16", "cnn-32-64-64", "resnet8", "resnet8x4", "wrn-16-2"])
@pytest.mark.parametrize("size", [(4, 4), (7, 9), (32, 32)])
def test_a_model_takes_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    assert build_model(name, (3, *size), 5).eval()(torch.zeros(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("name", ["mlp-800-800", "plain-cnn-4", "cnn-5-layer", "vgg8", "densenet100-12"])
@pytest.mark.parametrize("size", [(28, 28), (65, 97)])
def test_models_that_pool_or_flatten_take_sizes_that_are_no_power_of_two(name: str, size: tuple[int, int]) -> None:
    check_model(name, (1, *size), 5)


@pytest.mark.parametrize(
    ("name", "least"),
    [("vgg8", 8), ("vgg13", 8), ("cnn-5-layer", 8), ("densenet100-12", 4), ("plain-cnn-2", 4), ("plain-cnn-10", 16)],
)
def test_an_image_that_would_be_pooled_to_nothing_is_refused(name: str, least: int) -> None:
    check_model(name, (3, least, least), 5)
    with pytest.raises(ModelError, match=f"{name} takes images of at least {least}x{least} pixels, given {least - 1}x"):
        build_model(name, (3, least - 1, least), 5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("cnn-32-64-64", [(32, 32, 32), (64, 16, 16), (64, 8, 8)]),
        ("mlp-1200-1200", [(1200,), (1200,)]),
        ("plain-cnn-6", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("cnn-5-layer", [(32, 16, 16), (64, 8, 8), (128, 4, 4)]),
        ("resnet20", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("resnet8x4", [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        ("wrn-28-10", [(160, 32, 32), (320, 16, 16), (640, 8, 8)]),
        ("resnext29-8x64", [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]),
        ("densenet100-12", [(216, 32, 32), (300, 16, 16), (342, 8, 8)]),
        ("vgg13", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]),
        ("mobilenetv2-half", [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)]),
        ("shufflenetv2", [(116, 16, 16), (232, 8, 8), (464, 4, 4)]),
        ("resnet50", [(256, 8, 8), (512, 4, 4), (1024, 2, 2), (2048, 1, 1)]),
        ("resnet18-cifar", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
    ],
)
def test_the_stages_have_the_shapes_of_the_papers(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert tap_shapes(name, stages_of(ghost(name, 3, 2)), (3, 32, 32)) == shapes


def test_the_widths_of_a_plain_cnn_follow_the_number_of_classes() -> None:
    taps = stages_of(ghost("plain-cnn-2", 3, 100))
    assert tap_shapes("plain-cnn-2", taps, (3, 32, 32), classes=10) == [(16, 32, 32), (16, 16, 16)]
    assert tap_shapes("plain-cnn-2", taps, (3, 32, 32), classes=100) == [(32, 32, 32), (32, 16, 16)]


@pytest.mark.parametrize(("named", "parameters"), PUBLISHED.items(), ids=lambda value: str(value))
def test_the_parameters_are_as_many_as_published(named: tuple[str, int], parameters: int) -> None:
    name, classes = named
    assert count_parameters(ghost(name, 3, classes)) == parameters


@pytest.mark.parametrize("name", REFERENCE)
def test_the_logits_are_those_of_the_public_code_with_the_same_weights(name: str) -> None:
    classes, expected = REFERENCE[name]
    network = ghost(name, 3, classes).to_empty(device="cpu").eval()
    set_by_rule(network)
    image = torch.sin(torch.arange(3 * 32 * 32, dtype=torch.float64) * 0.37).float().reshape(1, 3, 32, 32)
    with torch.no_grad():
        logits = network(image)
    assert logits.shape == (1, classes)
    torch.testing.assert_close(logits[0, :3], torch.tensor(expected), rtol=1e-3, atol=2e-4)


def test_an_mlp_has_as_many_parameters_as_worked_out_by_hand() -> None:
    assert count_parameters(build_model("mlp-800-800", (1, 28, 28), 10)) == 785 * 800 + 801 * 800 + 801 * 10
    assert count_parameters(build_model("mlp-1200-1200", (1, 28, 28), 10)) == 785 * 1200 + 1201 * 1200 + 1201 * 10


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


def test_the_global_seed_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat(
            [parameter.detach().flatten() for parameter in build_model("cnn-8", (1, 8, 8), 3).parameters()]
        )

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_torchvision_resnet_gives_torchvisions_logits_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
    ours = build_model(name, (3, 64, 64), 10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_cifar_stem_is_a_3x3_convolution_without_pooling(channels: int) -> None:
    torch.manual_seed(0)
    ours = build_model("resnet18-cifar", (channels, 32, 32), 10).eval()
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_importing_the_zoo_imports_neither_torchvision_nor_timm() -> None:
    code = "import sys, kdtune.models; sys.exit(any(m in sys.modules for m in ('torchvision', 'timm')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in WITH_DROPOUT if name != "wrn-28-10"])  # large, and as wrn-16-2
def test_dropout_is_at_work_in_training_alone(name: str) -> None:
    options = {"dropout": 0.5}
    torch.manual_seed(0)
    network = build_model(name, (1, 8, 8), 5, options)
    plain = build_model(name, (1, 8, 8), 5)
    plain.load_state_dict(network.state_dict())
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), plain.eval()(images))
        assert not torch.equal(network.train()(images), network(images))


def test_the_models_with_dropout_are_those_whose_papers_have_it() -> None:
    mlps, wide = ["mlp-800-800", "mlp-1200-1200"], ["wrn-16-2", "wrn-40-1", "wrn-40-2", "wrn-28-10"]
    assert [*mlps, "cnn-5-layer", *wide, "densenet100-12"] == WITH_DROPOUT
    assert options_of("mlp-800-800") == ("dropout", "input_dropout")


def test_input_dropout_drops_pixels_and_nothing_else() -> None:
    network = build_model("mlp-800-800", (1, 2, 2), 3, {"input_dropout": 0.999999}).train()
    with torch.no_grad():
        logits = network(torch.ones(1, 1, 2, 2))
        assert torch.equal(logits, network.eval()(torch.zeros(1, 1, 2, 2)))


@pytest.mark.parametrize("name", MODELS)
def test_an_option_that_a_model_does_not_have_is_refused_with_those_it_has(name: str) -> None:
    known = ", ".join(options_of(name)) or "none"
    with pytest.raises(ModelError, match=f"{name} has no option 'droput'; its options: {known}"):
        build_model(name, (3, 32, 32), 5, {"droput": 0.1})


@pytest.mark.parametrize("value", [1, 1.0, -0.1, True, "0.5", float("nan")])
def test_a_dropout_that_is_no_rate_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="wrn-16-2: option 'dropout' is a rate from 0 to below 1"):
        build_model("wrn-16-2", (3, 32, 32), 5, {"dropout": value})


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model is named 'resnet19'.*Did you mean 'resnet1"):
        build_model("resnet19", (3, 32, 32), 5)


def test_checking_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check_model("resnet18-cifar", (3, 32, 32), 10)
    assert torch.equal(torch.get_rng_state(), before)
