"""`kdtune cache list [FILE]`: every cache of a storage, and what this machine holds copies of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.options import File, Overrides, read
from kdtune.errors import CacheError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdtune.cache import Kept
    from kdtune.experiment import Experiment

NAMED_USERS = 4  # a longer list of runs is cut
WIDE = 120  # columns of a terminal

Storage = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|URI",
        show_default=False,
        help="Folder or address that holds the caches, instead of the experiment's (cache.storage).",
    ),
]


def list_caches(file: File = None, storage: Storage = None, overrides: Overrides = None) -> None:
    """List caches with their data, teacher, size and users, and the copies on this machine."""
    experiment = read(file, overrides)

    from kdtune.cache import caches_in
    from kdtune.cli.tables import console, megabytes

    address = address_of(storage, experiment)
    out = console()
    caches, others = caches_in(address)
    if caches:
        out.print(_table(caches, out.width))
    total = sum(one.bytes for one in caches)
    count = f"{len(caches)} cache{'s' * (len(caches) != 1)}"
    out.print(f"{count}, {megabytes(total)}, in {address}", markup=False, soft_wrap=True)
    for one in caches:
        if one.trouble:
            out.print(f"{one.key} is of no use to any run: {one.trouble}", markup=False, soft_wrap=True)
    if others:
        out.print(f"no caches, left alone: {', '.join(others)}", markup=False, soft_wrap=True)
    for folder in copies_folders(experiment):
        _print_copies(out, folder)


def address_of(storage: str | None, experiment: "Experiment") -> str:
    """Where the caches of a command line lie. Raises CacheError where a folder that was given is not there."""
    from kdtune.trial import storage_of

    if storage is None or "://" in storage:
        return storage or storage_of(experiment)
    folder = Path(storage)
    if not folder.is_dir():
        raise CacheError(f"--storage: there is no folder {storage}")
    runs = folder / ".caches"  # the folder of the runs, which holds theirs
    return str((runs if runs.is_dir() else folder).absolute())


def copies_folders(experiment: "Experiment") -> list[Path]:
    """Where this machine may hold copies: in the default folder, and in the experiment's (cache.copies)."""
    from kdtune.cache import default_copies

    return list(dict.fromkeys([default_copies(), Path(experiment.cache.copies or default_copies())]))


def _table(caches: "list[Kept]", width: int) -> "Table":
    """A line a cache where the terminal is wide; else some cells stand below each other."""
    from rich.table import Table
    from rich.text import Text

    from kdtune.cache import short_keys
    from kdtune.cli.tables import megabytes

    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("key", no_wrap=True)
    heads = ["data", "augmentation", "teacher", "accuracy", "columns", "form"]
    for head in heads if wide else _stacked(heads):
        table.add_column(head, justify="right" if head == "columns" else "left")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("used by", overflow="fold")
    short = short_keys(caches)
    for one in caches:
        what = ["damaged", "", "", "", str(one.columns), ""]
        if one.manifest is not None:
            manifest, identity = one.manifest, one.manifest.identity
            accuracy = f"{manifest.teacher_val_accuracy:.1%}"
            what = [manifest.data, identity.augmentation, manifest.teacher_model, accuracy, what[4], identity.form]
            what[0] += ", damaged" if one.trouble else ""
        cells = [short[one.key], *(what if wide else _stacked(what)), megabytes(one.bytes), _users(one)]
        table.add_row(*map(Text, cells), style="red" if one.trouble else "")
    return table


def _stacked(cells: list[str]) -> list[str]:
    return [f"{above}\n{below}" for above, below in zip(cells[::2], cells[1::2], strict=True)]


def _users(kept: "Kept") -> str:
    from kdtune.cli.tables import user_in_words

    named = [user_in_words(user) for user in kept.users[:NAMED_USERS]]
    more = len(kept.users) - len(named)
    return "\n".join([*named, *([f"{more} more"] if more else [])]) or "nobody"


def _print_copies(out: "Console", folder: Path) -> None:
    from kdtune.cache import copies_in
    from kdtune.cli.tables import megabytes

    copies = list(copies_in(folder))
    if not copies:
        return
    total = sum(one.bytes for one in copies)
    out.print(f"\ncopies on this machine, {megabytes(total)}, in {folder}", markup=False, soft_wrap=True)
    for one in copies:
        gone = " (which is no more)" if one.orphaned() else ""
        out.print(f"  {megabytes(one.bytes):>10}  of {one.origin}{gone}", markup=False, soft_wrap=True)
