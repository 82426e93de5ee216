"""Mutual learning: every network learns from all others at once; the student alone is measured and kept."""

import pytest
import torch
from torch import Tensor

from kdtune.data import Batch
from kdtune.distill import distill, peer_student, student_alone
from kdtune.distill.peers import MutualLearning, Peers
from kdtune.errors import ExperimentError
from kdtune.experiment import Distill, Experiment
from kdtune.models import build_model
from kdtune.training import evaluate
from kdtune.trial import Materials
from tests.conftest import CPU, MakeExperiment
from tests.test_losses import batch_of, logits

LABELS = torch.tensor([0, -1, 2, 6, 4])


def among(make_experiment: MakeExperiment, *peers: str, **values: object) -> Experiment:
    given = {path.replace("__", "."): value for path, value in values.items()}
    return make_experiment({"teacher": {"peers": list(peers)}, **given})


def twin(everyone: list[Tensor], temperature: float, alpha: float) -> Tensor:
    """Zhang et al. 2018, in float64, an image and a pair of networks at a time."""
    total = torch.zeros((), dtype=torch.float64)
    kept = [image for image, label in enumerate(LABELS.tolist()) if label >= 0]
    for k, mine in enumerate(everyone):
        for image in kept:
            total = total - (1 - alpha) * mine[image].log_softmax(0)[LABELS[image]] / len(kept)
        others = [other.detach() for j, other in enumerate(everyone) if j != k]
        for other in others:
            for a, b in zip(mine / temperature, other / temperature, strict=True):
                p, q = b.softmax(0), a.softmax(0)
                total = total + alpha * temperature**2 * (p * (p / q).log()).sum() / (len(mine) * len(others))
    return total


@pytest.mark.parametrize("count", [2, 3])
def test_the_total_and_its_gradients_are_the_sum_over_all_networks(count: int) -> None:
    objective = MutualLearning(Distill.model_validate({"temperature": 3, "alpha": 0.4}))
    assert objective.begin_epoch(0, 1, 0) == {"temperature": 3, "alpha": 0.4, "feature_weight": 0}
    everyone = [logits(seed).requires_grad_() for seed in range(count)]
    exact = [rows.detach().double().requires_grad_() for rows in everyone]
    terms = objective((everyone[0], tuple(everyone)), batch_of(LABELS))
    assert list(terms) == ["cross_entropy", "distillation"]
    total, expected = torch.stack(list(terms.values())).sum(), twin(exact, 3, 0.4)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(torch.autograd.grad(total, everyone), torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "dkd", "dist"])
def test_networks_that_agree_pay_nothing_for_it(name: str) -> None:
    objective = MutualLearning(
        Distill.model_validate({"logit_loss": name, "temperature": 1, "standardise_logits": True})
    )
    objective.begin_epoch(0, 1, 0)
    terms = objective((logits(0), (logits(0), logits(0))), batch_of(LABELS))
    assert terms["distillation"].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("peers", [("cnn-8",), ("cnn-16", "cnn-4-8")], ids=["two", "three"])
def test_every_network_learns_and_the_student_is_measured(
    make_experiment: MakeExperiment, materials: Materials, peers: tuple[str, ...]
) -> None:
    experiment = among(make_experiment, *peers, train__epochs=3, distill__alpha=0.5)
    dataset = materials.dataset
    student = peer_student(experiment, dataset, 3, CPU)
    learner = student.state.learner
    assert isinstance(learner, Peers)
    assert student.network is learner.networks[0]
    before = [evaluate(network, dataset, dataset.images, dataset.labels).loss for network in learner.networks]
    records = list(distill(student, experiment, dataset, seed=3))
    after = [evaluate(network, dataset, dataset.images, dataset.labels).loss for network in learner.networks]
    assert len(after) == 1 + len(peers)
    assert all(late < early - 0.05 for early, late in zip(before, after, strict=True))
    mine = evaluate(student.network, dataset, dataset.images, dataset.labels, dataset.validation)
    assert records[-1].val_accuracy == mine.accuracy
    assert sum(records[-1].terms.values()) == pytest.approx(records[-1].loss)
    assert student.network.state_dict().keys() == build_model("cnn-8", (1, 8, 8), 10).state_dict().keys()


def test_the_student_starts_as_any_of_its_seed_and_its_peers_otherwise(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = among(make_experiment, "cnn-8", "cnn-8")
    learner = peer_student(experiment, materials.dataset, 3, CPU).state.learner
    alone = student_alone(experiment, materials.dataset, 3, CPU).network
    assert isinstance(learner, Peers)
    starts = [network.state_dict()["fc.weight"] for network in learner.networks]
    assert torch.equal(starts[0], alone.state_dict()["fc.weight"])
    assert not any(torch.equal(starts[a], starts[b]) for a, b in [(0, 1), (0, 2), (1, 2)])


def test_a_resumed_group_continues_as_if_it_had_never_stopped(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = among(make_experiment, "cnn-4-8", distill__temperature={"kind": "linear", "start": 4, "end": 1})
    whole, stopped, resumed = (peer_student(experiment, materials.dataset, 3, CPU) for _ in range(3))
    for _ in distill(whole, experiment, materials.dataset, seed=3):
        pass
    next(distill(stopped, experiment, materials.dataset, seed=3))
    resumed.state.load_state_dict(stopped.state.state_dict())
    (last,) = distill(resumed, experiment, materials.dataset, seed=3)
    assert last.temperature == 1
    for key, tensor in whole.state.learner.state_dict().items():
        assert torch.equal(tensor, resumed.state.learner.state_dict()[key])


def test_a_learned_temperature_among_peers_is_refused_with_the_file(make_experiment: MakeExperiment) -> None:
    """Also where only a row of the results table has peers, which are trained when the search is over."""
    with pytest.raises(ExperimentError, match=r"distill\.learned_temperature: .* give distill\.temperature"):
        among(make_experiment, "cnn-8", distill__learned_temperature={})
    rows = {"peers": {"teacher": {"peers": ["cnn-8"]}}}
    with pytest.raises(ExperimentError, match=r"final\.rows\.peers.*give distill\.temperature"):
        make_experiment({"distill.learned_temperature": {}, "final": {"rows": rows}})


def test_peers_are_not_asked_in_evaluation() -> None:
    group = Peers([build_model("cnn-8", (1, 8, 8), 10) for _ in range(3)])
    images = Batch(torch.randn(4, 1, 8, 8), torch.zeros(4), torch.arange(4), column=0).images
    assert len(group.train()(images)[1]) == 3
    first, everyone = group.eval()(images)
    assert len(everyone) == 1
    assert torch.equal(first, group.networks[0](images))
