"""Decoupled KD, DIST, standardised logits and cross-entropy with few labels: float64 twins, the authors' numbers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.distill import LOGIT_LOSSES
from kdtune.distill.logit_losses import dist, dkd, kl, logit_loss, standardise
from kdtune.experiment import Distill
from kdtune.training import cross_entropy
from tests.test_losses import batch_of, logits, objective


def published() -> tuple[Tensor, Tensor, Tensor]:
    """The logits and labels that the authors' code was given."""
    numbers = torch.arange(12.0)
    return (3 * torch.sin(numbers)).view(3, 4), (4 * torch.cos(1.7 * numbers)).view(3, 4), torch.tensor([2, 0, 3])


def dkd_twin(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor, weight: float) -> Tensor:
    """The paper's formula in probabilities, an image at a time."""
    total = student.new_zeros(())
    for mine, theirs, label in zip(student, teacher, labels.tolist(), strict=True):
        right = label if label >= 0 else int(theirs.argmax())
        q, p = torch.softmax(mine / temperature, 0), torch.softmax(theirs / temperature, 0)
        others = [k for k in range(len(q)) if k != right]
        total = (
            total + p[right] * (p[right] / q[right]).log() + (1 - p[right]) * ((1 - p[right]) / (1 - q[right])).log()
        )
        q, p = q[others] / q[others].sum(), p[others] / p[others].sum()
        total = total + weight * (p * (p / q).log()).sum()
    return total / len(student)


def dist_twin(student: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
    q, p = torch.softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1)
    rows = [correlation_twin(a, b) for a, b in zip(q, p, strict=True)]
    columns = [correlation_twin(a, b) for a, b in zip(q.T, p.T, strict=True)]
    return (1 - torch.stack(rows).mean()) + weight * (1 - torch.stack(columns).mean())


