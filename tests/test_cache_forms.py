"""Forms of logits against twins that go class by class in float64; what each form promises and what it does not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtune.cache.forms import Top, dense, in_steps, largest
from tests.test_losses import logits

ROUNDING = 2**-11  # of float16, relative
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

rows = st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=12)


def dense_twin(row: list[float], k: int) -> list[float]:
    """One image's logits with all but the k largest replaced by the logarithm of their mean exponential."""
    order = sorted(range(len(row)), key=lambda index: -row[index])
    others = [row[index] for index in order[k:]]
    fill = math.log(sum(math.exp(value - max(others)) for value in others) / len(others)) + max(others)
    return [row[index] if index in order[:k] else fill for index in range(len(row))]


def peaked(margin: float, classes: int = 1000) -> Tensor:
    """A teacher [1, C] that is sure of class 0 by `margin`."""
    row = logits(0, images=1, classes=classes, scale=1.0)
    row[:, 0] = row.max() + margin
    return row


@given(rows, st.data())
def test_all_is_as_its_twin_has_it_within_the_rounding_to_float16(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row) - 1))
    top = largest(torch.tensor([row]), k)
    found, kept = dense(top, len(row))[0], top.classes[0].long()
    assert torch.equal(found[kept], torch.tensor(row)[kept].half().float())
    # of equal logits any may be kept, so rows are compared sorted
    expected = torch.tensor(dense_twin(row, k))
    torch.testing.assert_close(found.sort().values, expected.sort().values, rtol=ROUNDING, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_each_image_keeps_its_own_classes_and_its_own_rest(k: int, device: str) -> None:
    given_logits = logits(seed=k, classes=7)
    found = dense(largest(given_logits.to(device), k), 7)
    assert found.device.type == device
    expected = torch.tensor([dense_twin(row, k) for row in given_logits.tolist()])
    torch.testing.assert_close(found.cpu(), expected, rtol=ROUNDING, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_kept_is_small_and_sorted_by_value(device: str) -> None:
    top = largest(logits(seed=0, classes=1000).to(device), 200)
    assert [(part.dtype, tuple(part.shape)) for part in top] == [
        (torch.float16, (5, 200)),
        (torch.int16, (5, 200)),
        (torch.float32, (5,)),
    ]
    assert (top.values.diff(dim=1) <= 0).all()


def test_a_smaller_k_is_cut_out_of_a_larger_one() -> None:
    whole, fewer = largest(logits(seed=1, classes=50), 20), largest(logits(seed=1, classes=50), 5)
    assert torch.equal(whole.classes[:, :5], fewer.classes)
    cut = torch.cat([whole.rest.unsqueeze(1), whole.values[:, 5:].float()], dim=1).logsumexp(dim=1)
    torch.testing.assert_close(cut, fewer.rest, rtol=0, atol=0.01)


def test_the_highest_class_number_of_int16_is_put_back_in_its_place() -> None:
    row = torch.zeros(1, 2**15)
    row[0, -1] = 9.0
    assert dense(largest(row, 1), 2**15).argmax() == 2**15 - 1


@pytest.mark.parametrize(("classes", "k"), [(5, 5), (5, 0), (2**15 + 1, 3)])
def test_without_a_rest_or_with_too_many_classes_it_is_refused(classes: int, k: int) -> None:
    with pytest.raises(AssertionError):
        largest(torch.zeros(1, classes), k)


@pytest.mark.parametrize("margin", [0.0, 8.0, 100.0, 30000.0])
def test_the_rest_is_exact_however_certain_the_teacher_is(margin: float) -> None:
    row = peaked(margin)
    others = row.double().sort(dim=1).values[:, :-100]
    torch.testing.assert_close(largest(row, 100).rest.double(), others.logsumexp(dim=1), rtol=0, atol=1e-5)


def test_the_others_together_keep_their_probability_at_temperature_1() -> None:
    row = logits(seed=3, images=20, classes=1000, scale=2.0)
    top = largest(row, 100)
    kept = torch.zeros_like(row).scatter_(1, top.classes.long(), 1.0)
    mass = [((1 - kept) * torch.softmax(one.double(), dim=1)).sum(dim=1) for one in (row, dense(top, 1000))]
    torch.testing.assert_close(mass[1], mass[0], rtol=0.005, atol=0)


@given(rows, st.data(), st.floats(1.0, 20.0))
def test_above_temperature_1_the_others_get_no_less_than_they_had(
    row: list[float], data: st.DataObject, temperature: float
) -> None:
    k = data.draw(st.integers(1, len(row) - 1))
    whole = torch.tensor([row], dtype=torch.float64)
    # the float32 rest of the one and the twin of the other, so that float16 has no part in it
    top = largest(whole.float(), k)
    exact = Top(whole.gather(1, top.classes.long()).float(), top.classes, top.rest)
    others = torch.ones(1, len(row)).scatter_(1, top.classes.long(), 0.0).double()
    had, got = (others * torch.softmax(one.double() / temperature, dim=1) for one in (whole, dense(exact, len(row))))
    assert got.sum() >= had.sum() - 1e-5


def test_equal_logits_stay_equal_whichever_of_them_is_kept() -> None:
    torch.testing.assert_close(dense(largest(torch.full((2, 9), 1.5), 4), 9), torch.full((2, 9), 1.5))


def test_logits_beyond_float16_show_as_infinite_values_for_the_writer_to_refuse() -> None:
    assert not largest(torch.tensor([[1e5, 1.0, 0.0]]), 1).values.isfinite().all()


# --- eight bits


@given(rows)
def test_eight_bits_are_within_half_a_step_of_every_logit_and_exact_at_both_ends(row: list[float]) -> None:
    whole = torch.tensor([row])
    found = in_steps(whole).logits()
    half = (max(row) - min(row)) / 255 / 2
    assert (found - whole).abs().max() <= half * 1.001 + 1e-5
    assert found.min().item() == min(row)
    assert found.max().item() == pytest.approx(max(row), abs=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_eight_bits_go_by_each_images_own_range(device: str) -> None:
    given_logits = logits(seed=2, classes=1000) * torch.tensor([[1.0], [1e-3], [10.0], [0.0], [5.0]])
    eight = in_steps(given_logits.to(device))
    assert [(part.dtype, tuple(part.shape)) for part in eight] == [
        (torch.uint8, (5, 1000)),
        (torch.float32, (5,)),
        (torch.float32, (5,)),
    ]
    spread = given_logits.amax(1, keepdim=True) - given_logits.amin(1, keepdim=True)
    assert ((eight.logits().cpu() - given_logits).abs() <= spread / 255 / 2 * 1.001 + 1e-6).all()
