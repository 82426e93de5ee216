"""The teacher-logit cache: the teacher's answers to every view of every training image, in Arrow.

Column `v` is one Arrow IPC file, `fixed_size_list<float16>[C]` with N rows in data-set order: row `i` holds the raw
logits for image `i` under view `(view_seed, v, i)`. `manifest.json` is written last. A cache belongs to one
(dataset, teacher, augmentation, view_seed), its `Identity`; anything else is refused by the name of the field.

    cache = build(folder, identity, views, teacher, dataset, data_config, network, progress)
    cache.teacher_logits(view=3, indices=batch.indices)      # [B, C] float32, on the device of the indices
"""

import hashlib
import json
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from kdtune.data import Dataset, read
from kdtune.errors import CacheError
from kdtune.experiment import Data
from kdtune.records import locked, write_bytes, write_text
from kdtune.teacher import Teacher
from kdtune.training import evaluation_batch

FORMAT = 1
SAMPLED_ROWS = 64
TOLERANCE = 2e-2  # of the larger of 1 and the logit: far above float16's 5e-4 and devices' differences


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
    dtype: str = "float16"
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Name of the folder that holds this cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "Identity") -> list[str]:
        return [
            f"{name}: {value} in the cache, {getattr(other, name)} here"
            for name, value in asdict(self).items()
            if value != getattr(other, name)
        ]


@dataclass(frozen=True)
class Manifest:
    """Written once every column it lists is on disk."""

    identity: Identity
    sha256: tuple[str, ...]  # one a column
    column_bytes: int
    teacher_model: str
    teacher_val_accuracy: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def views(self) -> int:
        return len(self.sha256)


def identify(dataset: Dataset, data: Data, teacher: Teacher) -> Identity:
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
        classes=len(dataset.classes),
    )


class LogitCache:
    """An open cache. Columns are memory-mapped when first asked for; processes on a node share the pages."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._columns: dict[int, Tensor] = {}
        self._on_device: tuple[int, Tensor] | None = None

    def teacher_logits(self, view: int, indices: Tensor) -> Tensor:
        """Logits [B, C] float32 of view column `view` for images `indices` [B], on the indices' device.

        On a GPU the current column is kept there, so that a lookup is one gather.
        """
        if indices.device.type == "cpu":
            return self.column(view)[indices].float()
        if self._on_device is None or self._on_device[0] != view:
            self._on_device = (view, self.column(view).to(indices.device))
        return self._on_device[1][indices].float()

    def column(self, view: int) -> Tensor:
        """Column `view` as stored: [N, C] float16, read-only memory of the file. Raises CacheError if damaged."""
        if view not in self._columns:
            self._columns[view] = _map(column_path(self.folder, view), self.manifest)
        return self._columns[view]

    def bad_columns(self) -> list[int]:
        """Columns whose bytes are not those that were written; reads every byte."""
        return [
            view
            for view, sha256 in enumerate(self.manifest.sha256)
            if _sha256_of(column_path(self.folder, view)) != sha256
        ]

    def check_rows(self, network: nn.Module, dataset: Dataset, data: Data) -> None:
        """Recomputes a sample of rows with the teacher. Raises CacheError where one differs."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(dataset.labels), generator=generator)[:SAMPLED_ROWS].to(dataset.labels.device)
        for view in sorted({0, self.manifest.views - 1}):
            fresh = answer(network, dataset, data, view, rows)
            kept = self.teacher_logits(view, rows)
            wrong = ((fresh - kept).abs() > TOLERANCE * fresh.abs().clamp_min(1)).any(dim=1)
            if wrong.any():
                row = int(rows[wrong][0])
                raise CacheError(
                    f"{column_path(self.folder, view)}: the teacher now answers differently to image {row} "
                    f"({int(wrong.sum())} of {len(rows)} rows). Run `kdtune cache verify`, or remove "
                    f"{self.folder} to build it anew"
                )


def column_path(folder: Path, view: int) -> Path:
    return folder / f"{view:05d}.arrow"


