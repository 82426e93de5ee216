"""What the tests of experiment files share: a minimal file, changed by dotted paths, and what is wrong with it."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdtune.cli.options import default_file
from kdtune.errors import ExperimentError
from kdtune.experiment import Experiment, load, parse

MINIMAL: dict[str, Any] = {  # `Any`: YAML, to be changed by tests
    "name": "tiny",
    "data": {"dataset": "digits"},
    "teacher": {"model": "cnn-8-16"},
    "student": {"model": "cnn-8"},
}


def raw_with(values: Mapping[str, object], space: Mapping[str, object] | None = None) -> dict[str, Any]:
    """MINIMAL with dotted paths set, and a search space."""
    raw = copy.deepcopy(MINIMAL)
    for path, value in values.items():
        *owners, name = path.split(".")
        here = raw
        for owner in owners:
            here = here.setdefault(owner, {})
        here[name] = value
    if space is not None:
        raw.setdefault("search", {})["space"] = dict(space)
    return raw


def problems_of(act: Callable[[], object]) -> dict[str, str]:
    """`{dotted path: message}` of the refusal."""
    with pytest.raises(ExperimentError) as refusal:
        act()
    found = {problem.path: problem.message for problem in refusal.value.problems}
    assert len(found) == len(refusal.value.problems)
    for problem in refusal.value.problems:
        assert str(problem) in str(refusal.value)
    return found


def space_problems(space: Mapping[str, object], **values: object) -> dict[str, str]:
    return problems_of(lambda: parse(raw_with(values, space)))


def changed(*overrides: str) -> Experiment:
    return load(default_file(), overrides)


Write = Callable[[str | bytes], Path]
