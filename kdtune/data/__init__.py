"""Images: data sets in memory or on disk, views of them, batches of views."""

from kdtune.data.batches import Batch, batches, steps_an_epoch
from kdtune.data.datasets import DATASETS, Dataset, affine, load_dataset
from kdtune.data.images import RESIZES, ImageFiles, Images, Pixels, prepare, resize_of
from kdtune.data.reading import read
from kdtune.data.views import augment, stream

__all__ = [
    "DATASETS",
    "RESIZES",
    "Batch",
    "Dataset",
    "ImageFiles",
    "Images",
    "Pixels",
    "affine",
    "augment",
    "batches",
    "load_dataset",
    "prepare",
    "read",
    "resize_of",
    "steps_an_epoch",
    "stream",
]