def correlation_twin(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's; the authors add 1e-8 to the product of the lengths."""
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / (one.square().sum().sqrt() * other.square().sum().sqrt() + 1e-8)


def assert_like_its_twin(
    loss: Callable[[Tensor, Tensor], Tensor], twin: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    """Value and gradient, the twin's in float64."""
    student, teacher = logits(seed).requires_grad_(), logits(seed + 100)
    exact = student.detach().double().requires_grad_()
    found, expected = loss(student, teacher), twin(exact, teacher.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, student)
    (wanted,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("labels", [[0, 6, 3, 2, 2], [-1, 6, -1, 2, 0]], ids=["all", "some"])
def test_dkd_is_the_papers_formula(temperature: float, labels: list[int]) -> None:
    right = torch.tensor(labels)
    for seed in range(3):
        assert_like_its_twin(
            lambda a, b: dkd(a, b, temperature, right, 8.0), lambda a, b: dkd_twin(a, b, temperature, right, 8.0), seed
        )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_two_minus_the_mean_correlations(temperature: float) -> None:
    for seed in range(3):
        assert_like_its_twin(
            lambda a, b: dist(a, b, temperature, 2.0), lambda a, b: dist_twin(a, b, temperature, 2.0), seed
        )


def test_dkd_has_the_value_and_gradient_of_the_authors_code() -> None:
    """mdistiller's dkd_loss with weights 1 and 8 at temperature 2, in float64; the gradient of the first image."""
    student, teacher, labels = published()
    loss = 4 * dkd(student.requires_grad_(), teacher, 2.0, labels, 8.0)
    assert loss.item() == pytest.approx(16.06888251174, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = torch.tensor([-2.9497995, 2.7065823, 0.2601394, -0.0169223])
    torch.testing.assert_close(gradient[0], expected, rtol=1e-4, atol=1e-6)


def test_dist_has_the_value_and_gradient_of_the_authors_code() -> None:
    """DIST(1, 2) of the halved logits, in float64."""
    student, teacher, _ = published()
    loss = dist(student.requires_grad_(), teacher, 2.0, 2.0)
    assert loss.item() == pytest.approx(3.84021028967, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = torch.tensor([-0.0237861, -0.1094642, 0.0244943, 0.108756])
    torch.testing.assert_close(gradient[0], expected, rtol=1e-4, atol=1e-6)


def test_standardised_kl_has_the_value_and_gradient_of_the_authors_code() -> None:
    student, teacher, labels = published()
    config = Distill.model_validate({"standardise_logits": True})
    loss = 4 * logit_loss(student.requires_grad_(), teacher, 2.0, labels, config)
    assert loss.item() == pytest.approx(0.924142688413, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = torch.tensor([-0.0164194, -0.0196788, 0.0149249, 0.0211733])
    torch.testing.assert_close(gradient[0], expected, rtol=1e-4, atol=1e-6)


def test_dkd_with_the_teachers_doubt_as_weight_is_kl() -> None:
    """Zhao et al. 2022, equation 7: KL = target part + (1 - the teacher's probability of it) * the others' part."""
    for seed in range(5):
        student, teacher, label = logits(seed, images=1), logits(seed + 9, images=1), torch.tensor([seed])
        doubt = 1 - torch.softmax(teacher / 3.0, 1)[0, seed].item()
        expected = kl(student, teacher, 3.0).item()
        assert dkd(student, teacher, 3.0, label, doubt).item() == pytest.approx(expected, rel=1e-4)


def test_dkd_of_two_classes_has_only_the_target_part() -> None:
    student, teacher = logits(0, classes=2), logits(1, classes=2)
    labels = torch.tensor([0, 1, 0, 1, 1])
    torch.testing.assert_close(dkd(student, teacher, 2.0, labels, 100.0), kl(student, teacher, 2.0))


def test_an_image_without_a_label_is_taken_for_what_the_teacher_says() -> None:
    student, teacher = logits(0), logits(1)
    unlabelled = dkd(student, teacher, 2.0, torch.full((5,), -1), 8.0)
    assert torch.equal(unlabelled, dkd(student, teacher, 2.0, teacher.argmax(1), 8.0))


def test_the_correlation_between_classes_is_numpys() -> None:
    q, p = (torch.softmax(x.double(), 1).numpy() for x in (logits(0), logits(1)))
    expected = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    assert dist(logits(0), logits(1), 1.0, 0.0).item() == pytest.approx(expected, rel=1e-5)


def test_dist_of_a_batch_of_one_counts_nothing_in_common_within_classes() -> None:
    student, teacher = logits(0, images=1).requires_grad_(), logits(1, images=1)
    loss = dist(student, teacher, 1.0, 3.0)
    between = dist(student, teacher, 1.0, 0.0)
    assert loss.item() == pytest.approx(between.item() + 3)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_dist_of_flat_rows_is_two_and_has_a_finite_gradient(flat: str) -> None:
    student = torch.zeros(5, 7) if flat != "teacher" else logits(0)
    teacher = torch.full((5, 7), 3.0) if flat != "student" else logits(1)
    student.requires_grad_()
    loss = dist(student, teacher, 1.0, 1.0)
    assert loss.item() == pytest.approx(2, abs=1e-3)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e4


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("standardised", [False, True])
def test_constant_logits_and_a_single_image_give_finite_gradients(name: str, standardised: bool) -> None:
    config = Distill.model_validate({"logit_loss": name, "standardise_logits": standardised})
    for images in (1, 4):
        student = torch.zeros(images, 7, requires_grad=True)
        loss = logit_loss(student, torch.ones(images, 7), 4.0, torch.full((images,), -1), config)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_standardised_logits_do_not_ask_how_large_or_where_logits_are(name: str) -> None:
    config = Distill.model_validate({"logit_loss": name, "standardise_logits": True})
    labels = torch.tensor([0, 1, 2, 3, 4])
    one = logit_loss(logits(0), logits(1), 2.0, labels, config)
    other = logit_loss(9 * logits(0) + 5, 0.1 * logits(1) - 3, 2.0, labels, config)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_standardised_logits_have_mean_zero_and_deviation_one() -> None:
    by_numpy = logits(0).double().numpy()
    expected = (by_numpy - by_numpy.mean(1, keepdims=True)) / by_numpy.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(standardise(logits(0)).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_the_distillation_term_is_alpha_times_temperature_squared_times_the_loss(name: str) -> None:
    config = {"logit_loss": name, "alpha": 0.3, "temperature": 3, "nontarget_weight": 2, "intra_class_weight": 0.5}
    labels = torch.tensor([0, 1, 2, 3, 4])
    terms = objective(config, logits(1))(logits(0), batch_of(labels))
    loss = LOGIT_LOSSES[name](logits(0), logits(1), 3.0, labels, Distill.model_validate(config))
    assert terms["distillation"].item() == pytest.approx(0.3 * 9 * loss.item(), rel=1e-6)


# --- cross-entropy where labels are few


def test_cross_entropy_is_torchs_bit_for_bit_where_all_images_have_labels() -> None:
    for images in (1, 3, 64, 100):
        first, labels = logits(images, images=images).requires_grad_(), torch.arange(images) % 7
        second = first.detach().clone().requires_grad_()
        mine, theirs = cross_entropy(first, labels), F.cross_entropy(second, labels)
        assert torch.equal(mine, theirs)
        assert torch.equal(*(torch.autograd.grad(0.3 * loss, x)[0] for loss, x in ((mine, first), (theirs, second))))


def test_cross_entropy_is_the_mean_over_images_that_have_labels() -> None:
    labels = torch.tensor([3, -1, 0, -1, 6])
    kept = labels >= 0
    torch.testing.assert_close(cross_entropy(logits(0), labels), F.cross_entropy(logits(0)[kept], labels[kept]))


def test_cross_entropy_without_any_label_is_zero_with_a_gradient_of_zeros() -> None:
    student = logits(0).requires_grad_()
    loss = cross_entropy(student, torch.full((5,), -1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(5, 7))


def test_the_objectives_cross_entropy_leaves_images_without_labels_out() -> None:
    labels = torch.tensor([3, -1, 0, -1, 6])
    terms = objective({"alpha": 0.25}, logits(1))(logits(0), batch_of(labels))
    kept = labels >= 0
    expected = 0.75 * F.cross_entropy(logits(0)[kept], labels[kept])
    torch.testing.assert_close(terms["cross_entropy"], expected)
    torch.testing.assert_close(terms["distillation"], 0.25 * 16 * kl(logits(0), logits(1), 4.0))
