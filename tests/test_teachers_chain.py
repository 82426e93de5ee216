"""Assistants, ensembles, generations, early-stopped teachers: how each is made, kept and found again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.data import Dataset, batches, load_dataset
from kdtune.distill import Live, distill, feature_student, logit_student, student_alone, tap_teacher
from kdtune.errors import TeacherError
from kdtune.experiment import Experiment
from kdtune.experiment.chain import assistant
from kdtune.models import Tapped, build_model
from kdtune.records import EpochRecord
from kdtune.teacher import Ensemble, Teacher, own_seed, own_views
from kdtune.training import loop
from kdtune.trial import Bench, Silent, locate, obtain, prepare
from tests.conftest import CPU, MakeExperiment

SHORT = {"epochs": 2, "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.02}
LARGE: dict[str, Any] = {"model": "cnn-8-16", "train": {**SHORT, "epochs": 3}}
ASSISTANT: dict[str, Any] = {"model": "cnn-16-32", "taught_by": "large", "train": SHORT}


def nobody(name: str, record: EpochRecord) -> None:
    """on_epoch where nobody listens."""


def refuse(name: str, record: EpochRecord) -> None:
    raise AssertionError(f"{name} was trained again: epoch {record.epoch}")


def weights(teacher: Teacher) -> Mapping[str, Tensor]:
    return teacher.load(CPU).state_dict()


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def with_teachers(make_experiment: MakeExperiment, own: object, **teachers: object) -> Experiment:
    return make_experiment({"teachers": {"large": LARGE, **teachers}, "teacher": own})


# --- assistants


@pytest.mark.parametrize("feature_weight", [0, 0.5])
def test_an_assistant_is_the_student_that_its_teacher_would_have_by_hand(
    make_experiment: MakeExperiment, digits: Dataset, feature_weight: float
) -> None:
    objective = {"temperature": {"kind": "linear", "start": 3, "end": 1}, "feature_weight": feature_weight}
    experiment = with_teachers(make_experiment, {**ASSISTANT, "distill": objective, "seed": 4})
    teachers = obtain(experiment, digits, CPU, nobody)
    assert list(teachers) == ["large", "teacher"]

    child = assistant(experiment, "teacher")
    by_hand = child.model_copy(update={"data": own_views(child.data, depth=2)})
    network = teachers["large"].load(CPU)
    seed = own_seed(experiment.own_teacher)
    student = (
        feature_student(by_hand, digits, tap_teacher(by_hand, network), seed, CPU)
        if feature_weight
        else logit_student(by_hand, digits, Live(Tapped(network, ())), seed, CPU)
    )
    records = list(distill(student, by_hand, digits, seed=seed))
    assert [record.temperature for record in records] == [3, 1]
    assert same(weights(teachers["teacher"]), student.network.state_dict())
    assert teachers["teacher"].val_accuracy == records[-1].val_accuracy


def test_a_chain_never_sees_the_validation_images(
    make_experiment: MakeExperiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()

    def watched(*arguments: Any, **named: Any) -> Any:
        for batch in batches(*arguments, **named):
            seen.update(batch.indices.tolist())
            yield batch

    monkeypatch.setattr(loop, "batches", watched)
    obtain(with_teachers(make_experiment, {**ASSISTANT, "generations": 2}), digits, CPU, nobody)
    assert seen == set(digits.fit.tolist())


def test_a_chain_is_found_again_and_only_its_changed_end_is_trained_anew(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    first = obtain(with_teachers(make_experiment, ASSISTANT), digits, CPU, nobody)
    assert obtain(with_teachers(make_experiment, ASSISTANT), digits, CPU, refuse) == first
    assert locate(with_teachers(make_experiment, ASSISTANT), digits) == first
    heard: list[str] = []
    changed = with_teachers(make_experiment, {**ASSISTANT, "distill": {"alpha": 0.5}})
    other = obtain(changed, digits, CPU, lambda name, record: heard.append(f"{name} {record.epoch}"))
    assert heard == ["teacher 1", "teacher 2"]
    assert other["large"] == first["large"]
    assert other["teacher"].fingerprint != first["teacher"].fingerprint


def test_another_teacher_makes_another_assistant(make_experiment: MakeExperiment, digits: Dataset) -> None:
    obtain(with_teachers(make_experiment, ASSISTANT), digits, CPU, nobody)
    other = with_teachers(make_experiment, ASSISTANT, large={**LARGE, "seed": 1})
    with pytest.raises(TeacherError, match="'large' is not in"):
        locate(other, digits)


def test_an_assistant_of_features_belongs_to_its_teachers_taps(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    learner = {**ASSISTANT, "distill": {"feature_weight": 1}, "taps": ["blocks.1"]}
    one, other = (
        with_teachers(make_experiment, learner, large={**LARGE, "taps": [tap]}) for tap in ("blocks.0", "blocks.1")
    )
    first = obtain(one, digits, CPU, nobody)
    assert obtain(other, digits, CPU, nobody)["teacher"].fingerprint != first["teacher"].fingerprint


def test_an_assistant_does_not_depend_on_how_many_views_are_cached(
    make_experiment: MakeExperiment, digits: Dataset, tmp_path: Path
) -> None:
    found = [
        obtain(make_experiment(values), digits, CPU, nobody)["teacher"].fingerprint
        for values in (
            {"teachers": {"large": LARGE}, "teacher": ASSISTANT, "data.views": 1, "storage": f"{tmp_path}/few"},
            {"teachers": {"large": LARGE}, "teacher": ASSISTANT, "storage": f"{tmp_path}/all"},
        )
    ]
    assert found[0] == found[1]


def test_an_interrupted_assistant_goes_on_where_it_stood(
    make_experiment: MakeExperiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {**ASSISTANT, "train": {**SHORT, "epochs": 3}}
    whole = obtain(
        with_teachers(make_experiment, long).model_copy(update={"storage": "elsewhere"}), digits, CPU, nobody
    )["teacher"]
    monkeypatch.setattr("kdtune.trial.running.SAVE_EVERY_S", -1.0)  # save after every epoch
    heard: list[int] = []

    def interrupt(name: str, record: EpochRecord) -> None:
        if name == "teacher":
            heard.append(record.epoch)
            if record.epoch == 2:
                raise KeyboardInterrupt

    experiment = with_teachers(make_experiment, long)
    with pytest.raises(KeyboardInterrupt):
        obtain(experiment, digits, CPU, interrupt)
    teacher = obtain(experiment, digits, CPU, lambda name, record: heard.append(record.epoch))["teacher"]
    assert heard == [1, 2, 2, 3]
    assert same(weights(teacher), weights(whole))
    assert not (Path(teacher.folder) / "training.pt").exists()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_assistant_that_diverges_is_named_with_its_learning_rate(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    wild = {**ASSISTANT, "train": {**SHORT, "optimizer": "sgd", "learning_rate": 1e25}}
    with pytest.raises(TeacherError, match=r"cnn-16-32\) diverged in epoch 1; lower its train\.learning_rate"):
        obtain(with_teachers(make_experiment, wild), digits, CPU, nobody)


def test_a_teacher_does_not_start_from_the_weights_of_a_student_of_its_architecture_and_seed(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    experiment = make_experiment({"teacher": {**LARGE, "seed": 3}, "student.model": LARGE["model"]})
    torch.manual_seed(own_seed(experiment.own_teacher))
    network = build_model(str(LARGE["model"]), digits.shape, 10)
    student = student_alone(experiment, digits, 3, CPU).network
    assert not same(network.state_dict(), student.state_dict())


def test_nobody_trains_on_the_views_that_their_teacher_was_trained_on(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    chain = {"large": LARGE, "middle": {**ASSISTANT, "model": "cnn-8-16"}, "both": {"ensemble": ["large", "middle"]}}
    experiment = make_experiment({"teachers": chain, "teacher": {**ASSISTANT, "taught_by": "both"}})
    teachers = obtain(experiment, digits, CPU, nobody)
    depths = {name: teacher.depth for name, teacher in teachers.items()}
    assert depths == {"large": 1, "middle": 2, "both": 2, "teacher": 3}
    seeds = {own_views(experiment.data, depth).view_seed for depth in range(4)}
    assert len(seeds) == 4
    assert own_views(experiment.data, 0).view_seed == experiment.data.view_seed  # what students see


# --- generations


def test_each_generation_is_taught_by_the_one_before_from_new_weights(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    network = {"model": "cnn-8-16", "train": LARGE["train"], "seed": 5}
    heard: list[tuple[str, float]] = []

    def hear(name: str, record: EpochRecord) -> None:
        heard.append((name, record.seconds + record.waited))

    two = obtain(make_experiment({"teacher": {**network, "generations": 2}}), digits, CPU, hear)["teacher"]
    assert list(dict.fromkeys(name for name, _ in heard)) == ["teacher, generation 1", "teacher, generation 2"]
    assert two.seconds == pytest.approx(sum(seconds for _, seconds in heard), abs=1e-3)
    one = obtain(make_experiment({"teacher": network}), digits, CPU, refuse)["teacher"]  # the first is kept as well
    by_name = with_teachers(
        make_experiment, {**network, "seed": 6, "taught_by": "first"}, first={**network, "generations": 1}
    )
    again = obtain(by_name, digits, CPU, refuse)["teacher"]  # the same as two teachers by name
    assert again.fingerprint == two.fingerprint != one.fingerprint


# --- early-stopped teachers


def test_an_early_stopped_teacher_is_the_long_one_after_so_many_epochs(
    make_experiment: MakeExperiment, digits: Dataset
) -> None:
    accuracies: dict[str, list[float | None]] = {"whole": [], "early": []}
    for name, stop_at in (("whole", None), ("early", 2)):

        def hear(_: str, record: EpochRecord, name: str = name) -> None:
            accuracies[name].append(record.val_accuracy)

        made = obtain(make_experiment({"teacher": {**LARGE, "stop_at": stop_at}}), digits, CPU, hear)["teacher"]
        assert made.val_accuracy == accuracies[name][-1]
    assert accuracies["early"] == accuracies["whole"][:2]  # the schedules are those of the planned length


def test_an_assistant_can_be_stopped_early_too(make_experiment: MakeExperiment, digits: Dataset) -> None:
    heard: list[int] = []
    early = {**ASSISTANT, "train": {**SHORT, "epochs": 9}, "stop_at": 1}
    obtain(with_teachers(make_experiment, early), digits, CPU, nobody)
    early["seed"] = 1
    obtain(with_teachers(make_experiment, early), digits, CPU, lambda name, record: heard.append(record.epoch))
    assert heard == [1]


# --- ensembles


def test_an_ensembles_logits_are_the_logarithm_of_the_mean_probability() -> None:
    torch.manual_seed(0)
    members = [build_model(name, (1, 8, 8), 5).eval() for name in ("cnn-8", "cnn-4-8", "cnn-16")]
    images = torch.randn(6, 1, 8, 8)
    mean = torch.stack([F.softmax(member(images).double(), dim=1) for member in members]).mean(dim=0)
    together = Ensemble(members)(images)
    torch.testing.assert_close(F.softmax(together.double(), dim=1), mean)
    torch.testing.assert_close(together.double(), mean.log(), rtol=1e-5, atol=1e-6)


def test_an_ensemble_of_one_network_twice_answers_like_it() -> None:
    torch.manual_seed(0)
    network: nn.Module = build_model("cnn-8", (1, 8, 8), 5).eval()
    images = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(Ensemble([network, network])(images), F.log_softmax(network(images), dim=1))


@pytest.fixture
def both(make_experiment: MakeExperiment) -> Experiment:
    small = {"model": "cnn-4-8", "train": {**SHORT, "epochs": 3}}
    return with_teachers(make_experiment, {"ensemble": ["large", "small"]}, small=small)


def test_an_ensemble_is_kept_and_loads_as_its_members_together(both: Experiment, digits: Dataset) -> None:
    teachers = obtain(both, digits, CPU, nobody)
    ensemble = teachers["teacher"]
    assert (ensemble.model, ensemble.trained_here) == ("cnn-8-16 + cnn-4-8", True)
    assert locate(both, digits) == teachers
    images = digits.normalise(digits.pixels[:20])
    members = [teachers[name].load(CPU)(images) for name in ("large", "small")]
    torch.testing.assert_close(
        ensemble.load(CPU)(images).exp(), torch.stack([F.softmax(logits, dim=1) for logits in members]).mean(dim=0)
    )


def test_an_ensembles_fingerprint_is_of_its_members(both: Experiment, digits: Dataset) -> None:
    one = obtain(both, digits, CPU, nobody)["teacher"]
    other = both.model_copy(
        update={"teachers": {**both.teachers, "large": both.teachers["large"].model_copy(update={"seed": 1})}}
    )
    assert obtain(other, digits, CPU, nobody)["teacher"].fingerprint != one.fingerprint


def test_students_learn_from_an_ensembles_cache_what_they_would_learn_from_it_live(
    both: Experiment, digits: Dataset
) -> None:
    materials = prepare(both, CPU, Silent())
    bench = Bench(materials, CPU)
    cache = bench.cache(both)
    cache.ensure(1)
    cached = cache.teacher_logits(1, digits.fit[:30])
    batch = next(batches(digits, both.data, digits.fit[:30], size=30, column=1, seed=0, epoch=0))
    order = (batch.indices[:, None] == digits.fit[:30]).int().argmax(dim=1)
    fresh = materials.teachers["teacher"].load(CPU)(batch.images)
    torch.testing.assert_close(cached[order], fresh, rtol=1e-3, atol=1e-3)  # float16
    records = list(bench.start(both, seed=0).records)
    assert records[-1].loss < records[0].loss


def test_an_ensemble_of_checkpoints_with_differing_classes_names_both_counts(
    make_experiment: MakeExperiment, digits: Dataset, tmp_path: Path
) -> None:
    for classes in (10, 7):
        torch.save(build_model("cnn-8", (1, 8, 8), classes).state_dict(), tmp_path / f"{classes}.pt")
    members = {f"c{n}": {"model": "cnn-8", "weights": str(tmp_path / f"{n}.pt")} for n in (7, 10)}
    experiment = with_teachers(make_experiment, {"ensemble": ["c7", "c10"]}, **members)
    with pytest.raises(TeacherError, match=r"teachers\.c7: .*7\.pt into cnn-8 for 10 classes") as refusal:
        obtain(experiment, digits, CPU, nobody)
    assert "fc.weight: (7, 8) in the file, (10, 8) in the model" in str(refusal.value)
    assert "class counts" in str(refusal.value)


# --- labels


@pytest.mark.parametrize("labels", ["all", "kept"])
def test_a_teacher_learns_from_the_labels_that_it_is_given(
    make_experiment: MakeExperiment, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment({"teacher": {**LARGE, "labels": labels}, "data.labels_kept": 0.3})
    seen: set[int] = set()

    def watched(dataset: Dataset, *arguments: Any, **named: Any) -> Any:
        for batch in batches(dataset, *arguments, **named):
            assert (batch.labels >= 0).all()
            seen.update(batch.indices.tolist())
            yield batch

    monkeypatch.setattr(loop, "batches", watched)
    monkeypatch.setattr("kdtune.trial.teachers.check_it_has_learned", lambda *given: None)
    dataset = load_dataset(experiment.data)
    obtain(experiment, dataset, CPU, nobody)
    known = dataset.fit if labels == "all" else dataset.fit[dataset.given[dataset.fit] >= 0]
    assert seen == set(known.tolist())
