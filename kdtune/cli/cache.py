"""`kdtune cache build|info|verify [FILE]`: the teacher-logit cache of an experiment."""

from typing import TYPE_CHECKING

import typer

from kdtune.cli.options import File, Overrides, read, resumable
from kdtune.errors import CacheError

if TYPE_CHECKING:
    from kdtune.cache import LogitCache
    from kdtune.experiment import Experiment

NOTHING = "peers learn beside the student: there is no teacher whose answers could be kept"

app = typer.Typer(no_args_is_help=True, help="Build, describe or verify the teacher-logit cache of an experiment.")


@app.command()
def build(file: File = None, overrides: Overrides = None) -> None:
    """Build what is missing. Columns whose bytes are damaged are computed again."""
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.training import default_device
    from kdtune.trial import prepare, with_assistants

    with resumable(), watcher() as watch:
        materials = prepare(with_assistants(experiment), default_device(), watch, complete=True)
        if not materials.caches:
            watch.say(f"cache     {NOTHING}")
        for place in materials.caches.values():
            watch.say(f"cache     kept in {place.address}")


@app.command()
def info(file: File = None, overrides: Overrides = None) -> None:
    """Print what each teacher's cache holds and what it belongs to."""
    for teacher, cache in _find(read(file, overrides)).items():
        manifest = cache.manifest
        rows = {
            "teacher": teacher,
            "folder": cache.folder,
            "views": manifest.views,
            **{name: value for name, value in vars(manifest.identity).items() if name != "teacher"},
            "fingerprint": manifest.identity.teacher,
            "bytes": f"{manifest.views * manifest.column_bytes:,}",
            "teacher model": f"{manifest.teacher_model}, validation accuracy {manifest.teacher_val_accuracy:.2%}",
            "built with": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
        }
        for name, value in rows.items():
            typer.echo(f"{name:<14} {value}")


@app.command()
def verify(file: File = None, overrides: Overrides = None) -> None:
    """Read every byte of every teacher's cache and compare it with the manifest."""
    wrong = []
    for cache in _find(read(file, overrides)).values():
        bad = cache.bad_columns()
        if bad:
            wrong.append(
                f"{cache.folder}: {len(bad)} of {cache.manifest.views} view columns are damaged or missing: "
                f"{', '.join(map(str, bad[:20]))}"
            )
        else:
            typer.echo(f"{cache.folder}: all {cache.manifest.views} view columns are as they were written")
    if wrong:
        raise CacheError("\n".join(wrong) + ". `kdtune cache build` computes them again")


def _find(experiment: "Experiment") -> "dict[str, LogitCache]":
    """The caches of an experiment whose teachers exist already; trains nothing and builds nothing."""
    from kdtune.cache import identify, open_cache
    from kdtune.cli.progress import watcher
    from kdtune.data import load_dataset
    from kdtune.experiment.chain import teachers_of_students
    from kdtune.trial import cache_folder, locate, with_assistants

    experiment = with_assistants(experiment)
    with watcher() as watch:
        dataset = load_dataset(experiment.data, watch.files_read)
    teachers = locate(experiment, dataset)
    found = {}
    for name in teachers_of_students(experiment):
        if name in teachers:  # peers are none
            identity = identify(dataset, experiment.data, teachers[name])
            found[name] = open_cache(cache_folder(experiment, identity), identity)
    if not found:
        raise CacheError(NOTHING)
    return found
