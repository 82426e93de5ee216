"""Calibration against numbers worked out by hand, a loop over images, and scikit-learn; answers as text."""

import json
import math

import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import Tensor

from kdtune.report import agreement, calibration, in_bins, packed, unpacked
from kdtune.report.calibration import BINS, Bins


def bins_of(confidences: list[float], right: list[bool]) -> Bins:
    bins = in_bins(torch.tensor(confidences, dtype=torch.float64), torch.tensor(right))
    assert bins is not None
    return bins


def drawn(seed: int, count: int = 500) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    confidences = torch.rand(count, generator=generator)
    return confidences, torch.rand(count, generator=generator) < confidences**2


def test_the_error_is_that_of_a_hand() -> None:
    """0.95, 0.95 of which one is right: 0.45 off, half of the images. 0.65, right: 0.35. 0.35, wrong: 0.35."""
    found = calibration([bins_of([0.95, 0.65, 0.95, 0.35], [True, True, False, False])])
    assert found["ece"] == pytest.approx(0.45 / 2 + 0.35 / 4 + 0.35 / 4)
    told = [
        (k, one["count"], one["confidence"], one["accuracy"]) for k, one in enumerate(found["bins"]) if one["count"]
    ]
    assert told == [(5, 1, 0.35, 0.0), (9, 1, 0.65, 1.0), (14, 2, pytest.approx(0.95), 0.5)]


def test_bins_are_fifteen_of_equal_width_open_below_and_closed_above() -> None:
    edges = [one["high"] for one in calibration([bins_of([1.0], [True])])["bins"]]
    assert edges == pytest.approx([k / 15 for k in range(1, 16)])
    for place, edge in enumerate(torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:].tolist()):
        assert [k for k, (count, _, _) in enumerate(bins_of([edge], [True])) if count] == [place]
    assert bins_of([0.0], [False])[0][0] == 1


def test_the_error_is_that_of_a_loop_over_images() -> None:
    confidences, right = drawn(1)
    places = [min(max(math.ceil(value * BINS) - 1, 0), BINS - 1) for value in confidences.double().tolist()]
    error = 0.0
    for place in range(BINS):
        mine = [k for k, found in enumerate(places) if found == place]
        if mine:
            accuracy = sum(bool(right[k]) for k in mine) / len(mine)
            error += len(mine) / len(places) * abs(accuracy - sum(float(confidences[k]) for k in mine) / len(mine))
    bins = in_bins(confidences, right)
    assert bins is not None
    assert calibration([bins])["ece"] == pytest.approx(error)


def test_the_reliability_diagram_is_scikit_learns() -> None:
    confidences, right = drawn(2, count=40)  # some bins are empty, which scikit-learn leaves out
    accuracy, confidence = calibration_curve(right.numpy(), confidences.double().numpy(), n_bins=BINS)
    bins = in_bins(confidences, right)
    assert bins is not None
    filled = [one for one in calibration([bins])["bins"] if one["count"]]
    assert [one["accuracy"] for one in filled] == pytest.approx(list(accuracy))
    assert [one["confidence"] for one in filled] == pytest.approx(list(confidence))


def test_a_rows_error_is_the_mean_over_its_seeds_and_its_bins_are_of_all_images() -> None:
    """One seed is too sure by as much as the other is not sure enough: together they would seem calibrated."""
    sure, unsure = bins_of([0.95, 0.95], [True, False]), bins_of([0.65, 0.65], [True, True])
    found = calibration([sure, unsure])
    assert found["ece"] == pytest.approx((0.45 + 0.35) / 2)
    assert sum(one["count"] for one in found["bins"]) == 4
    same = calibration([bins_of([0.95, 0.95], [True, False]), bins_of([0.95, 0.95], [True, True])])
    assert same["bins"][-1] == {"low": 14 / 15, "high": 1.0, "count": 4, "confidence": pytest.approx(0.95),
                                "accuracy": 0.75}  # fmt: skip


def test_a_network_that_has_diverged_has_no_confidence_and_a_line_of_json_holds_the_others() -> None:
    assert in_bins(torch.tensor([0.5, math.nan]), torch.tensor([True, False])) is None
    bins = in_bins(*drawn(3))
    assert json.loads(json.dumps(bins, allow_nan=False)) == bins
    assert len(json.dumps(in_bins(*drawn(3, count=50_000)))) < 800


@pytest.mark.parametrize("classes", [2, 1000, 70_000])
def test_answers_come_back_as_they_were(classes: int) -> None:
    answers = torch.randint(0, classes, (400,), generator=torch.Generator().manual_seed(classes))
    assert torch.equal(unpacked(packed(answers)), answers)
    assert unpacked(packed(answers)).dtype == torch.int64
    assert len(unpacked(packed(answers[:0]))) == 0


def test_the_answers_to_imagenet_fit_a_line() -> None:
    answers = torch.randint(0, 1000, (50_000,), generator=torch.Generator().manual_seed(0))  # nothing to compress
    assert len(packed(answers)) < 140_000


def test_what_are_no_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="no packed answers"):
        unpacked("aGVsbG8=")


def test_agreement_counts_equal_answers_right_or_wrong() -> None:
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75
