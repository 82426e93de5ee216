"""Images that stay on disk: their pixels against PIL and torchvision, and the processes that decode them.

Shapes: B images of a batch, S the side of the square that a network sees.
"""

import dataclasses
import math
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize
from torchvision.transforms.functional import pil_to_tensor

from kdtune.data import Dataset, ImageFiles, batches, load_dataset, read
from kdtune.data.published import NORMALISATION
from kdtune.data.reading import PIECE, decode_workers
from kdtune.data.views import ASPECT, BITS, crop_box, crop_numbers, flips, random_integers
from kdtune.errors import DataError
from kdtune.experiment import Data
from kdtune.training import evaluate

SIDE = 8
COUNT = 3 * PIECE  # images of the folder: enough for processes to be worth it
SIZES = ((20, 13), (9, 30), (8, 8), (16, 16), (64, 21))  # width, height


def files_of(dataset: Dataset, workers: int = 1) -> ImageFiles:
    assert isinstance(dataset.images, ImageFiles)
    return dataclasses.replace(dataset.images, workers=workers)


def config_of(root: Path, **fields: object) -> Data:
    return Data.model_validate(
        {"dataset": "folder", "root": str(root), "image_size": SIDE, "augment": "random-resized-crop-flip", **fields}
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes in two classes, PNG and JPEG, in colour and grey."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for part, count in (("train", COUNT), ("test", 6)):
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            shape = (height, width) if number % 7 == 3 else (height, width, 3)
            path = root / part / ("ant", "bee")[number % 2] / f"{number:03}.{('png', 'jpg')[number % 3 == 0]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def config(root: Path) -> Data:
    return config_of(root, view_seed=5, crop_scale=(0.2, 0.9))


@pytest.fixture(scope="module")
def dataset(config: Data) -> Dataset:
    return load_dataset(config)


def everything(files: ImageFiles, column: int | None, config: Data) -> Tensor:
    return torch.cat(list(read(files, [torch.arange(len(files))], column, config)))


# --- pixels


def test_a_plain_image_is_torchvisions_resize_and_centre_crop(dataset: Dataset, config: Data) -> None:
    files = files_of(dataset)
    plain = everything(files, None, config)
    assert plain.shape == files.shape == (COUNT, 3, SIDE, SIDE)
    assert plain.dtype == torch.uint8
    for index in range(0, COUNT, 5):
        picture = Image.open(files.path(index)).convert("RGB")
        theirs = CenterCrop(SIDE)(Resize(round(SIDE * 256 / 224))(picture))
        assert torch.equal(plain[index], pil_to_tensor(theirs))


@pytest.mark.parametrize("how", ["random-resized-crop", "random-resized-crop-flip"])
def test_a_view_is_what_cutting_scaling_and_flipping_by_hand_gives(dataset: Dataset, config: Data, how: str) -> None:
    config = config.model_copy(update={"augment": how})
    files = files_of(dataset)
    views = everything(files, 3, config)
    numbers = crop_numbers(torch.arange(COUNT), 3, config).tolist()
    mirrored = random_integers(5, 3, torch.arange(COUNT), 2, 2).bool()
    assert 0.3 < mirrored.double().mean() < 0.7
    for index in range(COUNT):
        picture = Image.open(files.path(index)).convert("RGB")
        box = crop_box(numbers[index], *picture.size, (0.2, 0.9))
        by_hand = pil_to_tensor(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))
        if how.endswith("flip") and mirrored[index]:
            by_hand = by_hand.flip(2)
        assert torch.equal(views[index], by_hand)


@pytest.mark.parametrize("how", ["none", "flip"])
def test_imagenet_without_crops_is_the_plain_image_perhaps_mirrored(dataset: Dataset, root: Path, how: str) -> None:
    config = Data.model_validate({"dataset": "imagenet", "root": str(root), "augment": how})
    files = files_of(dataset)
    plain, views = everything(files, None, config), everything(files, 1, config)
    mirrored = flips(torch.arange(COUNT), 1, config)
    assert bool(mirrored.any()) == (how == "flip")
    assert torch.equal(views, torch.where(mirrored[:, None, None, None], plain.flip(3), plain))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_view_is_the_same_in_any_batch_any_order_and_any_process(
    dataset: Dataset, config: Data, workers: int
) -> None:
    whole = everything(files_of(dataset), 4, config)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(workers))
    chunks = torch.split(order, [1, 70, 2, 64, COUNT - 137])
    views = list(read(files_of(dataset, workers), chunks, 4, config))
    assert [len(view) for view in views] == [len(chunk) for chunk in chunks]
    assert torch.equal(torch.cat(views), whole[order])
    few = torch.tensor([17, 3])  # decoded in this process
    assert torch.equal(next(read(files_of(dataset), [few], 4, config)), whole[few])
    assert not torch.equal(everything(files_of(dataset), 5, config), whole)


