"""`kdtune cache build|info|verify [FILE]`: the teacher-logit cache of an experiment."""

from typing import TYPE_CHECKING

import typer

from kdtune.cli.options import File, Overrides, read, resumable
from kdtune.errors import CacheError

if TYPE_CHECKING:
    from kdtune.cache import LogitCache
    from kdtune.experiment import Experiment

app = typer.Typer(no_args_is_help=True, help="Build, describe or verify the teacher-logit cache of an experiment.")


@app.command()
def build(file: File = None, overrides: Overrides = None) -> None:
    """Build what is missing. Columns whose bytes are damaged are computed again."""
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.training import default_device
    from kdtune.trial import prepare

    with resumable(), watcher() as watch:
        materials = prepare(experiment, default_device(), watch, recheck=True)
        watch.say(f"cache     kept in {materials.cache}")


@app.command()
def info(file: File = None, overrides: Overrides = None) -> None:
    """Print what the cache holds and what it belongs to."""
    cache = _find(read(file, overrides))

    manifest = cache.manifest
    rows = {
        "folder": cache.folder,
        "views": manifest.views,
        **vars(manifest.identity),
        "bytes": f"{manifest.views * manifest.column_bytes:,}",
        "teacher model": f"{manifest.teacher_model}, validation accuracy {manifest.teacher_val_accuracy:.2%}",
        "built with": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }
    for name, value in rows.items():
        typer.echo(f"{name:<14} {value}")


@app.command()
def verify(file: File = None, overrides: Overrides = None) -> None:
    """Read every byte and compare it with the manifest."""
    cache = _find(read(file, overrides))
    bad = cache.bad_columns()
    if bad:
        raise CacheError(
            f"{cache.folder}: {len(bad)} of {cache.manifest.views} view columns are damaged or missing: "
            f"{', '.join(map(str, bad[:20]))}. `kdtune cache build` computes them again"
        )
    typer.echo(f"{cache.folder}: all {cache.manifest.views} view columns are as they were written")


def _find(experiment: "Experiment") -> "LogitCache":
    """The cache of an experiment whose teacher exists already; trains nothing and builds nothing."""
    from kdtune.cache import identify, open_cache
    from kdtune.data import load_dataset
    from kdtune.teacher import locate
    from kdtune.trial import cache_folder

    dataset = load_dataset(experiment.data)
    identity = identify(dataset, experiment.data, locate(experiment, dataset))
    return open_cache(cache_folder(experiment, identity), identity)
