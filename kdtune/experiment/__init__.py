"""The experiment file: YAML in, one frozen `Experiment` out, every mistake at once."""

from kdtune.experiment.caching import Cache
from kdtune.experiment.images import Data
from kdtune.experiment.loading import check_searchable, differences, dump, json_schema, load, parse
from kdtune.experiment.models import Experiment, Resources
from kdtune.experiment.networks import Model, Student, Teacher
from kdtune.experiment.objective import Distill
from kdtune.experiment.schedule import Schedule
from kdtune.experiment.search import Search
from kdtune.experiment.train import Train
from kdtune.experiment.values import row, textbook, with_values

__all__ = [
    "Cache",
    "Data",
    "Distill",
    "Experiment",
    "Model",
    "Resources",
    "Schedule",
    "Search",
    "Student",
    "Teacher",
    "Train",
    "check_searchable",
    "differences",
    "dump",
    "json_schema",
    "load",
    "parse",
    "row",
    "textbook",
    "with_values",
]
