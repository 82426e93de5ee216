"""The `cache` section: where the teacher's answers are kept, and how much of each."""

from pydantic import Field

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
    top_k: int | None = Field(
        None,
        ge=LEAST_TOP_K,
        le=MOST_TOP_K,
        description="Keep only the largest logits of an image, and the log-sum-exp of the others; null keeps all.",
    )
