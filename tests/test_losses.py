"""The terms of the objective against numbers worked out by hand and against float64 twins written with loops."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtune.data import Batch
from kdtune.distill import FEATURE_LOSSES, LOGIT_LOSSES, Distillation
from kdtune.distill.feature_losses import hint
from kdtune.distill.logit_losses import kl
from kdtune.experiment import Distill
from tests.conftest import Answering
from tests.feature_twins import BY_HAND, maps

Features = tuple[Tensor, ...]


def logits(seed: int, images: int = 5, classes: int = 7, scale: float = 4.0) -> Tensor:
    return scale * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


def softmax_by_hand(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl_by_hand(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> float:
    """Python floats and loops: sum over classes, mean over images."""
    total = 0.0
    for mine, theirs in zip(student_logits.tolist(), teacher_logits.tolist(), strict=True):
        q, p = softmax_by_hand(mine, temperature), softmax_by_hand(theirs, temperature)
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    return total / len(student_logits)


def cross_entropy_by_hand(student_logits: Tensor, labels: Tensor) -> float:
    rows = zip(student_logits.tolist(), labels.tolist(), strict=True)
    return -sum(math.log(softmax_by_hand(row, 1)[label]) for row, label in rows) / len(labels)


def batch_of(labels: Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)), column=0)


def objective(config: Mapping[str, object], teacher_logits: Tensor, teacher_features: Features = ()) -> Distillation:
    """The objective as it stands in the first of one epoch, taught by fixed answers."""
    distillation = Distillation(
        Distill.model_validate(config), Answering(lambda batch: (teacher_logits, teacher_features))
    )
    distillation.begin_epoch(0, 1, 0)
    return distillation


# --- kl


def test_kl_of_two_classes_is_the_number_on_paper() -> None:
    # teacher says 3 : 1, student 1 : 1, so 3/4 ln(3/2) + 1/4 ln(1/2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert expected == pytest.approx(0.1308120, abs=1e-7)
    given = kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]]), 1.0)
    assert given.item() == pytest.approx(expected, rel=1e-6)


def test_kl_at_temperature_two_is_the_number_on_paper() -> None:
    # halved logits: teacher says 2 : 1 (from 4 : 1), student 1 : 3 (from 1 : 9)
    expected = 2 / 3 * math.log((2 / 3) / (1 / 4)) + 1 / 3 * math.log((1 / 3) / (3 / 4))
    given = kl(torch.tensor([[0.0, math.log(9)]]), torch.tensor([[math.log(4), 0.0]]), 2.0)
    assert given.item() == pytest.approx(expected, rel=1e-6)


def test_kl_goes_from_teacher_to_student() -> None:
    """The other direction of the same pair is another number: ln 2 - ln(3) / 2."""
    given = kl(torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
    assert given.item() == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-6)


def test_kl_is_summed_over_classes_and_averaged_over_images() -> None:
    one = kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]]), 1.0)
    with_an_equal_pair = kl(torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), 1.0)
    assert with_an_equal_pair.item() == pytest.approx(one.item() / 2, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kl_equals_loops_over_python_floats(temperature: float) -> None:
    for seed in range(5):
        student_logits, teacher_logits = logits(seed), logits(seed + 100)
        expected = kl_by_hand(student_logits, teacher_logits, temperature)
        assert kl(student_logits, teacher_logits, temperature).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_gradient_of_kl_is_the_difference_of_softmaxes(temperature: float) -> None:
    student_logits, teacher_logits = logits(1).requires_grad_(), logits(2)
    (gradient,) = torch.autograd.grad(kl(student_logits, teacher_logits, temperature), student_logits)
    mine, theirs = (torch.softmax(x.detach().double() / temperature, dim=1) for x in (student_logits, teacher_logits))
    expected = (mine - theirs) / (temperature * len(student_logits))
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-8)


def test_the_gradient_of_kl_is_that_of_finite_differences() -> None:
    student_logits, teacher_logits = logits(3, images=2, classes=3).requires_grad_(), logits(4, images=2, classes=3)
    (gradient,) = torch.autograd.grad(kl(student_logits, teacher_logits, 2.0), student_logits)
    step = 1e-5
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        moved = [student_logits.detach().double() for _ in range(2)]
        for copy, sign in zip(moved, (1, -1), strict=True):
            copy[tuple(place)] += sign * step
        above, below = (kl_by_hand(copy, teacher_logits.double(), 2.0) for copy in moved)
        assert gradient[tuple(place)].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7)


def named(name: str) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A logit loss with its defaults; the right classes are 0, 1, 2, ..., and one image in three has no label."""
    config = Distill.model_validate({"logit_loss": name})

    def loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        numbers = torch.arange(len(student_logits))
        labels = torch.where(numbers % 3 == 2, -1, numbers % student_logits.shape[1])
        return LOGIT_LOSSES[name](student_logits, teacher_logits, temperature, labels, config)

    return loss


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_logit_loss_is_zero_for_equal_logits_and_positive_otherwise(name: str) -> None:
    loss = named(name)
    assert loss(logits(0), logits(0), 4.0).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits(0), logits(1), 4.0).item() > 0.01


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_logit_loss_of_half_precision_logits_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss = named(name)
    student_logits, teacher_logits = logits(0).to(dtype), logits(1).to(dtype)
    computed = loss(student_logits, teacher_logits, 3.0)
    assert computed.dtype == torch.float32
    assert torch.equal(computed, loss(student_logits.float(), teacher_logits.float(), 3.0))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_logit_loss_stays_finite_for_the_largest_float16_logits(name: str) -> None:
    certain = torch.tensor([[65504.0, -65504.0]], dtype=torch.float16)
    assert named(name)(certain.flip(1), certain, 1.0).isfinite()


