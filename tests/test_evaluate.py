"""Measuring an exported student again, against the training's own evaluation and numbers worked out by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from kdtune.cli import main
from kdtune.data import Dataset
from kdtune.errors import DataError, ExportError
from kdtune.export import Labelled, Opened, export_student, measure, measuring, of_dataset, of_folder, open_student
from kdtune.training import evaluate
from tests.conftest import tiny_experiment
from tests.test_export import a_card, a_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """An export. Read only."""
    to = tmp_path_factory.mktemp("exported") / "student"
    export_student(to, a_student(), tiny_experiment(to.parent), digits, a_card)
    return to


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """150 test images as class folders, and two more in train/. Read only."""
    root = tmp_path_factory.mktemp("digits")
    for part, count in (("test", 150), ("train", 2)):
        for k in range(count):
            image = root / part / str(digits.test.labels[k].item()) / f"{k}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.test.pixels[k, 0].numpy()).save(image)
    return root


def saying(logits: Tensor, classes: Sequence[str] = tuple("abcdefg")) -> tuple[Opened, Labelled]:
    """A student that gives these logits [N, classes] in batches of two, for images that are their own number."""
    student = Opened(lambda images: logits[images[:, 0, 0, 0].long()], classes, (1, 1, 1), "fit", "here")
    numbers = torch.arange(len(logits), dtype=torch.uint8).view(-1, 1, 1, 1)
    return student, Labelled(
        "numbers", torch.zeros(len(logits), dtype=torch.int64), lambda: iter(torch.split(numbers, 2))
    )


def test_accuracy_top_5_and_loss_are_as_worked_out_by_hand() -> None:
    logits = torch.tensor([
        [9.0, 0, 0, 0, 0, 0, 0],  # right
        [1.0, 2, 0, 0, 0, 0, 0],  # second
        [1.0, 6, 5, 4, 3, 2, 0],  # sixth
    ])  # fmt: skip
    student, images = saying(logits)
    found = measure(student, images)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.top5 == pytest.approx(2 / 3)
    rows = [[9, 0, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0], [1, 6, 5, 4, 3, 2, 0]]
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[0] for row in rows) / 3
    assert found.loss == pytest.approx(by_hand)
    assert found.confidences[1].item() == pytest.approx(math.exp(2) / (math.exp(1) + math.exp(2) + 5))
    ((name, count, share),) = found.by_class(student.classes)
    assert (name, count, share) == ("a", 3, 1 / 3)


def test_seconds_leave_out_what_a_first_answer_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    student, images = saying(torch.rand(4, 7))
    now, longer = 0.0, [100.0]

    def answers(pixels: Tensor) -> Tensor:
        nonlocal now
        now += longer.pop() if longer else 1.0
        return student.answers(pixels)

    monkeypatch.setattr(measuring, "perf_counter", lambda: now)
    assert measure(replace(student, answers=answers), images).seconds == 2


def test_five_classes_have_no_top_5() -> None:
    student, images = saying(torch.rand(3, 5), tuple("abcde"))
    assert measure(student, images).top5 is None


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_a_data_set_is_measured_as_training_measures_it(folder: Path, digits: Dataset, split: str) -> None:
    student = open_student(folder)
    images = {"test": digits.test.images, "validation": digits.images, "train": digits.images}[split]
    labels = digits.test.labels if split == "test" else digits.labels
    indices = {"test": None, "validation": digits.validation, "train": digits.fit}[split]
    theirs = evaluate(a_student(), digits, images, labels, indices)
    found = measure(student, of_dataset(digits, split, student))
    assert found.accuracy == theirs.accuracy
    assert found.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert torch.equal(found.predictions, theirs.predictions)


def test_images_without_a_label_are_left_out(folder: Path, digits: Dataset) -> None:
    student = open_student(folder)
    some = replace(digits, labels=digits.labels.clone().index_fill_(0, digits.fit[:100], -1))
    assert len(of_dataset(some, "train", student).labels) == len(digits.fit) - 100
    assert len(measure(student, of_dataset(some, "train", student)).predictions) == len(digits.fit) - 100


def test_class_folders_are_measured_as_the_same_images_in_memory(folder: Path, digits: Dataset, tree: Path) -> None:
    student = open_student(folder)
    found = measure(student, of_folder(tree / "test", None, student))
    theirs = evaluate(a_student(), digits, digits.test.pixels[:150], digits.test.labels[:150])
    assert len(found.labels) == 150
    assert found.accuracy == theirs.accuracy
    assert found.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_classes_are_matched_by_name_whatever_their_order(folder: Path, digits: Dataset) -> None:
    student = open_student(folder)
    backwards = replace(digits, classes=digits.classes[::-1])
    turned = replace(backwards, labels=9 - digits.labels, test=replace(digits.test, labels=9 - digits.test.labels))
    expected = measure(student, of_dataset(digits, "test", student))
    found = measure(student, of_dataset(turned, "test", student))
    assert (found.accuracy, found.loss) == (expected.accuracy, expected.loss)
    assert found.by_class(student.classes) == expected.by_class(student.classes)


def test_some_of_the_classes_will_do_but_unknown_ones_are_refused(folder: Path, tree: Path, tmp_path: Path) -> None:
    student = open_student(folder)
    for name in ("3", "7"):
        (tmp_path / name).symlink_to(tree / "test" / name)
    assert {name for name, _, _ in measure(student, of_folder(tmp_path, None, student)).by_class(student.classes)} == {
        "3", "7",
    }  # fmt: skip
    (tmp_path / "7b").symlink_to(tree / "test" / "7")
    with pytest.raises(ExportError, match=r"does not know: 7b\. Did you mean '7'\? It knows 0, 1, 2"):
        of_folder(tmp_path, None, student)


def test_images_of_another_shape_are_refused(folder: Path, digits: Dataset) -> None:
    wide = replace(digits, images=torch.zeros(4, 1, 8, 16, dtype=torch.uint8))
    with pytest.raises(ExportError, match="are 1 x 8 x 16, but the student takes 1 x 8 x 8"):
        of_dataset(wide, "test", open_student(folder))


def test_a_folder_of_train_and_test_is_asked_for_its_part(folder: Path, tree: Path, tmp_path: Path) -> None:
    student = open_student(folder)
    assert len(of_folder(tree, None, student).labels) == len(of_folder(tree, "test", student).labels) == 150
    assert len(of_folder(tree, "train", student).labels) == 2
    with pytest.raises(ExportError, match=r"has train and test, but no validation \(the experiment says"):
        of_folder(tree, "validation", student)
    with pytest.raises(ExportError, match="leave --split out"):
        of_folder(tree / "test", "test", student)
    with pytest.raises(DataError, match="has no class folders"):
        of_folder(tmp_path, None, student)


def test_the_command_prints_what_it_measured(
    folder: Path, tree: Path, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main(["evaluate", str(folder), *map(str, arguments)])
        assert left.value.code == 0
        return capsys.readouterr().out

    theirs = evaluate(a_student(), digits, digits.test.pixels[:150], digits.test.labels[:150])
    found = json.loads(said(tree, "--json"))
    assert found["accuracy"] == theirs.accuracy
    assert found["images"] == sum(row["images"] for row in found["classes"]) == 150
    right = theirs.predictions == digits.test.labels[:150]
    assert found["ece"] == pytest.approx(expected_calibration_error(theirs.confidences, right))
    text = said(tree)
    assert f"accuracy        {theirs.accuracy:.2%}" in text
    assert "of 10 of the student's 10 classes" in text
    path = tmp_path / "digits.yaml"
    path.write_text("name: a\ndata: {dataset: digits}\nteacher: {model: cnn-8}\nstudent: {model: cnn-8}\n")
    whole = evaluate(a_student(), digits, digits.images, digits.labels, digits.validation)
    assert json.loads(said(path, "--split", "validation", "--json"))["accuracy"] == whole.accuracy


def expected_calibration_error(confidences: Tensor, right: Tensor) -> float:
    """Guo et al. 2017, image by image."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, hit in zip(confidences.tolist(), right.tolist(), strict=True):
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, hit))
    return sum(abs(sum(c for c, _ in some) - sum(h for _, h in some)) for some in bins.values()) / len(confidences)
