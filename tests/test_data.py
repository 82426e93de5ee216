"""Data sets, views and batches: against torchvision, brute-force twins and counting.

Shapes: N images of a data set, B of a batch, C channels, H x W pixels.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import normalize, pil_to_tensor

from kdtune.data import Dataset, Images, augment, batches, load_dataset, steps_an_epoch
from kdtune.data.datasets import split
from kdtune.data.images import square
from kdtune.data.views import GOLDEN, _mix, random_integers, stream
from kdtune.errors import DataError
from kdtune.experiment import Data

DIGITS = Data(dataset="digits")
Pixels = npt.NDArray[Any]
AUGMENTS = ("none", "crop", "flip", "crop-flip")


def noise(count: int, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    """Images [count, C, H, W] of which no two pixels are 0, so that padding shows."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def dataset_of(images: Tensor, labels: Tensor) -> Dataset:
    everything = torch.arange(len(images))
    return Dataset(
        name="noise",
        classes=("a", "b"),
        images=images,
        labels=labels,
        given=labels,
        test=Images(images, labels),
        fit=everything,
        validation=everything,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.15),
        fingerprint="",
    )


@pytest.fixture(scope="module")
def noisy() -> Dataset:
    return dataset_of(noise(20), torch.arange(20) % 2)


# --- digits


def test_digits_are_1797_images_of_8_by_8_pixels(digits: Dataset) -> None:
    assert digits.images.shape[1:] == digits.test.images.shape[1:] == (1, 8, 8)
    assert digits.shape == (1, 8, 8)
    assert digits.pixels.dtype == torch.uint8
    assert len(digits.images) + len(digits.test.images) == 1797
    assert digits.classes == tuple("0123456789")


def test_digits_are_scikit_learns_pixels_in_its_order(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = {(image.numpy().tobytes(), int(label)) for image, label in zip(digits.pixels, digits.labels, strict=True)}
    ours |= {(i.numpy().tobytes(), int(n)) for i, n in zip(digits.test.pixels, digits.test.labels, strict=True)}
    scaled = np.floor(theirs.images * 255 / 16 + 0.5).astype(np.uint8)  # 17 grey levels over 0..255
    assert ours == {(image.tobytes(), int(label)) for image, label in zip(scaled, theirs.target, strict=True)}


def test_every_class_has_its_share_of_test_and_validation_images() -> None:
    digits = load_dataset(Data(dataset="digits", validation=0.2))
    for label in range(10):
        training = int((digits.labels == label).sum())
        test = int((digits.test.labels == label).sum())
        validation = int((digits.labels[digits.validation] == label).sum())
        assert test == round(0.25 * (training + test))
        assert validation == round(0.2 * training)


def test_an_image_is_either_for_training_or_for_validation(digits: Dataset) -> None:
    together = torch.cat([digits.fit, digits.validation])
    assert torch.equal(together.sort().values, torch.arange(len(digits.images)))


def test_the_split_seed_moves_validation_images_and_never_test_images(digits: Dataset) -> None:
    again, other = load_dataset(DIGITS), load_dataset(Data(dataset="digits", split_seed=1))
    assert torch.equal(again.validation, digits.validation)
    assert again.fingerprint == digits.fingerprint == other.fingerprint
    assert not torch.equal(other.validation, digits.validation)
    assert torch.equal(other.test.pixels, digits.test.pixels)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=5), st.floats(0.01, 0.5), st.integers(0, 9), st.integers(0, 9))
def test_a_split_is_stratified_whatever_the_sizes_of_the_classes(
    sizes: list[int], share: float, seed: int, shuffle: int
) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(shuffle))]
    kept, taken = split(labels, [str(label) for label in range(len(sizes))], share, seed)
    assert torch.equal(torch.cat([kept, taken]).sort().values, torch.arange(len(labels)))
    assert torch.equal(kept, kept.sort().values)
    for label, size in enumerate(sizes):
        count = int((labels[taken] == label).sum())
        assert 1 <= count <= size - 1
        assert abs(count - share * size) <= 0.5 or count == 1


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="class bee has 1 training images"):
        split(torch.tensor([0, 0, 1]), ["ant", "bee"], 0.5, 0)


