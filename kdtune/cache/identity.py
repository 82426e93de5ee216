"""What a cache belongs to, and the manifest that says so: `manifest.json`, written before the first column."""

import hashlib
import json
import platform
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import torch

from kdtune.data import Dataset
from kdtune.errors import CacheError
from kdtune.experiment import Data
from kdtune.teacher import Teacher

FORMAT = 2
ALL = "all classes"
MANIFEST = "manifest.json"
KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Identity:
    """What a cache belongs to. Field names are those that an error shows."""

    dataset: str  # fingerprint: ordered labels and pixels
    teacher: str  # fingerprint: architecture and weights
    augmentation: str
    normalisation: str
    view_seed: int
    rows: int
    classes: int
    top_k: int | None  # the largest logits of an image, or None for all of them
    dtype: str = "float16"
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Name of the folder that holds this cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def form(self) -> str:
        return ALL if self.top_k is None else f"top {self.top_k}"

    @property
    def bytes_of_logits(self) -> int:
        """Of one column, without what Arrow adds: float16 logits; of the top k also their classes, and the rest."""
        return self.rows * (2 * self.classes if self.top_k is None else 4 * self.top_k + 4)

    def differences(self, other: "Identity") -> list[str]:
        return [
            f"{name}: {value} in the cache, {getattr(other, name)} here"
            for name, value in asdict(self).items()
            if value != getattr(other, name)
        ]


@dataclass(frozen=True)
class Manifest:
    """What is known of a cache without its columns."""

    identity: Identity
    data: str  # name of the data set
    teacher_model: str
    teacher_val_accuracy: float
    versions: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode()

    @classmethod
    def of(cls, content: bytes, address: str) -> "Manifest":
        """Raises CacheError where it is damaged or of another version; `address` is of its cache."""
        try:
            raw: dict[str, Any] = json.loads(content)
            return cls(**{**raw, "identity": Identity(**raw["identity"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CacheError(
                f"{address}/manifest.json is damaged or of another version ({error}); remove {address} to build it anew"
            ) from error


def identify(dataset: Dataset, data: Data, teacher: Teacher, top_k: int | None = None) -> Identity:
    """Raises CacheError where `top_k` would leave no class out."""
    classes = len(dataset.classes)
    if top_k is not None and top_k >= classes:
        raise CacheError(
            f"cache.top_k is {top_k}, but {dataset.name} has {classes} classes: there is nothing to leave out. "
            f"Leave it null"
        )
    detail = f" padding {data.crop_padding}" if data.augment.startswith("crop") else ""
    if data.resized:
        detail = f" scale {list(data.crop_scale)}"
    return Identity(
        dataset=dataset.fingerprint,
        teacher=teacher.fingerprint,
        augmentation=data.augment + detail,
        normalisation=f"mean {list(dataset.mean)} std {list(dataset.std)}",
        view_seed=data.view_seed,
        rows=len(dataset.labels),
        classes=classes,
        top_k=top_k,
    )


def describe(identity: Identity, dataset: Dataset, teacher: Teacher) -> Manifest:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pyarrow": pa.__version__}
    return Manifest(identity, dataset.name, teacher.model, teacher.val_accuracy, versions)
