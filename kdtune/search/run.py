"""`run_search(experiment, watch)`: data and teacher, cache, trials under Tune, the final stage, the export.

Everything that it finds out is in the run folder, so that the same call takes an interrupted run up where it stopped,
and a finished one is only read.
"""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.error import TuneError

from kdtune.cache import open_cache
from kdtune.errors import ExperimentError, Problem, RunError
from kdtune.experiment import Experiment, with_values
from kdtune.experiment.chain import assistant, searched_assistants, settled
from kdtune.export import export_run
from kdtune.records import TrialRecord, read_trials, write_text
from kdtune.report import summarise, write_summary
from kdtune.search.asha import Asha
from kdtune.search.board import Board, BoardWatcher, Recorder
from kdtune.search.final import run_final
from kdtune.search.placing import Slots
from kdtune.search.sampler import METRIC, MODE, make_searcher
from kdtune.search.session import LOCAL, session
from kdtune.search.trainable import StudentTrial
from kdtune.training import default_device
from kdtune.trial import (
    Found,
    Materials,
    Progress,
    assistant_folder,
    at_work,
    claim,
    columns_of,
    prepare,
    remember,
    winner_of,
)


class Watcher(Progress, BoardWatcher, Protocol):
    """What a search tells whoever watches."""

    def already_finished(self, folder: Path) -> None: ...
    def assistant_search(self, name: str, experiment: Experiment) -> None: ...
    def final_progress(self, done: int, total: int) -> None: ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything that a resumed run needs has been written."""


def run_search(experiment: Experiment, watch: Watcher, address: str = LOCAL) -> Path:
    """The run folder, complete: summary.json and student/ in it. Raises KdtuneError, or Interrupted on Ctrl-C.

    Trials run at the Ray cluster of `address`; by default at one of their own, on this machine.
    """
    if experiment.search.trials and not experiment.search.space:
        raise ExperimentError(
            experiment.name,
            [
                Problem(
                    "search.space",
                    "is empty: there is nothing to search. `kdtune train` trains the one configuration of the file, "
                    "--set search.trials=0 compares it with its baselines",
                )
            ],
        )
    folder = claim(experiment)
    with at_work(folder):
        if (folder / "summary.json").exists() and (folder / "student").exists():
            watch.already_finished(folder)
        else:
            _search(folder, experiment, watch, address)
    return folder


def _search(folder: Path, experiment: Experiment, watch: Watcher, address: str) -> None:
    with ExitStack() as stack:
        for name in searched_assistants(experiment):
            stack.enter_context(session(experiment.resources, address))  # the searches that follow find Ray running
            experiment = _search_assistant(experiment, name, watch)
        materials = prepare(experiment, default_device(), watch, columns=columns_of(folder))
        remember(folder, materials)
        slots = stack.enter_context(session(experiment.resources, address))
        found = _find_winner(folder, experiment, materials, slots, watch) if experiment.search.trials else None
        winner = with_values(experiment, found.best.config) if found else experiment
        lines = run_final(folder, experiment, winner, materials, slots, watch.final_progress)
    summary = summarise(experiment, winner, lines, materials, found)
    export_run(folder, folder / "student", winner, materials.dataset, summary)
    write_summary(folder, summary)


def _search_assistant(experiment: Experiment, name: str, watch: Watcher) -> Experiment:
    """The experiment with what the search of the assistant `name` has found; the search runs unless it is over."""
    folder = assistant_folder(experiment, name)
    folder.mkdir(parents=True, exist_ok=True)
    child = assistant(experiment, name)
    watch.assistant_search(name, child)
    found = winner_of(folder)
    if found is None:
        materials = prepare(child, default_device(), watch, columns=columns_of(folder))
        remember(folder, materials)
        with session(child.resources) as slots:
            found = _find_winner(folder, child, materials, slots, watch)
    return settled(experiment, name, found.best.config)


def _find_winner(folder: Path, experiment: Experiment, materials: Materials, slots: Slots, watch: Watcher) -> Found:
    """What the search has found. Once winner.json is there it is over and the winner stays."""
    found = winner_of(folder)
    if found is None:
        (folder / "final").mkdir(exist_ok=True)
        board = _run_trials(folder, experiment, materials, slots, watch)
        trials = read_trials(folder / "trials.jsonl")
        best = pick_best(trials)
        stopped, seconds = board.count("stopped"), round(board.seconds, 3)
        outcome = {"trial": best.trial, "trials": len(board.rows), "stopped_early": stopped, "seconds": seconds}
        write_text(folder / "final" / "winner.json", json.dumps(outcome, indent=2))
        found = Found(trials, best, outcome)
    return found


def pick_best(trials: list[TrialRecord]) -> TrialRecord:
    """Highest validation accuracy of the last epoch among trials that ran in full.

    Small validation splits tie often: then the mean over the last quarter of the run decides, then who came first.
    """
    complete = [trial for trial in trials if trial.complete and not trial.epochs[-1].diverged]
    if not complete:
        raise RunError("no trial ran in full without diverging; lower train.learning_rate or widen search.space")

    def merit(trial: TrialRecord) -> tuple[float, float]:
        tail = trial.epochs[-max(1, len(trial.epochs) // 4) :]
        return trial.val_accuracy, sum(record.val_accuracy or 0.0 for record in tail) / len(tail)

    return max(complete, key=merit)


def _run_trials(folder: Path, experiment: Experiment, materials: Materials, slots: Slots, watch: Watcher) -> Board:
    """Runs what is left of the trials; the board at their end, with the seconds of all resumed runs."""
    stopper = experiment.search.stopper
    scheduler = (
        Asha(experiment.grace_epochs, stopper.reduction_factor, experiment.train.epochs)
        if stopper.kind == "asha"
        else None
    )
    begun = any((folder / "ray").glob("experiment_state-*.json"))
    caches = [open_cache(place, views=materials.columns) for place in materials.caches.values()]
    recorder = Recorder(folder / "trials.jsonl", experiment, scheduler, watch, resumed=begun, caches=caches)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    # annotated as str, compared as an enum
    again = tune.ResumeConfig(errored=tune.ResumeConfig.ResumeType.RESUME)  # type: ignore[arg-type]
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        analysis = tune.run(
            tune.with_parameters(StudentTrial, experiment=experiment, materials=(ray.put(materials),), slots=slots),
            name="ray",
            storage_path=str(folder),
            resume_config=again if begun else None,
            metric=METRIC,
            mode=MODE,
            num_samples=experiment.search.trials,
            search_alg=make_searcher(experiment),
            scheduler=scheduler,
            max_concurrent_trials=slots.concurrent,
            resources_per_trial=slots.request,
            reuse_actors=True,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[recorder],
            verbose=0,
            raise_on_failed_trial=False,
            trial_dirname_creator=_short_name,
            trial_name_creator=_short_name,
        )
    except TuneError as error:
        if recorder.failure is not None:
            raise recorder.failure from error
        raise
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own handler, which ends nothing after it
    _check_finished(experiment, analysis.trials, recorder)
    return recorder.board


def _short_name(trial: Any) -> str:  # ray is untyped
    return str(trial.trial_id)


def _check_finished(experiment: Experiment, trials: list[Any], recorder: Recorder) -> None:
    if sum(trial.is_finished() for trial in trials) < experiment.search.trials:
        raise Interrupted
    failed = [row for row in recorder.board.rows.values() if row.status == "failed"]
    if len(failed) == len(trials):
        raise RunError(
            f"every trial failed. The first said: {failed[0].error}\n"
            f"Whole tracebacks: {recorder.path.parent / 'ray'}/*/error.txt"
        )
