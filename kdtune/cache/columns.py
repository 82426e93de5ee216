"""One view column as an Arrow IPC file of one record batch: N rows in data-set order, C classes.

All classes:  `logits`  fixed_size_list<float16>[C]
Eight bits:   `codes`  fixed_size_list<uint8>[C], `least` and `step` float32 (`forms.py`)
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

from kdtune.cache.forms import Eight, Top, dense, in_steps, largest
from kdtune.cache.identity import Identity
from kdtune.errors import CacheError

KINDS = {
    torch.float16: pa.float16(),
    torch.int16: pa.int16(),
    torch.uint8: pa.uint8(),
    torch.float32: pa.float32(),
}

PINNED = 1 << 28  # bytes of a column up to which it is locked in memory: torch never gives that back


class DamagedError(CacheError):
    """A column's bytes are not those that were written. What cannot be reached for now is no such thing."""


class Sink(Protocol):
    """What a column is written into."""

    def write(self, content: Any, /) -> Any: ...  # bytes or an Arrow buffer; what comes back is not looked at


class Column:
    """The answers to one view of every image, wherever their memory lies."""

    def __init__(self, parts: tuple[Tensor, ...], classes: int) -> None:
        self.parts = parts  # [N, C] float16, or those of `Eight` or of `Top` with N images
        self.classes = classes

    def logits(self, indices: Tensor) -> Tensor:
        """Logits [B, C], float32, of images `indices` [B], on the device of the column."""
        kept = self._of(indices)
        if isinstance(kept, Tensor):
            return kept.float()
        return kept.logits() if isinstance(kept, Eight) else dense(kept, self.classes)

    def _of(self, indices: Tensor) -> Tensor | Eight | Top:
        chosen = [part.index_select(0, indices) for part in self.parts]
        if len(chosen) == 1:
            return chosen[0]
        return Eight(*chosen) if chosen[0].dtype == torch.uint8 else Top(*chosen)

    def to(self, device: torch.device) -> "Column":
        return Column(tuple(part.to(device) for part in self.parts), self.classes)

    def differs(self, indices: Tensor, fresh: Tensor, tolerance: float) -> Tensor:
        """Which rows [B] are not those of `fresh` logits [B, C]: by `tolerance`, or its share of a row's largest logit.

        The largest, since that is what rounding inside a network goes by: TensorFloat-32 moves small logits as far as
        large ones. Of the top k, the classes that were kept are compared, and what is left out as a whole.
        """
        kept = self._of(indices)
        rounding = kept.step.unsqueeze(1) if isinstance(kept, Eight) else torch.zeros((), device=fresh.device)
        if isinstance(kept, Top):
            classes = kept.classes.long().clamp(0, self.classes - 1)  # a damaged one is no reason to crash
            logits = torch.cat([kept.values.float(), kept.rest.unsqueeze(1)], dim=1)
            rest = fresh.scatter(1, classes, -torch.inf).logsumexp(dim=1, keepdim=True)
            fresh = torch.cat([fresh.gather(1, classes), rest], dim=1)
        else:
            logits = self.logits(indices)
        allowed = tolerance * fresh.abs().amax(dim=1, keepdim=True).clamp_min(1) + rounding
        return ~((fresh - logits).abs() < allowed).all(dim=1)  # what is not a number differs