# --- the objective


@given(
    temperature=st.floats(0.5, 20),
    alpha=st.floats(0, 1),
    feature_weight=st.floats(0, 10),
    squared=st.booleans(),
    name=st.sampled_from(sorted(FEATURE_LOSSES)),
    seed=st.integers(0, 1000),
)
def test_the_total_is_the_formula(
    temperature: float, alpha: float, feature_weight: float, squared: bool, name: str, seed: int
) -> None:
    """(1 - alpha) * cross_entropy + alpha * T^2 * KL + feature_weight * mean of the taps' losses."""
    student_logits, teacher_logits = logits(seed), logits(seed + 1)
    labels = torch.randint(0, 7, (5,), generator=torch.Generator().manual_seed(seed))
    mine, theirs = (maps(seed), maps(seed + 1)), (maps(seed + 2), maps(seed + 3))
    distillation = objective(
        {
            "temperature": temperature,
            "alpha": alpha,
            "feature_weight": feature_weight,
            "feature_loss": name,
            "scale_by_temperature_squared": squared,
        },
        teacher_logits,
        theirs,
    )
    outputs = (student_logits, mine) if feature_weight > 0 else student_logits
    total = sum(term.item() for term in distillation(outputs, batch_of(labels)).values())
    by_hand = BY_HAND[name]
    features = sum(by_hand(a, b) for a, b in zip(mine, theirs, strict=True)) / 2
    if name.startswith("rkd"):  # the last tap alone
        features = by_hand(mine[-1], theirs[-1])
    expected = (
        (1 - alpha) * cross_entropy_by_hand(student_logits, labels)
        + alpha * (temperature**2 if squared else 1) * kl_by_hand(student_logits, teacher_logits, temperature)
        + feature_weight * features
    )
    assert total == pytest.approx(expected, rel=2e-5, abs=1e-5)


def test_at_alpha_zero_the_total_is_plain_cross_entropy() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    terms = objective({"alpha": 0, "temperature": 3}, logits(1))(logits(0), batch_of(labels))
    assert torch.equal(torch.stack(list(terms.values())).sum(), F.cross_entropy(logits(0), labels))


