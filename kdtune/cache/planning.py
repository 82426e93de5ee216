"""What a cache costs and when it pays off, before anything is built: bytes, teacher passes, seconds, the break-even.

views = views_that_fit(60, caches, fewer_will_do=True)
estimate = Estimate(identity, views=views, there=0, epochs=60, images=45_000)
print(estimate.bytes_missing, estimate.passes, estimate.break_even)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdtune.cache.identity import Identity, kept_as
from kdtune.cache.logits import LogitCache
from kdtune.errors import CacheError
from kdtune.experiment import Cache

SHARE_OF_DISK = 0.9  # of what is free: checkpoints and the rest of the run need some


@dataclass(frozen=True)
class Speed:
    """Images a second on one device."""

    answered: float  # by the teacher, in evaluation
    cached: float  # that a student trains on, the answers read
    live: float  # that a student trains on, the teacher asked at every step


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

    def keeping(self, keep: Cache) -> "Estimate":
        """The same, if so much of every logit were kept; nothing is there of that yet."""
        return replace(self, identity=kept_as(self.identity, keep), there=0)

    def seconds_to_build(self, speed: Speed) -> float:
        return self.passes / speed.answered

    def seconds_an_epoch(self, speed: Speed, *, cached: bool) -> float:
        return self.images / (speed.cached if cached else speed.live)


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
