"""Feature losses against numbers worked out by hand, loops over Python floats, and the authors' own numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.distill import FEATURE_LOSSES
from kdtune.distill.feature_losses import attention, hint, rkd, rkd_angle, rkd_distance
from kdtune.distill.objective import project
from tests.feature_twins import BY_HAND, attention_by_hand, hint_by_hand, maps

# --- hint


def test_hint_is_zero_for_equal_features() -> None:
    assert hint(maps(0), maps(0)).item() == 0


def test_hint_of_zeros_is_exactly_one() -> None:
    assert hint(torch.zeros(3, 3, 4, 4), maps(0)).item() == 1


def test_hint_is_the_number_on_paper() -> None:
    # squares of differences 1 and 4, squares of the teacher 4 and 16
    student, teacher = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([2.0, 4.0]).view(1, 2, 1, 1)
    assert hint(student, teacher).item() == pytest.approx((1 + 4) / (4 + 16))


def test_hint_equals_loops_over_python_floats() -> None:
    assert hint(maps(0), maps(1)).item() == pytest.approx(hint_by_hand(maps(0), maps(1)), rel=1e-5)


def test_the_gradient_of_hint_is_twice_the_difference_over_the_teachers_squares() -> None:
    student, teacher = maps(0).requires_grad_(), maps(1)
    (gradient,) = torch.autograd.grad(hint(student, teacher), student)
    torch.testing.assert_close(gradient, 2 * (student.detach() - teacher) / teacher.square().sum())


def test_the_gradient_of_hint_reaches_every_pixel_that_was_pooled() -> None:
    student, teacher = maps(0, height=8, width=8).requires_grad_(), maps(1)
    (gradient,) = torch.autograd.grad(hint(student, teacher), student)
    pooled = F.avg_pool2d(student.detach(), 2)
    on_pooled = 2 * (pooled - teacher) / teacher.square().sum()
    torch.testing.assert_close(gradient, F.interpolate(on_pooled, scale_factor=2.0, mode="nearest") / 4)


def test_hint_of_a_silent_teacher_is_finite() -> None:
    assert hint(maps(0), torch.zeros(3, 3, 4, 4)).isfinite()


# --- attention


def test_attention_is_zero_for_equal_features() -> None:
    assert attention(maps(0), maps(0)).item() == pytest.approx(0, abs=1e-7)


def test_attention_does_not_ask_how_large_the_features_are() -> None:
    assert attention(5 * maps(0), maps(0)).item() == pytest.approx(0, abs=1e-6)


def test_attention_to_other_places_costs_exactly_one() -> None:
    left, right = torch.zeros(1, 2, 1, 2), torch.zeros(1, 3, 1, 2)
    left[..., 0], right[..., 1] = 3.0, -2.0
    assert attention(left, right).item() == pytest.approx(1, rel=1e-6)


def test_attention_equals_loops_over_python_floats_and_channels_may_differ() -> None:
    student, teacher = maps(0, channels=2), maps(1, channels=5)
    assert attention(student, teacher).item() == pytest.approx(attention_by_hand(student, teacher), rel=1e-5)


def test_attention_of_a_silent_student_has_a_finite_gradient() -> None:
    silent = torch.zeros(3, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(silent, maps(0)), silent)
    assert gradient.isfinite().all()


# --- all feature losses


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_the_larger_map_is_average_pooled_to_the_smaller(name: str) -> None:
    loss = FEATURE_LOSSES[name].function
    small, large = maps(0), maps(1, height=8, width=8)
    torch.testing.assert_close(loss(small, large), loss(small, F.avg_pool2d(large, 2)))
    torch.testing.assert_close(loss(large, small), loss(F.avg_pool2d(large, 2), small))


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_maps_that_are_larger_each_in_another_direction_meet_in_the_middle(name: str) -> None:
    loss = FEATURE_LOSSES[name].function
    tall, wide = maps(0, height=8, width=4), maps(1, height=4, width=8)
    torch.testing.assert_close(loss(tall, wide), loss(F.avg_pool2d(tall, (2, 1)), F.avg_pool2d(wide, (1, 2))))


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_a_feature_loss_of_half_precision_maps_is_computed_in_float32(name: str) -> None:
    """Squares of 300 do not fit float16."""
    loss = FEATURE_LOSSES[name].function
    student, teacher = (300 * maps(0)).half(), (300 * maps(1)).half()
    computed = loss(student, teacher)
    assert computed.dtype == torch.float32
    assert torch.equal(computed, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_a_feature_loss_equals_loops_over_python_floats(name: str) -> None:
    for seed in range(3):
        student, teacher = maps(seed, images=5), maps(seed + 10, images=5)
        expected = BY_HAND[name](student, teacher)
        assert FEATURE_LOSSES[name].function(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_the_gradient_of_a_feature_loss_is_that_of_finite_differences(name: str) -> None:
    """The twin's differences, in float64."""
    student, teacher = maps(0, images=4, height=2, width=2).requires_grad_(), maps(1, images=4, height=2, width=2)
    (gradient,) = torch.autograd.grad(FEATURE_LOSSES[name].function(student, teacher), student)
    step = 1e-5
    for flat in range(0, student.numel(), 5):
        moved = [student.detach().double() for _ in range(2)]
        for copy, sign in zip(moved, (1, -1), strict=True):
            copy.view(-1)[flat] += sign * step
        above, below = (BY_HAND[name](copy, teacher.double()) for copy in moved)
        assert gradient.view(-1)[flat].item() == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_a_feature_loss_does_not_ask_how_large_both_sides_are(name: str) -> None:
    loss = FEATURE_LOSSES[name].function
    assert loss(50 * maps(0), 50 * maps(1)).item() == pytest.approx(loss(maps(0), maps(1)).item(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name, loss in FEATURE_LOSSES.items() if 1 in loss.ranks])
