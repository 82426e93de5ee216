"""What the driver of a search costs as trials grow in number: 1,000 and 10,000 of up to 30 epochs, which do nothing.

Real are Tune, the study with the default sampler and stopper, and the records; only training is not: an epoch is a
function of temperature and alpha. `driver_ms_a_result` is processor time of the driver's process for each epoch that a
trial told, `rss_mb` its memory at the end. Each search has a process of its own: one that starts Ray a second time
keeps what the first has left. `reading_seconds` is what taking the finished search up again costs, from the first line
of its records to a study that has nothing left to ask.
"""

import json
import math
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from ray import tune

from kdtune.cli.options import default_file
from kdtune.cli.progress import Lines
from kdtune.experiment import load
from kdtune.records import EpochRecord, read_trials
from kdtune.search.board import Board
from kdtune.search.placing import Slots
from kdtune.search.recorder import Recorder
from kdtune.search.run import pick_best
from kdtune.search.session import session
from kdtune.search.states import States
from kdtune.search.trials import run_study
from kdtune.tuning.fidelity import fidelity
from kdtune.tuning.making import make_study
from kdtune.tuning.rungs import rungs_of_search

TRIALS = (1_000, 10_000)
EPOCHS = 30
SLOTS = 4


class Nothing(tune.Trainable):
    """A trial whose epochs take no time."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        values = new_config["values"]
        off = math.log(values["distill.temperature.start"] / 6) ** 2 + (values["distill.alpha.start"] - 0.8) ** 2
        self.limit, self.epoch = math.exp(-off), new_config["told"]
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        accuracy = self.limit * (1 - math.exp(-self.epoch / 8))
        terms = {"cross_entropy": 0.4, "distillation": 0.6}
        record = EpochRecord(self.epoch, EPOCHS, 1.0, terms, accuracy, 1.0, 0.1, 0.01)
        return {"val_accuracy": accuracy, "record": json.dumps(record.to_json()), "lost": 0, "cost": None}


class Quiet(Lines):
    def say(self, text: str) -> None:
        """A line for each of ten thousand trials would scroll everything else away."""


def measure(trials: int = TRIALS[-1]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """driver time and memory of a search of many trials, and of reading its records"""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as searches:
        rows = list(searches.map(_once, (TRIALS[0], trials)))
    first, last = rows
    return rows, {
        "driver_ms_a_result": last["driver_ms_a_result"],
        "driver_ms_a_result_growth": last["driver_ms_a_result"] / first["driver_ms_a_result"],
        "rss_growth_mb": last["rss_mb"] - first["rss_mb"],
        "reading_seconds": last["reading_seconds"],
    }


def _once(trials: int) -> dict[str, Any]:
    settings = [f"search.trials={trials}", f"train.epochs={EPOCHS}", f"resources.cpus_per_worker={1 / SLOTS}"]
    settings.append("search.sampler=hyperopt+gp")  # the default, which the file does not take
    experiment = load(default_file(), settings)
    with tempfile.TemporaryDirectory() as name, session(experiment.resources):
        recorder = _recorder(Path(name), experiment)
        recorder.begin()
        began, wall = time.process_time(), time.monotonic()
        run_study(recorder, Nothing, Slots(1 / SLOTS, 0, SLOTS))
        spent, took = time.process_time() - began, time.monotonic() - wall
        results = recorder.study.epochs
        memory = psutil.Process().memory_info().rss / 1e6
        assert recorder.study.over
        began = time.monotonic()
        again = _recorder(Path(name), experiment)
        again.begin()
        replayed = time.monotonic() - began
        assert again.study.over
        began = time.monotonic()
        found = read_trials(Path(name) / "trials.jsonl")
        pick_best(found)
        fidelity(found, rungs_of_search(experiment))
        return {
            "trials": trials,
            "results": results,
            "seconds": took,
            "driver_ms_a_result": spent / results * 1000,
            "driver_ms_a_trial": spent / trials * 1000,
            "rss_mb": memory,
            "reading_seconds": replayed,
            "report_seconds": time.monotonic() - began,
        }


def _recorder(folder: Path, experiment: Any) -> Recorder:
    board = Board(experiment.search.trials, EPOCHS)
    return Recorder(folder, make_study(experiment), board, Quiet(), States(str(folder / "states")))
