"""Data sets: training images split (stratified) into `fit` and `validation`, and test images for the final stage.

Small images are uint8 tensors, the whole set in memory and moved to the device once; large ones stay on disk and are
decoded anew for every view (`ImageFiles`). `read` treats both alike. Shapes: N images, C channels, H x W pixels.

    >>> from kdtune.experiment import Data
    >>> load_dataset(Data(dataset="digits")).images.shape
    torch.Size([1347, 1, 8, 8])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtune.data.fingerprints import Watch, fingerprint
from kdtune.data.folders import FOLDERS
from kdtune.data.images import ImageFiles, Images, Pixels
from kdtune.data.published import NORMALISATION, PUBLISHED
from kdtune.data.reading import read
from kdtune.data.views import stream
from kdtune.errors import DataError
from kdtune.experiment import Data

DIGITS_TEST_SHARE = 0.25
TEST_SEED = 0  # digits' test images are the same whatever the experiment's split_seed
KEPT_LABELS = 0  # this stream of split_seed: which labels are kept has nothing to do with who validates
MEASURED_FILES = 1024  # images on disk that mean and standard deviation are measured on


@dataclass(frozen=True)
class Dataset:
    """What training, validation and test see. `fit` and `validation` index the training images."""

    name: str
    classes: tuple[str, ...]
    images: Pixels  # [N, C, H, W] uint8, the training images
    labels: Tensor  # [N] int64, the truth; -1 where an image has no label at all
    given: Tensor  # [N] int64, what students may use: the label, or -1 where it is withheld or there is none
    test: Images
    fit: Tensor  # [F] int64, ascending
    validation: Tensor  # [N - F] int64, ascending; all of them have labels
    mean: tuple[float, ...]  # per channel, in 0..1
    std: tuple[float, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def pixels(self) -> Tensor:
        """The training images as a tensor; for those that are in memory."""
        assert isinstance(self.images, Tensor)
        return self.images

    def to(self, device: torch.device) -> "Dataset":
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            given=self.given.to(device),
            test=Images(self.test.images.to(device), self.test.labels.to(device)),
            fit=self.fit.to(device),
            validation=self.validation.to(device),
        )

    def with_all_labels(self) -> "Dataset":
        """The same images, with every label that there is: what a teacher may learn from."""
        return replace(self, given=self.labels)

    def training_indices(self, config: Data, *, whole: bool, labelled_only: bool) -> Tensor:
        """Images to train on, ascending: `fit`, or with `whole` the validation images too.

        Images without a given label are left out with `labelled_only`, and where `config.unlabelled` is `ignore`.
        """
        chosen = torch.arange(len(self.labels), device=self.labels.device) if whole else self.fit
        if labelled_only or config.unlabelled == "ignore":
            chosen = chosen[self.given[chosen] >= 0]
        return chosen

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32, (x / 255 - mean) / std."""
        scale, shift = self._affine
        return torch.addcmul(shift, images.to(torch.float32), scale)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        """On the device, made once: a step copies nothing from the host."""
        scale, shift = affine(self.mean, self.std)
        return scale.to(self.images.device), shift.to(self.images.device)


def affine(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Scale and shift [1, C, 1, 1] that take 0..255 to normalised values in one multiplication and addition."""
    means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return 1 / (255 * stds), -means / stds


def load_dataset(config: Data, watch: Watch | None = None) -> Dataset:
    """The data set of an experiment. Raises DataError naming the folder or file that is wrong.

    Images that stay on disk are read the first time, to know them again: `watch(done, total)` hears how far that is.
    """
    train, test, classes = DATASETS[config.dataset](config)
    fit, validation = split(train.labels, classes, config.validation, config.split_seed)
    given = keep_labels(train.labels, (fit, validation), len(classes), config.labels_kept, config.split_seed)
    unlabelled = (train.labels < 0).nonzero().flatten()
    mean, std = _normalisation(train.images, config)
    return Dataset(
        name=config.dataset,
        classes=classes,
        images=train.images,
        labels=train.labels,
        given=given,
        test=test,
        fit=torch.cat([fit, unlabelled]).sort().values,
        validation=validation,
        mean=mean,
        std=std,
        fingerprint=fingerprint(train, test, classes, watch),
    )


def split(labels: Tensor, classes: Sequence[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of a stratified share: the same share of every class, at least one image.

    Images without a label (-1) are in neither. Raises DataError where a class has too few images to be in both.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, taken = [], []
    for label, name in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise DataError(f"class {name} has {len(members)} training images; a split needs at least 2")
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(taken).sort().values


def keep_labels(labels: Tensor, parts: tuple[Tensor, Tensor], classes: int, share: float, seed: int) -> Tensor:
    """The labels [N] of a stratified share of `fit` and of `validation` (`parts`), -1 for the others.

    Every class keeps at least one label in `fit`. A larger share keeps the labels of a smaller one, and some more.
    """
    if share == 1:
        return labels
    generator = torch.Generator().manual_seed(stream(seed, KEPT_LABELS))
    given = torch.full_like(labels, -1)
    for least, part in zip((1, 0), parts, strict=True):
        for label in range(classes):
            members = part[labels[part] == label]
            members = members[torch.randperm(len(members), generator=generator)]
            given[members[: max(least, round(share * len(members)))]] = label
    return given


def _normalisation(images: Pixels, config: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation: the given ones, the published ones, or those of the training images."""
    channels = images.shape[1]
    for name, given in (("mean", config.mean), ("std", config.std)):
        if given is not None and len(given) != channels:
            raise DataError(
                f"data.{name} has {len(given)} values, but images of {config.dataset} have {channels} channels"
            )
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    return NORMALISATION.get(config.dataset) or _measure(images)


def _measure(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation in 0..1, from exact integer counts of the 256 values.

    Of images on disk, some that lie evenly between the first and the last are measured.
    """
    if isinstance(images, ImageFiles):
        count = min(len(images), MEASURED_FILES)
        chosen = torch.arange(count) * len(images) // count
        images = torch.cat(list(read(images, [chosen])))
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).to(torch.float64)
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(round(mean.item(), 6))
        stds.append(max(round(variance.sqrt().item(), 6), 1e-3))  # a constant channel stays constant
    return tuple(means), tuple(stds)


def _digits(config: Data) -> tuple[Images, Images, tuple[str, ...]]:
    """scikit-learn's copy of the UCI optical digits: 1,797 images, 8x8, 17 grey levels (0 to 16).

    Its file is read without importing the package, which takes seconds. Raises DataError where it is not installed.
    """
    found = find_spec("sklearn")
    file = Path(str(found and found.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.exists():
        raise DataError(f"the digits are not there: {file} comes with scikit-learn (pip install scikit-learn)")
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))  # [1797, 64 pixels and the label]
    classes = tuple("0123456789")
    images = rows[:, :-1].mul(255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, -1].to(torch.int64)
    train, test = split(labels, classes, DIGITS_TEST_SHARE, TEST_SEED)
    return Images(images[train], labels[train]), Images(images[test], labels[test]), classes


DATASETS: dict[str, Callable[[Data], tuple[Images, Images, tuple[str, ...]]]] = {
    "digits": _digits,
    **PUBLISHED,
    **FOLDERS,
}
