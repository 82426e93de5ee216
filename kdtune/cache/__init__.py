"""The teacher-logit cache: begun once for a data set, a teacher and an augmentation, shared by all who need it."""

from kdtune.cache.copies import copies_in, default_copies
from kdtune.cache.identity import MANIFEST, Identity, Manifest, check_saves, describe, identify
from kdtune.cache.logits import Answers, LogitCache, Place, Seal, begin_cache, column_name, open_cache, seal_name
from kdtune.cache.planning import Estimate, Speed, views_that_fit
from kdtune.cache.store import store_at
from kdtune.cache.upkeep import Kept, User, caches_in, mark_used, remove, short_keys, to_remove, users_of

__all__ = [
    "MANIFEST",
    "Answers",
    "Estimate",
    "Identity",
    "Kept",
    "LogitCache",
    "Manifest",
    "Place",
    "Seal",
    "Speed",
    "User",
    "begin_cache",
    "caches_in",
    "check_saves",
    "column_name",
    "copies_in",
    "default_copies",
    "describe",
    "identify",
    "mark_used",
    "open_cache",
    "remove",
    "seal_name",
    "short_keys",
    "store_at",
    "to_remove",
    "users_of",
    "views_that_fit",
]
