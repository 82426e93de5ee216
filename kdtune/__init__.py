"""kdtune searches the settings of knowledge distillation and hands back the best student.

kdtune search                                     # the command line does everything
student = kdtune.load_student("runs/digits/student")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtune.export import load_student

    __version__: str

__all__ = ["__version__", "load_student"]


def __getattr__(name: str) -> Any:  # imported only for those who ask: `kdtune --help` must not wait for torch
    if name == "__version__":
        from importlib.metadata import version

        return version("kdtune")
    if name == "load_student":
        from kdtune.export import load_student

        return load_student
    raise AttributeError(f"module 'kdtune' has no attribute {name!r}")