# --- folders


def save(path: Path, pixels: Pixels) -> None:
    """[H, W] is saved in grey, [H, W, 3] in colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def make_folder(root: Path) -> None:
    """Three classes whose alphabetical order is no other's: PNG and JPEG, grey and RGB, square and not."""
    generator = np.random.default_rng(0)

    def random(*shape: int) -> Pixels:
        return generator.integers(0, 256, shape)

    for part in ("train", "test"):
        for k in range(3):
            save(root / part / "zebra" / f"{k}.png", random(8, 8, 3))
            save(root / part / "ant" / f"{k}.jpg", random(12, 9, 3))
        save(root / part / "bee" / "grey.png", random(8, 8))
        save(root / part / "bee" / "wide.JPEG", random(9, 30, 3))
        save(root / part / "bee" / "nested" / "deep.png", random(8, 8, 3))
        (root / part / "bee" / "notes.txt").write_text("no image")
        (root / part / "README").write_text("no class")


def folder(root: Path, **fields: object) -> Data:
    return Data.model_validate({"dataset": "folder", "root": str(root), "image_size": 8, "validation": 0.34, **fields})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_folder(tmp_path / "pictures")
    return tmp_path / "pictures"


def test_classes_and_labels_of_a_folder_are_torchvisions(root: Path) -> None:
    ours = load_dataset(folder(root))
    for part, labels in (("train", ours.labels), ("test", ours.test.labels)):
        theirs = ImageFolder(str(root / part))
        assert {name: k for k, name in enumerate(ours.classes)} == theirs.class_to_idx
        assert sorted(labels.tolist()) == sorted(theirs.targets)
    assert ours.classes == ("ant", "bee", "zebra")
    assert ours.images.shape == (9, 3, 8, 8)
    assert ours.pixels.dtype == torch.uint8


def test_pictures_of_the_right_size_keep_torchvisions_pixels(root: Path) -> None:
    ours = load_dataset(folder(root))
    theirs = {
        (pil_to_tensor(picture).numpy().tobytes(), label)
        for picture, label in ImageFolder(str(root / "train"))
        if picture.size == (8, 8)
    }
    assert len(theirs) == 5
    assert theirs <= {(image.numpy().tobytes(), int(n)) for image, n in zip(ours.pixels, ours.labels, strict=True)}


@pytest.mark.parametrize("upright", [True, False])
def test_a_picture_that_is_not_square_is_cut_to_its_centre(tmp_path: Path, upright: bool) -> None:
    stripe = np.zeros((8, 16, 3), dtype=np.uint8)
    stripe[:, :4], stripe[:, 4:12], stripe[:, 12:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for part in ("train", "test"):
        for name in ("a/0", "a/1", "b/0", "b/1"):
            save(tmp_path / part / f"{name}.png", stripe.swapaxes(0, 1) if upright else stripe)
    images = load_dataset(folder(tmp_path)).pixels
    green = torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    assert torch.equal(images, green.expand(4, 3, 8, 8))


def test_a_picture_of_another_size_is_scaled_to_the_wanted_one(tmp_path: Path) -> None:
    halves = np.zeros((32, 32), dtype=np.uint8)
    halves[:, 16:] = 255
    for part in ("train", "test"):
        for name in ("a/0", "a/1", "b/0", "b/1"):
            save(tmp_path / part / f"{name}.png", halves)
    images = load_dataset(folder(tmp_path, image_size=4)).pixels
    assert images.shape == (4, 3, 4, 4)
    assert torch.equal(images, images[:1, :1, :1].expand_as(images))  # every row, channel and picture alike
    assert images[0, 0, 0, 0] < images[0, 0, 0, 1] < 64
    assert 192 < images[0, 0, 0, 2] <= images[0, 0, 0, 3]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_folder_of_test_pictures_may_be_called_val(root: Path, name: str) -> None:
    expected = load_dataset(folder(root))
    (root / "test").rename(root / name)
    assert torch.equal(load_dataset(folder(root)).test.pixels, expected.test.pixels)


def _one_pixel_of(part: str, root: Path) -> None:
    path = root / part / "zebra" / "1.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4, 1] ^= 1
    save(path, pixels)


def _one_label(root: Path) -> None:
    """The last ant was the first bee: the same pixels in the same order."""
    (root / "train" / "bee" / "grey.png").rename(root / "train" / "ant" / "last.png")


def _rename_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "bee").rename(root / part / "bumblebee")


