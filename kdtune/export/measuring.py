"""Measuring a student again, in any format, on a data set: class folders, or the data of an experiment file.

    labelled = of_folder(Path("flowers/test"), student)
    measured = measure(student, labelled)
    print(measured.accuracy, measured.top5, measured.loss)

Classes are matched by name, so their order and number may differ: a data set may lack some of the student's, but may
have none that the student does not know. Files are decoded as for training, which knows nothing of EXIF orientations.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.data import TEST_FOLDERS, Dataset, list_classes, prepare, read
from kdtune.errors import ExportError, nearest
from kdtune.export.opening import Opened
from kdtune.training import evaluation_batch

BATCH = 64
SPLITS = ("test", "validation", "train")
TOP = 5


@dataclass(frozen=True)
class Labelled:
    """Images whose labels are the student's own class numbers."""

    what: str  # in words
    labels: Tensor  # [N] int64
    pixels: Callable[[], Iterator[Tensor]]  # uint8 [B, C, H, W], one batch after the other


@dataclass(frozen=True)
class Measured:
    """What a student answered to N images. `loss` is the mean cross-entropy."""

    labels: Tensor  # [N] int64
    predictions: Tensor  # [N] int64
    confidences: Tensor  # [N], the probability of the prediction
    top5: float | None  # share of images with the label among the five most probable; None of five classes or fewer
    loss: float
    seconds: float  # that the student took, without decoding

    @property
    def accuracy(self) -> float:
        return (self.predictions == self.labels).double().mean().item()

    def by_class(self, classes: Sequence[str]) -> list[tuple[str, int, float]]:
        """(class, images, share answered correctly) of every class that has images."""
        count = torch.bincount(self.labels, minlength=len(classes)).tolist()
        right = torch.bincount(self.labels[self.predictions == self.labels], minlength=len(classes)).tolist()
        return [(name, n, hits / n) for name, n, hits in zip(classes, count, right, strict=True) if n]


@torch.inference_mode()
def measure(student: Opened, images: Labelled) -> Measured:
    """Asks the student about every image once; before the clock runs about the first ones, which starts its kernels."""
    logits: list[Tensor] = []
    seconds = 0.0
    for pixels in images.pixels():
        if not logits:
            student.answers(pixels)
        began = perf_counter()
        logits.append(student.answers(pixels).float())
        seconds += perf_counter() - began
    every, labels = torch.cat(logits), images.labels  # [N, classes], [N]
    confidences, predictions = every.softmax(dim=1).max(dim=1)
    top5 = None
    if every.shape[1] > TOP:
        top5 = (every.topk(TOP).indices == labels[:, None]).any(dim=1).double().mean().item()
    loss = F.cross_entropy(every.double(), labels).item()
    return Measured(labels, predictions, confidences, top5, loss, seconds)


def of_dataset(dataset: Dataset, split: str, student: Opened) -> Labelled:
    """One of SPLITS of a data set on the CPU. Raises ExportError where its images or classes are not the student's."""
    if dataset.shape != student.image_shape:
        theirs, mine = (" x ".join(map(str, shape)) for shape in (dataset.shape, student.image_shape))
        raise ExportError(
            f"images of {dataset.name} are {theirs}, but the student takes {mine} (channels, height, width)"
        )
    images, labels = (dataset.test.images, dataset.test.labels) if split == "test" else (dataset.images, dataset.labels)
    chosen = {"test": torch.arange(len(labels)), "validation": dataset.validation, "train": dataset.fit}[split]
    chosen = chosen[labels[chosen] >= 0]
    numbers = _matched(dataset.classes, student, dataset.name)
    chunks = torch.split(chosen, evaluation_batch(dataset))
    what = {"test": "test", "validation": "validation", "train": "training"}[split]
    return Labelled(f"{what} images of {dataset.name}", numbers[labels[chosen]], lambda: read(images, chunks))


def of_folder(folder: Path, split: str | None, student: Opened) -> Labelled:
    """Class folders, or a folder that has them in train/ and test/. Raises ExportError or DataError."""
    folder = _part(folder, split)
    listing, classes = list_classes(folder)
    numbers = _matched(classes, student, str(folder))

    def pixels() -> Iterator[Tensor]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(listing.files), BATCH):
                files = listing.files[start : start + BATCH]
                decoded = pool.map(lambda file: prepare(Path(file), student.image_shape, student.resize), files)
                yield torch.stack(list(decoded))

    return Labelled(f"images of {folder}", numbers[torch.tensor(listing.labels)], pixels)


def _part(folder: Path, split: str | None) -> Path:
    """The folder itself, or that of `split` (default: test) where it holds train/ or test/."""
    names = {"train": ("train",), "test": TEST_FOLDERS}
    there = {one: [folder / name for name in names[one] if (folder / name).is_dir()] for one in names}
    parts = {one: found[0] for one, found in there.items() if found}
    if not parts:
        if split is not None:
            raise ExportError(f"{folder} has no train/ and test/ to choose from; leave --split out")
        return folder
    wanted = split or "test"
    if wanted not in parts:
        why = " (the experiment says which images validate: give RUN/experiment.yaml)" if wanted == "validation" else ""
        raise ExportError(f"{folder} has {' and '.join(part.name for part in parts.values())}, but no {wanted}{why}")
    return parts[wanted]


def _matched(classes: Sequence[str], student: Opened, where: str) -> Tensor:
    """The student's number of each class [classes]. Raises ExportError that names those it does not know."""
    known = {name: k for k, name in enumerate(student.classes)}
    unknown = [name for name in classes if name not in known]
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise ExportError(
            f"{where} has classes that the student does not know: {shown}.{nearest(unknown[0], list(known))} It knows "
            f"{', '.join(list(known)[:10])}{', ...' if len(known) > 10 else ''}"
        )
    return torch.tensor([known[name] for name in classes])
