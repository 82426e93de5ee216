"""`kdtune cache prune [KEY ...]`: removes caches that no run uses any more, or those that are named."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.cache.listing import Storage, address_of, copies_folders
from kdtune.cli.options import Overrides, read

if TYPE_CHECKING:
    from kdtune.cache.upkeep import Removal

Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY",
        show_default=False,
        help="Caches to remove even if they are used, by key or its beginning; without any, those that no run uses.",
    ),
]
Finished = Annotated[bool, typer.Option("--finished", help="Also those whose runs are all finished.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]


def prune(
    keys: Keys = None,
    storage: Storage = None,
    finished: Finished = False,
    dry_run: DryRun = False,
    overrides: Overrides = None,
) -> None:
    """Remove caches whose runs are gone, or that no run has ever used, and copies of caches that are no more.

    A cache that is being computed stays, and so does one used by a run on another machine.
    """
    from kdtune.cache import caches_in, remove, to_remove
    from kdtune.cli.tables import megabytes

    experiment = read(None, overrides)
    address = address_of(storage, experiment)
    caches, _ = caches_in(address)
    removals = to_remove(caches, keys or (), finished=finished)
    going = [one.kept for one in removals if not one.busy]
    freed = sum(one.bytes for one in going)
    for one in removals:
        if not (one.busy or dry_run):
            remove(one.kept)
        typer.echo(_told(one, dry_run=dry_run))
    for folder in copies_folders(experiment):
        freed += _prune_copies(folder, {one.address for one in going}, dry_run=dry_run)
    left = len(caches) - len(going)
    typer.echo(
        f"{megabytes(freed)} {'would be freed' if dry_run else 'freed'}; "
        f"{left} cache{' stays' if left == 1 else 's stay'} in {address}"
    )


def _told(one: "Removal", *, dry_run: bool) -> str:
    from kdtune.cli.tables import megabytes, user_in_words

    manifest = one.kept.manifest
    of = f" ({manifest.data}, {manifest.teacher_model})" if manifest else f" ({one.kept.trouble})"
    if one.busy:
        return f"{one.kept.key}{of} stays: a process is computing a column now"
    why = one.why
    if one.kept.users and not why.startswith("all its"):
        why += "; used by " + ", ".join(map(user_in_words, one.kept.users))
    verb = "would remove" if dry_run else "removed"
    return f"{verb} {one.kept.key}{of}, {megabytes(one.kept.bytes)}: {why}"


def _prune_copies(folder: Path, going: set[str], *, dry_run: bool) -> int:
    """Copies of caches that are no more, those just removed included; the bytes that are freed."""
    from kdtune.cache import copies_in
    from kdtune.cli.tables import megabytes

    freed = 0
    for one in copies_in(folder):
        if (one.origin in going or one.orphaned()) and (dry_run or one.remove()):
            freed += one.bytes
            verb = "would remove" if dry_run else "removed"
            typer.echo(f"{verb} copies in {one.folder}, {megabytes(one.bytes)}: {one.origin} is no more")
    return freed
