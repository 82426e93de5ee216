"""`kdtune cache verify [FILE]`: whether every byte is as it was written."""

from kdtune.cli.cache.finding import find
from kdtune.cli.options import File, Overrides, read
from kdtune.errors import CacheError

NAMED = 20  # damaged columns that are named; more are counted


def verify(file: File = None, overrides: Overrides = None) -> None:
    """Read every byte of each teacher's cache and compare it with what was written."""
    experiment = read(file, overrides)

    from kdtune.cli.progress import watcher
    from kdtune.cli.tables import megabytes

    wrong = []
    with watcher() as watch:
        for cache in find(experiment).values():
            bad = cache.bad_columns(watch.cache_checked)
            columns, size = cache.columns(), megabytes(sum(cache.store.sizes().values()))
            if bad:
                more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
                wrong.append(
                    f"{cache.store.address}: {len(bad)} of {len({*columns, *bad})} view columns are damaged: "
                    f"{', '.join(map(str, bad[:NAMED]))}{more}"
                )
            else:
                watch.say(f"cache     {cache.store.address}: all {len(columns)} view columns, {size}, are as written")
    if wrong:
        raise CacheError("\n".join(wrong) + ". `kdtune cache build` computes them again, and so does the next search")