def test_vectors_are_maps_of_one_place(name: str) -> None:
    loss = FEATURE_LOSSES[name].function
    student, teacher = maps(0, height=1, width=1), maps(1, height=1, width=1)
    torch.testing.assert_close(loss(student.flatten(1), teacher.flatten(1)), loss(student, teacher))


# --- hint, the teacher projected


def test_a_shrinking_projector_of_the_teacher_does_not_pay() -> None:
    """Silent it costs 1; together with the student it changes nothing, and no gradient points there."""
    student, teacher, weight = maps(0), maps(1, channels=5), torch.randn(3, 5, 1, 1)
    assert hint(project(teacher, 0 * weight), student).item() == 1
    student.requires_grad_()
    weight.requires_grad_()
    loss = hint(project(teacher, weight), student)
    shrunk = hint(project(teacher, 0.01 * weight), 0.01 * student)
    assert shrunk.item() == pytest.approx(loss.item(), rel=1e-5)
    on_student, on_weight = torch.autograd.grad(loss, (student, weight))
    along = (on_student * student).sum() + (on_weight * weight).sum()
    assert along.item() == pytest.approx(0, abs=1e-5)


def test_the_best_projector_of_the_teacher_leaves_what_it_cannot_explain() -> None:
    """Least squares, by torch.linalg."""
    student, teacher = torch.randn(50, 3), torch.randn(50, 5)
    best = torch.linalg.lstsq(teacher, student).solution.T
    residual = student - teacher @ best.T
    expected = residual.square().sum() / student.square().sum()
    assert expected < 1
    torch.testing.assert_close(hint(project(teacher, best), student), expected)
    assert hint(project(teacher, best + 0.01), student) > expected


# --- rkd


def published() -> tuple[Tensor, Tensor]:
    numbers = torch.arange(20.0)
    return torch.sin(numbers).view(5, 4), torch.cos(0.7 * numbers * numbers).view(5, 4)


def test_rkd_has_the_value_and_gradient_of_public_code() -> None:
    """RepDistiller's RKDLoss in float64, with weights 1 and 0, 0 and 1, 25 and 50; gradients of the first image."""
    student, teacher = published()
    student.requires_grad_()
    for loss, value, gradient in (
        (rkd_distance(student, teacher), 0.05261741514, [-0.0097014, -0.0261096, -0.0185128, 0.0061046]),
        (rkd_angle(student, teacher), 0.06534881665, [-0.0028185, -0.0332358, -0.0330963, -0.0025282]),
        (25 * rkd(student, teacher), 4.58287621100, [-0.3834591, -2.3145325, -2.1176354, 0.026206]),
    ):
        assert loss.item() == pytest.approx(value, rel=1e-5)
        (found,) = torch.autograd.grad(loss, student, retain_graph=True)
        torch.testing.assert_close(found[0], torch.tensor(gradient), rtol=1e-4, atol=2e-6)


def test_rkd_does_not_change_when_the_student_is_moved_turned_and_stretched() -> None:
    student, teacher = published()
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    for loss in (rkd_distance, rkd_angle):
        torch.testing.assert_close(loss(7 * student @ turn + 3, teacher), loss(student, teacher), rtol=1e-4, atol=1e-6)


def test_distances_of_three_points_on_a_line_are_the_number_on_paper() -> None:
    # 1, 2, 3 over their mean 2 against 1, 1, 2 over their mean 4/3: differences 1/4, 1/4, 0; each pair twice of 9
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    expected = 2 * ((0.5 - 0.75) ** 2 / 2 + (1 - 0.75) ** 2 / 2 + (1.5 - 1.5) ** 2 / 2) / 9
    assert rkd_distance(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_angles_of_a_right_triangle_and_a_line_are_the_number_on_paper() -> None:
    # cosines at the corners 0, sqrt(1/2), sqrt(1/2) against -1, 1, 1; j and k change places, 27 triples
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    expected = 2 * (0.5 + 2 * (1 - 0.5**0.5) ** 2 / 2) / 27
    assert rkd_angle(triangle, line).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["rkd-distance", "rkd-angle", "rkd"])
@pytest.mark.parametrize("alike", ["two", "all", "only one"])
def test_images_that_coincide_have_a_finite_and_modest_gradient(name: str, alike: str) -> None:
    student, teacher = published()
    if alike == "two":
        student[1] = student[0]
    elif alike == "all":
        student[:] = student[0]
    else:
        student, teacher = student[:1], teacher[:1]
    student = student.clone().requires_grad_()
    loss = FEATURE_LOSSES[name].function(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1
