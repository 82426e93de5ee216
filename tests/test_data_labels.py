"""Labels: which students may use, images that have none, and which images are trained on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kdtune.data import Dataset, batches, load_dataset
from kdtune.data.datasets import keep_labels, split
from kdtune.errors import DataError
from kdtune.experiment import Data
from kdtune.training import cross_entropy

IGNORE = Data(dataset="digits", unlabelled="ignore")
DISTIL = Data(dataset="digits", unlabelled="distil")


@pytest.fixture(scope="module")
def few() -> Dataset:
    """Digits of which one in ten keeps its label."""
    return load_dataset(Data(dataset="digits", labels_kept=0.1))


def test_all_labels_are_given_unless_some_are_withheld(digits: Dataset) -> None:
    assert torch.equal(digits.given, digits.labels)


def test_the_share_of_labels_is_kept_in_every_class_of_fit_and_of_validation(few: Dataset, digits: Dataset) -> None:
    assert torch.equal(few.labels, digits.labels)
    assert torch.equal(few.fit, digits.fit)
    assert torch.equal(few.validation, digits.validation)
    assert few.fingerprint == digits.fingerprint
    for part in (few.fit, few.validation):
        for label in range(10):
            members = part[few.labels[part] == label]
            assert int((few.given[members] == label).sum()) == round(0.1 * len(members))
    kept = few.given >= 0
    assert torch.equal(few.given[kept], few.labels[kept])


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=4), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 99)
)
def test_a_larger_share_keeps_what_a_smaller_one_keeps(sizes: list[int], one: float, other: float, seed: int) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    parts = split(labels, [str(k) for k in range(len(sizes))], 0.3, seed)
    less, more = (keep_labels(labels, parts, len(sizes), share, seed) >= 0 for share in sorted((one, other)))
    assert not (less & ~more).any()
    for label in range(len(sizes)):
        assert (labels[parts[0]][less[parts[0]]] == label).any()


def test_another_split_seed_keeps_other_labels() -> None:
    labels = torch.arange(200) % 2
    parts = (torch.arange(100), torch.arange(100, 200))
    zero, one = (keep_labels(labels, parts, 2, 0.5, seed) >= 0 for seed in (0, 1))
    assert not torch.equal(zero, one)
    assert torch.equal(zero, keep_labels(labels, parts, 2, 0.5, 0) >= 0)


def test_a_teacher_may_use_every_label_that_there_is(few: Dataset) -> None:
    assert torch.equal(few.with_all_labels().given, few.labels)
    assert (few.given < 0).any()


def test_a_batch_holds_the_labels_that_are_given(few: Dataset) -> None:
    for batch in batches(few, DISTIL, few.fit, size=300, column=0, seed=0, epoch=0):
        assert torch.equal(batch.labels, few.given[batch.indices])


def test_the_labels_that_are_given_go_to_the_device(few: Dataset) -> None:
    assert few.to(torch.device("meta")).given.device.type == "meta"


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("config", [DISTIL, IGNORE], ids=["distil", "ignore"])
@pytest.mark.parametrize("labelled_only", [False, True])
def test_images_to_train_on(few: Dataset, whole: bool, config: Data, labelled_only: bool) -> None:
    chosen = few.training_indices(config, whole=whole, labelled_only=labelled_only).tolist()
    everyone = range(len(few.labels)) if whole else few.fit.tolist()
    labelled = labelled_only or config is IGNORE
    assert chosen == [index for index in everyone if not labelled or int(few.given[index]) >= 0]


# --- images without a label


def make_folder(root: Path, unlabelled: tuple[str, ...]) -> None:
    generator = np.random.default_rng(0)
    labelled = [f"{part}/{name}/{k}" for part in ("train", "test") for name in ("ant", "bee") for k in range(4)]
    for name in (*labelled, *(f"unlabelled/{name}" for name in unlabelled)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(root / f"{name}.png")


def folder(root: Path, **fields: object) -> Data:
    return Data.model_validate({"dataset": "folder", "root": str(root), "image_size": 8, "validation": 0.25, **fields})


@pytest.mark.parametrize("augment", ["none", "random-resized-crop"])
def test_unlabelled_images_join_the_training_images_and_never_validate(tmp_path: Path, augment: str) -> None:
    make_folder(tmp_path / "without", ())
    make_folder(tmp_path / "with", ("9", "deep/er/1", "deep/2"))
    plain, ours = (load_dataset(folder(tmp_path / at, augment=augment)) for at in ("without", "with"))
    assert ours.classes == ("ant", "bee")
    assert ours.labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 3
    assert torch.equal(ours.given, ours.labels)
    assert torch.equal(ours.validation, plain.validation)
    assert ours.fit.tolist() == [*plain.fit.tolist(), 8, 9, 10]
    assert ours.fingerprint != plain.fingerprint
    assert ours.training_indices(IGNORE, whole=True, labelled_only=False).tolist() == list(range(8))


def test_withheld_labels_leave_unlabelled_images_alone(tmp_path: Path) -> None:
    make_folder(tmp_path, ("1", "2"))
    ours = load_dataset(folder(tmp_path, labels_kept=0.5, split_seed=2))
    assert [int((ours.given[ours.fit] == label).sum()) for label in (0, 1)] == [2, 2]
    assert ours.labels[8:].tolist() == ours.with_all_labels().given[8:].tolist() == [-1, -1]


def test_an_unlabelled_folder_without_images_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, ())
    (tmp_path / "unlabelled").mkdir()
    with pytest.raises(DataError, match=r"folder .*/unlabelled has no images .*fill or remove it"):
        load_dataset(folder(tmp_path))


def test_which_labels_are_kept_has_nothing_to_do_with_who_validates() -> None:
    labels = torch.arange(400) % 2
    everything, nobody = torch.arange(400), torch.arange(0)
    for seed in (0, 3):
        _, validating = split(labels, ("even", "odd"), 0.5, seed)
        kept = keep_labels(labels, (everything, nobody), 2, 0.5, seed)
        assert 60 < (kept[validating] >= 0).sum() < 140  # of 200, half by chance


# --- the loss


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


@given(st.integers(1, 200), st.integers(2, 20), st.integers(0, 99))
def test_with_every_label_the_loss_is_torchs_to_the_bit(count: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator).mul(5).requires_grad_()
    labels = torch.randint(classes, (count,), generator=generator)
    ours, theirs = cross_entropy(logits, labels), F.cross_entropy(logits, labels)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, logits), gradient(theirs, logits))


def test_the_loss_is_the_mean_over_labelled_images() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([3, -1, 0, -1, -1, 2, 1, -1, 0])
    some = labels >= 0
    ours = cross_entropy(logits, labels)
    assert torch.equal(ours, F.cross_entropy(logits[some], labels[some]))
    assert gradient(ours, logits)[~some].eq(0).all()


def test_the_loss_of_a_batch_without_labels_is_zero_and_so_is_its_gradient() -> None:
    logits = torch.randn(5, 4, dtype=torch.float16).requires_grad_()
    loss = cross_entropy(logits, torch.full((5,), -1))
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    assert gradient(loss, logits).eq(0).all()


def test_validation_counts_labels_that_students_may_not_use(few: Dataset) -> None:
    assert (few.given[few.validation] < 0).any()
    assert (few.labels[few.validation] >= 0).all()
    assert dataclasses.replace(few, given=few.labels).shape == few.shape
