"""Teachers: trained here once, brought along as a checkpoint, or several as one; kept with a fingerprint.

A teacher trained here never sees the validation images, and another experiment with the same data and teacher section
finds it instead of training it again. Assistants are students first: the room `trial` trains them.

    kept = trained(section, data, dataset, store, device, on_epoch).obtain()     # or brought_along, or ensemble
    network = kept.load(device)
"""

from kdtune.teacher.checkpoints import fit_weights, read_weights
from kdtune.teacher.kept import Ensemble, Teacher, check_it_has_learned, find, fingerprint, keep, weights_of
from kdtune.teacher.obtaining import (
    TEACHERS,
    Plan,
    brought_along,
    diverged,
    ensemble,
    own_seed,
    own_views,
    recipe,
    store_of,
    trained,
)

__all__ = [
    "TEACHERS",
    "Ensemble",
    "Plan",
    "Teacher",
    "brought_along",
    "check_it_has_learned",
    "diverged",
    "ensemble",
    "find",
    "fingerprint",
    "fit_weights",
    "keep",
    "own_seed",
    "own_views",
    "read_weights",
    "recipe",
    "store_of",
    "trained",
    "weights_of",
]
