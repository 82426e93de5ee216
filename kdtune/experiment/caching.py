"""The `cache` section: where the teacher's answers are kept, and how much of each."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kdtune.experiment.section import Section

LEAST_TOP_K = 100
MOST_TOP_K = 32_000  # classes are kept as 16-bit integers


class Cache(Section):
    """Where the teacher's answers are kept, and how much of each."""

    storage: str | None = Field(
        None,
        min_length=1,
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
