"""Teachers trained here, and teachers brought along in the forms in which other people save them."""

import dataclasses
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtune.data import Dataset, augment, batches
from kdtune.errors import TeacherError
from kdtune.experiment import Data
from kdtune.models import build_model
from kdtune.records import EpochRecord
from kdtune.teacher import Teacher, find, fingerprint, fit_weights, keep, obtaining, read_weights, weights_of
from kdtune.training import evaluate, loop
from kdtune.trial import Materials, locate, obtain
from tests.conftest import CPU, MakeExperiment

Weights = dict[str, Tensor]


def nobody(name: str, record: EpochRecord) -> None:
    """on_epoch where nobody listens."""


def refuse(name: str, record: EpochRecord) -> None:
    raise AssertionError(f"the teacher was trained again: epoch {record.epoch}")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="session")
def trained(materials: Materials) -> Weights:
    """Weights of a teacher that has learned: cnn-8-16 on digits."""
    return weights_of(materials.teachers["teacher"].load(CPU))


# --- trained here


def test_a_teacher_trained_here_never_sees_the_validation_images(
    make_experiment: MakeExperiment, toy: Dataset, tmp_path: Path
) -> None:
    """Other pixels in the validation images (copies of fit images of the same class), the same weights."""
    images = toy.pixels.clone()
    for number in toy.validation.tolist():
        twin = toy.fit[toy.labels[toy.fit] == toy.labels[number]][0]
        images[number] = toy.pixels[twin]
    others = dataclasses.replace(toy, images=images)
    values = {"teacher.train.epochs": 20, "teacher.train.batch_size": 16}
    one = obtain(make_experiment(values), toy, CPU, nobody)["teacher"]
    other = obtain(make_experiment({**values, "storage": str(tmp_path / "elsewhere")}), others, CPU, nobody)["teacher"]
    assert other.folder != one.folder
    assert same(other.load(CPU).state_dict(), one.load(CPU).state_dict())


