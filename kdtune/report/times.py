"""Where the time of a run went, as far as its records tell."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdtune.cache import Place, open_cache
from kdtune.errors import CacheError
from kdtune.trial import Found, Materials

log = logging.getLogger(__name__)


def time_spent(materials: Materials, found: Found | None, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of work, summed over the processes that did it side by side; a group of workers counts as one.

    teacher    training of the teachers that were trained here, by this run or by an earlier one that kept them
    cache      computing the columns that this run's students read, likewise
    training   epochs of the trials, validation included
    waiting    of the trials, for columns that others computed, copied or read; not what they computed themselves
    final      epochs of the final stage (`lines` of final.jsonl), with what they waited

    None where a part is not known: teachers and records of earlier versions do not tell. Searches of assistants have
    records of their own, and what a lost process did since its last state is told nowhere.
    """
    epochs = [record.to_json() for trial in (found.trials if found else ()) for record in trial.epochs]
    last = [epoch for line in lines for epoch in line["epochs"]]
    waited = _sum(_waited(epoch) for epoch in last)
    return {
        "teacher": _of_teachers(materials),
        "cache": _of_caches(materials),
        "training": _sum(epoch["seconds"] for epoch in epochs),
        "waiting": _sum(map(_waited, epochs)),
        "final": _sum([waited, *(epoch["seconds"] for epoch in last)]),
    }


def _sum(parts: Iterable[float | None]) -> float | None:
    """None where one of them is not known."""
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return round(total, 3)


def _waited(epoch: Mapping[str, Any]) -> float | None:
    """Before an epoch, without what the process computed meanwhile: that is the cache's."""
    computed = epoch.get("computed")
    return None if computed is None else max(0.0, epoch["waited"] - computed)


def _of_teachers(materials: Materials) -> float | None:
    trained = {
        teacher.fingerprint: teacher.seconds
        for teacher in materials.teachers.values()
        if teacher.trained_here and not teacher.members
    }
    return _sum(trained.values())


def _of_caches(materials: Materials) -> float | None:
    return _sum(_of_cache(place, materials.columns) for place in materials.caches.values())


def _of_cache(place: Place, columns: int) -> float | None:
    try:
        cache = open_cache(place)
        seals = [cache.seal(view) for view in cache.columns() if view < columns]
    except (CacheError, OSError) as error:  # pruned, or out of reach for now: the run is complete without it
        log.warning("what computing %s took is not known: %s", place.address, error)
        return None
    return _sum(None if seal is None else seal.seconds for seal in seals)
