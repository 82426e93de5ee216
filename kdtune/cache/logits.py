"""The teacher-logit cache: the teacher's answers to every view of every training image.

Row `i` of column `v` holds the raw logits for image `i` under view `(view_seed, v, i)`. Columns are computed when they
are first needed, by whoever needs them, in any order and by any number of processes on any number of machines:

    manifest.json     what the cache belongs to: its `Identity`; anything else is refused by the name of the field
    00000.arrow       a column (`columns.py`)
    00000.json        its size and SHA-256, written last: without it the column is not there

    cache = open_cache(place, views=60, teacher=Answers(load, dataset, data))
    cache.ensure(3)                                          # computes column 3, or waits for whoever does
    cache.teacher_logits(view=3, indices=batch.indices)      # [B, C] float32, on the device of the indices
"""

import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from kdtune.cache.columns import Column, DamagedError, Draft, Hashing, hash_of, open_column
from kdtune.cache.copies import Copies, default_copies
from kdtune.cache.identity import MANIFEST, Identity, Manifest
from kdtune.cache.store import Store, store_at
from kdtune.data import Dataset, read
from kdtune.errors import CacheError
from kdtune.experiment import Data
from kdtune.storage import is_uri
from kdtune.training import evaluation_batch

log = logging.getLogger(__name__)

# of names: people put files of their own into folders
COLUMN, SEAL = re.compile(r"(\d{5}|[1-9]\d{5,})\.arrow"), re.compile(r"(\d{5}|[1-9]\d{5,})\.json")
SAMPLED_ROWS = 64
SAMPLED_COLUMNS = 4
TOLERANCE = 2e-2  # of the larger of 1 and the row's largest logit: far above float16's 5e-4 and devices' differences


@dataclass(frozen=True)
class Place:
    """Where a cache lies, in a form that travels to other processes."""

    address: str  # of this cache: a folder or a URI
    copies: str | None = None  # folder on each node's own disk; a URI has one anyway


@dataclass(frozen=True)
class Seal:
    """What makes a column whole."""

    sha256: str
    bytes: int
    seconds: float  # to compute and to write it
    device: str
    by: str  # host and process


class Answers:
    """A teacher at hand: its network is loaded when it is first asked, and given back with `release`."""

    def __init__(self, load: Callable[[], nn.Module], dataset: Dataset, data: Data) -> None:
        self.load = load
        self.dataset = dataset
        self.data = data
        self.asked = 0  # images that the teacher has answered to

    @cached_property
    def network(self) -> nn.Module:
        with torch.inference_mode(mode=False):  # built as anywhere else: what builds it may need gradients
            return self.load()

    @property
    def loaded(self) -> bool:
        return "network" in self.__dict__

    def release(self) -> None:
        self.__dict__.pop("network", None)

    @torch.inference_mode()
    def to(self, view: int, indices: Tensor) -> Iterator[Tensor]:
        """The teacher's logits, float32, for images `indices` under view column `view`, in parts of [B, C]."""
        dataset = self.dataset
        for images in read(dataset.images, torch.split(indices, evaluation_batch(dataset)), view, self.data):
            self.asked += len(images)
            yield self.network(dataset.normalise(images)).float()


