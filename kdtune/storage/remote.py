"""An object store that `pyarrow.fs` knows: S3 and what speaks like it, Google's, Azure's.

remote = Remote("s3://bucket/runs?region=eu-central-1")      # credentials as the service's own tools find them
remote.read("digits/summary.json")                           # bytes, or None where there is no such object

An object is whole or absent: it appears when it has been written to its end.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from kdtune.errors import KdtuneError, StorageError
from kdtune.experiment.caching import SCHEMES, check_address

CONNECT_S, ANSWER_S, TRIES = 3.0, 10.0, 3  # until a store counts as out of reach; Arrow's own end after 100 s
GOOGLE_S = 5  # a try
PATIENT = 20  # tries, which Arrow makes more and more seldom: five minutes in all


class Remote:
    """What lies under an address. Raises `error` where the address cannot be understood or reached."""

    field: ClassVar[str] = "storage"  # of the experiment, for messages
    error: ClassVar[type[KdtuneError]] = StorageError

    def __init__(self, address: str, *, patient: bool = False) -> None:
        """A `patient` one outlasts a store's failure of some minutes: for work that would be lost otherwise."""
        self.address = address
        self.files, self.root = self._opened(PATIENT if patient else TRIES)
        bucket = self.root.partition("/")[0]
        with self.told("reach"):
            there = self.files.get_file_info(bucket).type == fs.FileType.Directory
        if not there:
            raise self.error(f"cannot use {address}: there is no bucket {bucket!r}. Create it, or correct {self.field}")

    def _opened(self, tries: int) -> tuple[fs.FileSystem, str]:
        """The file system, and the address's path in it."""
        try:
            check_address(self.address)
        except ValueError as error:
            raise self.error(str(error)) from error
        if urlsplit(self.address).scheme not in SCHEMES:
            raise self.error(
                f"cannot use {self.address}: expected a folder (a path or file:///folder), or an address of "
                f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}. Correct {self.field}"
            )
        with self.told("reach"):
            files, root = fs.FileSystem.from_uri(_patient(self.address, tries))
            if files.type_name == "s3":
                _, (options,) = files.__reduce__()  # what it was made from; an address cannot say how long to wait
                options |= {"connect_timeout": CONNECT_S, "request_timeout": ANSWER_S, "allow_delayed_open": True}
                files = Persistent.of(options, tries)
        if not root.strip("/"):
            raise self.error(f"cannot use {self.address}: it names no bucket, as in s3://bucket/folder")
        return files, root.rstrip("/")

    def at(self, name: str) -> str:
        """The object's path in the file system."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        for attempt in range(1, TRIES + 1):
            try:
                with self.told("read"), self.files.open_input_stream(self.at(name)) as file:
                    content: bytes = file.read()
                return content
            except FileNotFoundError:
                break
            except self.error:  # Arrow asks twice; of what is removed in between it says something about a stream
                with self.told("read"):
                    there = self.files.get_file_info(self.at(name)).is_file
                if not there:
                    break
                if attempt == TRIES:
                    raise
        return None

    def write(self, name: str, content: bytes) -> None:
        with self.told("write"), self.files.open_output_stream(self.at(name)) as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Removes an object; none where there is none."""
        with suppress(FileNotFoundError), self.told("remove"):
            self.files.delete_file(self.at(name))

    def names(self, *, recursive: bool = False) -> dict[str, int]:
        """Bytes of every object by its name below the address."""
        return {file.path.removeprefix(f"{self.root}/"): file.size for file in self.listed(recursive) if file.is_file}

    def folders(self) -> list[str]:
        """Names of what looks like folders."""
        return sorted(entry.base_name for entry in self.listed() if not entry.is_file)

    def listed(self, recursive: bool = False) -> list[fs.FileInfo]:
        with self.told("list"):
            selector = fs.FileSelector(self.root, allow_not_found=True, recursive=recursive)
            found: list[fs.FileInfo] = self.files.get_file_info(selector)
        return found

    @contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """What a service says becomes an error that names the address; FileNotFoundError stays what it is."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise self.error(
                f"cannot {doing} {self.address}: {error}. Check the address ({self.field}), its region and "
                f"endpoint_override, and this machine's network and credentials (AWS_ACCESS_KEY_ID, ~/.aws, ...)"
            ) from error


class Persistent(fs.S3FileSystem):  # type: ignore[misc]  # pyarrow is untyped
    """S3 that keeps its number of tries when it goes to another process, which Arrow's own forgets."""

    tries: int

    @classmethod
    def of(cls, options: Mapping[str, Any], tries: int) -> "Persistent":
        files = cls(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=tries))
        files.tries = tries
        return files

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options,) = super().__reduce__()
        return Persistent.of, (options, self.tries)


def _patient(address: str, tries: int) -> str:
    """With the end of Google's tries, which would go on for a quarter of an hour."""
    parts = urlsplit(address)
    if parts.scheme not in ("gs", "gcs") or "retry_limit_seconds" in parts.query:
        return address
    limit = f"retry_limit_seconds={GOOGLE_S * tries}"
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, limit]))))