def test_the_networks_random_numbers_are_left_alone(dataset: Dataset, config: Data) -> None:
    before = torch.get_rng_state()
    everything(files_of(dataset, 2), 0, config)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_holds_the_normalised_views_and_labels_of_files(dataset: Dataset, config: Data) -> None:
    for batch in batches(dataset, config, dataset.fit, size=100, column=2, seed=0, epoch=0):
        views = next(read(dataset.images, [batch.indices], 2, config))
        assert torch.equal(batch.images, dataset.normalise(views))
        assert torch.equal(batch.labels, dataset.labels[batch.indices])


def test_files_are_evaluated_as_their_plain_pixels_in_memory_are(dataset: Dataset, config: Data) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    on_disk = evaluate(network, dataset, dataset.images, dataset.labels)
    in_memory = evaluate(network, dataset, everything(files_of(dataset), None, config), dataset.labels)
    assert torch.equal(on_disk.predictions, in_memory.predictions)
    assert on_disk.loss == in_memory.loss


# --- random resized crops

WIDTH, HEIGHT, DRAWN = 500, 375, 4000
DISTRIBUTIONS = ("area", "aspect", "left", "top")


def boxes(scale: tuple[float, float], width: int = WIDTH, height: int = HEIGHT, count: int = DRAWN) -> Tensor:
    """Boxes [count, 4] that are drawn for images of one size."""
    config = Data(dataset="digits", view_seed=1)
    numbers = crop_numbers(torch.arange(count), 0, config).tolist()
    return torch.tensor([crop_box(drawn, width, height, scale) for drawn in numbers])


def measures(left: Tensor, top: Tensor, width: Tensor, height: Tensor) -> dict[str, Tensor]:
    room = [(WIDTH - width).clamp_min(1), (HEIGHT - height).clamp_min(1)]
    return dict(zip(DISTRIBUTIONS, (width * height, width / height, left / room[0], top / room[1]), strict=True))


@given(
    st.lists(st.integers(0, (1 << BITS) - 1), min_size=22, max_size=22),
    st.integers(1, 700),
    st.integers(1, 700),
    st.floats(0.01, 1),
)
def test_a_box_lies_within_the_image(numbers: list[int], width: int, height: int, low: float) -> None:
    left, top, right, bottom = crop_box(numbers, width, height, (low, 1.0))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.3, 0.5)])
def test_boxes_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    """The two-sample statistic of Kolmogorov and Smirnov; below 1.95 * sqrt(2 / n) in 99.9% of draws."""
    left, top, right, bottom = boxes(scale).double().unbind(1)
    ours = measures(left, top, right - left, bottom - top)
    torch.manual_seed(0)
    image = torch.empty(3, HEIGHT, WIDTH)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ASPECT)) for _ in range(DRAWN)]
    y, x, h, w = torch.tensor(drawn).double().unbind(1)
    theirs = measures(x, y, w, h)
    for name in DISTRIBUTIONS:
        both = torch.cat([ours[name], theirs[name]]).sort().values
        share = [torch.searchsorted(m.sort().values, both, right=True) / DRAWN for m in (ours[name], theirs[name])]
        assert (share[0] - share[1]).abs().max() < 1.95 * math.sqrt(2 / DRAWN), name


def test_a_boxs_place_size_and_mirroring_have_nothing_to_do_with_each_other() -> None:
    left, top, right, bottom = boxes((0.1, 0.5)).double().unbind(1)
    found = measures(left, top, right - left, bottom - top)
    mirrored = flips(torch.arange(DRAWN), 0, Data(dataset="digits", augment="flip", view_seed=1)).double()
    together = torch.corrcoef(torch.stack([*found.values(), mirrored])).fill_diagonal_(0)
    assert together.abs().max() < 3.9 / math.sqrt(DRAWN)  # 99.99% of draws, for each of the ten pairs


@pytest.mark.parametrize(("width", "height"), [(1000, 20), (20, 1000), (1, 1), (2, 50)])
def test_an_image_that_no_try_fits_is_cut_to_torchvisions_centre(width: int, height: int) -> None:
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(ASPECT))
    assert boxes((1.0, 1.0), width, height, 5).tolist() == [[left, top, left + w, top + h]] * 5


# --- processes


def test_closing_early_leaves_no_process(dataset: Dataset, config: Data) -> None:
    chunks = torch.split(torch.arange(COUNT), 8)
    reading = read(files_of(dataset, 2), chunks, 0, config)
    next(reading)
    assert len(multiprocessing.active_children()) == 2
    reading.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_leaving_an_epoch_early_or_late_leaves_no_process(dataset: Dataset, config: Data) -> None:
    for leave in (True, False):
        for _ in batches(dataset, config, torch.arange(COUNT), size=50, column=0, seed=0, epoch=0):
            assert multiprocessing.active_children()
            if leave:
                break
        assert multiprocessing.active_children() == []


def test_few_images_need_no_process(dataset: Dataset, config: Data) -> None:
    reading = read(files_of(dataset), torch.split(torch.arange(PIECE), 32), 0, config)
    next(reading)
    assert multiprocessing.active_children() == []


