"""How time grows with images, classes, epochs and trials: what was measured over what was asked for, 1 is linear.

The student is so small that what surrounds it shows: order, views, lookups in the cache, the losses, the records.

    images    an epoch with four times as many, those for validation included
    classes   an epoch with ten times as many, from 100 to 1000
    epochs    a late epoch of a trial of 1000 against an early one: 1 where each takes as long as the first
    trials    reading a run with ten times as many, from 100 to 1000, and drawing its page: the part that grows most

Seconds are those that this process computed on one core (`timing.Clock`). Runs are made up (`tests.example_run`).
"""

import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdtune.experiment import with_values
from kdtune.records import append_line, read_trials
from kdtune.report.page import render
from kdtune.report.run import load_run
from kdtune.trial import Trial
from kdtune.tuning.fidelity import fidelity
from kdtune.tuning.rungs import rungs_of_search
from tests.benchmarks.making import bench_of, experiment_in, interleaved, random_images, untrained
from tests.benchmarks.timing import Clock, row
from tests.example_run import EPOCHS as EPOCHS_OF_A_RUN
from tests.example_run import TRIALS as CONFIGURATIONS
from tests.example_run import curve, experiment_of, write_run

Result = tuple[list[dict[str, Any]], dict[str, float]]

STUDENT, SHAPE = "cnn-16", (1, 8, 8)
IMAGES, FEW_CLASSES = (16_384, 32_768, 65_536), 10
CLASSES, SOME_IMAGES = (10, 100, 1000), 8192
EPOCHS, ROUNDS, STATES, FEW_IMAGES = 1000, 50, 10, 256
TRIALS = (10, 100, 1000)


def measure(repeats: int) -> Result:
    """Rows and ratios `seconds_growth_images`, `_classes`, `_epochs` and `_trials`."""
    clock = Clock(torch.device("cpu"))
    parts = [_of_images(clock, repeats), _of_classes(clock, repeats), _of_epochs(clock), _of_trials(clock, repeats)]
    return [one for rows, _ in parts for one in rows], {key: one for _, some in parts for key, one in some.items()}


def _of_images(clock: Clock, repeats: int) -> Result:
    times = _epochs_of({count: (count, FEW_CLASSES) for count in IMAGES}, clock, repeats)
    return _rows("an epoch of {} images", times), {"seconds_growth_images": _growth(times, IMAGES[0], IMAGES[-1])}


def _of_classes(clock: Clock, repeats: int) -> Result:
    times = _epochs_of({count: (SOME_IMAGES, count) for count in CLASSES}, clock, repeats)
    return _rows("an epoch of {} classes", times), {"seconds_growth_classes": _growth(times, CLASSES[-2], CLASSES[-1])}


def _of_epochs(clock: Clock) -> Result:
    """Of a trial that is almost at its end and of one that has just begun; and what saving each takes."""
    with tempfile.TemporaryDirectory() as folder:
        early, late = (
            _trial(Path(folder) / name, FEW_IMAGES, FEW_CLASSES, EPOCHS, clock) for name in ("early", "late")
        )
        for _ in range(EPOCHS - ROUNDS - 1):
            next(late.records)
        begun = {"first": partial(next, early.records), "last": partial(next, late.records)}
        epochs = interleaved(begun, clock, ROUNDS)
        states = interleaved({"first": early.state, "last": late.state}, clock, STATES)
        bytes_an_epoch = (len(late.state()) - len(early.state())) / (len(late.history) - len(early.history))
    rows = [row(f"an epoch, of the {k} {ROUNDS} of {EPOCHS}", [1e3 * s for s in epochs[k]], "ms") for k in epochs]
    rows += [row(f"a trial's state after the {k} {ROUNDS}", [1e3 * s for s in states[k]], "ms") for k in states]
    rows.append(row("what each epoch adds to the state", [bytes_an_epoch], "B"))
    return rows, {"seconds_growth_epochs": statistics.median(epochs["last"]) / statistics.median(epochs["first"])}


def _of_trials(clock: Clock, repeats: int) -> Result:
    rows, growths = [], {}
    with tempfile.TemporaryDirectory() as folder:
        runs = {count: _run_of(Path(folder) / str(count), count) for count in TRIALS}
        for what, read in READINGS.items():
            acts = {str(count): partial(read, run) for count, run in runs.items()}
            times = {int(count): seconds for count, seconds in interleaved(acts, clock, repeats).items()}
            rows += _rows(f"{what} of {{}} trials", times)
            growths[f"seconds_growth_trials_{what}"] = _growth(times, TRIALS[-2], TRIALS[-1])
    return rows, growths | {"seconds_growth_trials": max(growths.values())}


def _fidelity(folder: Path) -> object:
    return fidelity(read_trials(folder / "trials.jsonl"), rungs_of_search(experiment_of(folder)))


READINGS: dict[str, Callable[[Path], object]] = {
    "read_trials": lambda folder: read_trials(folder / "trials.jsonl"),
    "load_run": load_run,
    "fidelity": _fidelity,
    "page": lambda folder: render(load_run(folder)),
}


def _run_of(parent: Path, count: int) -> Path:
    """A finished run of so many trials, of which every third ran in full and the others to a third."""
    folder, draw = write_run(parent), random.Random(0)
    records = folder / "trials.jsonl"
    records.unlink()
    experiment = experiment_of(parent)
    for number in range(count):
        values, _, _ = CONFIGURATIONS[number % 2]
        own = {"distill.temperature.start": draw.uniform(1, 20), "distill.alpha.start": draw.uniform(0.2, 0.99)}
        epochs, accuracy = EPOCHS_OF_A_RUN // (1 if number % 3 == 0 else 3), draw.uniform(0.6, 0.95)
        config = {**values, **own}
        for k, record in enumerate(curve(with_values(experiment, config), epochs, accuracy)):
            line = {"trial": f"{number:04d}", "config": config, "at": round(2.0 + number + 0.2 * k, 3)}
            append_line(records, {**line, **record.to_json()})
    return folder


def _epochs_of(sizes: Mapping[int, tuple[int, int]], clock: Clock, repeats: int) -> dict[int, list[float]]:
    """Seconds of epochs of each size, which is (training images, classes)."""
    with tempfile.TemporaryDirectory() as folder:
        trials = {
            name: _trial(Path(folder) / str(name), images, classes, repeats + 1, clock)
            for name, (images, classes) in sizes.items()
        }
        acts = {str(name): partial(next, trial.records) for name, trial in trials.items()}
        return {int(name): seconds for name, seconds in interleaved(acts, clock, repeats).items()}


def _trial(folder: Path, images: int, classes: int, epochs: int, clock: Clock) -> Trial:
    experiment = experiment_in(folder, epochs, student=STUDENT, teacher={"model": STUDENT})
    dataset = random_images(images, SHAPE, classes, validation=images // 9)
    bench = bench_of(experiment, dataset, untrained(STUDENT, dataset, folder / "teacher"), clock.device)
    return bench.start(experiment, seed=0)


def _rows(what: str, times: Mapping[int, list[float]]) -> list[dict[str, Any]]:
    return [row(what.format(f"{count:,}"), [1e3 * one for one in seconds], "ms") for count, seconds in times.items()]


def _growth(times: Mapping[int, list[float]], few: int, many: int) -> float:
    return statistics.median(times[many]) / statistics.median(times[few]) / (many / few)
