"""kdtune searches the settings of knowledge distillation and hands back the best student.

    kdtune search                                     # the command line does everything
    student = kdtune.load_student("runs/digits/student")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtune.export import load_student

__version__ = version("kdtune")
__all__ = ["__version__", "load_student"]


def __getattr__(name: str) -> Any:  # imports torch only for those who ask: `kdtune --help` must not
    if name == "load_student":
        from kdtune.export import load_student

        return load_student
    raise AttributeError(f"module 'kdtune' has no attribute {name!r}")
