"""Distillation: the cached run equals the live one, features come from the live teacher, students start alike."""

import dataclasses
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from kdtune.cache import Answers, Place, open_cache
from kdtune.data import Batch
from kdtune.distill import (
    Cached,
    Live,
    Student,
    distill,
    feature_student,
    logit_student,
    student_alone,
    tap_teacher,
)
from kdtune.distill.students import Learner
from kdtune.experiment import Experiment
from kdtune.models import Tapped, build_model
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher
from kdtune.trial import Bench, Materials
from tests.conftest import CPU, Answering, MakeExperiment

FEATURES = {"distill.feature_weight": 1}


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def trained(student: Student, experiment: Experiment, materials: Materials) -> list[EpochRecord]:
    return list(distill(student, experiment, materials.dataset, seed=3))


def with_features(experiment: Experiment, materials: Materials) -> tuple[Student, Tapped]:
    teacher = tap_teacher(experiment, materials.teachers["teacher"].load(CPU))
    return feature_student(experiment, materials.dataset, teacher, 3, CPU), teacher


def learner_of(student: Student) -> Learner:
    assert isinstance(student.state.learner, Learner)
    return student.state.learner


def losses(records: Iterable[EpochRecord]) -> list[tuple[float, float]]:
    return [(record.terms["cross_entropy"], record.terms["distillation"]) for record in records]


# --- the cached run equals the live one


@pytest.fixture
def three_epochs(make_experiment: MakeExperiment) -> Experiment:
    """Crops and flips, as many views as epochs: the loop must not be able to tell the cache from the teacher."""
    experiment = make_experiment({"train.epochs": 3, "distill.alpha": 0.8})
    assert experiment.data.augment == "crop-flip"
    assert experiment.views == 3
    return experiment


def cached_student(experiment: Experiment, materials: Materials) -> Student:
    return logit_student(experiment, materials.dataset, Cached(open_cache(materials.caches["teacher"])), 3, CPU)


def test_the_cached_run_has_the_losses_of_the_live_one(three_epochs: Experiment, materials: Materials) -> None:
    cached = trained(cached_student(three_epochs, materials), three_epochs, materials)
    teacher = tap_teacher(three_epochs, materials.teachers["teacher"].load(CPU))
    alive = trained(logit_student(three_epochs, materials.dataset, Live(teacher), 3, CPU), three_epochs, materials)
    assert len(cached) == len(alive) == 3
    for mine, theirs in zip(losses(cached), losses(alive), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3)


