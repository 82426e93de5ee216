"""Asynchronous successive halving on Tune's scheduler interface.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning". Rungs lie at grace * factor^k epochs. A
trial that reaches a rung goes on only if it is among the best 1/factor of the trials that have reached it.

Against Ray's own: epochs are the trial's absolute ones, so a resumed trial keeps its place; a rung judges only once
it holds `factor` trials, so that no second trial is stopped for being 0.001 worse; and the rungs can be saved.
"""

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kdtune.search.sampler import METRIC


def rungs_of(grace: int, factor: float, epochs: int) -> list[int]:
    """Epochs at which trials are judged: grace, grace * factor, ... below the full length."""
    rungs: list[int] = []
    rung = float(grace)
    while round(rung) < epochs:
        if round(rung) not in rungs:
            rungs.append(round(rung))
        rung *= factor
    return rungs


class Whole(FIFOScheduler):
    """Lets every trial run to its end. It is told of ends first, with the controller, who can save Tune's state."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.controller: Any = None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self.controller = tune_controller

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.controller = tune_controller

    def state(self) -> dict[str, Any]:
        """What a resumed search needs to know of the trials so far."""
        return {}

    def restore_state(self, state: dict[str, Any]) -> None:
        """There is nothing to know."""


class Asha(Whole):
    """Higher metric is better."""

    def __init__(self, grace: int, factor: float, epochs: int) -> None:
        super().__init__()
        self.factor = factor
        self.rungs: dict[int, dict[str, float]] = {rung: {} for rung in rungs_of(grace, factor, epochs)}
        self.stopped_at: dict[str, int] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        rung = self.rungs.get(result["epoch"])
        if rung is not None and trial.trial_id not in rung:  # a resumed trial comes to a rung again: not judged twice
            rung[trial.trial_id] = result[METRIC]
            if not self.among_the_best(rung, trial.trial_id):
                self.stopped_at[trial.trial_id] = result["epoch"]
        stop = self.stopped_at.get(trial.trial_id) == result["epoch"]
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def among_the_best(self, rung: dict[str, float], trial_id: str) -> bool:
        if len(rung) < self.factor:
            return True
        kept = math.ceil(len(rung) / self.factor)
        return rung[trial_id] >= sorted(rung.values(), reverse=True)[kept - 1]

    def state(self) -> dict[str, Any]:
        rungs = {rung: dict(values) for rung, values in self.rungs.items()}
        return {"rungs": rungs, "stopped_at": dict(self.stopped_at)}

    def restore_state(self, state: dict[str, Any]) -> None:
        self.rungs = state["rungs"]
        self.stopped_at = state["stopped_at"]
