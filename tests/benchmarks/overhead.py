"""What a trial costs besides training, HyperOpt and ASHA included: 40 trials of one worker, 20 of two.

Search time runs from Tune's first action to its last, so the start of the trials' processes counts. Time inside
`step` is what the trials' own epochs took, as trials.jsonl has it; with several slots it is divided by their number,
since that is the wall-clock time in which they pass. `slot_seconds_a_trial` is the same loss as time of one slot.

`train_seconds_a_trial` is what a further trial of two workers costs beyond its epochs, from the end of a group's first
trial, before which the group was started, to the end of its last.

What the command costs before its first step and after its last one is in `command`.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from kdtune.cli.options import default_file
from kdtune.cli.progress import Lines
from kdtune.experiment import load
from kdtune.records import TrialRecord, read_trials
from kdtune.search.board import Board
from kdtune.search.placing import Node, place
from kdtune.search.run import run_search
from tests.benchmarks import command
from tests.benchmarks.timing import row

REPEATS = 3
KINDS = {1: 40, 2: 20}  # workers of a trial -> trials
A_TRIAL, A_SLOT, FURTHER = "a trial outside its epochs", "the same as time of a slot", "a further trial outside them"
UNITS = {"stopped early": "", "at a time": "", "the search": "s", "its epochs": "s"} | dict.fromkeys(
    (A_TRIAL, A_SLOT, FURTHER), "s"
)


class Stopwatch(Lines):
    """When the trials ended, in seconds of the search."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def search_progress(self, board: Board) -> None:
        super().search_progress(board)
        while len(self.ends) < board.ended:
            self.ends.append(board.seconds)


def measure(repeats: int = REPEATS) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """seconds a trial outside its epochs, of one worker and of two under Ray Train; of the command, outside trials"""
    runs = {workers: [_once(workers) for _ in range(repeats)] for workers in KINDS}
    rows = [
        row(f"{KINDS[workers]} trials, workers of each {workers}: {what}", [one[what] for one in some], unit)
        for workers, some in runs.items()
        for what, unit in UNITS.items()
    ]
    parts, ratios = command.measure(repeats)
    one, two = runs.values()
    return [*rows, *parts], {
        "seconds_a_trial": statistics.median(run[A_TRIAL] for run in one),
        "slot_seconds_a_trial": statistics.median(run[A_SLOT] for run in one),
        "train_seconds_a_trial": statistics.median(run[FURTHER] for run in two),
        **ratios,
    }


def _once(workers: int) -> dict[str, float]:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"storage={folder}", f"search.trials={KINDS[workers]}", f"resources.workers_per_trial={workers}"]
        experiment = load(default_file(), [*overrides, "final.seeds=1", "final.baselines=[]"])
        here = Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))
        concurrent = place(experiment.resources, [here]).concurrent
        run = run_search(experiment, watch)
        trials = read_trials(Path(run) / "trials.jsonl")
        search = json.loads((Path(run) / "summary.json").read_text())["search"]
    inside = sum(map(_inside, trials))
    further = watch.ends[-1] - watch.ends[0] - sum(map(_inside, trials[1:])) / concurrent
    return {
        "stopped early": search["stopped_early"],
        "at a time": concurrent,
        "the search": search["seconds"],
        "its epochs": inside,
        # wall-clock time that the search adds, and the same as time of a slot that a trial could have used
        A_TRIAL: (search["seconds"] - inside / concurrent) / len(trials),
        A_SLOT: (search["seconds"] * concurrent - inside) / len(trials),
        FURTHER: further / (len(trials) - 1),
    }


def _inside(trial: TrialRecord) -> float:
    return sum(record.seconds + record.waited for record in trial.epochs)
