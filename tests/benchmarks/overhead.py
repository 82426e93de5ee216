"""What a trial costs besides training: 40 trials of the digits search, HyperOpt and ASHA included.

Search time runs from Tune's first action to its last, so the start of the trials' processes counts. Time inside
`step` is what the trials' own epochs took, as trials.jsonl has it; with several slots it is divided by their number,
since that is the wall-clock time in which they pass. `slot_seconds_a_trial` is the same loss as time of one slot.
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
from kdtune.records import read_trials
from kdtune.search.placing import Node, place
from kdtune.search.run import run_search

TRIALS = 40
REPEATS = 3


def measure() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """seconds a trial outside `step`, over 40 trials"""
    rows = [_once(repeat) for repeat in range(REPEATS)]
    return rows, {
        key: statistics.median(row[key] for row in rows)
        for key in ("seconds_a_trial", "slot_seconds_a_trial", "train_seconds_a_trial")
    }


def _once(repeat: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"storage={folder}", f"search.trials={TRIALS}", "final.seeds=1", "final.baselines=[]"]
        experiment = load(default_file(), overrides)
        here = Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))
        concurrent = place(experiment.resources, [here]).concurrent
        run = run_search(experiment, Lines())
        trials = read_trials(Path(run) / "trials.jsonl")
        search = json.loads((Path(run) / "summary.json").read_text())["search"]
        inside = sum(record.seconds + record.waited for trial in trials for record in trial.epochs)
    return {
        "repeat": repeat,
        "trials": len(trials),
        "concurrent": concurrent,
        "search_seconds": search["seconds"],
        "step_seconds": inside,
        # wall-clock time that the search adds, and the same as time of a slot that a trial could have used
        "seconds_a_trial": (search["seconds"] - inside / concurrent) / len(trials),
        "slot_seconds_a_trial": (search["seconds"] * concurrent - inside) / len(trials),
        "train_seconds_a_trial": inside / len(trials),
    }
