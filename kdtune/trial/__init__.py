"""Trials: the run folder, what all trials share, and one student's training from start or checkpoint to end."""

from kdtune.trial.bench import Bench
from kdtune.trial.materials import Materials, Progress, Silent, cache_folder, check_networks, prepare, views_needed
from kdtune.trial.run_folder import (
    Found,
    assistant_folder,
    at_work,
    check_materials,
    claim,
    made_of,
    read_run,
    remember,
    winner_of,
    with_assistants,
)
from kdtune.trial.running import Trial
from kdtune.trial.teachers import locate, obtain

__all__ = [
    "Bench",
    "Found",
    "Materials",
    "Progress",
    "Silent",
    "Trial",
    "assistant_folder",
    "at_work",
    "cache_folder",
    "check_materials",
    "check_networks",
    "claim",
    "locate",
    "made_of",
    "obtain",
    "prepare",
    "read_run",
    "remember",
    "views_needed",
    "winner_of",
    "with_assistants",
]
