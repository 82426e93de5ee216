"""Trials: the run folder, what all trials share, and one student's training from start or checkpoint to end."""

from kdtune.trial.bench import Bench
from kdtune.trial.caches import begin_caches, place_of, storage_of, views_needed
from kdtune.trial.final_runs import Job, Key, is_of, jobs_of
from kdtune.trial.forecast import Forecast, Planned, forecasts
from kdtune.trial.materials import Materials, Progress, Silent, check_networks, prepare
from kdtune.trial.run_folder import (
    SINGLE,
    STATES,
    Found,
    asked,
    assistant_folder,
    at_work,
    check_materials,
    claim,
    columns_of,
    finished,
    made_of,
    read_run,
    remember,
    winner_of,
    with_assistants,
    working,
)
from kdtune.trial.running import Tested, Trial
from kdtune.trial.teachers import kept_already, locate, obtain

__all__ = [
    "SINGLE",
    "STATES",
    "Bench",
    "Forecast",
    "Found",
    "Job",
    "Key",
    "Materials",
    "Planned",
    "Progress",
    "Silent",
    "Tested",
    "Trial",
    "asked",
    "assistant_folder",
    "at_work",
    "begin_caches",
    "check_materials",
    "check_networks",
    "claim",
    "columns_of",
    "finished",
    "forecasts",
    "is_of",
    "jobs_of",
    "kept_already",
    "locate",
    "made_of",
    "obtain",
    "place_of",
    "prepare",
    "read_run",
    "remember",
    "storage_of",
    "views_needed",
    "winner_of",
    "with_assistants",
    "working",
]
