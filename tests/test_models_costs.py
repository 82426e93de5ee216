"""What a network costs, against sums by hand and published numbers."""

import importlib

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from kdtune.models import costs, flops, latency_ms


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slower(nn.Module):
    """Each answer takes a millisecond longer than the one before; the first takes none."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.answers = 0
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        self.clock.now += self.answers / 1000
        self.answers += 1
        return images.mean() + self.weight


class Tokens(nn.Module):
    """Rows of an image [B, 1, 3, 4] are tokens of a transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, nhead=2, dim_feedforward=5, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        mixed: Tensor = self.layer(images.squeeze(1))
        return mixed.flatten(1)


def test_a_multiply_add_of_a_convolution_or_a_linear_layer_counts_two() -> None:
    """3 x 3 from 2 channels to 4, padded, on 8 x 6 pixels; then every second of them; then 10 classes."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 10)
    ).eval()
    assert flops(network, (2, 8, 6)) == 2 * (8 * 6 * 4) * (2 * 3 * 3) + 2 * 48 * 10


def test_resnet18_has_the_operations_that_torchvision_publishes() -> None:
    """In its tables a multiply-add counts once."""
    published = ResNet18_Weights.IMAGENET1K_V1.meta["_ops"]  # of 10^9
    assert flops(resnet18().eval(), (3, 224, 224)) / 2e9 == pytest.approx(published, abs=0.0005)


def test_attention_counts_in_a_frozen_network_too() -> None:
    """In eval mode and without gradients torch computes a transformer's layer by an operator of its own."""
    projections, attention, feed_forward = 3 * 4 * (3 * 4) + 3 * 4 * 4, 2 * (2 * 3 * 3 * 2), 2 * 3 * 4 * 5
    assert torch.backends.mha.get_fastpath_enabled()
    network = Tokens().eval().requires_grad_(requires_grad=False)
    assert flops(network, (1, 3, 4)) == 2 * (projections + attention + feed_forward)
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_is_the_median_with_the_quartiles_of_a_hundred_answers_after_twenty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(importlib.import_module("kdtune.models.costs"), "time", clock)
    found = costs(Slower(clock), (1, 8, 8))  # 20 to 119 ms; of what comes before, nothing counts
    assert found == {
        "parameters": 3,
        "size_mb": 0.0,
        "flops": 0,
        "latency_ms": 69.5,
        "latency_range_ms": [44.75, 94.25],
    }


def test_latency_is_a_positive_number_of_milliseconds_and_leaves_the_threads_alone() -> None:
    torch.set_num_threads(2)
    try:
        assert 0 < latency_ms(nn.Conv2d(1, 2, 3), (1, 8, 8)) < 1000
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
