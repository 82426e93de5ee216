"""`kdtune cache build [FILE]`: every column of an experiment's caches, before any trial asks for it."""

from kdtune.cli.cache.finding import NOTHING
from kdtune.cli.options import File, Overrides, read, resumable


def build(file: File = None, overrides: Overrides = None) -> None:
    """Compute every column that is missing or damaged, on all GPUs; a search computes them as it needs them."""
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.training import default_device, free_memory, usable_gpus
    from kdtune.trial import prepare, with_assistants

    with resumable(), watcher() as watch:
        experiment = with_assistants(experiment)
        several = usable_gpus() > 1
        materials = prepare(experiment, default_device(), watch, complete=not several)
        if several and materials.caches:
            from kdtune.search.columns import compute_columns
            from kdtune.search.session import session

            free_memory()  # for those that compute on this GPU
            with session(experiment.resources) as slots:
                compute_columns(experiment, materials, slots, watch.cache_column)
        if not materials.caches:
            watch.say(f"cache     {NOTHING}")
        for place in materials.caches.values():
            watch.say(f"cache     kept in {place.address}")
