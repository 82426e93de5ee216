"""A learned temperature: within its range, moved against the student, part of the learner and never of the export."""

import math

import pytest
import torch
from torch import nn

from kdtune.distill import Cached, Distillation, distill, logit_student
from kdtune.distill.logit_losses import kl
from kdtune.distill.objective import Outputs
from kdtune.distill.students import Learner
from kdtune.distill.temperature import TrainedTemperature, reversed_gradient, strength
from kdtune.experiment import Distill
from kdtune.experiment.objective import LearnedTemperature
from kdtune.models import build_model
from kdtune.trial import Bench, Materials
from tests.conftest import CPU, Answering, MakeExperiment
from tests.test_losses import batch_of, logits

LEARNED = {"distill.learned_temperature": {"low": 1, "high": 20, "warmup": 0}}


@pytest.mark.parametrize("start", [1.5, 4.0, 19.0])
def test_it_begins_at_the_start_and_stays_within_its_range(start: float) -> None:
    learned = TrainedTemperature(LearnedTemperature(low=1, high=20), start)
    assert learned().item() == pytest.approx(start, rel=1e-5)
    for position in (-50.0, 50.0):
        nn.init.constant_(learned.position, position)
        assert 1 <= learned().item() <= 20


def test_opposition_grows_by_half_a_cosine_over_the_warmup() -> None:
    config = LearnedTemperature(warmup=0.5)
    assert [strength(config, epoch, 9) for epoch in range(9)] == pytest.approx(
        [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1, 1, 1, 1, 1]
    )
    assert strength(LearnedTemperature(warmup=0), 0, 9) == 1


def test_reversing_keeps_the_value_and_turns_the_gradient() -> None:
    value = torch.tensor(4.1, requires_grad=True)
    turned = reversed_gradient(value, 0.3)
    assert torch.equal(turned, value)
    (gradient,) = torch.autograd.grad(5 * turned, value)
    assert gradient.item() == pytest.approx(-1.5)


def test_it_has_the_temperature_and_gradient_of_the_authors_code() -> None:
    """CTKD's global temperature 1 + 20 * sigmoid(1), its DistillKL and its reversal, in float64."""
    numbers = torch.arange(12.0)
    student, teacher = (3 * torch.sin(numbers)).view(3, 4), (4 * torch.cos(1.7 * numbers)).view(3, 4)
    learned = TrainedTemperature(LearnedTemperature(low=1, high=21), 15.6211715726)
    temperature = reversed_gradient(learned(), 1.0)
    loss = temperature * temperature * kl(student, teacher, temperature)
    assert temperature.item() == pytest.approx(15.6211715726, rel=1e-6)
    assert loss.item() == pytest.approx(6.97912938157, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, learned.position)
    assert gradient.item() == pytest.approx(-0.03203471083844, rel=1e-3)


@pytest.mark.parametrize("squared", [True, False])
def test_the_objective_moves_it_against_the_distillation_term(squared: bool) -> None:
    """Central differences of the whole term, T^2 included, in float64."""
    config = Distill.model_validate(
        {
            "temperature": 3,
            "alpha": 0.7,
            "learned_temperature": {"low": 1, "high": 20, "warmup": 0},
            "scale_by_temperature_squared": squared,
        }
    )
    assert config.learned_temperature is not None
    learned = TrainedTemperature(config.learned_temperature, 3)
    distillation = Distillation(config, Answering(lambda batch: (logits(1), ())), learned)
    assert distillation.begin_epoch(0, 4, 0)["temperature"] == pytest.approx(3, rel=1e-6)
    temperature = learned()
    student = logits(0).requires_grad_()
    terms = distillation(Outputs(student, temperature=temperature), batch_of(torch.zeros(5, dtype=torch.int64)))
    on_temperature, on_student = torch.autograd.grad(terms["distillation"], (temperature, student))

    def term(at: float) -> float:
        mine, theirs = ((rows.double() / at).log_softmax(1) for rows in (logits(0), logits(1)))
        return 0.7 * (at**2 if squared else 1) * (theirs.exp() * (theirs - mine)).sum().item() / 5

    assert terms["distillation"].item() == pytest.approx(term(3), rel=1e-5)
    assert on_temperature.item() == pytest.approx(-(term(3 + 1e-4) - term(3 - 1e-4)) / 2e-4, rel=1e-3)
    exact = logits(0).double().requires_grad_()
    loss = (
        0.7
        * (9 if squared else 1)
        * nn.functional.kl_div(
            (exact / 3).log_softmax(1), (logits(1).double() / 3).log_softmax(1), reduction="batchmean", log_target=True
        )
    )
    (expected,) = torch.autograd.grad(loss, exact)
    torch.testing.assert_close(on_student.double(), expected, rtol=1e-3, atol=1e-6)


def test_it_is_trained_logged_and_never_part_of_the_student(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = make_experiment({**LEARNED, "train.epochs": 3})
    trial = Bench(materials, CPU).start(experiment, seed=3)
    learner = trial.student.state.learner
    assert isinstance(learner, Learner)
    assert learner.temperature is not None
    began = []
    for record in trial.records:
        began.append(record.temperature)
        assert list(record.terms) == ["cross_entropy", "distillation"]
    assert began[0] == pytest.approx(4, rel=1e-5)
    assert len(set(began)) == 3
    assert trial.student.network.state_dict().keys() == build_model("cnn-8", (1, 8, 8), 10).state_dict().keys()
    assert "temperature.position" in trial.student.state.state_dict()["learner"]


def test_without_opposition_it_stands_still_and_decay_does_not_pull_at_it(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    """One epoch: progress 0, so an opposition that has just begun to grow is 0."""
    experiment = make_experiment(
        {"distill.learned_temperature": {"warmup": 0.5}, "train.epochs": 1, "train.weight_decay": 0.5}
    )
    student = logit_student(experiment, materials.dataset, Cached(Bench(materials, CPU).cache(experiment)), 3, CPU)
    learner = student.state.learner
    assert isinstance(learner, Learner)
    assert learner.temperature is not None
    before = learner.temperature.position.item()
    for _ in distill(student, experiment, materials.dataset, seed=3):
        pass
    assert learner.temperature.position.item() == before
    everything, alone = student.state.optimizer.param_groups
    assert (everything["weight_decay"], alone["weight_decay"]) == (0.5, 0)
    assert [id(parameter) for parameter in alone["params"]] == [id(learner.temperature.position)]


@pytest.mark.parametrize("values", [{}, {"distill.feature_weight": 1}], ids=["logits", "features"])
def test_a_resumed_run_continues_with_its_temperature(
    make_experiment: MakeExperiment, materials: Materials, values: dict[str, object]
) -> None:
    experiment = make_experiment({**LEARNED, **values, "train.epochs": 3})

    whole = Bench(materials, CPU).start(experiment, seed=3)
    stopped, resumed = (Bench(materials, CPU).start(experiment, seed=3) for _ in range(2))
    expected = [record.temperature for record in whole.records]
    next(stopped.records)
    resumed.student.state.load_state_dict(stopped.student.state.state_dict())
    resumed.records = resumed._records()
    assert [record.temperature for record in resumed.records] == expected[1:]
