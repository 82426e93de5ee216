"""Addresses as text: a path, file:///folder, or that of an object store, whose options (after `?`) stay."""

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from kdtune.errors import StorageError


def folder_of(address: str) -> Path | None:
    """The folder that an address names; None where it is on an object store."""
    if "://" not in address:
        return Path(address)
    parts = urlsplit(address)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise StorageError(f"{address} names the machine {parts.netloc!r}; a folder is written file:///folder")
    return Path(unquote(parts.path))


def is_uri(address: str) -> bool:
    """Whether an address is of an object store."""
    return folder_of(address) is None


def below(address: str, name: str) -> str:
    """The address of `name` within a folder or an object store."""
    folder = folder_of(address)
    if folder is not None:
        return str(folder.absolute() / name)
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def local_root(address: str) -> Path:
    """The folder on this machine for what lies at an address: the folder itself, or one of its own in the home.

    The latter outlives the process, so that a run which was killed before its last records were copied goes on.
    """
    folder = folder_of(address)
    if folder is not None:
        return folder
    return Path.home() / ".kdtune" / "mirrors" / hashlib.sha256(address.encode()).hexdigest()[:16]


def names_below(address: str) -> list[str]:
    """Names of the folders in a folder or below an address; none where there is nothing yet."""
    folder = folder_of(address)
    if folder is None:
        from kdtune.storage.remote import Remote

        return Remote(address).folders()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