def test_at_alpha_one_the_total_is_pure_kl() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    terms = objective({"alpha": 1, "temperature": 3}, logits(1))(logits(0), batch_of(labels))
    assert torch.equal(torch.stack(list(terms.values())).sum(), 9 * kl(logits(0), logits(1), 3))


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_every_alpha_has_the_same_terms(alpha: float) -> None:
    terms = objective({"alpha": alpha}, logits(1))(logits(0), batch_of(torch.zeros(5, dtype=torch.int64)))
    assert list(terms) == ["cross_entropy", "distillation"]


def gradient_size(temperature: float, squared: bool) -> float:
    student_logits = logits(0).requires_grad_()
    config = {"alpha": 1, "temperature": temperature, "scale_by_temperature_squared": squared}
    terms = objective(config, logits(1))(student_logits, batch_of(torch.zeros(5, dtype=torch.int64)))
    (gradient,) = torch.autograd.grad(terms["distillation"], student_logits)
    return float(gradient.norm())


def test_the_factor_of_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    assert gradient_size(100, squared=True) == pytest.approx(gradient_size(50, squared=True), rel=0.05)
    assert gradient_size(100, squared=False) == pytest.approx(gradient_size(50, squared=False) / 4, rel=0.05)


def test_at_high_temperature_the_scaled_gradient_is_that_of_matching_centred_logits() -> None:
    """Hinton et al. 2015, section 2.1: (z_i - v_i) / C an image, for logits of mean 0."""
    student_logits, teacher_logits = logits(0, scale=1.0).requires_grad_(), logits(1, scale=1.0)
    terms = objective({"alpha": 1, "temperature": 200}, teacher_logits)(
        student_logits, batch_of(torch.zeros(5, dtype=torch.int64))
    )
    (gradient,) = torch.autograd.grad(terms["distillation"], student_logits)
    difference = student_logits.detach() - teacher_logits
    expected = (difference - difference.mean(dim=1, keepdim=True)) / difference.numel()
    assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_schedules_move_the_weights_of_the_terms_once_an_epoch() -> None:
    config = Distill.model_validate(
        {
            "temperature": {"kind": "exponential", "start": 4, "end": 1},
            "alpha": {"kind": "linear", "start": 1, "end": 0},
            "feature_weight": {"kind": "step", "start": 8, "factor": 0.5, "milestones": [0.5]},
        }
    )
    distillation = Distillation(config, Answering(lambda batch: (logits(1), (maps(1),))))
    said = [dict(distillation.begin_epoch(epoch, 3, 0)) for epoch in range(3)]
    assert said[0] == {"temperature": 4, "alpha": 1, "feature_weight": 8}
    assert said[1] == pytest.approx({"temperature": 2, "alpha": 0.5, "feature_weight": 4})
    assert said[2] == {"temperature": 1, "alpha": 0, "feature_weight": 4}
    labels = torch.zeros(5, dtype=torch.int64)
    terms = distillation((logits(0), (maps(0),)), batch_of(labels))  # with the weights of the last epoch
    assert terms["distillation"].item() == 0
    assert terms["cross_entropy"].item() == pytest.approx(F.cross_entropy(logits(0), labels).item())
    assert terms["features"].item() == pytest.approx(4 * hint(maps(0), maps(1)).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_term_of_a_half_precision_student_is_float32(dtype: torch.dtype) -> None:
    distillation = objective({"feature_weight": 1}, logits(1), (maps(1),))
    labels = torch.zeros(5, dtype=torch.int64)
    terms = distillation((logits(0).to(dtype), (maps(0).to(dtype),)), batch_of(labels))
    rounded = distillation((logits(0).to(dtype).float(), (maps(0).to(dtype).float(),)), batch_of(labels))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms == rounded
