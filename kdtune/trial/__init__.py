"""Trials: the run folder, what all trials share, and one student's training from start or checkpoint to end."""

from kdtune.trial.bench import Bench, Trial
from kdtune.trial.materials import Materials, Progress, Silent, cache_folder, prepare, views_needed
from kdtune.trial.run_folder import claim, read_run

__all__ = [
    "Bench",
    "Materials",
    "Progress",
    "Silent",
    "Trial",
    "cache_folder",
    "claim",
    "prepare",
    "read_run",
    "views_needed",
]
