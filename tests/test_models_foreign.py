"""Models that are not kdtune's: timm's, and functions of the user's own; what is refused, and with which words."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdtune.errors import ModelError
from kdtune.models import Tapped, build_model, check_model, stages_of, tap_shapes

SHAPE = (3, 16, 16)
NETWORK = """
import torch
from torch import nn

MEAN = torch.zeros(3, 1, 1)

class Net(nn.Module):
    def __init__(self, channels, width, classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.fc = nn.Linear(width, classes)

    def forward(self, images):
        return self.fc(self.conv(images - MEAN.to(images.device)).mean(dim=(2, 3)))

def net(image_shape, classes, width=4):
    return Net(image_shape[0], width, classes)

def keywords(**given):
    return net(**given)

def one_more(image_shape, classes):
    return net(image_shape, classes + 1)

def two(image_shape, classes):
    class Two(Net):
        def forward(self, images):
            return super().forward(images), images
    return Two(image_shape[0], 4, classes)

def reads_a_number(image_shape, classes):
    class Reads(Net):
        def forward(self, images):
            return super().forward(images * float(images.sum() + 1))
    return Reads(image_shape[0], int(torch.full((), 4).item()), classes)

def words(image_shape, classes):
    return "no network"

def broken(image_shape, classes):
    raise OSError("disk on fire")

def shape_only(image_shape):
    return net(image_shape, 2)

not_a_function = 3
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes modules into a new working directory; they are forgotten after the test."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, code: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(code)

    return write


@pytest.fixture
def nets(written: Callable[[str, str], None]) -> None:
    written("their_nets", NETWORK)
    sys.modules.pop("their_nets", None)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("function", ["net", "keywords", "reads_a_number"])
def test_a_function_is_found_in_the_working_directory_and_called(function: str) -> None:
    check_model(f"their_nets:{function}", SHAPE, 7)
    path = list(sys.path)
    network = build_model(f"their_nets:{function}", SHAPE, 7).eval()
    assert network(torch.ones(2, *SHAPE)).shape == (2, 7)
    assert sys.path == path


@pytest.mark.usefixtures("nets")
def test_a_function_takes_options() -> None:
    network = build_model("their_nets:net", SHAPE, 7, {"width": 9})
    assert stages_of(network) == ("conv",)
    assert tap_shapes("their_nets:net", ["conv"], SHAPE, {"width": 9}) == [(9, 8, 8)]


@pytest.mark.usefixtures("nets")
def test_what_a_module_makes_when_imported_holds_numbers_even_if_it_was_checked_first() -> None:
    check_model("their_nets:net", SHAPE, 7)
    assert sys.modules["their_nets"].MEAN.device.type == "cpu"


@pytest.mark.usefixtures("nets")
def test_checking_a_function_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check_model("their_nets:reads_a_number", SHAPE, 7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("nett", {}, r"'nett' does not exist in .*their_nets.py. Did you mean 'net'?"),
        ("not_a_function", {}, "'not_a_function' is no function in"),
        ("net", {"with": 3}, r"their_nets:net has no option 'with'; its options: width\. Did you mean 'width'"),
        ("one_more", {"width": 3}, "has no option 'width'; its options: none"),
        ("net", {"classes": 3}, "the data set decides classes; remove it from the options"),
        ("words", {}, r"their_nets:words returned str, expected a torch\.nn\.Module"),
        ("broken", {}, "their_nets:broken raised OSError: disk on fire"),
        ("shape_only", {}, "it lacks classes"),
        ("one_more", {}, r"their_nets:one_more gives \[1, 8\] for one image of 16x16 pixels.*expected \[1, 7\]"),
        ("two", {}, "gives tuple, expected one tensor of logits"),
    ],
)
def test_a_function_is_refused(function: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_model(f"their_nets:{function}", SHAPE, 7, options)


@pytest.mark.usefixtures("nets")
def test_images_that_a_function_cannot_take_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"cannot take images of 16x16 pixels and 2 channels: RuntimeError"):
        check_model("their_nets:net", (2, 16, 16), 7)


def test_a_module_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"no module 'no_such_nets' in {tmp_path} or on Python's path"):
        build_model("no_such_nets:net", SHAPE, 7)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def net(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(
    written: Callable[[str, str], None], code: str, reason: str
) -> None:
    written("sick_nets", code)
    with pytest.raises(ModelError, match=f"sick_nets:net: importing sick_nets failed: {reason}"):
        build_model("sick_nets:net", SHAPE, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_timm_model_gets_the_channels_and_classes_of_the_data(channels: int) -> None:
    name, shape = "timm:resnet10t", (channels, 32, 32)
    check_model(name, shape, 7)
    network = build_model(name, shape, 7).eval()
    taps = stages_of(network)
    assert taps == ("act1", "layer1", "layer2", "layer3", "layer4")
    with torch.no_grad():
        logits, features = Tapped(network, taps)(torch.zeros(2, *shape))
    assert logits.shape == (2, 7)
    assert [tuple(feature.shape[1:]) for feature in features] == tap_shapes(name, taps, shape)


def test_a_timm_model_takes_its_own_options() -> None:
    options = {"img_size": 16, "patch_size": 8, "depth": 2}
    check_model("timm:vit_tiny_patch16_224", SHAPE, 7, options)
    with torch.device("meta"):
        network = build_model("timm:vit_tiny_patch16_224", SHAPE, 7, options)
    assert stages_of(network) == ("blocks.0", "blocks.1")


@pytest.mark.parametrize("size", [(1, 32, 32), (3, 64, 64)])
def test_a_timm_model_that_lists_modules_it_does_not_have_is_tapped_by_the_rule(size: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        network = build_model("timm:hrnet_w18_small", size, 7)
    stages = stages_of(network)
    assert stages
    assert set(stages) <= {name for name, _ in network.named_modules()}
    assert len(tap_shapes("timm:hrnet_w18_small", stages, size)) == len(stages)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt18", {}, r"timm [\d.]+ has no model 'resnt18'; names close to it: resnet18"),
        ("resnet10t", {"nonsense": 3}, r"timm:resnet10t with options .*nonsense.* cannot be built: TypeError"),
        ("resnet10t", {"in_chans": 3}, "timm:resnet10t: the data set decides in_chans"),
        ("vit_tiny_patch16_224", {}, r"cannot take images of 16x16 pixels.*options: \{img_size: 16\}"),
    ],
)
def test_a_timm_model_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_model(f"timm:{name}", SHAPE, 7, options)


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm:resnet18 needs timm, which is not installed.*pip install timm"):
        build_model("timm:resnet18", SHAPE, 7)


def test_checking_downloads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    class Plain(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.new_zeros((len(images), 7))

    asked: list[object] = []

    def create_model(name: str, *, pretrained: bool = False, **others: object) -> nn.Module:
        asked.append(pretrained)
        return Plain()

    monkeypatch.setattr(timm, "create_model", create_model)
    check_model("timm:resnet10t", SHAPE, 7, {"pretrained": True})
    build_model("timm:resnet10t", SHAPE, 7, {"pretrained": True})
    assert asked == [False, True]