def open_cache(folder: Path, expected: Identity | None = None) -> LogitCache:
    """A whole cache. Raises CacheError where it is incomplete, or for another `expected` identity."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise CacheError(f"{folder} holds no finished cache (no manifest.json); run `kdtune cache build`")
    if expected is not None and manifest.identity != expected:
        raise CacheError(f"{folder} belongs to something else: " + "; ".join(manifest.identity.differences(expected)))
    return LogitCache(folder, manifest)


def read_manifest(folder: Path) -> Manifest | None:
    try:
        raw: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        return Manifest(**{**raw, "identity": Identity(**raw["identity"]), "sha256": tuple(raw["sha256"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CacheError(
            f"{folder / 'manifest.json'} is damaged or of another version ({error}); remove {folder} to build it anew"
        ) from error


def build(
    folder: Path,
    identity: Identity,
    views: int,
    teacher: Teacher,
    dataset: Dataset,
    data: Data,
    network: nn.Module,
    progress: Callable[[int, int], None],
    *,
    recheck: bool = False,
) -> LogitCache:
    """A cache with at least `views` columns: what is there is kept, what is missing is computed.

    `recheck` reads every byte of finished columns and computes damaged ones again. `progress(done, views)` is called
    after each column. One process builds at a time; a second one waits and then finds the work done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        manifest = read_manifest(folder)
        if manifest is not None and manifest.identity != identity:
            raise CacheError(
                f"{folder} belongs to something else: " + "; ".join(manifest.identity.differences(identity))
            )
        known = manifest.sha256 if manifest else ()
        if len(known) >= views and not recheck:
            assert manifest is not None
            return LogitCache(folder, manifest)
        views = max(views, len(known))
        _check_disk(folder, identity, sum(not column_path(folder, view).exists() for view in range(views)))
        hashes = []
        for view in range(views):
            path = column_path(folder, view)
            found = None
            if view < len(known) and not recheck:
                found = known[view]
            elif path.exists():  # whole, since it was renamed into place, but perhaps damaged since
                found = _sha256_of(path)
                if view < len(known) and found != known[view]:
                    found = None
            hashes.append(found or _write_column(path, network, dataset, data, view))
            progress(view + 1, views)
        manifest = Manifest(
            identity,
            tuple(hashes),
            manifest.column_bytes if manifest else column_path(folder, 0).stat().st_size,
            teacher.model,
            teacher.val_accuracy,
            _versions(),
        )
        write_text(folder / "manifest.json", json.dumps(asdict(manifest), indent=2))
        return LogitCache(folder, manifest)


def answer(network: nn.Module, dataset: Dataset, data: Data, view: int, indices: Tensor) -> Tensor:
    """The teacher's logits [B, C], float32, for images `indices` under view column `view`."""
    return torch.cat(list(_answers(network, dataset, data, view, indices)))


@torch.inference_mode()
def _answers(network: nn.Module, dataset: Dataset, data: Data, view: int, indices: Tensor) -> Iterator[Tensor]:
    """`answer` in parts, each of as many images as are evaluated at once."""
    for images in read(dataset.images, torch.split(indices, evaluation_batch(dataset)), view, data):
        yield network(dataset.normalise(images)).float()


def _write_column(path: Path, network: nn.Module, dataset: Dataset, data: Data, view: int) -> str:
    rows = torch.arange(len(dataset.labels), device=dataset.labels.device)
    logits = torch.cat([part.half() for part in _answers(network, dataset, data, view, rows)])
    if not logits.isfinite().all():
        raise CacheError("the teacher's logits do not fit float16 (above 65504 or not finite); check the teacher")
    values: npt.NDArray[np.float16] = logits.cpu().numpy()  # [N, C]
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    batch = pa.record_batch([column], names=["logits"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _map(path: Path, manifest: Manifest) -> Tensor:
    rows, classes = manifest.identity.rows, manifest.identity.classes
    try:
        size = path.stat().st_size
        if size != manifest.column_bytes:
            raise CacheError(
                f"{path} has {size} bytes, its manifest says {manifest.column_bytes}: truncated or replaced. "
                f"Run `kdtune cache build` to compute it again"
            )
        with pa.memory_map(str(path)) as source:
            column = pa.ipc.open_file(source).get_batch(0).column(0)
        flat = column.flatten().to_numpy(zero_copy_only=True)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing. Run `kdtune cache build` to compute it again") from None
    except pa.ArrowInvalid as error:
        raise CacheError(f"{path} is damaged: {error}. Run `kdtune cache build` to compute it again") from error
    if flat.shape != (rows * classes,):
        raise CacheError(f"{path} holds {flat.size} logits, expected {rows} x {classes}")
    with warnings.catch_warnings():  # torch warns of read-only memory; nothing writes to a column
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(flat).view(rows, classes)


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


def _check_disk(folder: Path, identity: Identity, columns: int) -> None:
    needed = identity.rows * identity.classes * 2 * columns
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CacheError(
            f"the cache needs {needed / 1e9:.2f} GB more in {folder}, {free / 1e9:.2f} GB are free. "
            f"Free some space, set storage elsewhere, or lower data.views"
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "pyarrow": pa.__version__}
