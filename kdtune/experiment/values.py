"""Values put into an experiment: those of a trial, of a row of the results table, of textbook KD.

`with_values(experiment, {"distill.temperature.start": 4})` gives the changed experiment, validated; `plain` is the
mapping that it is made of.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from kdtune.errors import ExperimentError, Problem
from kdtune.experiment.models import Experiment
from kdtune.experiment.objective import TEXTBOOK, Distill
from kdtune.experiment.schedule import Schedule, fields_of, overlay
from kdtune.experiment.stopping import Stopper
from kdtune.experiment.wording import problem, short

ROW_SECTIONS = ("train", "distill", "teacher", "student")
EXAMPLES = {"train": "train.epochs", "distill": "distill.alpha", "student": "student.model"}
SCHEDULED = frozenset(name for name, info in Distill.model_fields.items() if info.annotation is Schedule)


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with `{dotted path: value}` in place. Raises ExperimentError where a value does not fit."""
    raw = plain(experiment)
    schedules: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        *owners, name = path.split(".")
        if len(owners) == 2 and owners[0] == "distill" and owners[1] in SCHEDULED:
            schedules.setdefault(owners[1], {})[name] = value
            continue
        here = raw
        for owner in owners:
            here = here[owner]
        here[name] = value
    for name, fields in schedules.items():
        raw["distill"][name] = overlay(raw["distill"][name], fields)
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise ExperimentError(
            experiment.name, [problem(d, Experiment) for d in error.errors(include_url=False)]
        ) from error


def row(experiment: Experiment, changes: Mapping[str, object]) -> tuple[Experiment, bool]:
    """The experiment of one of `final.rows`, and whether its student is alone. Raises ExperimentError."""
    values = dict(changes)
    alone = "teacher" in values and values["teacher"] is None
    if alone:
        del values["teacher"]
    problems = list(_not_for_a_row(values, alone=alone))
    if problems:
        raise ExperimentError(experiment.name, problems)
    search = experiment.search.model_copy(update={"stopper": Stopper()})  # a row is not searched and may be short
    try:
        changed = with_values(experiment.model_copy(update={"search": search}), values)
    except (KeyError, TypeError) as error:
        unknown = [path for path in values if not _leads_somewhere(plain(experiment), path)]
        raise ExperimentError(
            experiment.name, [Problem(path, "leads to no field of an experiment") for path in unknown]
        ) from error
    problems = list(_without_effect(changed, values))
    if problems:
        raise ExperimentError(experiment.name, problems)
    return changed, alone


def _not_for_a_row(values: Mapping[str, object], *, alone: bool) -> Iterator[Problem]:
    """Changes that would be another run than they say: a teacher that nobody makes, a section's other fields lost."""
    for path, value in values.items():
        section, *fields = path.split(".")
        if section not in ROW_SECTIONS:
            yield Problem(path, f"a row may change fields of {', '.join(ROW_SECTIONS)}")
        elif section == "teacher" and (fields or not isinstance(value, str)):
            yield Problem(path, "a row takes another teacher by its name (or null): describe that one in `teachers`")
        elif section != "teacher" and not fields:
            yield Problem(path, f"given {short(value)}, expected a field of the section, such as {EXAMPLES[section]}")
        elif alone and section == "distill":
            yield Problem(path, "has no effect on a student alone (teacher: null)")


def _without_effect(changed: Experiment, values: Mapping[str, object]) -> Iterator[Problem]:
    """Fields of schedules that the kind which the row ends up with does not read."""
    for path in values:
        parts = path.split(".")
        if len(parts) == 3 and parts[0] == "distill" and parts[1] in SCHEDULED:
            kind = getattr(changed.distill, parts[1]).kind
            known = fields_of(kind)
            if parts[2] not in known:
                yield Problem(path, f"has no effect: kind {kind} reads {', '.join(sorted(known))}")


def _leads_somewhere(raw: object, path: str) -> bool:
    for owner in path.split(".")[:-1]:
        raw = raw.get(owner) if isinstance(raw, dict) else None
    return isinstance(raw, dict)


def textbook(experiment: Experiment) -> Experiment:
    """The same experiment with textbook KD: T = 4, alpha = 0.9, both fixed, KL, no feature loss."""
    raw = plain(experiment)
    raw["distill"] = copy.deepcopy(TEXTBOOK)
    return Experiment.model_validate(raw)


def plain(experiment: Experiment) -> dict[str, Any]:
    """As a mapping that `parse` reads back; fields of a schedule that are not set are left out."""
    raw = experiment.model_dump(mode="json")
    sections = [raw, raw["teacher"], *raw["teachers"].values()]
    for section in sections:
        objective = section["distill"] if isinstance(section, dict) else None  # a teacher may be named only
        if objective is not None:
            objective |= {name: _plain_schedule(objective[name]) for name in SCHEDULED}
    return raw


def _plain_schedule(schedule: Mapping[str, Any]) -> Any:  # a number, or a mapping
    shown = {name: value for name, value in schedule.items() if value is not None}
    return shown["start"] if shown["kind"] == "fixed" else shown
