"""Where runs and what they keep may lie: a folder, or an object store that `pyarrow.fs` knows.

below("s3://bucket/runs?region=eu-central-1", "digits")      # an address within another
Remote(address)                                              # an object store, reached; told where it cannot be
with mirrored(address, folder) as mirror: ...                # a folder here whose other copy lies at an address
"""

from kdtune.storage.addresses import below, folder_of, is_uri, local_root, names_below
from kdtune.storage.mirror import OWNER, Mirror, in_step, mirrored
from kdtune.storage.remote import Remote

__all__ = [
    "OWNER",
    "Mirror",
    "Remote",
    "below",
    "folder_of",
    "in_step",
    "is_uri",
    "local_root",
    "mirrored",
    "names_below",
]
