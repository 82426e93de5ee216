"""What a cache costs and when it pays off, before anything is built: bytes, teacher passes, the break-even point."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdtune.cache.identity import Identity
from kdtune.cache.logits import LogitCache
from kdtune.errors import CacheError

SHARE_OF_DISK = 0.9  # of what is free: checkpoints and the rest of the run need some


@dataclass(frozen=True)
class Estimate:
    """A cache that may not be there yet, against trials with a live teacher."""

    identity: Identity
    views: int  # columns in all
    there: int  # of them already
    epochs: int  # of a trial
    images: int  # that a trial trains on

    @property
    def bytes(self) -> int:
        return self.views * self.identity.bytes_of_logits

    @property
    def bytes_missing(self) -> int:
        return (self.views - self.there) * self.identity.bytes_of_logits

    @property
    def passes(self) -> int:
        """Images that the teacher has yet to answer to."""
        return (self.views - self.there) * self.identity.rows

    @property
    def live_passes(self) -> int:
        """Images that a live teacher answers to in one trial of full length."""
        return self.epochs * self.images

    @property
    def break_even(self) -> float:
        """Trials of full length that ask a live teacher as often as building the cache does."""
        return self.passes / self.live_passes


def views_that_fit(wanted: int, caches: Sequence[LogitCache], *, fewer_will_do: bool) -> int:
    """View columns that all of the caches can have on the disk that they share, at most `wanted`.

    Raises CacheError where not even one fits, or fewer than `wanted` unless `fewer_will_do`.
    """
    free = caches[0].store.free()
    if free is None:
        return wanted
    there = [(set(cache.columns()), cache.manifest.identity.bytes_of_logits) for cache in caches]

    def needed(views: int) -> int:
        return sum(size * len(set(range(views)) - found) for found, size in there)

    for views in range(wanted, 0 if fewer_will_do else wanted - 1, -1):
        if needed(views) <= SHARE_OF_DISK * free:
            return views
    least = 1 if fewer_will_do else wanted
    raise CacheError(
        f"{least} view column{'s need' if least > 1 else ' needs'} {_size(needed(least))} more for the teacher's "
        f"logits in {caches[0].store.address}, where {_size(free)} are free. Free some space, set cache.storage "
        f"elsewhere, "
        + ("" if fewer_will_do else "lower data.views, ")
        + "or keep less of a logit (cache.bits, cache.top_k)"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
