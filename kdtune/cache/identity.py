"""What a cache belongs to, and the manifest that says so: `manifest.json`, written before the first column."""

import hashlib
import json
import platform
import re
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from kdtune.data import Dataset
from kdtune.errors import CacheError
from kdtune.experiment import Cache, Data
from kdtune.teacher import Teacher

FORMAT = 2
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
    dtype: str = "float16"  # of a logit; "uint8" is one of 256 steps between an image's least and largest
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Name of the folder that holds this cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def form(self) -> str:
        """How logits are kept, in words."""
        return f"top {self.top_k}" if self.top_k else "all, 8 bits" if self.dtype == "uint8" else "all, 16 bits"

    @property
    def bytes_of_logits(self) -> int:
        """Of one column, without what Arrow adds to it."""
        if self.top_k is not None:
            return self.rows * (4 * self.top_k + 4)
        return self.rows * (self.classes + 8 if self.dtype == "uint8" else 2 * self.classes)

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


def check_saves(keep: Cache, dataset: Dataset) -> None:
    """Raises CacheError where keeping the largest logits only would save nothing."""
    classes = len(dataset.classes)
    if keep.top_k is not None and 2 * keep.top_k >= classes:
        raise CacheError(
            f"cache.top_k is {keep.top_k}, but {dataset.name} has {classes} classes, and one of the largest logits "
            f"takes twice the bytes: there is nothing to save. Leave it null"
        )


def identify(dataset: Dataset, data: Data, teacher: Teacher, keep: Cache | None = None) -> Identity:
    """What a cache of the teacher's answers belongs to; `keep` says how much of them is kept."""
    detail = f" padding {data.crop_padding}" if data.augment.startswith("crop") else ""
    if data.resized:
        detail = f" scale {list(data.crop_scale)}"
    whole = Identity(
        dataset=dataset.fingerprint,
        teacher=teacher.fingerprint,
        augmentation=data.augment + detail,
        normalisation=f"mean {list(dataset.mean)} std {list(dataset.std)}",
        view_seed=data.view_seed,
        rows=len(dataset.labels),
        classes=len(dataset.classes),
        top_k=None,
    )
    return kept_as(whole, keep or Cache())


def kept_as(identity: Identity, keep: Cache) -> Identity:
    """The identity of the same answers, if so much of every logit is kept."""
    return replace(identity, top_k=keep.top_k, dtype="uint8" if keep.bits == 8 else "float16")


def describe(identity: Identity, dataset: Dataset, teacher: Teacher) -> Manifest:
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "pyarrow", "pillow")}  # the last decodes images on disk
    return Manifest(identity, dataset.name, teacher.model, teacher.val_accuracy, versions)
