"""All columns of the teachers' caches, computed side by side: a Ray task on each slot, on whatever node that is.

compute_columns(experiment, materials, slots, watch.cache_column)

The tasks share the work by themselves: `LogitCache.ensure` takes the next column that nobody else is at.
"""

from collections.abc import Callable
from typing import Any

import ray
import torch

from kdtune.cache import open_cache
from kdtune.errors import CacheError
from kdtune.experiment import Experiment
from kdtune.search.placing import Slots
from kdtune.trial import Bench, Materials

LOOK_EVERY_S = 1.0


def compute_columns(
    experiment: Experiment, materials: Materials, slots: Slots, watch: Callable[[int, int], None]
) -> None:
    """Returns once every column is there; `watch(there, views)` hears of it. Raises CacheError if a task fails."""
    caches = [open_cache(place, views=materials.columns) for place in materials.caches.values()]
    work: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_work)
    shared = ray.put(materials)
    tasks = [
        work.remote(experiment, shared, slots.device, slots.threads) for _ in range(slots.concurrent * slots.workers)
    ]
    while tasks:
        ready, tasks = ray.wait(tasks, num_returns=1, timeout=LOOK_EVERY_S)
        try:
            ray.get(ready)
        except ray.exceptions.RayError as error:
            raise CacheError(
                f"a task that computes columns failed: {error}\nThe same command goes on with it"
            ) from error
        watch(sum(cache.there() for cache in caches), sum(cache.views for cache in caches))


def _work(experiment: Experiment, materials: Materials, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    bench = Bench(materials, device)
    for name in materials.caches:
        cache = bench.cache(experiment.model_copy(update={"teacher": name}))
        for view in range(cache.views):
            cache.ensure(view)
