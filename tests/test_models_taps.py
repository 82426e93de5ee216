"""Feature taps: outputs of named modules beside the logits, through wrappers, and the stages found by themselves."""

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdtune.errors import ModelError
from kdtune.models import Tapped, build_model, stages_of, tap_shapes


@pytest.fixture
def images() -> Tensor:
    return torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def learn_from(wrapped: Callable[[Tensor], Any], network: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits, features and gradients of one backward pass."""
    network.zero_grad()
    logits, features = wrapped(images)
    (logits.square().mean() + sum(feature.square().mean() for feature in features)).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return [logits, *features, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("name", ["cnn-8-16", "resnet8"])
def test_taps_leave_the_logits_alone(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    network = build_model(name, (3, 8, 8), 5).eval()
    before = network(images)
    logits, _ = Tapped(network, stages_of(network))(images)
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


def test_a_tap_before_a_relu_in_place_shows_what_the_relu_was_given(images: Tensor) -> None:
    network = build_model("resnet8", (3, 8, 8), 5).eval()
    _, (features,) = Tapped(network, ["layer1.0.bn1"])(images)
    assert features.min() < 0
    block = network.get_submodule("layer1.0")
    _, (stem,) = Tapped(network, ["relu"])(images)
    assert torch.equal(features, block.get_submodule("bn1")(block.get_submodule("conv1")(stem)))


def test_features_live_no_longer_than_whoever_asked_for_them(images: Tensor) -> None:
    tapped = Tapped(build_model("cnn-8", (3, 8, 8), 5).eval(), ["blocks.0"])
    with torch.no_grad():
        _, (features,) = tapped(images)
    alive = weakref.ref(features)
    del features
    assert alive() is None


def test_a_tapped_network_is_gone_with_the_last_who_holds_it(images: Tensor) -> None:
    """Without waiting for Python to look for circles: the next trial on its GPU needs the memory."""
    network = build_model("cnn-8", (3, 8, 8), 5)
    alive = weakref.ref(network.get_parameter("blocks.0.0.weight"))
    tapped = Tapped(network, ["blocks.0"])
    gc.disable()
    try:
        tapped(images)
        del network, tapped
        assert alive() is None
    finally:
        gc.enable()


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
    logits, features = Wrapper(Tapped(network, stages_of(network)))(images)
    plain_logits, plain_features = Tapped(network, stages_of(network))(images)
    assert torch.equal(logits, plain_logits)
    assert all(torch.equal(one, other) for one, other in zip(features, plain_features, strict=True))


@pytest.mark.parametrize("name", ["resnet8", "mlp-800-800"])
def test_taps_survive_compilation_as_one_graph(name: str, images: Tensor) -> None:
    network = build_model(name, (3, 8, 8), 5).eval()
    tapped = Tapped(network, stages_of(network))
    plain = learn_from(tapped, network, images)
    compiled = learn_from(torch.compile(tapped, backend="aot_eager", fullgraph=True), network, images)
    assert len(plain) == len(compiled)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other)
    assert not tapped._catcher.caught


def test_taps_survive_distributed_data_parallel(tmp_path: Path, images: Tensor) -> None:
    network = build_model("resnet8", (3, 8, 8), 5)
    tapped = Tapped(network, stages_of(network))
    plain = learn_from(tapped, network, images)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = learn_from(DistributedDataParallel(tapped), network, images)
    finally:
        dist.destroy_process_group()
    assert len(plain) == len(parallel) == 1 + 3 + len(list(network.parameters()))
    for one, other in zip(plain, parallel, strict=True):
        torch.testing.assert_close(one, other)


def test_a_tapped_network_can_be_copied_after_a_forward_of_its_own(images: Tensor) -> None:
    network = build_model("cnn-8", (3, 8, 8), 5)
    tapped = Tapped(network, ["blocks.0"])
    network(images)  # not through Tapped
    assert not tapped._catcher.caught
    copied = copy.deepcopy(tapped).eval()
    assert torch.equal(copied(images)[0], copy.deepcopy(network).eval()(images))


def test_a_tapped_network_can_be_copied_after_a_forward_that_failed(images: Tensor) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            self.first(images)
            raise RuntimeError("out of memory")

    tapped = Tapped(Fails(), ["first"])
    with pytest.raises(RuntimeError, match="out of memory"):
        tapped(images)
    assert not tapped._catcher.caught
    copy.deepcopy(tapped)


def test_a_copy_taps_its_own_network(images: Tensor) -> None:
    network = build_model("cnn-8", (3, 8, 8), 5).eval()
    tapped = Tapped(network, ["blocks.0"])
    copied = copy.deepcopy(tapped)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert copied(images)[1][0].abs().sum() > 0
    assert tapped(images)[1][0].abs().sum() == 0


@pytest.mark.parametrize("tap", ["layer4", "", "layer1.0.conv9"])
def test_a_tap_that_names_no_module_is_refused_with_those_that_exist(tap: str) -> None:
    network = build_model("resnet8", (3, 8, 8), 5)
    with pytest.raises(ModelError, match=f"CifarResNet has no module '{tap}'; it has conv1, bn1, .*, layer3, fc"):
        Tapped(network, [tap])


def test_a_misspelt_tap_is_answered_with_the_names_close_to_it() -> None:
    with pytest.raises(ModelError, match=r"Names close to it: .*layer1\.0\.conv1"):
        Tapped(build_model("resnet110", (3, 8, 8), 5), ["layer1.0.cnov1"])


def test_a_tap_on_a_module_that_does_not_run_is_refused(images: Tensor) -> None:
    network = build_model("resnet8", (3, 8, 8), 5)
    network.unused = nn.Identity()
    with pytest.raises(ModelError, match="CifarResNet does not run its module 'unused'"):
        Tapped(network, ["unused"])(images)


def test_tap_shapes_follow_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tap_options_nets.py").write_text(
        "from torch import nn\n"
        "def net(image_shape, classes, width):\n"
        "    return nn.Sequential(nn.Conv2d(image_shape[0], width, 3), nn.Flatten(), nn.Linear(width * 36, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert tap_shapes("tap_options_nets:net", ["0"], (3, 8, 8), {"width": 5}) == [(5, 6, 6)]


class Shrinking(nn.Module):
    """As a person writes it: one ReLU for all, pooling in between, a linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.drop = nn.Dropout()
        self.body = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.drop(self.relu(self.conv2(features)))
        logits: Tensor = self.fc(self.pool(self.body(features)).flatten(1))
        return logits


def test_the_stages_of_an_unknown_network_are_the_last_modules_at_each_size() -> None:
    # the shared ReLU runs twice and could show only its last output; global pooling is no stage
    assert stages_of(Shrinking(), (3, 8, 8)) == ("bn1", "drop", "body")


def test_containers_and_an_only_child_are_looked_into_where_the_image_changes_size_inside() -> None:
    def layers() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        )

    assert stages_of(nn.Sequential(*layers(), nn.Flatten(), nn.Linear(64, 5)), (3, 8, 8)) == ("1", "4")
    assert stages_of(nn.Sequential(layers(), nn.Flatten(), nn.Linear(64, 5)), (3, 8, 8)) == ("0.1", "0.4")

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Shrinking()

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images)  # type: ignore[no-any-return]

    assert stages_of(Wrapper(), (3, 8, 8)) == ("backbone.bn1", "backbone.drop", "backbone.body")


