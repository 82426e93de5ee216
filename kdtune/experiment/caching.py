"""The `cache` section: where the teacher's answers are kept, and how much of each."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from kdtune.experiment.section import Section

LEAST_TOP_K = 100
MOST_TOP_K = 32_000  # classes are kept as 16-bit integers

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")  # object stores that pyarrow.fs knows
SECRET = re.compile(r"://[^/?#@:]*:\S*@|[?&]client_secret=")


def check_address(address: str) -> str:
    """Raises ValueError, which does not repeat it, where an address holds a secret: experiments are kept and shared."""
    if SECRET.search(address):
        raise ValueError(
            "the address holds a secret key, which would stay in the run's files. Leave it out of the address and "
            "give it as the service's own tools take it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, ...)"
        )
    return address


def check_storage(storage: str) -> str:
    """Raises ValueError for what is neither a folder's name nor an address of an object store."""
    if "\0" in storage:
        raise ValueError("the name of a folder cannot hold the character NUL")
    scheme, separator, _ = storage.partition("://")
    if not separator and storage.startswith(tuple(f"{known}:/" for known in SCHEMES)):
        raise ValueError(f"{storage!r} has one / where an address has two: {storage.replace(':/', '://', 1)}")
    if separator and scheme not in ("file", *SCHEMES):
        raise ValueError(
            f"expected a folder, or an address of {', '.join(f'{known}://' for known in SCHEMES)}, given {storage!r}"
        )
    return check_address(storage)


class Cache(Section):
    """Where the teacher's answers are kept, and how much of each."""

    storage: Annotated[str, Field(min_length=1), AfterValidator(check_address)] | None = Field(
        None,
        description="Folder of all caches, or an address of pyarrow.fs (s3://bucket/caches); null: .caches in storage.",
    )
    copies: str | None = Field(
        None,
        min_length=1,
        description="Folder on each node's own disk to which columns are copied once, for a storage that is slow to "
        "read; null: none for a folder, one in the system's temporary folder for an address.",
    )
    bits: Literal[16, 8] = Field(
        16, description="Of a logit: float16, or one of 256 steps between an image's least and largest logit."
    )
    top_k: int | None = Field(
        None,
        ge=LEAST_TOP_K,
        le=MOST_TOP_K,
        description="Keep only the largest logits of an image, and the log-sum-exp of the others; null keeps all.",
    )

    @model_validator(mode="after")
    def _one_way_of_keeping(self) -> Self:
        if self.top_k is not None and self.bits == 8:
            raise ValueError("keep all logits in 8 bits, or the largest (top_k) in 16; given both")
        return self
