"""One view column as an Arrow IPC file of one record batch: N rows in data-set order, C classes.

All classes:  `logits`  fixed_size_list<float16>[C]
The top k:    `values`  fixed_size_list<float16>[k], `classes` fixed_size_list<int16>[k], `rest` float32: the
              log-sum-exp of all other classes

The schema's metadata name the cache and the view, so that a column cannot stand in for another.

    draft = Draft(identity, view); draft.add(logits); sha256 = draft.write(file)
    column = open_column(path, identity, view); column.logits(indices)      # [B, C] float32
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor

from kdtune.cache.identity import Identity
from kdtune.cache.top import Top, dense, largest
from kdtune.errors import CacheError

KINDS = {torch.float16: pa.float16(), torch.int16: pa.int16(), torch.float32: pa.float32()}


class Sink(Protocol):
    """What a column is written into."""

    def write(self, content: Any, /) -> Any: ...  # bytes or an Arrow buffer; what comes back is not looked at


class Column:
    """The answers to one view of every image, wherever their memory lies."""

    def __init__(self, parts: tuple[Tensor, ...], classes: int) -> None:
        self.parts = parts  # [N, C] float16; or [N, k] float16, [N, k] int16 and [N] float32
        self.classes = classes

    def logits(self, indices: Tensor) -> Tensor:
        """Logits [B, C], float32, of images `indices` [B], on the device of the column."""
        chosen = [part[indices] for part in self.parts]
        return chosen[0].float() if len(chosen) == 1 else dense(Top(*chosen), self.classes)

    def to(self, device: torch.device) -> "Column":
        return Column(tuple(part.to(device) for part in self.parts), self.classes)

    def differs(self, indices: Tensor, fresh: Tensor, tolerance: float) -> Tensor:
        """Which rows [B] are not those of `fresh` logits [B, C]: by more than `tolerance`, or its share of a logit.

        Of the top k, the classes that were kept are compared, and what is left out as a whole.
        """
        chosen = [part[indices] for part in self.parts]
        kept = chosen[0].float()
        if len(chosen) == 3:
            classes = chosen[1].long()
            rest = fresh.scatter(1, classes, -torch.inf).logsumexp(dim=1, keepdim=True)
            kept, fresh = (
                torch.cat([kept, chosen[2][:, None]], dim=1),
                torch.cat([fresh.gather(1, classes), rest], dim=1),
            )
        return ((fresh - kept).abs() > tolerance * fresh.abs().clamp_min(1)).any(dim=1)


def _layout(identity: Identity) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of each part of a column."""
    rows, k = identity.rows, identity.top_k
    if k is None:
        return {"logits": (torch.float16, (rows, identity.classes))}
    return {"values": (torch.float16, (rows, k)), "classes": (torch.int16, (rows, k)), "rest": (torch.float32, (rows,))}


def _marks(identity: Identity, view: int) -> dict[bytes, bytes]:
    return {b"kdtune.cache": identity.key.encode(), b"kdtune.view": str(view).encode()}


class Draft:
    """A column that is being computed: one copy of it in memory, filled from the front."""

    def __init__(self, identity: Identity, view: int, device: torch.device) -> None:
        self.identity, self.view = identity, view
        self.parts = [
            torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
            for dtype, shape in _layout(identity).values()
        ]
        self.filled = 0
        self.fits = torch.ones((), dtype=torch.bool, device=device)

    def add(self, logits: Tensor) -> None:
        """The answers [B, C] to the next images. Nothing waits for the device."""
        k = self.identity.top_k
        parts = (logits.half(),) if k is None else largest(logits.float(), k)
        self.fits &= torch.stack([part.isfinite().all() for part in parts if part.is_floating_point()]).all()
        for whole, part in zip(self.parts, parts, strict=True):
            whole[self.filled : self.filled + len(part)].copy_(part, non_blocking=True)
        self.filled += len(logits)

    def check(self) -> None:
        """Raises CacheError where logits are out of range. Waits for the device, and so for the copies."""
        assert self.filled == self.identity.rows
        if not self.fits.item():
            raise CacheError("the teacher's logits do not fit float16 (above 65504 or not finite); check the teacher")

    def write(self, sink: Sink) -> tuple[str, int]:
        """Writes the checked column; SHA-256 of its bytes, and their number."""
        fields = [_arrow(part) for part in self.parts]
        batch = pa.record_batch(fields, names=list(_layout(self.identity)))
        batch = batch.replace_schema_metadata(_marks(self.identity, self.view))
        hashing = Hashing(sink)
        with pa.ipc.new_file(hashing, batch.schema) as writer:
            writer.write_batch(batch)
        return hashing.digest.hexdigest(), hashing.count


class Hashing:
    """A file that hashes what passes through it; Arrow hands it its buffers as they are, without a copy."""

    closed = False

    def __init__(self, sink: Sink | None = None) -> None:
        self.sink = sink
        self.digest = hashlib.sha256()
        self.count = 0

    def write(self, content: Any) -> int:  # bytes or an Arrow buffer
        self.digest.update(content)
        self.count += len(content)
        if self.sink is not None:
            self.sink.write(content)
        return len(content)

    def tell(self) -> int:
        return self.count

    def flush(self) -> None:
        """Whoever owns the sink flushes it."""


def _arrow(part: Tensor) -> pa.Array:
    flat = pa.Array.from_buffers(KINDS[part.dtype], part.numel(), [None, pa.py_buffer(part.numpy())])
    return flat if part.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, part.shape[1])


def open_column(path: Path, identity: Identity, view: int) -> Column:
    """A column, memory-mapped: processes on a node share it. Raises CacheError where it is another or damaged."""
    try:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing. `kdtune cache build` computes it again") from None
    except (pa.ArrowInvalid, pa.ArrowSerializationError) as error:
        raise CacheError(f"{path} is damaged: {error}. `kdtune cache build` computes it again") from error
    found = {key: (batch.schema.metadata or {}).get(key) for key in _marks(identity, view)}
    if found != _marks(identity, view):
        raise CacheError(f"{path} is not view {view} of cache {identity.key}, but says of itself {found}")
    layout = _layout(identity)
    if batch.schema.names != list(layout) or batch.num_rows != identity.rows:
        raise CacheError(f"{path} holds {batch.num_rows} rows of {batch.schema}, expected {identity.rows} of {layout}")
    return Column(tuple(_tensor(batch.column(name), *like) for name, like in layout.items()), identity.classes)


def _tensor(array: pa.Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    flat = array.values if len(shape) > 1 else array
    assert flat.type == KINDS[dtype]
    assert array.offset == flat.offset == 0
    content = memoryview(flat.buffers()[1])  # `to_numpy` would import pandas, `flatten` pyarrow.compute: slow to start
    with warnings.catch_warnings():  # torch warns of read-only memory; nothing writes to a column
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.frombuffer(content, dtype=dtype, count=len(flat))
    return tensor.view(shape)
