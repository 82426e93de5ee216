"""`kdtune status [NAME]`: how far searches on clusters are."""

from typing import TYPE_CHECKING

from kdtune.cli.remote import Name, reach, say

if TYPE_CHECKING:
    from kdtune.cluster.remembering import Remembered


def status(name: Name = None) -> None:
    """Tell how searches on clusters stand; without NAME all that were begun from this folder."""
    from kdtune.cluster.remembering import find, known
    from kdtune.errors import ClusterError

    searches, damaged = ([find(name)], {}) if name else known()
    for error in damaged.values():
        say("search", str(error))
    for search in searches if searches or damaged else [find(None)]:
        say("search", f"{search.name} on the cluster of {search.cluster}, as {search.job}")
        try:
            for line in _state(search):
                say("", line)
        except ClusterError as error:
            if name:
                raise
            say("", f"not known: {error}")  # the others may still be


def _state(search: "Remembered") -> list[str]:
    if search.fetched:
        return [f"finished; results in {search.folder}"]
    from kdtune.cli.progress import duration

    remote = reach(search)
    job, log = remote.details(search), remote.log(search)
    ran = f" for {duration((job.end_time or _now_ms()) / 1000 - job.start_time / 1000)}" if job.start_time else ""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "nothing said yet")
    return [f"{job.status.value.lower()}{ran}", last.strip(), NEXT[str(job.status.value)].format(name=search.name)]


NEXT = {
    "PENDING": "kdtune attach {name} watches it",
    "RUNNING": "kdtune attach {name} watches it, kdtune stop {name} stops it",
    "SUCCEEDED": "kdtune fetch {name} brings its results",
    "STOPPED": "the same `kdtune search` takes it up again",
    "FAILED": "kdtune logs {name} says why; the same `kdtune search` takes it up again",
}


def _now_ms() -> float:
    import time

    return time.time() * 1000
