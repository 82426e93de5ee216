"""Values put into an experiment: those of a trial, of a row of the results table, of textbook KD.

`with_values(experiment, {"distill.temperature.start": 4})` gives the changed experiment, validated; `plain` is the
mapping that it is made of.
"""

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdtune.errors import ExperimentError, Problem
from kdtune.experiment.models import Experiment
from kdtune.experiment.objective import TEXTBOOK, Distill
from kdtune.experiment.schedule import Schedule, overlay
from kdtune.experiment.wording import problem

ROW_SECTIONS = ("train", "distill", "teacher", "student")
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
    for path in values:
        if path.split(".")[0] not in ROW_SECTIONS:
            allowed = ", ".join(ROW_SECTIONS)
            raise ExperimentError(experiment.name, [Problem(path, f"a row may change fields of {allowed}")])
    try:
        changed = with_values(experiment, values)
    except (KeyError, TypeError) as error:
        unknown = [path for path in values if not _leads_somewhere(plain(experiment), path)]
        raise ExperimentError(
            experiment.name, [Problem(path, "leads to no field of an experiment") for path in unknown]
        ) from error
    if not alone and not _can_be_had(experiment, changed):
        known = ", ".join(experiment.teachers) or "there are none yet"
        raise ExperimentError(
            experiment.name,
            [
                Problem(
                    "teacher",
                    "a row may change the taps of a teacher, and no other field of it: describe the row's teacher "
                    f"under `teachers` ({known}) and give its name",
                )
            ],
        )
    return changed, alone


def _can_be_had(experiment: Experiment, changed: Experiment) -> bool:
    """Whether the teacher of the changed experiment is one of those that are made for the whole run."""
    if changed.own_teacher.peers:
        return True
    known = experiment.all_teachers.get(changed.teacher_name)
    free = {"taps": None}
    return known is not None and known.model_copy(update=free) == changed.own_teacher.model_copy(update=free)


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
