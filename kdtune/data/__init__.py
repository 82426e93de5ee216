"""Images: data sets in memory or on disk, views of them, batches of views."""

from kdtune.data.batches import Batch, batches, steps_an_epoch
from kdtune.data.datasets import DATASETS, Dataset, affine, load_dataset
from kdtune.data.folders import TEST_FOLDERS, images_below, list_classes
from kdtune.data.images import RESIZES, ImageFiles, Images, Pixels, prepare, resize_of
from kdtune.data.reading import read
from kdtune.data.views import augment, stream

__all__ = [
    "DATASETS",
    "RESIZES",
    "TEST_FOLDERS",
    "Batch",
    "Dataset",
    "ImageFiles",
    "Images",
    "Pixels",
    "affine",
    "augment",
    "batches",
    "images_below",
    "list_classes",
    "load_dataset",
    "prepare",
    "read",
    "resize_of",
    "steps_an_epoch",
    "stream",
]
