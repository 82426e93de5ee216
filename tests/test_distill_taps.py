"""Which features meet which: named taps, own stages, shapes that do not fit, and both ways of projecting."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from kdtune.cache import open_cache
from kdtune.data import Dataset
from kdtune.distill import (
    FEATURE_LOSSES,
    LOGIT_LOSSES,
    Cached,
    check_features,
    distill,
    feature_student,
    logit_student,
    tap_teacher,
)
from kdtune.distill.students import Learner
from kdtune.errors import ExperimentError
from kdtune.experiment import Experiment
from kdtune.models import MODELS
from kdtune.records import EpochRecord
from kdtune.trial import Materials
from tests.conftest import CPU, MakeExperiment

FEATURES = {"distill.feature_weight": 1}
SHAPE = (1, 8, 8)


class Tokens(nn.Module):
    """Vectors [B, 6], then tokens [B, 5, 6], then logits; names no stages."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.vector = nn.Linear(image_shape[0], 6)
        self.tokens = nn.Unflatten(1, (5, 6))
        self.fc = nn.Linear(30, classes)
        self.idle = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        vectors = self.vector(images.mean(dim=(2, 3)))
        tokens = self.tokens(vectors.repeat(1, 5))
        logits: Tensor = self.fc(tokens.flatten(1))
        return logits


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "vgg8", Tokens)


def problems_of(experiment: Experiment) -> list[str]:
    with pytest.raises(ExperimentError) as caught:
        check_features(experiment, SHAPE, 10)
    return [str(problem) for problem in caught.value.problems]


def trained(experiment: Experiment, materials: Materials) -> tuple[Learner, list[float]]:
    teacher = tap_teacher(experiment, materials.teachers["teacher"].load(CPU))
    student = feature_student(experiment, materials.dataset, teacher, 3, CPU)
    records = list(distill(student, experiment, materials.dataset, seed=3))
    assert isinstance(student.state.learner, Learner)
    return student.state.learner, [record.terms["features"] for record in records]


# --- what is refused before anything starts


def test_nothing_is_asked_where_features_are_not_compared(make_experiment: MakeExperiment) -> None:
    check_features(make_experiment({"student.taps": ["nowhere"]}), SHAPE, 10)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_own_stages_fit(make_experiment: MakeExperiment, name: str) -> None:
    check_features(make_experiment({**FEATURES, "distill.feature_loss": name}), SHAPE, 10)
    check_features(make_experiment({**FEATURES, "distill.feature_loss": name, "teacher.model": "resnet8"}), SHAPE, 10)


