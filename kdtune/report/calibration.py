"""How far a network may be believed: its confidence against how often it is right.

    bins = in_bins(confidences, right)         # of one run, small enough for a line of final.jsonl
    calibration([bins, ...])                   # {"ece", "bins"} of a row, over its seeds

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks": 15 bins of equal width, the m-th of
which is open below and closed above.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BINS = 15

Bins = Sequence[Sequence[float]]  # for each bin: how many images, the sum of their confidences, how many are right


def in_bins(confidences: Tensor, right: Tensor) -> list[list[float]] | None:
    """Images by confidence [N] in 0..1, of which `right` [N] are answered correctly; None where a confidence is NaN.

    Sums are taken in float64, so that their order does not matter.
    """
    values = confidences.double()
    if values.isnan().any():
        return None
    inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1].to(values.device)
    places = torch.bucketize(values, inner)  # a confidence on an edge belongs to the bin below it
    count = torch.bincount(places, minlength=BINS)
    confident = torch.bincount(places, weights=values, minlength=BINS)
    correct = torch.bincount(places[right], minlength=BINS)
    return [list(one) for one in zip(count.tolist(), confident.tolist(), correct.tolist(), strict=True)]


def expected_error(bins: Bins) -> float:
    """ECE, a fraction: what confidence and accuracy differ by, weighed by the images of each bin."""
    images = sum(count for count, _, _ in bins)
    return sum(abs(confident - correct) for _, confident, correct in bins) / images


def calibration(runs: Sequence[Bins]) -> Mapping[str, Any]:
    """Of a row: the mean of its runs' ECE, and their bins together. A bin without images has neither mean."""
    bins = []
    for k, each in enumerate(zip(*runs, strict=True)):
        count, confident, correct = (sum(column) for column in zip(*each, strict=True))
        bins.append(
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "count": count,
                "confidence": confident / count if count else None,
                "accuracy": correct / count if count else None,
            }
        )
    return {"ece": statistics.fmean(map(expected_error, runs)), "bins": bins}
