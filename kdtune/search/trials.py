"""The trials of one search under Tune, begun or taken up again.

board = run_trials(folder, experiment, materials, slots, watch)      # trials.jsonl is in the folder afterwards

A trial whose process or node is lost, or that meets a full disk or a storage out of reach, is taken up again from its
last checkpoint, by another process. Tune keeps its state and the checkpoints in the experiment's storage.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray import tune
from ray.tune.error import TuneError

from kdtune.cache import open_cache
from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.search.asha import Asha, Whole
from kdtune.search.board import Board, BoardWatcher, Recorder
from kdtune.search.placing import Slots
from kdtune.search.sampler import METRIC, MODE, make_searcher
from kdtune.search.trainable import StudentTrial
from kdtune.trial import TUNE, Materials

RETRIES = 3  # of a trial that fails; a node that was taken away with notice does not count


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything that a resumed run needs has been written."""


def run_trials(
    folder: Path,
    experiment: Experiment,
    materials: Materials,
    slots: Slots,
    watch: BoardWatcher,
    storage: tuple[fs.FileSystem, str],
    before_snapshot: Callable[[], None],
) -> Board:
    """Runs what is left of the trials; the board at their end, with the seconds of all resumed runs.

    `storage` is where any node can write: Tune's state goes below it. Raises RunError where every trial fails, and
    Interrupted on Ctrl-C.
    """
    files, root = storage
    begun = _has_state(files, f"{root}/{TUNE}")
    recorder = _recorder(folder, experiment, materials, watch, begun, before_snapshot)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    # annotated as str, compared as an enum
    again = tune.ResumeConfig(errored=tune.ResumeConfig.ResumeType.RESUME)  # type: ignore[arg-type]
    with _told_as_it_was(recorder):
        analysis = tune.run(
            tune.with_parameters(StudentTrial, experiment=experiment, materials=(ray.put(materials),), slots=slots),
            name=TUNE,
            storage_path=root,
            storage_filesystem=files,
            resume_config=again if begun else None,
            metric=METRIC,
            mode=MODE,
            num_samples=experiment.search.trials,
            search_alg=make_searcher(experiment),
            scheduler=recorder.scheduler,
            max_concurrent_trials=slots.concurrent,
            resources_per_trial=slots.request,
            reuse_actors=True,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            max_failures=RETRIES,
            callbacks=[recorder],
            verbose=0,
            raise_on_failed_trial=False,
            trial_dirname_creator=_short_name,
            trial_name_creator=_short_name,
        )
    _check_finished(experiment, analysis.trials, recorder)
    return recorder.board


@contextmanager
def _told_as_it_was(recorder: Recorder) -> Iterator[None]:
    """What ends Tune is raised as the recorder met it, and Ctrl-C is handled afterwards as it was before."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except TuneError as error:
        if recorder.failure is not None:
            raise recorder.failure from error
        raise
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own handler, which ends nothing after it


def _has_state(files: fs.FileSystem, path: str) -> bool:
    """Whether Tune has left its state there."""
    found = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return any(file.base_name.startswith("experiment_state-") for file in found)


def _recorder(
    folder: Path,
    experiment: Experiment,
    materials: Materials,
    watch: BoardWatcher,
    begun: bool,
    before_snapshot: Callable[[], None],
) -> Recorder:
    stopper = experiment.search.stopper
    scheduler = (
        Asha(experiment.grace_epochs, stopper.reduction_factor, experiment.train.epochs)
        if stopper.kind == "asha"
        else Whole()
    )
    return Recorder(
        folder / "trials.jsonl",
        experiment,
        scheduler,
        watch,
        resumed=begun,
        caches=[open_cache(place, views=materials.columns) for place in materials.caches.values()],
        before_snapshot=before_snapshot,
    )


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