def test_taps_that_do_not_exist_are_all_named_with_those_that_do(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment({**FEATURES, "student.taps": ["block.0", "fc"], "teacher.taps": ["blocks.7", "fc"]})
    mine, theirs = problems_of(experiment)
    assert mine.startswith("student.taps: model PlainCNN has no module 'block.0'; it has blocks, fc.")
    assert "Names close to it: blocks.0" in mine
    assert theirs.startswith("teacher.taps: model PlainCNN has no module 'blocks.7'")


def test_a_teacher_by_name_is_found_in_its_place(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(
        {**FEATURES, "teachers": {"big": {"model": "cnn-8-16", "taps": ["nowhere"]}}, "teacher": "big"}
    )
    (problem,) = problems_of(experiment)
    assert problem.startswith("teachers.big.taps: model PlainCNN has no module 'nowhere'")


@pytest.mark.parametrize(
    ("student", "teacher", "place"),
    [
        (["blocks.0"], ["blocks.0", "blocks.1"], "student.taps"),
        (["blocks.0", "blocks.0.0", "blocks"], None, "student.taps"),
        (None, ["blocks.0", "blocks.1"], "teacher.taps"),
    ],
)
def test_a_tap_without_a_partner_is_refused(
    make_experiment: MakeExperiment, student: list[str] | None, teacher: list[str] | None, place: str
) -> None:
    (problem,) = problems_of(make_experiment({**FEATURES, "student.taps": student, "teacher.taps": teacher}))
    assert problem.startswith(f"{place}: each tap needs a partner, but the student has")


@pytest.mark.parametrize(
    ("name", "student", "teacher", "message"),
    [
        (
            "hint",
            "vector",
            "blocks.1",
            "student tap vector [6] with teacher tap blocks.1 [16, 4, 4]: it takes two maps",
        ),
        ("hint", "tokens", "blocks.1", "student tap tokens [5, 6] with teacher tap blocks.1 [16, 4, 4]"),
        ("rkd", "tokens", "blocks.1", "student tap tokens [5, 6] with teacher tap blocks.1 [16, 4, 4]"),
        ("attention", "vector", "fc", "student tap vector [6] with teacher tap fc [10]: it takes maps"),
    ],
)
@pytest.mark.usefixtures("tokens")
def test_shapes_that_a_loss_cannot_compare_are_named(
    make_experiment: MakeExperiment, name: str, student: str, teacher: str, message: str
) -> None:
    experiment = make_experiment(
        {
            **FEATURES,
            "distill.feature_loss": name,
            "student": {"model": "vgg8", "taps": [student]},
            "teacher.taps": [teacher],
        }
    )
    (problem,) = problems_of(experiment)
    assert problem.startswith(f"distill.feature_loss: {name} cannot compare {message}")


@pytest.mark.usefixtures("tokens")
def test_a_module_that_never_runs_is_no_tap(make_experiment: MakeExperiment) -> None:
    idle = {"model": "vgg8", "taps": ["idle"]}
    (problem,) = problems_of(make_experiment({**FEATURES, "student": idle, "teacher.taps": ["fc"]}))
    assert problem == "student.taps: Tokens does not run its module 'idle': tap another one"


@pytest.mark.usefixtures("tokens")
def test_vectors_meet_vectors_and_relations_meet_anything_that_pools(make_experiment: MakeExperiment) -> None:
    vector = {**FEATURES, "student": {"model": "vgg8", "taps": ["vector"]}}
    check_features(make_experiment({**vector, "teacher.taps": ["fc"]}), SHAPE, 10)
    check_features(make_experiment({**vector, "teacher.taps": ["blocks.1"], "distill.feature_loss": "rkd"}), SHAPE, 10)


@pytest.mark.usefixtures("tokens")
def test_a_network_without_stages_asks_for_taps(make_experiment: MakeExperiment) -> None:
    (problem,) = problems_of(make_experiment({**FEATURES, "student.model": "vgg8"}))
    assert problem.startswith("student.taps: Tokens: no module with a feature map")
    assert problem.endswith("name some in `taps`. Its modules: vector, tokens, fc, idle")


def test_networks_that_are_only_tried_draw_no_random_numbers(make_experiment: MakeExperiment) -> None:
    before = torch.get_rng_state()
    check_features(make_experiment(FEATURES), SHAPE, 10)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is trained


def test_named_taps_are_the_ones_that_are_compared(make_experiment: MakeExperiment, materials: Materials) -> None:
    experiment = make_experiment({**FEATURES, "student.taps": ["blocks.0.0"], "teacher.taps": ["blocks.0.1"]})
    check_features(experiment, SHAPE, 10)
    learner, features = trained(experiment, materials)
    assert learner.tapped.taps == ("blocks.0.0",)
    assert tap_teacher(experiment, materials.teachers["teacher"].load(CPU)).taps == ("blocks.0.1",)
    assert features[-1] > 0


@pytest.mark.parametrize("name", ["rkd", "rkd-distance", "rkd-angle"])
def test_relations_need_no_projector_and_draw_the_student_closer(
    make_experiment: MakeExperiment, materials: Materials, name: str
) -> None:
    ends = []
    for weight in (1e-6, 50):
        experiment = make_experiment(
            {"distill.feature_loss": name, "distill.feature_weight": weight, "student.model": "cnn-4-8"}
        )
        learner, features = trained(experiment, materials)
        assert len(learner.projectors) == 0
        ends.append(features[-1] / weight)
    assert ends[1] < 0.8 * ends[0]


def test_the_teachers_channels_can_be_projected_instead(make_experiment: MakeExperiment, materials: Materials) -> None:
    """From 8 and 16 channels to 4 and 8; the projectors learn, and predict more than nothing."""
    experiment = make_experiment(
        {**FEATURES, "distill.feature_projection": "teacher", "student.model": "cnn-4-8", "train.epochs": 3}
    )
    teacher = tap_teacher(experiment, materials.teachers["teacher"].load(CPU))
    student = feature_student(experiment, materials.dataset, teacher, 3, CPU)
    learner = student.state.learner
    assert isinstance(learner, Learner)
    before = [parameter.detach().clone() for parameter in learner.projectors.parameters()]
    assert [tuple(weight.shape) for weight in before] == [(4, 8, 1, 1), (8, 16, 1, 1)]
    features = [r.terms["features"] for r in distill(student, experiment, materials.dataset, seed=3)]
    assert features[-1] < min(features[0], 0.9)
    assert not any(torch.equal(a, b) for a, b in zip(before, learner.projectors.parameters(), strict=True))
    assert not any(key.startswith("projectors") for key in student.network.state_dict())


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.usefixtures("tokens")
def test_vectors_are_projected_linearly(make_experiment: MakeExperiment, materials: Materials, side: str) -> None:
    experiment = make_experiment(
        {
            **FEATURES,
            "distill.feature_projection": side,
            "student": {"model": "vgg8", "taps": ["vector"]},
            "teacher.taps": ["fc"],
        }
    )
    learner, features = trained(experiment, materials)  # the teacher's fc has as many channels as there are classes
    (projector,) = learner.projectors
    assert isinstance(projector, nn.Linear)
    assert features[-1] > 0


# --- from the cache, and without labels


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_every_logit_loss_works_from_the_cache(
    make_experiment: MakeExperiment, materials: Materials, name: str
) -> None:
    experiment = make_experiment({"distill.logit_loss": name, "train.epochs": 3, "distill.alpha": 1})
    first, *_, last = cached(experiment, materials, materials.dataset)[1]
    assert last.terms["distillation"] < 0.95 * first.terms["distillation"]


@pytest.mark.parametrize("name", ["kl", "dist"])
def test_at_alpha_one_labels_do_not_influence_the_student(
    make_experiment: MakeExperiment, materials: Materials, name: str
) -> None:
    """Bit for bit, with the labels in another order, and with none."""
    experiment = make_experiment({"distill.logit_loss": name, "distill.alpha": 1})
    dataset = materials.dataset
    order = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(0))
    missing = dataset.labels.clone()
    missing[dataset.fit] = -1
    right, shuffled, none = (
        cached(experiment, materials, dataclasses.replace(dataset, labels=labels))[0]
        for labels in (dataset.labels, dataset.labels[order], missing)
    )
    for key, tensor in right.items():
        assert torch.equal(tensor, shuffled[key])
        assert torch.equal(tensor, none[key])


def cached(
    experiment: Experiment, materials: Materials, dataset: Dataset
) -> tuple[dict[str, Tensor], list[EpochRecord]]:
    """Weights and records of a student that was trained from the cache."""
    answers = Cached(open_cache(materials.caches["teacher"]))
    student = logit_student(experiment, dataset, answers, 3, CPU)
    records = list(distill(student, experiment, dataset, seed=3))
    return dict(student.network.state_dict()), records