def test_a_process_that_was_killed_is_told(dataset: Dataset, config: Data) -> None:
    reading = read(files_of(dataset, 1), torch.split(torch.arange(COUNT).repeat(20), 16), 0, config)
    next(reading)
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with pytest.raises(DataError, match=r"a process that decodes images .* has ended.*lower data\.decode_workers"):
        list(reading)


@pytest.mark.parametrize("count", [COUNT, 5], ids=["in a process", "here"])
@pytest.mark.parametrize("column", [None, 1])
def test_an_unreadable_picture_is_named_wherever_it_is_decoded(
    dataset: Dataset, config: Data, tmp_path: Path, count: int, column: int | None
) -> None:
    files = files_of(dataset, 2)
    path = tmp_path / "bad.png"
    path.write_bytes(files.path(2).read_bytes()[:60])
    names = files.names.astype("S999")
    names[2] = os.fsencode(path)  # an absolute path stands for itself
    bad = dataclasses.replace(files, names=names)
    with pytest.raises(DataError, match=r"^cannot read image .*/bad\.png: .*Remove or repair it$"):
        list(read(bad, torch.split(torch.arange(count), 4), column, config))
    assert multiprocessing.active_children() == []


def test_as_many_processes_as_torch_has_threads(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, expected in ((3, 3), (500, 16)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert decode_workers(dataclasses.replace(files_of(dataset), workers="auto")) == expected
    assert decode_workers(files_of(dataset, 40)) == 40


# --- data sets of files


def test_a_folder_with_resized_crops_lists_files_and_decodes_none(root: Path, dataset: Dataset) -> None:
    in_memory = load_dataset(config_of(root, augment="none"))
    assert dataset.shape == in_memory.shape == (3, SIDE, SIDE)
    assert torch.equal(dataset.labels, in_memory.labels)
    assert torch.equal(dataset.fit, in_memory.fit)
    assert files_of(dataset).path(0) == root / "train" / "ant" / "000.jpg"


def test_files_come_in_the_order_of_their_paths_whatever_the_characters(tmp_path: Path) -> None:
    """The order of the strings would be another one: `-` and `.` sort before `/`."""
    names = ["ant/x/1.png", "ant/x-y/1.png", "ant/x.PNG", "ant/x/1-2.png", "ant/.hidden.png", "bee/1.png", "bee/é.png"]
    for name in (*names, "ant/notes.txt", "ant/.png"):
        for part in ("train", "test"):
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name, "png")
    paths = sorted(Path("train") / name for name in names)
    for folder in (tmp_path, tmp_path / ".." / tmp_path.name):
        files = files_of(load_dataset(config_of(folder)))
        assert [files.path(index) for index in range(len(files))] == [folder / path for path in paths]


def test_mean_and_std_are_those_of_plain_pictures_evenly_spaced(
    root: Path, config: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdtune.data.datasets.MEASURED_FILES", 48)
    dataset = load_dataset(config)
    pixels = everything(files_of(dataset), None, config)[:: COUNT // 48].double() / 255
    assert dataset.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert dataset.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_imagenet_is_train_and_val_with_its_published_normalisation(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "val").symlink_to(root / "test")
    (tmp_path / "test").mkdir()  # ImageNet's own test images have no classes
    dataset = load_dataset(Data(dataset="imagenet", root=str(tmp_path), augment="flip"))
    assert dataset.shape == (3, 224, 224)
    assert (len(dataset.labels), len(dataset.test.labels)) == (COUNT, 6)
    assert (dataset.mean, dataset.std) == NORMALISATION["imagenet"]
    assert next(read(dataset.test.images, [torch.arange(6)])).shape == (6, 3, 224, 224)


def test_the_fingerprint_of_files_changes_with_names_labels_and_sizes(tmp_path: Path) -> None:
    pixels = np.zeros((9, 9, 3), dtype=np.uint8)
    for part in ("train", "test"):
        for name in ("ant/0", "ant/1", "ant/2", "bee/0", "bee/1"):
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / part / f"{name}.bmp")
    prints = [load_dataset(config_of(tmp_path)).fingerprint]
    assert load_dataset(config_of(tmp_path, crop_scale=(0.5, 1), split_seed=3)).fingerprint == prints[0]
    changed = tmp_path / "train" / "ant" / "2.bmp"
    changed.write_bytes(changed.read_bytes() + b"\0")
    prints.append(load_dataset(config_of(tmp_path)).fingerprint)
    changed.rename(changed.with_name("3.bmp"))
    prints.append(load_dataset(config_of(tmp_path)).fingerprint)
    changed.with_name("3.bmp").rename(tmp_path / "train" / "bee" / "3.bmp")
    prints.append(load_dataset(config_of(tmp_path)).fingerprint)
    prints.append(load_dataset(config_of(tmp_path, image_size=12)).fingerprint)
    assert len(set(prints)) == 5