class LogitCache:
    """An open cache. Columns are memory-mapped when first asked for; processes on a node share the pages."""

    def __init__(
        self, store: Store, manifest: Manifest, copies: Copies | None, views: int, teacher: Answers | None
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.copies = copies
        self.views = views
        self.wanted = views  # columns that trials would like; `views` are fewer where the disk cannot hold them
        self.teacher = teacher
        self.mended: list[int] = []  # columns that this process found damaged and took away, to be computed again
        self.rows_checked = 0  # by asking the teacher again
        self.computing_s = 0.0  # seconds that this process has computed columns
        self._columns: dict[int, Column] = {}
        self._sound: set[int] = set()  # columns whose every byte this process has seen to be right
        self._on_device: tuple[int, Column] | None = None

    # what is there

    def columns(self) -> list[int]:
        """The columns that are there."""
        sizes = self.store.sizes()
        found = (int(name.removesuffix(".arrow")) for name in sizes if COLUMN.fullmatch(name))
        return sorted(view for view in found if seal_name(view) in sizes)

    def there(self) -> int:
        """How many of the `views` columns are there; others may have had a use for more."""
        return sum(view < self.views for view in self.columns())

    def seal(self, view: int) -> Seal | None:
        """What makes a column whole; None where it is not there (yet)."""
        content = self.store.read(seal_name(view))
        return None if content is None else _read_seal(content)

    # looking up

    def teacher_logits(self, view: int, indices: Tensor) -> Tensor:
        """Logits [B, C] float32 of view column `view` for images `indices` [B], on the indices' device.

        On a GPU the current column is kept there, so that a lookup is one gather.
        """
        if indices.device.type == "cpu":
            return self.column(view).logits(indices)
        if self._on_device is None or self._on_device[0] != view:
            self._on_device = None  # makes room on the device for the next
            self._on_device = (view, self.column(view).to(indices.device))
        return self._on_device[1].logits(indices)

    def column(self, view: int) -> Column:
        """Column `view` as stored, read-only memory of the file. Raises CacheError if it is missing or damaged."""
        if view not in self._columns:
            seal = self.seal(view)
            if seal is None:
                raise CacheError(
                    f"{self.store.address} has no column {view}; `kdtune cache build` computes what is missing"
                )
            self._columns[view] = self._open(view, seal)
        return self._columns[view]

    def _open(self, view: int, seal: Seal) -> Column:
        path = self._file(view, seal)
        size = path.stat().st_size if path.exists() else seal.bytes
        if size != seal.bytes:
            raise CacheError(
                f"{path} has {size} bytes, its seal {seal_name(view)} says {seal.bytes}: truncated or replaced. "
                f"`kdtune cache build` computes it again"
            )
        return open_column(path, self.manifest.identity, view)

    def _file(self, view: int, seal: Seal) -> Path:
        """The column's file on this machine."""
        name = column_name(view)
        path = self.store.path(name) if self.copies is None else self.copies.get(name, seal.sha256)
        assert path is not None
        return path

    # computing

    def ensure(self, view: int) -> None:
        """Returns once column `view` is there and its bytes are right: computes it, or waits for who does.

        While another process computes it, this one computes a later column that is missing, so that no device waits
        that could work. Raises CacheError where a column is missing or damaged and no teacher is at hand.
        """
        while view not in self._sound:
            if self._is_sound(view):
                self._trust(view)
            elif self.teacher is None:
                raise CacheError(f"{self.store.address}: column {view} is missing or damaged. Run `kdtune cache build`")
            elif not self._compute_one_of(range(view, max(self.views, view + 1))):
                time.sleep(self.store.patience)
        if self.teacher is not None and self.teacher.loaded and self.there() == self.views:
            self.teacher.release()

    def _trust(self, view: int) -> None:
        """Every byte of a column is right; the memory of a file that lay there before is let go."""
        self._sound.add(view)
        self._columns.pop(view, None)
        if self._on_device is not None and self._on_device[0] == view:
            self._on_device = None

    def _is_sound(self, view: int) -> bool:
        """Whether a column is there and every byte is as it was written. Who can compute takes away what is damaged."""
        content = self.store.read(seal_name(view))
        if content is None:
            return False
        if self._matches(view, _read_seal(content)):
            return True
        if self.teacher is not None:
            with self.store.claim(column_name(view)) as mine:  # nobody computes it now; perhaps somebody just has
                if mine and not self._matches(view, self.seal(view)):
                    self.store.remove(seal_name(view))
                    self.mended.append(view)
                    log.warning("%s: column %d was damaged, and is computed again", self.store.address, view)
        return False

    def _matches(self, view: int, seal: Seal | None) -> bool:
        if seal is None:
            return False
        name = column_name(view)
        try:
            if self.copies is not None:
                self.copies.check(name, seal.sha256)
                return self._file(view, seal).stat().st_size == seal.bytes
            path = self._file(view, seal)
            return path.stat().st_size == seal.bytes and hash_of(path) == seal.sha256
        except (FileNotFoundError, DamagedError):  # a store out of reach says nothing about the column
            return False

    def _compute_one_of(self, views: Sequence[int]) -> bool:
        """Computes the first of the columns that is missing and that nobody else computes; whether there was one."""
        there = set(self.columns())
        for view in views:
            if view in there and view != views[0]:  # the first is looked for because it is not sound
                continue
            with self.store.claim(column_name(view)) as mine:
                if mine:
                    if view not in self.columns():  # not finished by another just before the claim
                        self._compute(view)
                    return True
        return False

    def _compute(self, view: int) -> None:
        assert self.teacher is not None
        began = time.perf_counter()
        labels = self.teacher.dataset.labels
        draft = Draft(self.manifest.identity, view, labels.device)
        for logits in self.teacher.to(view, torch.arange(len(labels), device=labels.device)):
            draft.add(logits)
        draft.check()
        try:
            with self.store.writing(column_name(view)) as file:
                sha256, size = draft.write(file)
        except FileNotFoundError:
            if self.store.path(column_name(view)) is None:
                raise
            return  # cleared away by a machine that this one's locks do not reach, and which computes it too
        seconds = round(time.perf_counter() - began, 3)
        self.computing_s += seconds
        seal = Seal(sha256, size, seconds, labels.device.type, f"{platform.node()}:{os.getpid()}")
        self.store.write(seal_name(view), json.dumps(asdict(seal)).encode())
        if self.copies is None:  # a copy is looked at even so: it may be an older one
            self._trust(view)

    # checking

    def bad_columns(self, watch: Callable[[int, int], None] | None = None) -> list[int]:
        """Columns that have been there but whose bytes are not those that were written; reads every byte.

        `watch(done, total)` hears of each column.
        """
        names = self.store.sizes()
        views = sorted(int(name.removesuffix(".json")) for name in names if SEAL.fullmatch(name))
        bad = []
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for done, (view, right) in enumerate(zip(views, pool.map(self._stored_right, views), strict=True), 1):
                bad += [] if right else [view]
                if watch is not None:
                    watch(done, len(views))
        return bad

    def _stored_right(self, view: int) -> bool:
        seal, hashing = self.seal(view), Hashing()
        try:
            self.store.copy(column_name(view), hashing)
        except FileNotFoundError:
            return False
        return seal is not None and (hashing.digest.hexdigest(), hashing.count) == (seal.sha256, seal.bytes)

    def check_rows(self) -> None:
        """Asks the teacher again about random rows of random columns. Raises CacheError where it differs.

        Columns that turn out to be damaged are taken away: `ensure` computes them again.
        """
        assert self.teacher is not None
        there = torch.tensor(self.columns())
        if not len(there):
            return
        generator = torch.Generator()
        generator.seed()
        chosen = there[torch.randperm(len(there), generator=generator)[:SAMPLED_COLUMNS]].tolist()
        count, device = len(self.teacher.dataset.labels), self.teacher.dataset.labels.device
        sample = torch.randperm(count, generator=generator)[:SAMPLED_ROWS]
        for view, rows in zip(chosen, sample.tensor_split(len(chosen)), strict=True):
            # compared where columns lie: moving one to a device would read all of it for a few rows
            fresh = torch.cat(list(self.teacher.to(view, rows.to(device)))).cpu()
            self.rows_checked += len(rows)
            if not self._differs(view, rows, fresh) or not self._is_sound(view):
                continue
            self._columns.pop(view, None)  # a copy may have been damaged, and is not any more
            wrong = self.column(view).differs(rows, fresh, TOLERANCE)
            if wrong.any():
                raise CacheError(
                    f"{self.store.address}/{column_name(view)}: the teacher now answers differently to image "
                    f"{int(rows[wrong][0])} ({int(wrong.sum())} of {len(rows)} rows). Run `kdtune cache verify`, or "
                    f"remove the cache to build it anew (`kdtune cache prune {self.manifest.identity.key}`)"
                )

    def _differs(self, view: int, rows: Tensor, fresh: Tensor) -> bool:
        """Whether any of `rows` is not its `fresh` answer, or cannot be read."""
        try:
            return bool(self.column(view).differs(rows, fresh, TOLERANCE).any())
        except CacheError:
            return True


def _read_seal(content: bytes) -> Seal | None:
    """None where it is damaged; what a later version adds is passed over."""
    try:
        known = json.loads(content)
        return Seal(**{each.name: known[each.name] for each in fields(Seal)})
    except (ValueError, TypeError, KeyError):
        return None


def column_name(view: int) -> str:
    return f"{view:05d}.arrow"


def seal_name(view: int) -> str:
    return f"{view:05d}.json"


def open_cache(
    place: Place,
    expected: Identity | None = None,
    *,
    views: int = 0,
    teacher: Answers | None = None,
    patient: bool = False,
) -> LogitCache:
    """A cache that has been begun. Raises CacheError where there is none, or for another `expected` identity.

    `views` columns may be computed by `teacher`; without one the cache is only read. A `patient` one waits minutes for
    an object store that is out of reach.
    """
    store = store_at(place.address, patient=patient)
    manifest = read_manifest(store)
    if manifest is None:
        raise CacheError(f"{place.address} holds no cache (no {MANIFEST}); run `kdtune cache build`")
    return _opened(place, store, manifest, expected or manifest.identity, views, teacher)


def begin_cache(place: Place, manifest: Manifest, *, views: int, teacher: Answers) -> LogitCache:
    """A cache that is there or begins now. Raises CacheError where `place` holds one of something else."""
    store = store_at(place.address)
    known = read_manifest(store)
    if known is None:
        store.write(MANIFEST, manifest.to_bytes())
    return _opened(place, store, known or manifest, manifest.identity, views, teacher)


def _opened(
    place: Place, store: Store, manifest: Manifest, expected: Identity, views: int, teacher: Answers | None
) -> LogitCache:
    if manifest.identity != expected:
        raise CacheError(
            f"{place.address} belongs to something else: "
            + "; ".join(manifest.identity.differences(expected))
            + ". Remove it to build it anew, or set cache.storage elsewhere"
        )
    copies = None
    if place.copies is not None or is_uri(place.address):
        folder = Path(place.copies) if place.copies is not None else default_copies()
        copies = Copies(folder, store, manifest.identity.key)
    return LogitCache(store, manifest, copies, views, teacher)


def read_manifest(store: Store) -> Manifest | None:
    content = store.read(MANIFEST)
    return None if content is None else Manifest.of(content, store.address)
