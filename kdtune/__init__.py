"""kdtune searches the settings of knowledge distillation and hands back the best student.

kdtune search                                     # the command line does everything
student = kdtune.load_student("runs/digits/student")
trials = kdtune.load_run("runs/digits").trials     # a pandas frame
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtune.export import load_student
    from kdtune.report.run import load_run

    __version__: str

__all__ = ["__version__", "load_run", "load_student"]


def __getattr__(name: str) -> Any:  # imported only for those who ask: `kdtune --help` must not wait for torch
    if name == "__version__":
        from importlib.metadata import version

        return version("kdtune")
    if name == "load_student":
        from kdtune.export import load_student

        return load_student
    if name == "load_run":
        from kdtune.report.run import load_run

        return load_run
    raise AttributeError(f"module 'kdtune' has no attribute {name!r}")
