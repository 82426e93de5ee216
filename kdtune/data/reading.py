"""Reading images: one function for those in memory and those on disk.

`read(images, chunks, column, config)` gives a uint8 batch on the device for each chunk of indices. In memory that is
one gather and `augment`. On disk, processes decode ahead: what they make is a function of `(view_seed, column, index)`
alone, so batches, order and the number of processes change nothing.

    for pixels in read(dataset.images, [indices[:64], indices[64:]], 3, config): ...    # [B, C, H, W] uint8
    for pixels in read(dataset.test.images, [indices]): ...                             # plain, without augmentation
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from multiprocessing import get_all_start_methods

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed

from kdtune.data.images import ImageFiles, Pixels
from kdtune.data.views import augment, crop_numbers, flips
from kdtune.errors import DataError
from kdtune.experiment import Data

PIECE = 64  # images that a process decodes at once; fewer than that are decoded here
MOST_WORKERS = 16
BLOCK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 24}  # of images whose views are made at once
WHOLE = (1.0, 1.0)
LOST = ("exited unexpectedly", "is killed by signal")  # what torch says of a process that is gone


def read(
    images: Pixels, chunks: Sequence[Tensor], column: int | None = None, config: Data | None = None
) -> Iterator[Tensor]:
    """A uint8 batch [B, C, H, W] for each of `chunks` [B]: view `column` under `config`, or the plain image.

    Plain images on disk are scaled (shorter side to 256/224 of the square) and cut to their centre. Raises DataError
    that names an unreadable file. Closing the generator ends the processes that decode.
    """
    assert column is None or config is not None, "a view needs the configuration that describes it"
    if isinstance(images, ImageFiles):
        yield from _decoded(images, chunks, column, config)
        return
    if column is None or config is None:
        yield from (images.index_select(0, chunk) for chunk in chunks)
        return
    for block in _blocks(images, chunks):
        together = torch.cat(block)
        views = augment(images.index_select(0, together), together, column, config)
        yield from torch.split(views, [len(chunk) for chunk in block])


def _blocks(images: Tensor, chunks: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Chunks whose views are made at once: a view's sixty small operations cost the same for a hundred images as for
    a thousand."""
    limit = BLOCK_VALUES[images.device.type] // images.shape[1:].numel()
    block: list[Tensor] = []
    count = 0
    for chunk in chunks:
        if block and count + len(chunk) > limit:
            yield tuple(block)
            block, count = [], 0
        block.append(chunk)
        count += len(chunk)
    if block:
        yield tuple(block)


class _Pieces(Indexed[Tensor | DataError]):
    """Pieces of batches, decoded; an error is an item as well, so that it arrives as it was raised."""

    def __init__(self, files: ImageFiles, pieces: Sequence[Tensor], column: int | None, config: Data | None) -> None:
        self.files = files
        self.pieces = pieces
        self.column = column
        self.config = config

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Tensor | DataError:
        indices = self.pieces[number]
        flipped, scale = [False] * len(indices), WHOLE
        crops: list[list[int]] | list[None] = [None] * len(indices)
        if self.column is not None and self.config is not None:
            flipped, scale = flips(indices, self.column, self.config).tolist(), self.config.crop_scale
            if self.config.resized:
                crops = crop_numbers(indices, self.column, self.config).tolist()
        decoded = torch.empty(len(indices), *self.files.shape[1:], dtype=torch.uint8)
        try:
            for place, (index, crop, mirrored) in enumerate(zip(indices.tolist(), crops, flipped, strict=True)):
                decoded[place] = self.files.decode(index, crop, scale, flipped=mirrored)
        except DataError as error:
            return error
        return decoded


def _decoded(files: ImageFiles, chunks: Sequence[Tensor], column: int | None, config: Data | None) -> Iterator[Tensor]:
    if not chunks:
        return
    sizes = [len(chunk) for chunk in chunks]
    here = torch.split(torch.cat(tuple(chunks)).cpu(), sizes)  # one copy from the device
    pieces = [piece for chunk in here for piece in torch.split(chunk, PIECE)]
    with closing(_arriving(_Pieces(files, pieces, column, config), sum(sizes))) as arriving:
        for size in sizes:
            batch = torch.empty(size, *files.shape[1:], dtype=torch.uint8, device=files.device)
            filled = 0
            while filled < size:
                piece = next(arriving)
                batch[filled : filled + len(piece)].copy_(piece, non_blocking=True)
                filled += len(piece)
            yield batch


def _arriving(pieces: _Pieces, count: int) -> Generator[Tensor, None, None]:
    """The pieces in their order. They are decoded in this process where there are only a few images.

    Processes are forked where that is possible: it takes milliseconds and needs nothing of `__main__`, which in a
    process of a cluster is not this program. They live until the iterator is done or closed.
    """
    workers = decode_workers(pieces.files) if count > PIECE else 0
    loader = DataLoader(
        pieces,
        batch_size=None,
        num_workers=workers,
        pin_memory=pieces.files.device.type == "cuda",
        multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
        generator=torch.Generator(),  # the global one is the network's: it decides dropout
    )
    arrived = iter(loader)
    try:
        for _ in range(len(pieces)):
            piece = next(arrived)
            if isinstance(piece, DataError):
                raise piece
            yield piece
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise DataError(
            f"a process that decodes images of {pieces.files.root} has ended: {error}. Usual reasons: too little "
            f"memory, or too little in /dev/shm; lower data.decode_workers or train.batch_size"
        ) from error
    finally:
        del arrived  # ends the processes, even while a traceback holds this frame


def decode_workers(files: ImageFiles) -> int:
    """Processes that decode: as many as asked for; `auto` is one for each thread that torch may use here."""
    return max(1, min(MOST_WORKERS, torch.get_num_threads())) if files.workers == "auto" else files.workers
