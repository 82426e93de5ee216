"""Images: data sets as tensors, views of them, batches of views."""

from kdtune.data.batches import Batch, batches, steps_an_epoch
from kdtune.data.datasets import DATASETS, Dataset, Images, affine, load_dataset
from kdtune.data.views import augment

__all__ = ["DATASETS", "Batch", "Dataset", "Images", "affine", "augment", "batches", "load_dataset", "steps_an_epoch"]
