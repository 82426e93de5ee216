"""Caches as a whole: which there are, how big, who uses them; and those that nobody uses any more.

for kept in caches_in("runs/.caches"): print(kept.key, kept.bytes, kept.users)
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path

from kdtune.cache.logits import Place
from kdtune.cache.store import store_at

USED_BY = "used-by-"  # begins the name of a file that names a run


@dataclass(frozen=True)
class User:
    """A run that has used a cache."""

    run: str  # its folder
    host: str

    @property
    def gone(self) -> bool:
        """Whether its folder was on this machine and is no more."""
        return self.host == platform.node() and not Path(self.run).exists()

    @property
    def finished(self) -> bool:
        return (Path(self.run) / "summary.json").exists()


def mark_used(place: Place, run: Path) -> None:
    """Writes down that a run uses a cache."""
    user = User(str(run), platform.node())
    name = USED_BY + hashlib.sha256(f"{user.host}:{user.run}".encode()).hexdigest()[:16]
    store_at(place.address).write(name, json.dumps({"run": user.run, "host": user.host}).encode())