def test_a_teacher_is_trained_on_other_views_than_those_that_its_students_see(
    make_experiment: MakeExperiment, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers to images that it has learned by heart would say little."""
    seeds: set[int] = set()

    def watched(dataset: Dataset, config: Data, indices: Tensor, **named: Any) -> Any:
        seeds.add(config.view_seed)
        return batches(dataset, config, indices, **named)

    monkeypatch.setattr(loop, "batches", watched)
    experiment = make_experiment({"teacher.train.epochs": 20, "teacher.train.batch_size": 16})
    obtain(experiment, toy, CPU, nobody)
    (seed,) = seeds
    rows = torch.arange(66)
    for column in range(3):
        its, theirs = (
            augment(toy.pixels, rows, column, experiment.data.model_copy(update={"view_seed": s}))
            for s in (seed, experiment.data.view_seed)
        )
        assert not torch.equal(its, theirs)


def test_a_teacher_trained_here_says_what_it_is(materials: Materials) -> None:
    teacher, dataset = materials.teachers["teacher"], materials.dataset
    network = teacher.load(CPU)
    assert (teacher.model, teacher.image_shape, teacher.classes) == ("cnn-8-16", (1, 8, 8), 10)
    assert teacher.trained_here
    measured = evaluate(network, dataset, dataset.images, dataset.labels, dataset.validation)
    assert teacher.val_accuracy == measured.accuracy
    assert teacher.fingerprint == fingerprint("cnn-8-16", network.state_dict())


def test_a_loaded_teacher_is_frozen_and_in_eval_mode(materials: Materials) -> None:
    network = materials.teachers["teacher"].load(CPU)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_teacher_is_found_again_instead_of_trained_again(make_experiment: MakeExperiment, digits: Dataset) -> None:
    heard: list[int] = []
    first = obtain(make_experiment(), digits, CPU, lambda name, record: heard.append(record.epoch))["teacher"]
    assert heard == [1, 2, 3]
    assert obtain(make_experiment(), digits, CPU, refuse)["teacher"] == first
    another_student = {"name": "other", "student.model": "cnn-4-8", "distill.alpha": 0.5, "train.epochs": 7}
    assert obtain(make_experiment(another_student), digits, CPU, refuse)["teacher"] == first
    assert locate(make_experiment(), digits)["teacher"] == first


@pytest.mark.parametrize(
    "values",
    [
        {"teacher.seed": 1},
        {"teacher.train.learning_rate": 0.015},
        {"teacher.model": "cnn-16"},
        {"data.validation": 0.2},
        {"data.split_seed": 1},
        {"data.augment": "crop"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_another_recipe_is_another_teacher(
    make_experiment: MakeExperiment, digits: Dataset, materials: Materials, values: dict[str, object]
) -> None:
    """`locate` trains nothing, so it must not find the one that `obtain` left in this storage."""
    storage = str(Path(materials.teachers["teacher"].folder).parent.parent)
    assert locate(make_experiment({"storage": storage}), digits)["teacher"] == materials.teachers["teacher"]
    with pytest.raises(TeacherError, match=r"is not in .* yet"):
        locate(make_experiment({"storage": storage, **values}), digits)


@pytest.mark.parametrize("values", [{"mean": (0.5,)}, {"std": (0.9,)}, {"fingerprint": "0" * 64}])
def test_other_pixels_are_another_teacher(
    make_experiment: MakeExperiment, digits: Dataset, materials: Materials, values: dict[str, Any]
) -> None:
    storage = str(Path(materials.teachers["teacher"].folder).parent.parent)
    with pytest.raises(TeacherError, match=r"is not in .* yet"):
        locate(make_experiment({"storage": storage}), dataclasses.replace(digits, **values))


def test_an_interrupted_training_goes_on_where_it_stood(
    make_experiment: MakeExperiment, digits: Dataset, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtaining, "SAVE_EVERY_S", -1.0)  # save after every epoch
    heard: list[EpochRecord] = []

    def interrupt(name: str, record: EpochRecord) -> None:
        heard.append(record)
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(make_experiment(), digits, CPU, interrupt)
    with pytest.raises(TeacherError, match="yet"):
        locate(make_experiment(), digits)
    teacher = obtain(make_experiment(), digits, CPU, lambda name, record: heard.append(record))["teacher"]
    assert [record.epoch for record in heard] == [1, 2, 2, 3]  # the second epoch was not saved yet
    del heard[1]
    assert teacher.seconds == pytest.approx(sum(record.seconds for record in heard))
    assert locate(make_experiment(), digits)["teacher"].seconds == teacher.seconds
    assert same(teacher.load(CPU).state_dict(), materials.teachers["teacher"].load(CPU).state_dict())
    assert teacher.fingerprint == materials.teachers["teacher"].fingerprint
    assert sorted(file.name for file in Path(teacher.folder).iterdir()) == [
        "lock",
        "teacher.json",
        "teacher.safetensors",
    ]


def test_a_diverging_teacher_is_an_error_that_names_the_learning_rate(
    make_experiment: MakeExperiment, toy: Dataset
) -> None:
    values = {"teacher.train.learning_rate": 1e25, "teacher.train.optimizer": "sgd", "teacher.train.batch_size": 16}
    with pytest.raises(TeacherError, match=r"diverged.*train\.learning_rate \(1e\+25\)"):
        obtain(make_experiment(values), toy, CPU, nobody)


def test_a_teacher_trained_here_that_learned_nothing_is_refused(make_experiment: MakeExperiment, toy: Dataset) -> None:
    with pytest.raises(TeacherError, match=r"no better than chance.*Train it longer"):
        obtain(make_experiment({"teacher.train.learning_rate": 1e-9, "teacher.train.epochs": 1}), toy, CPU, nobody)


# --- brought along, in every form

Writer = Callable[[Weights, Path], object]


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: tensor for key, tensor in weights.items()}


def a_whole_training(weights: Weights, path: Path) -> None:
    """As training scripts save: epoch, optimizer state, scheduler, best accuracy beside the model."""
    network = build_model("cnn-8-16", (1, 8, 8), 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 12,
            "arch": "cnn",
            "best_acc1": torch.tensor(97.5),
            "optimizer": optimizer.state_dict(),
            "state_dict": prefixed(weights, "module."),
        },
        path,
    )


FORMS: dict[str, Writer] = {
    "a plain state dict": torch.save,
    "an ordered dict": lambda weights, path: torch.save(OrderedDict(weights), path),
    "the format before PyTorch 1.6": lambda weights, path: torch.save(
        weights, path, _use_new_zipfile_serialization=False
    ),
    "under state_dict": lambda weights, path: torch.save({"state_dict": weights}, path),
    "under model": lambda weights, path: torch.save({"model": weights}, path),
    "under model_state_dict": lambda weights, path: torch.save({"model_state_dict": weights}, path),
    "under net": lambda weights, path: torch.save({"net": weights, "acc": 97.5, "epoch": 3}, path),
    "two levels deep": lambda weights, path: torch.save({"model": {"state_dict": weights, "arch": "x"}}, path),
    "from DataParallel": lambda weights, path: torch.save(prefixed(weights, "module."), path),
    "from torch.compile": lambda weights, path: torch.save(prefixed(weights, "_orig_mod."), path),
    "compiled, then DDP": lambda weights, path: torch.save(prefixed(weights, "module._orig_mod."), path),
    "DDP, then compiled": lambda weights, path: torch.save(prefixed(weights, "_orig_mod.module."), path),
    "a whole training": a_whole_training,
    "as parameters": lambda weights, path: torch.save(
        {key: nn.Parameter(t) if t.is_floating_point() else t for key, t in weights.items()}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_read_as_others_save_it(trained: Weights, tmp_path: Path, form: str) -> None:
    path = tmp_path / "checkpoint.pth"
    FORMS[form](trained, path)
    assert same(read_weights(path), trained)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_safetensors_file_is_read(trained: Weights, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(prefixed(trained, prefix), path)
    assert same(read_weights(path), trained)


def test_a_teacher_brought_along_is_kept_as_it_was(
    make_experiment: MakeExperiment, digits: Dataset, materials: Materials, trained: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    a_whole_training(trained, path)
    experiment = make_experiment({"teacher.weights": str(path)})
    teacher = obtain(experiment, digits, CPU, refuse)["teacher"]
    assert same(teacher.load(CPU).state_dict(), trained)
    assert teacher.fingerprint == materials.teachers["teacher"].fingerprint
    assert teacher.val_accuracy == materials.teachers["teacher"].val_accuracy
    assert not teacher.trained_here
    assert locate(experiment, digits)["teacher"] == teacher


def test_half_precision_weights_become_float32(trained: Weights, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save({key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in trained.items()}, path)
    network = build_model("cnn-8-16", (1, 8, 8), 10)
    fit_weights(network, read_weights(path), "")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert torch.equal(network.state_dict()["fc.weight"], trained["fc.weight"].half().float())


# --- the layout of public CIFAR ResNets


def public_resnet20() -> Weights:
    """Names and shapes as chenyaofo/pytorch-cifar-models and HobbitLong/RepDistiller publish them, random numbers."""
    generator = torch.Generator().manual_seed(3)
    weights: Weights = {}

    def conv(name: str, width: int, channels: int, size: int) -> None:
        weights[f"{name}.weight"] = torch.randn(width, channels, size, size, generator=generator) * 0.2

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean"):
            weights[f"{name}.{part}"] = torch.randn(width, generator=generator)
        weights[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(93_600)

    conv("conv1", 16, 3, 3)
    norm("bn1", 16)
    for stage, (channels, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
        for block in range(3):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", width, channels if block == 0 else width, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if block == 0 and stage > 1:
                conv(f"{name}.downsample.0", width, channels, 1)
                norm(f"{name}.downsample.1", width)
    weights["fc.weight"] = torch.randn(100, 64, generator=generator)
    weights["fc.bias"] = torch.randn(100, generator=generator)
    return weights


def resnet20_by_hand(weights: Weights, images: Tensor) -> Tensor:
    """The network of He et al. 2016 straight from its weights."""

    def step(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    x = step(images, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = step(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            inner = step(inner, f"{name}.conv2", f"{name}.bn2")
            if f"{name}.downsample.0.weight" in weights:
                x = step(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (inner + x).relu()
    return F.linear(x.mean(dim=(2, 3)), weights["fc.weight"], weights["fc.bias"])


def test_a_resnet20_in_the_layout_of_public_repositories_loads(tmp_path: Path) -> None:
    path = tmp_path / "resnet20_best.pth"
    weights = public_resnet20()
    torch.save({"epoch": 240, "model": weights, "best_acc": torch.tensor(69.06)}, path)
    network = build_model("resnet20", (3, 8, 8), 100)
    fit_weights(network, read_weights(path), "")
    assert same(network.state_dict(), weights)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), resnet20_by_hand(weights, images), rtol=1e-4, atol=1e-3)


def test_step_counters_of_batchnorm_may_be_missing() -> None:
    """Checkpoints older than PyTorch 0.4.1 have none."""
    weights = {key: t for key, t in public_resnet20().items() if not key.endswith("num_batches_tracked")}
    network = build_model("resnet20", (3, 8, 8), 100)
    fit_weights(network, weights, "")
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in weights.items())


# --- checkpoints that do not fit


def test_other_shapes_are_named_with_both_shapes(trained: Weights) -> None:
    with pytest.raises(TeacherError) as caught:
        fit_weights(build_model("cnn-8-16", (1, 8, 8), 7), trained, "the file into cnn-8-16 for 7 classes")
    message = str(caught.value)
    assert "the file into cnn-8-16 for 7 classes" in message
    assert "other shapes (2)" in message
    assert "fc.weight: (10, 16) in the file, (7, 16) in the model" in message
    assert "fc.bias: (10,) in the file, (7,) in the model" in message


def test_missing_and_unexpected_keys_are_named_together(trained: Weights) -> None:
    renamed = {("head.weight" if key == "fc.weight" else key): tensor for key, tensor in trained.items()}
    network = build_model("cnn-8-16", (1, 8, 8), 10)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(TeacherError) as caught:
        fit_weights(network, renamed, "it")
    assert "missing (1): fc.weight" in str(caught.value)
    assert "unexpected (1): head.weight" in str(caught.value)
    assert same(network.state_dict(), before)


def test_another_architecture_is_named_with_the_file(
    make_experiment: MakeExperiment, digits: Dataset, trained: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(trained, path)
    experiment = make_experiment({"teacher.weights": str(path), "teacher.model": "resnet8"})
    with pytest.raises(TeacherError, match=r"mine\.pt into resnet8 for 10 classes") as caught:
        obtain(experiment, digits, CPU, refuse)
    assert "Check the model" in str(caught.value)


def test_a_dict_without_a_state_dict_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"epoch": 3, "generator": {"x": torch.zeros(1)}}, path)
    with pytest.raises(TeacherError, match=r"no state dict under state_dict, model.*holds: epoch, generator"):
        read_weights(path)


@pytest.mark.parametrize("content", [{}, {"model": {}}, [torch.zeros(1)], torch.zeros(3), 7], ids=repr)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(TeacherError, match=r"odd\.pt"):
        read_weights(path)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "torch, before 1.6", "pickle"])
def test_a_pickle_that_holds_an_object_is_refused_and_its_code_does_not_run(
    trained: Weights, tmp_path: Path, how: str
) -> None:
    path, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    content = {"state_dict": trained, "config": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(TeacherError, match=r"objects besides tensors.*torch\.save\(model\.state_dict\(\), path\)"):
        read_weights(path)
    assert not sprung.exists()


def a_checkpoint(zipped: bool) -> bytes:
    sink = io.BytesIO()
    torch.save({"fc.weight": torch.ones(3, 4)}, sink, _use_new_zipfile_serialization=zipped)
    return sink.getvalue()


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello world",
    "a page of HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n",
    "zeros": bytes(1000),
    "an archive that is none": b"PK\x03\x04" + bytes(100),
    "a pickle that ends early": b"\x80\x02.",
    "a checkpoint cut in half": a_checkpoint(zipped=True)[:600],
    **{f"an old checkpoint cut after {size} bytes": a_checkpoint(zipped=False)[:size] for size in (30, 60, 200, 300)},
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str, suffix: str) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(TeacherError, match=r"damaged\."):
        read_weights(path)


def test_a_missing_file_and_a_folder_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"no file .*nowhere\.pt"):
        read_weights(tmp_path / "nowhere.pt")
    (tmp_path / "student.safetensors").touch()
    with pytest.raises(TeacherError, match=r"is a folder; .*'student\.safetensors'"):
        read_weights(tmp_path)


def test_an_untrained_teacher_is_refused(make_experiment: MakeExperiment, digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "fresh.pt"
    torch.save(build_model("cnn-8-16", (1, 8, 8), 10).state_dict(), path)
    with pytest.raises(TeacherError, match=r"no better than chance.*normalisation.*order of the classes"):
        obtain(make_experiment({"teacher.weights": str(path)}), digits, CPU, refuse)


# --- fingerprint


def test_the_fingerprint_is_a_function_of_name_and_weights(trained: Weights) -> None:
    reordered = dict(reversed(list(trained.items())))
    assert fingerprint("cnn-8-16", reordered) == fingerprint("cnn-8-16", trained)
    assert fingerprint("cnn-8-16", {key: tensor.clone() for key, tensor in trained.items()}) == fingerprint(
        "cnn-8-16", trained
    )


def test_the_fingerprint_changes_with_one_bit_of_one_weight(trained: Weights) -> None:
    for key in trained:
        changed = {name: tensor.clone() for name, tensor in trained.items()}
        bits = changed[key].reshape(-1).view(torch.uint8)
        bits[0] ^= 1
        assert fingerprint("cnn-8-16", changed) != fingerprint("cnn-8-16", trained), key


def test_the_fingerprint_changes_with_the_name_a_type_a_shape_and_a_key(trained: Weights) -> None:
    key = "fc.weight"
    variants: list[tuple[str, Weights]] = [
        ("cnn-8-16", trained),
        ("cnn-16-32", trained),
        ("cnn-8-16", {**trained, key: trained[key].view(torch.int32)}),
        ("cnn-8-16", {**trained, key: trained[key].reshape(16, 10)}),
        ("cnn-8-16", {("head.weight" if name == key else name): t for name, t in trained.items()}),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)


def test_what_teacher_json_says_is_what_was_obtained(materials: Materials) -> None:
    assert find(Path(materials.teachers["teacher"].folder)) == materials.teachers["teacher"]
    assert isinstance(materials.teachers["teacher"], Teacher)


def test_a_teacher_of_an_earlier_version_does_not_say_how_long_it_took(materials: Materials, tmp_path: Path) -> None:
    known = json.loads((Path(materials.teachers["teacher"].folder) / "teacher.json").read_text())
    assert known.pop("seconds") > 0
    (tmp_path / "teacher.json").write_text(json.dumps(known))
    found = find(tmp_path)
    assert found is not None
    assert found.seconds is None
    assert found == dataclasses.replace(materials.teachers["teacher"], folder=str(tmp_path))


def test_a_training_that_an_earlier_version_began_does_not_say_how_long_it_took(
    make_experiment: MakeExperiment, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtaining, "SAVE_EVERY_S", -1.0)

    def interrupt(name: str, record: EpochRecord) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(make_experiment(), digits, CPU, interrupt)
    (unfinished,) = Path(make_experiment().storage).glob(".teachers/*/training.pt")
    state = torch.load(unfinished, weights_only=True)
    del state["seconds"]
    torch.save(state, unfinished)
    assert obtain(make_experiment(), digits, CPU, nobody)["teacher"].seconds is None


def test_a_folder_without_teacher_json_holds_no_teacher(tmp_path: Path, trained: Weights) -> None:
    safetensors.torch.save_file(trained, tmp_path / "teacher.safetensors")
    assert find(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"members": [], "channels": 1}'])
def test_a_description_that_cannot_be_read_says_what_to_remove(tmp_path: Path, content: str) -> None:
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(TeacherError, match="damaged or of another version; remove"):
        find(tmp_path)


def test_a_teacher_whose_code_has_changed_is_refused(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(build_model("cnn-8", digits.shape, 10), "cnn-8", {}, digits, tmp_path, depth=1)
    monkeypatch.setattr("kdtune.teacher.kept.rebuild_model", lambda *_: build_model("cnn-12", digits.shape, 10))
    with pytest.raises(TeacherError, match="its code has changed"):
        kept.load(CPU)
