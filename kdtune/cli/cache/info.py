"""`kdtune cache info [FILE]`: all that is known of an experiment's caches."""

from typing import TYPE_CHECKING

from kdtune.cli.cache.finding import find
from kdtune.cli.options import File, Overrides, read

if TYPE_CHECKING:
    from kdtune.cache import LogitCache


def info(file: File = None, overrides: Overrides = None) -> None:
    """Print what each teacher's cache holds, what it belongs to and who uses it."""
    experiment = read(file, overrides)
    found = find(experiment)

    from kdtune.cli.tables import print_facts

    for teacher, cache in found.items():
        print_facts(_facts(teacher, cache))


def _facts(teacher: str, cache: "LogitCache") -> dict[str, str]:
    from kdtune.cache import users_of
    from kdtune.cli.progress import duration
    from kdtune.cli.tables import megabytes, user_in_words

    manifest, identity = cache.manifest, cache.manifest.identity
    sizes, there = cache.store.sizes(), cache.columns()
    seals = [seal for view in there if (seal := cache.seal(view))]
    devices = ", ".join(dict.fromkeys(seal.device for seal in seals))
    took = f"{duration(sum(seal.seconds for seal in seals))} on {devices}" if seals else "nothing yet"
    needed = "all that are needed" if cache.there() == cache.views else f"of {cache.views} that the experiment asks for"
    return {
        "teacher": f"{teacher}: {manifest.teacher_model}, validation accuracy {manifest.teacher_val_accuracy:.2%}",
        "cache": cache.store.address,
        "key": identity.key,
        "data": f"{manifest.data}, {identity.rows:,} images, {identity.classes} classes",
        "augmentation": f"{identity.augmentation}, view_seed {identity.view_seed}",
        "normalisation": identity.normalisation,
        "form": identity.form,
        "columns": f"{len(there)}, {needed}",
        "size": f"{megabytes(sum(sizes.values()))} ({sum(sizes.values()):,} bytes)",
        "computed in": took,
        "used by": ", ".join(map(user_in_words, users_of(cache.store))) or "no run yet",
        "made with": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
        "data fingerprint": identity.dataset,
        "teacher fingerprint": identity.teacher,
    }
