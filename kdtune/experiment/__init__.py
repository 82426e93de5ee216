"""The experiment file: YAML in, one frozen `Experiment` out, every mistake at once."""

from kdtune.experiment.loading import differences, dump, json_schema, load, parse, textbook, with_values
from kdtune.experiment.models import Data, Distill, Experiment, Resources, Teacher, Train
from kdtune.experiment.schedule import Schedule

__all__ = [
    "Data",
    "Distill",
    "Experiment",
    "Resources",
    "Schedule",
    "Teacher",
    "Train",
    "differences",
    "dump",
    "json_schema",
    "load",
    "parse",
    "textbook",
    "with_values",
]
