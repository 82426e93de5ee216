"""Trials: the run folder, what all trials share, and one student's training from start or checkpoint to end."""

from kdtune.trial.bench import Bench, Trial
from kdtune.trial.materials import Materials, Progress, Silent, cache_folder, prepare, views_needed
from kdtune.trial.run_folder import at_work, check_materials, claim, read_run, remember

__all__ = [
    "Bench",
    "Materials",
    "Progress",
    "Silent",
    "Trial",
    "at_work",
    "cache_folder",
    "check_materials",
    "claim",
    "prepare",
    "read_run",
    "remember",
    "views_needed",
]
