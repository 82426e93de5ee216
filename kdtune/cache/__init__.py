"""The teacher-logit cache: begun once for a data set, a teacher and an augmentation, shared by all who need it."""

from kdtune.cache.identity import Identity, Manifest, describe, identify
from kdtune.cache.logits import Answers, LogitCache, Place, Seal, begin_cache, column_name, open_cache, seal_name
from kdtune.cache.planning import Estimate, views_that_fit
from kdtune.cache.store import below
from kdtune.cache.upkeep import mark_used

__all__ = [
    "Answers",
    "Estimate",
    "Identity",
    "LogitCache",
    "Manifest",
    "Place",
    "Seal",
    "begin_cache",
    "below",
    "column_name",
    "describe",
    "identify",
    "mark_used",
    "open_cache",
    "seal_name",
    "views_that_fit",
]