def test_the_cached_run_ends_with_the_weights_of_a_live_one_whose_logits_are_rounded_to_float16(
    three_epochs: Experiment, materials: Materials
) -> None:
    """Bit for bit. The live teacher answers a whole column at a time, in chunks as the cache is built: float32 sums
    may depend on the size of a batch, and a difference in the last bit can fall on the other side of a rounding."""
    dataset = materials.dataset
    teacher = Answers(lambda: materials.teachers["teacher"].load(CPU), dataset, three_epochs.data)

    def rounded(batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        column = torch.cat(list(teacher.to(batch.column, torch.arange(len(dataset.labels)))))
        return column[batch.indices].half().float(), ()

    cached = cached_student(three_epochs, materials)
    alive = logit_student(three_epochs, dataset, Answering(rounded), 3, CPU)
    said, heard = trained(cached, three_epochs, materials), trained(alive, three_epochs, materials)
    assert same(cached.network, alive.network)
    assert losses(said) == losses(heard)


def test_the_live_teacher_answers_to_the_images_that_the_student_sees(
    three_epochs: Experiment, materials: Materials
) -> None:
    teacher = tap_teacher(three_epochs, materials.teachers["teacher"].load(CPU))
    images = torch.randn(4, 1, 8, 8)
    logits, features = Live(teacher)(Batch(images, torch.zeros(4), torch.arange(4), column=0))
    assert torch.equal(logits, materials.teachers["teacher"].load(CPU)(images))
    assert [tuple(feature.shape) for feature in features] == [(4, 8, 8, 8), (4, 16, 4, 4)]


def test_the_live_teachers_answers_carry_no_gradient_even_if_its_weights_would(
    three_epochs: Experiment, materials: Materials
) -> None:
    teacher = tap_teacher(three_epochs, materials.teachers["teacher"].load(CPU).requires_grad_())
    logits, features = Live(teacher)(Batch(torch.randn(4, 1, 8, 8), torch.zeros(4), torch.arange(4), column=0))
    assert not any(answer.requires_grad for answer in (logits, *features))


# --- terms and records


@pytest.mark.parametrize("values", [{}, FEATURES], ids=["logits", "features"])
def test_the_logged_terms_add_up_and_the_weights_are_logged(
    make_experiment: MakeExperiment, materials: Materials, values: dict[str, object]
) -> None:
    experiment = make_experiment(
        {**values, "distill.temperature": {"kind": "exponential", "start": 4, "end": 1}, "distill.alpha": 0.7}
    )
    student = with_features(experiment, materials)[0] if values else cached_student(experiment, materials)
    records = trained(student, experiment, materials)
    expected = ["cross_entropy", "distillation"] + ["features"] * bool(values)
    for record in records:
        assert list(record.terms) == expected
        assert all(term > 0 for term in record.terms.values())
        assert sum(record.terms.values()) == pytest.approx(record.loss, rel=1e-9)
        assert (record.alpha, record.feature_weight) == (0.7, 1 if values else 0)
    assert [record.temperature for record in records] == [4, 1]


def test_a_student_alone_has_no_teacher(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Teacher, "load", refuse)
    experiment = make_experiment(FEATURES)
    orphans = dataclasses.replace(materials, caches={"teacher": Place("/nowhere")})
    for record in Bench(orphans, CPU).start(experiment, seed=3, alone=True).records:
        assert list(record.terms) == ["cross_entropy"]
        assert (record.temperature, record.alpha, record.feature_weight) == (None, None, None)


def refuse(teacher: Teacher, device: torch.device) -> nn.Module:
    raise AssertionError("the teacher was loaded")


def test_students_of_one_seed_start_alike_whatever_teaches_them(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment, features = make_experiment(), make_experiment(FEATURES)
    alone = student_alone(experiment, materials.dataset, 3, CPU).network
    logits = cached_student(experiment, materials).network
    assert same(alone, logits)
    assert same(alone, with_features(features, materials)[0].network)
    assert not same(alone, student_alone(experiment, materials.dataset, 4, CPU).network)


# --- features


@pytest.mark.parametrize(
    ("student", "teacher", "shapes"),
    [
        ("cnn-8", "cnn-8-16", [(16, 8)]),  # the last stages of both
        ("cnn-4-8", "cnn-8-16", [(8, 4), (16, 8)]),
        ("cnn-4-8", "cnn-16", [(16, 8)]),
        ("cnn-4-8", "resnet8", [(32, 4), (64, 8)]),
    ],
)
def test_projectors_take_the_students_channels_to_the_teachers(
    make_experiment: MakeExperiment, materials: Materials, student: str, teacher: str, shapes: list[tuple[int, int]]
) -> None:
    experiment = make_experiment({**FEATURES, "student.model": student, "teacher.model": teacher})
    tapped = tap_teacher(experiment, build_model(teacher, (1, 8, 8), 10).eval())
    learner = learner_of(feature_student(experiment, materials.dataset, tapped, 3, CPU))
    convolutions = [projector for projector in learner.projectors if isinstance(projector, nn.Conv2d)]
    assert [tuple(projector.weight.shape) for projector in convolutions] == [(*shape, 1, 1) for shape in shapes]
    images = torch.randn(2, 1, 8, 8)
    mine, (_, theirs) = learner(images).features, tapped(images)
    assert [feature.shape[1] for feature in mine] == [feature.shape[1] for feature in theirs[-len(mine) :]]


def test_projectors_are_trained_and_are_not_part_of_the_student(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = make_experiment({**FEATURES, "student.model": "cnn-4-8"})
    student, _ = with_features(experiment, materials)
    learner = learner_of(student)
    before = copied(learner.projectors)
    trained(student, experiment, materials)
    assert not any(torch.equal(tensor, before[key]) for key, tensor in learner.projectors.state_dict().items())
    assert student.network.state_dict().keys() == build_model("cnn-4-8", (1, 8, 8), 10).state_dict().keys()
    assert {"projectors.0.weight", "projectors.1.weight"} <= student.state.state_dict()["learner"].keys()
    assert student.network is learner.tapped.model


def test_attention_needs_no_projector(make_experiment: MakeExperiment, materials: Materials) -> None:
    experiment = make_experiment({**FEATURES, "student.model": "cnn-4-8", "distill.feature_loss": "attention"})
    student, _ = with_features(experiment, materials)
    assert list(learner_of(student).projectors.parameters()) == []
    assert all(record.terms["features"] > 0 for record in trained(student, experiment, materials))


def test_features_pull_the_student_towards_the_teacher(make_experiment: MakeExperiment, materials: Materials) -> None:
    """The unweighted feature loss ends lower with a weight of 10 than with one that hardly counts."""
    ends = []
    for weight in (1e-6, 10):
        experiment = make_experiment({"distill.feature_weight": weight, "student.model": "cnn-4-8"})
        student, _ = with_features(experiment, materials)
        ends.append(trained(student, experiment, materials)[-1].terms["features"] / weight)
    assert ends[1] < 0.9 * ends[0]


def test_a_feature_weight_that_rises_from_zero_uses_the_live_teacher(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment = make_experiment({"distill.feature_weight": {"kind": "linear", "start": 0, "end": 2}})
    without_a_cache = dataclasses.replace(materials, caches={"teacher": Place("/nowhere")})
    first, last = Bench(without_a_cache, CPU).start(experiment, seed=3).records
    assert (first.feature_weight, first.terms["features"]) == (0, 0)
    assert last.feature_weight == 2
    assert last.terms["features"] > 0
    assert sum(last.terms.values()) == pytest.approx(last.loss, rel=1e-9)


def test_the_teacher_stays_as_it_was(make_experiment: MakeExperiment, materials: Materials) -> None:
    """Weights, BatchNorm's statistics, eval mode, no gradients."""
    experiment = make_experiment(FEATURES)
    student, teacher = with_features(experiment, materials)
    before = copied(teacher)
    for _ in distill(student, experiment, materials.dataset, seed=3):
        assert not any(module.training for module in teacher.model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    optimised = {id(p) for group in student.state.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in learner_of(student).parameters()}
    assert not optimised & {id(parameter) for parameter in teacher.parameters()}


def test_hooks_do_not_accumulate_when_one_bench_starts_many_feature_trials(
    make_experiment: MakeExperiment, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = Teacher.load

    def load(teacher: Teacher, device: torch.device) -> nn.Module:
        loaded.append(teacher)
        return real(teacher, device)

    monkeypatch.setattr(Teacher, "load", load)
    bench = Bench(materials, CPU)
    experiments = [make_experiment({**FEATURES, "distill.feature_loss": name}) for name in ("hint", "attention")]
    for experiment in experiments * 3:
        next(bench.start(experiment, seed=3).records)
    teacher = bench.tapped_teacher(experiments[0])
    assert len(loaded) == 1
    assert sum(len(module._forward_hooks) for module in teacher.modules()) == len(teacher.taps)


def test_a_feature_trial_does_not_depend_on_the_trials_before_it(
    make_experiment: MakeExperiment, materials: Materials
) -> None:
    experiment, other = make_experiment(FEATURES), make_experiment({**FEATURES, "distill.feature_loss": "attention"})
    used = Bench(materials, CPU)
    for _ in used.start(other, seed=9).records:
        pass
    late, early = used.start(experiment, seed=3), Bench(materials, CPU).start(experiment, seed=3)
    assert losses(late.records) == losses(early.records)
    assert same(late.student.state.learner, early.student.state.learner)