def _one_picture_less(root: Path) -> None:
    (root / "test" / "ant" / "2.jpg").unlink()


def test_the_fingerprint_changes_with_any_pixel_label_or_name_and_with_nothing_else(tmp_path: Path) -> None:
    changes = (
        lambda root: _one_pixel_of("train", root),
        lambda root: _one_pixel_of("test", root),
        _one_label,
        _rename_class,
        _one_picture_less,
    )
    prints = []
    for k, change in enumerate((lambda root: None, *changes)):
        make_folder(tmp_path / str(k))
        change(tmp_path / str(k))
        prints.append(load_dataset(folder(tmp_path / str(k))).fingerprint)
    assert len(set(prints)) == len(prints)
    elsewhere = load_dataset(folder(tmp_path / "0", split_seed=5, validation=0.5, augment="flip"))
    assert elsewhere.fingerprint == prints[0]


def test_mean_and_std_are_measured_on_the_training_pictures(root: Path) -> None:
    ours = load_dataset(folder(root))
    pixels = ours.pixels.double() / 255
    assert ours.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert ours.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_a_mean_and_std_that_were_given_are_used(root: Path) -> None:
    ours = load_dataset(folder(root, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]))
    assert (ours.mean, ours.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(DataError, match=r"data\.mean has 1 values, but images of folder have 3 channels"):
        load_dataset(folder(root, mean=[0.1], std=[0.4]))


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: no folder .*/nowhere .*it should hold train/ and test/"):
        load_dataset(folder(tmp_path / "nowhere"))


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_part_is_named_with_the_layout_that_is_expected(root: Path, part: str) -> None:
    (root / part).rename(root / "elsewhere")
    with pytest.raises(DataError, match=f"has no folder {part}.*{part}/<class>/<image>"):
        load_dataset(folder(root))


def test_an_empty_class_folder_is_named(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder .*/train/cow has no images .*\.png.*fill or remove it"):
        load_dataset(folder(root))


def test_classes_that_only_one_part_has_are_named(root: Path) -> None:
    (root / "test" / "bee").rename(root / "test" / "wasp")
    with pytest.raises(DataError, match="they differ in: bee, wasp"):
        load_dataset(folder(root))


@pytest.mark.parametrize("damage", [b"", b"no image at all", None])
def test_an_unreadable_picture_is_named(root: Path, damage: bytes | None) -> None:
    path = root / "train" / "zebra" / "1.png"
    path.write_bytes(path.read_bytes()[:60] if damage is None else damage)
    with pytest.raises(DataError, match=r"cannot read image .*/train/zebra/1\.png: .*Remove or repair it"):
        load_dataset(folder(root))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "only" / "0.png", np.zeros((8, 8, 3)))
    with pytest.raises(DataError, match="has 1 class folders; expected at least 2"):
        load_dataset(folder(tmp_path))


def test_a_class_of_one_training_picture_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("ant/0", "ant/1", "bee/0"):
            save(tmp_path / part / f"{name}.png", np.zeros((8, 8, 3)))
    with pytest.raises(DataError, match="bee"):
        load_dataset(folder(tmp_path))


# --- normalisation


def test_images_are_normalised_as_torchvision_does(noisy: Dataset) -> None:
    theirs = normalize(noisy.pixels.float() / 255, list(noisy.mean), list(noisy.std))
    torch.testing.assert_close(noisy.normalise(noisy.pixels), theirs, rtol=1e-5, atol=1e-6)


# --- views


@st.composite
def shuffled_batches(draw: st.DrawFn) -> list[list[int]]:
    """The indices 0..19 in any order, cut into batches anywhere."""
    order = draw(st.permutations(range(20)))
    cuts = sorted(draw(st.sets(st.integers(1, 19))))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]