def test_finding_the_stages_changes_nothing_in_the_network() -> None:
    network = Shrinking().train()
    network.bn1.eval()
    before = copy.deepcopy(network.state_dict())
    stages_of(network, (3, 8, 8))
    assert network.training
    assert not network.bn1.training
    assert not any(module._forward_hooks for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


def test_a_network_may_read_numbers() -> None:
    class Reads(Shrinking):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images * (1 if float(images.sum()) >= 0 else 2))

    assert stages_of(Reads(), (3, 8, 8)) == ("bn1", "drop", "body")


def test_a_network_without_feature_maps_is_refused_with_its_modules() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ModelError, match=r"Sequential: no module with a feature map.*Its modules: 0, 1"):
        stages_of(network, (3, 8, 8))


def test_a_network_that_cannot_take_the_images_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"Shrinking fails on an image of shape \(1, 8, 8\): RuntimeError"):
        stages_of(Shrinking(), (1, 8, 8))


def test_the_shape_of_the_images_must_be_known_where_the_rule_is_needed() -> None:
    with pytest.raises(ModelError, match="the shape of its images is not known"):
        stages_of(Shrinking())


def test_a_networks_own_taps_come_first_and_must_be_names() -> None:
    network = Shrinking()
    network.taps = ["conv2"]  # type: ignore[assignment]  # typed as a part of the network
    assert stages_of(network) == ("conv2",)
    network.taps = "conv2"  # type: ignore[assignment]  # as above
    with pytest.raises(ModelError, match="taps is 'conv2', expected the names of its modules"):
        stages_of(network)
