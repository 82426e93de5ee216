"""Where the seconds of a short `kdtune search` go, from the start of its process to its end.

The run folder tells: its files bear the time at which they were whole, and each epoch of a trial the second of the
search at which it was told. The parts add up to the whole; none of them is measured by the command itself but the
seconds of the teacher's epochs, of the first epoch, and of those of the one run of the final stage, which are taken out
of the part that they lie in.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdtune.records import read_lines, read_trials
from tests.benchmarks.timing import row

SETTINGS = ("search.trials=4", "train.epochs=10", "final.seeds=1", "final.baselines=[]")
BEFORE = ("imports, the experiment", "data, the teacher besides its epochs, the cache", "Ray, processes for trials")
BETWEEN = "the last trial's end, processes for the final stage, the test set"
AFTER = ("summary, export", "page", "table, the process's end")
TEACHER, TRIALS, FINAL = "the teacher's epochs", "trials", "epochs of the final stage"


def measure(repeats: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each part of the command, and three ratios: seconds of the parts without training."""
    runs = [_parts() for _ in range(repeats)]
    rows = [row(f"kdtune search: {part}", [one[part] for one in runs], "s") for part in runs[0]]
    return rows, {
        "seconds_to_first_step": _sum(runs, BEFORE),
        "seconds_from_trials_to_final_stage": _sum(runs, [BETWEEN]),
        "seconds_from_last_step_to_table": _sum(runs, AFTER),
    }


def _sum(runs: Sequence[dict[str, float]], parts: Sequence[str]) -> float:
    return statistics.median(sum(one[part] for part in parts) for one in runs)


def _parts() -> dict[str, float]:
    """Seconds of each part of one command in a new folder, in their order."""
    with tempfile.TemporaryDirectory() as parent:
        command = [sys.executable, "-m", "kdtune", "search", "--local"]
        began = time.time()
        subprocess.run([*command, *(word for one in SETTINGS for word in ("--set", one))], cwd=parent, check=True)
        ended = time.time()
        folder = Path(parent) / "runs" / "digits"
        whole = {file.name: file.stat().st_mtime for file in folder.iterdir()}
        first, last = _trials(folder / "trials.jsonl")
        (final,) = read_lines(folder / "final.jsonl")
        summary = json.loads((folder / "summary.json").read_text())
    teacher, retrained = summary["time"]["teacher"], sum(one["seconds"] + one["waited"] for one in final["epochs"])
    return {
        BEFORE[0]: whole["experiment.yaml"] - began,
        BEFORE[1]: whole["materials.json"] - whole["experiment.yaml"] - teacher,
        TEACHER: teacher,
        BEFORE[2]: first - whole["materials.json"],
        TRIALS: last - first,
        BETWEEN: whole["final.jsonl"] - last - retrained,
        FINAL: retrained,
        AFTER[0]: whole["summary.json"] - whole["final.jsonl"],
        AFTER[1]: whole["report.html"] - whole["summary.json"],
        AFTER[2]: ended - whole["report.html"],
    }


def _trials(path: Path) -> tuple[float, float]:
    """When the first epoch of all began, and when the last one was told."""
    last = path.stat().st_mtime
    told = {(line["trial"], line["epoch"]): line["at"] for line in read_lines(path)}
    began = min(told[trial.trial, 1] - trial.epochs[0].seconds for trial in read_trials(path))
    return last - max(told.values()) + began, last