@given(
    shuffled_batches(),
    st.sampled_from(AUGMENTS),
    st.integers(0, 10**6),
    st.integers(0, 2**31 - 1),
    st.integers(1, 8),
)
def test_a_view_is_the_same_in_any_batch_and_any_order(
    split_up: list[list[int]], how: str, column: int, seed: int, padding: int
) -> None:
    config = Data.model_validate({"dataset": "digits", "augment": how, "view_seed": seed, "crop_padding": padding})
    images = noise(20)
    whole = augment(images, torch.arange(20), column, config)
    for batch in split_up:
        indices = torch.tensor(batch)
        assert torch.equal(augment(images[indices], indices, column, config), whole[indices])


@pytest.mark.parametrize("how", AUGMENTS)
def test_a_view_is_what_padding_slicing_and_flipping_by_hand_gives(how: str) -> None:
    config = Data.model_validate({"dataset": "digits", "augment": how, "view_seed": 3, "crop_padding": 2})
    images, indices = noise(40), torch.arange(100, 140)
    views = augment(images, indices, 7, config)
    down = random_integers(3, 7, indices, 0, 5)
    right = random_integers(3, 7, indices, 1, 5)
    flipped = random_integers(3, 7, indices, 2, 2)
    for k in range(40):
        by_hand = images[k]
        if "crop" in how:
            y, x = int(down[k]), int(right[k])
            by_hand = F.pad(by_hand, (2, 2, 2, 2))[:, y : y + 6, x : x + 5]
        if "flip" in how and flipped[k]:
            by_hand = torch.flip(by_hand, [2])
        assert torch.equal(views[k], by_hand)


def test_crops_and_flips_are_all_met_with() -> None:
    config = Data(dataset="digits", augment="crop-flip", crop_padding=1)
    image = noise(1)
    many = augment(image.expand(600, -1, -1, -1), torch.arange(600), 0, config)
    assert len({view.numpy().tobytes() for view in many}) == 3 * 3 * 2


def test_every_seed_column_and_draw_has_numbers_of_its_own() -> None:
    indices = torch.arange(200)
    keys = itertools.product(range(4), range(4), range(3))
    numbers = {tuple(random_integers(seed, column, indices, draw, 9).tolist()) for seed, column, draw in keys}
    assert len(numbers) == 4 * 4 * 3