def _layout(identity: Identity) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of each part of a column."""
    rows, k = identity.rows, identity.top_k
    if identity.dtype == "uint8":
        shape = (rows, identity.classes)
        return {"codes": (torch.uint8, shape), "least": (torch.float32, (rows,)), "step": (torch.float32, (rows,))}
    if k is None:
        return {"logits": (torch.float16, (rows, identity.classes))}
    return {"values": (torch.float16, (rows, k)), "classes": (torch.int16, (rows, k)), "rest": (torch.float32, (rows,))}


def _marks(identity: Identity, view: int) -> dict[bytes, bytes]:
    return {b"kdtune.cache": identity.key.encode(), b"kdtune.view": str(view).encode()}


def _schema(identity: Identity, view: int) -> pa.Schema:
    types = {
        name: pa.list_(KINDS[dtype], shape[1]) if len(shape) > 1 else KINDS[dtype]
        for name, (dtype, shape) in _layout(identity).items()
    }
    return pa.schema(types, metadata=_marks(identity, view))


class Draft:
    """A column that is being computed: one copy of it in memory, filled from the front."""

    def __init__(self, identity: Identity, view: int, device: torch.device) -> None:
        self.identity, self.view = identity, view
        pinned = device.type == "cuda" and identity.bytes_of_logits <= PINNED
        self.parts = [torch.empty(shape, dtype=dtype, pin_memory=pinned) for dtype, shape in _layout(identity).values()]
        self.filled = 0
        self.fits = torch.ones((), dtype=torch.bool, device=device)

    def add(self, logits: Tensor) -> None:
        """The answers [B, C] to the next images. Nothing waits for the device, but for the copies of a large column."""
        parts = _in_form(logits.float(), self.identity)
        self.fits &= torch.stack([part.isfinite().all() for part in parts if part.is_floating_point()]).all()
        for whole, part in zip(self.parts, parts, strict=True):
            whole[self.filled : self.filled + len(part)].copy_(part, non_blocking=True)
        self.filled += len(logits)

    def check(self) -> None:
        """Raises CacheError where logits are out of range. Waits for the device, and so for the copies."""
        assert self.filled == self.identity.rows
        if not self.fits.item():
            raise CacheError(
                "the teacher's logits are not finite, or do not fit float16 (above 65504); check the teacher"
            )

    def write(self, sink: Sink) -> tuple[str, int]:
        """Writes the checked column; SHA-256 of its bytes, and their number."""
        fields = [_arrow(part) for part in self.parts]
        batch = pa.record_batch(fields, schema=_schema(self.identity, self.view))
        hashing = Hashing(sink)
        with pa.ipc.new_file(hashing, batch.schema) as writer:
            writer.write_batch(batch)
        return hashing.digest.hexdigest(), hashing.count


def _in_form(logits: Tensor, identity: Identity) -> tuple[Tensor, ...]:
    if identity.dtype == "uint8":
        return in_steps(logits)
    return (logits.half(),) if identity.top_k is None else largest(logits, identity.top_k)


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


def hash_of(path: Path) -> str:
    hashing = Hashing()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hashing.write(piece)
    return hashing.digest.hexdigest()


def _arrow(part: Tensor) -> pa.Array:
    flat = pa.Array.from_buffers(KINDS[part.dtype], part.numel(), [None, pa.py_buffer(part.numpy())])
    return flat if part.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, part.shape[1])


def open_column(path: Path, identity: Identity, view: int) -> Column:
    """A column, memory-mapped: processes on a node share it. Raises CacheError where it is another or damaged."""
    try:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
            batch.validate()  # lengths that do not fit would end the process further on
    except FileNotFoundError:
        raise CacheError(f"{path} is missing. `kdtune cache build` computes it again") from None
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's own; Arrow has OSErrors for damage
            raise
        raise DamagedError(f"{path} is damaged: {error}. `kdtune cache build` computes it again") from error
    found = {key: (batch.schema.metadata or {}).get(key) for key in _marks(identity, view)}
    if found != _marks(identity, view):
        raise CacheError(
            f"{path} is not view {view} of cache {identity.key}, but says of itself {found}. {_remedy(path)}"
        )
    layout, schema = _layout(identity), _schema(identity, view)
    if batch.schema != schema or batch.num_rows != identity.rows:
        raise CacheError(
            f"{path} holds {batch.num_rows} rows of {batch.schema}, expected {identity.rows} of {schema}. "
            f"{_remedy(path)}"
        )
    return Column(tuple(_tensor(batch.column(name), *like) for name, like in layout.items()), identity.classes)


def _remedy(path: Path) -> str:
    """For a column whose bytes are as its seal says, so that nothing mends it by itself."""
    return f"Remove {path.name} from the cache, and its copies: `kdtune cache build` computes it again"


def _tensor(array: pa.Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    flat = array.values if len(shape) > 1 else array
    assert flat.type == KINDS[dtype]
    assert array.offset == flat.offset == 0
    content = memoryview(flat.buffers()[1])  # `to_numpy` would import pandas, `flatten` pyarrow.compute: slow to start
    with warnings.catch_warnings():  # torch warns of read-only memory; nothing writes to a column
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.frombuffer(content, dtype=dtype, count=len(flat))
    return tensor.view(shape)
