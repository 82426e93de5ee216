"""States of trials that are under way, where any node can write and read them.

states = states_of("s3://bucket/runs", "digits")
states.write(state_name(7, config), trial.state())
states.read(state_name(7, config))           # bytes, or None
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from kdtune.records import write_bytes
from kdtune.storage import Remote, below, folder_of, is_uri
from kdtune.trial import STATES

SUFFIX = ".pt"


class States:
    """Whole or absent each. It goes to other processes by its address. Raises StorageError or OSError where the place
    is out of reach."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __reduce__(self) -> tuple[type["States"], tuple[str]]:
        return States, (self.address,)

    def write(self, name: str, state: bytes) -> None:
        if isinstance(self._place, Remote):
            self._place.write(name + SUFFIX, state)
        else:
            self._place.mkdir(parents=True, exist_ok=True)
            write_bytes(self._place / (name + SUFFIX), state)

    def read(self, name: str) -> bytes | None:
        if isinstance(self._place, Remote):
            return self._place.read(name + SUFFIX)
        try:
            return (self._place / (name + SUFFIX)).read_bytes()
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        """Where there is none, nothing."""
        if isinstance(self._place, Remote):
            self._place.delete(name + SUFFIX)
        else:
            (self._place / (name + SUFFIX)).unlink(missing_ok=True)

    def names(self) -> set[str]:
        if isinstance(self._place, Remote):
            files = list(self._place.names())
        else:
            files = [path.name for path in self._place.glob(f"*{SUFFIX}")]
        return {name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX) and not name.startswith(".")}

    @cached_property
    def _place(self) -> Remote | Path:
        if is_uri(self.address):
            return Remote(self.address, patient=True)
        folder = folder_of(self.address)
        assert folder is not None
        return folder


def name_of(number: int) -> str:
    """Of a trial, in the records."""
    return f"{number:04d}"


def state_name(number: int, config: Mapping[str, Any]) -> str:
    """Of a trial's state. A number may be given to another configuration, where nothing of the first was recorded."""
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode()).hexdigest()
    return f"{name_of(number)}-{digest[:12]}"


def kept_name(number: int, config: Mapping[str, Any], epoch: int) -> str:
    """Of the state after one epoch, from which another trial may go on."""
    return f"{state_name(number, config)}-{epoch}"


def states_of(storage: str, name: str) -> States:
    """Of the run `name` (a path below the storage)."""
    return States(below(storage, f"{name}/{STATES}"))
