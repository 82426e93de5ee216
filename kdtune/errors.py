"""Every error that a user can mend, as one small tree.

    KdtuneError              the CLI prints it without a traceback and exits 2
      ExperimentError        the experiment file; holds every problem found, not only the first
      DataError              the data set on disk
      ModelError             a model that cannot be built
      TeacherError           a teacher checkpoint that does not fit, or a teacher that has not learned
      StorageError           an object store or a folder for runs that cannot be used
      CacheError             a teacher-logit cache that is damaged or belongs to something else
      RunError               a run folder that cannot be used
        WorkersLostError     workers or their machines that were lost
      ExportError            an export that cannot be made or read
      ClusterError           a cluster, or a search on one, that cannot be reached, started or taken up

A message says what was given, what is allowed and what to do next. Anything else that escapes is a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self


class KdtuneError(Exception):
    """Something the user can mend; `str(error)` is written for them."""


@dataclass(frozen=True)
class Problem:
    """One mistake in an experiment file: `path` is dotted (`distill.alpha.start`), empty for the whole file."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ExperimentError(KdtuneError):
    """All mistakes of one experiment file, together."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count}\n{lines}")

    def __reduce__(self) -> tuple[type[Self], tuple[str, tuple[Problem, ...]]]:
        """As it was made: it is raised on one node and told on another."""
        return type(self), (self.source, self.problems)


class DataError(KdtuneError):
    """The data set is missing, unreadable or does not fit the experiment."""


class ModelError(KdtuneError):
    """The model cannot be built: its name, an option, its code or the size of the images."""


class TeacherError(KdtuneError):
    """The teacher's weights do not fit its architecture, or the teacher has not learned the task."""


class StorageError(KdtuneError):
    """Where runs should lie cannot be understood, reached or seen by every node."""


class CacheError(KdtuneError):
    """The cache is incomplete, damaged, or was made for something else; the message names the field."""


class RunError(KdtuneError):
    """The run folder holds another experiment, or cannot be written."""


class WorkersLostError(RunError):
    """Workers that train a student together are gone, or their machine has failed: others may do it."""


class ExportError(KdtuneError):
    """The run has no student to export yet, or an export does not reproduce its student."""


class ClusterError(KdtuneError):
    """The cluster file does not do, its cluster cannot be reached, or a search on it cannot be taken up."""


def nearest(name: str, known: Sequence[str]) -> str:
    """`" Did you mean 'resnet20'?"`, or nothing where no known name is close."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