def test_the_mixer_is_the_published_splitmix64() -> None:
    published = [  # the first numbers of SplitMix64 seeded with 1234567, from Rosetta Code
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = 1234567 + torch.arange(1, 6) * GOLDEN
    assert [int(number) % 2**64 for number in _mix(states)] == published


def chi_square(observed: Tensor, expected: float) -> float:
    return float(((observed.double() - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("bound", "quantile"),
    [(2, 10.83), (9, 26.12), (33, 62.49)],  # 99.9% of chi-square with bound - 1 degrees of freedom
)
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_random_integers_are_uniform(bound: int, quantile: float, draw: int) -> None:
    count = 50_000
    values = random_integers(11, 4, torch.arange(count), draw, bound)
    assert chi_square(torch.bincount(values, minlength=bound), count / bound) < quantile


@pytest.mark.parametrize("pair", ["columns", "draws", "seeds", "images"])
def test_random_integers_that_lie_side_by_side_are_independent(pair: str) -> None:
    count, bound = 50_000, 9
    indices = torch.arange(count)
    one = random_integers(0, 3, indices, 0, bound)
    other = {
        "columns": random_integers(0, 4, indices, 0, bound),
        "draws": random_integers(0, 3, indices, 1, bound),
        "seeds": random_integers(1, 3, indices, 0, bound),
        "images": random_integers(0, 3, indices + 1, 0, bound),
    }[pair]
    together = torch.bincount(one * bound + other, minlength=bound * bound)
    assert chi_square(together, count / bound**2) < 124.84  # 99.9% of chi-square with 80 degrees of freedom


def test_views_of_one_image_over_the_columns_are_uniform() -> None:
    index = torch.tensor([17])
    values = torch.cat([random_integers(0, column, index, 0, 9) for column in range(1_800)])
    assert chi_square(torch.bincount(values, minlength=9), 200) < 26.12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_views_that_a_cpu_sees() -> None:
    config = Data(dataset="digits", augment="crop-flip", view_seed=5)
    images, indices = noise(64), torch.arange(64)
    views = augment(images.cuda(), indices.cuda(), 9, config)
    assert torch.equal(views.cpu(), augment(images, indices, 9, config))


# --- batches


def epoch_of(dataset: Dataset, size: int, seed: int = 0, epoch: int = 0, column: int = 0) -> list[Tensor]:
    found = batches(dataset, DIGITS, dataset.fit, size=size, column=column, seed=seed, epoch=epoch)
    return [batch.indices for batch in found]


def test_an_epoch_sees_every_image_once(noisy: Dataset) -> None:
    seen = epoch_of(noisy, size=8)
    assert [len(indices) for indices in seen] == [8, 8, 4]
    assert torch.equal(torch.cat(seen).sort().values, noisy.fit)


def test_a_batch_holds_the_normalised_views_and_labels_of_its_images(noisy: Dataset) -> None:
    config = Data(dataset="digits", augment="crop-flip")
    for batch in batches(noisy, config, torch.arange(3, 17), size=4, column=5, seed=1, epoch=2):
        views = augment(noisy.pixels[batch.indices], batch.indices, 5, config)
        assert torch.equal(batch.images, noisy.normalise(views))
        assert torch.equal(batch.labels, noisy.labels[batch.indices])
        assert batch.column == 5
        assert batch.images.dtype == torch.float32


def test_the_order_is_a_function_of_seed_and_epoch_alone(noisy: Dataset) -> None:
    order = torch.cat(epoch_of(noisy, size=20, seed=1, epoch=2))
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(torch.cat(epoch_of(noisy, size=7, seed=1, epoch=2, column=3)), order)
    others = [(1, 3), (2, 2), (2, 1), (0, 2)]
    assert not any(torch.equal(torch.cat(epoch_of(noisy, 20, seed, epoch)), order) for seed, epoch in others)


def test_seeds_that_share_their_lower_bits_give_other_orders(noisy: Dataset) -> None:
    """torch's generator for the CPU reads 32 bits of a seed, and seeds go up to 2^31."""
    pairs = [
        (seed + shared, epoch) for seed in (0, 1, 1 << 12, 1 << 20, 1 << 30) for shared in (0, 5) for epoch in (0, 7)
    ]
    orders = {tuple(torch.cat(epoch_of(noisy, size=20, seed=seed, epoch=epoch)).tolist()) for seed, epoch in pairs}
    assert len(orders) == len(pairs)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 10**5)), min_size=2, max_size=2, unique=True))
def test_streams_differ_in_the_bits_that_torch_reads(pairs: list[tuple[int, int]]) -> None:
    low = {stream(*pair) % 2**32 for pair in pairs}
    assert len(low) == 2
    assert all(0 <= stream(*pair) < 2**64 for pair in pairs)


def test_a_last_batch_of_one_image_is_left_out(noisy: Dataset) -> None:
    assert [len(indices) for indices in epoch_of(noisy, size=19)] == [19]
    assert [len(indices) for indices in epoch_of(noisy, size=6)] == [6, 6, 6, 2]


@given(st.integers(2, 60), st.integers(2, 60))
def test_steps_an_epoch_counts_the_batches(count: int, size: int) -> None:
    images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
    assert len(epoch_of(dataset_of(images, torch.zeros(count, dtype=torch.int64)), size)) == steps_an_epoch(count, size)


def test_a_grey_image_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    """PIL's own conversion to RGB clips everything above 255 of 65,535 to white."""
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    decoded = square(tmp_path / "ramp.png", 8)
    assert torch.equal(decoded[0], torch.from_numpy((ramp >> 8).astype(np.uint8)))
