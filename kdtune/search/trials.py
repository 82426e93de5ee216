"""The trials of one search under Tune, begun or taken up again.

board = run_trials(folder, experiment, materials, slots, watch, states, push)   # trials.jsonl is in the folder then

Tune runs what the study asks for: it places trials on the cluster, keeps their processes, and starts another where one
is lost. What a search knows is in its records, not with Tune, whose own folder goes with the process.
"""

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air._internal import usage
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdtune.cache import open_cache
from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.search.board import Board, BoardWatcher
from kdtune.search.optuna import optuna_sampler_of
from kdtune.search.placing import Slots
from kdtune.search.recorder import ERRORS, Recorder
from kdtune.search.states import States, kept_name
from kdtune.search.trainable import StudentTrial
from kdtune.trial import Materials
from kdtune.tuning.making import make_study
from kdtune.tuning.study import Study
from kdtune.tuning.warm import former_runs

TRIALS_A_CALL = 500  # of Tune: at its end slots wait for the last trials, and processes start anew
CALL_SLOTS = 50  # at least so many trials for each slot
RETRIES = 3  # of a trial that fails; a node that was taken away with notice does not count


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything that a resumed run needs has been written."""


def run_trials(
    folder: Path,
    experiment: Experiment,
    materials: Materials,
    slots: Slots,
    watch: BoardWatcher,
    states: States,
    push: Callable[[], bool],
    begun: Callable[[Board], None] = lambda board: None,
) -> Board:
    """Runs what is left of the trials; the board at their end, with the seconds of all resumed runs.

    `push` says whether the records have reached the storage; `begun` is given the board before the trials run. Raises
    RunError where every trial fails, and Interrupted on Ctrl-C.
    """
    known = [seen for former in former_runs(folder, experiment) for seen in former.trials]
    if experiment.search.budget.gpu_hours is not None and not slots.gpus:
        raise RunError(
            "search.budget.gpu_hours ends nothing where trials hold no GPU; give search.budget.seconds or epochs"
        )
    study = make_study(experiment, gpus=slots.gpus * slots.workers, known=known, sampler=optuna_sampler_of(experiment))
    board = Board(experiment.search.trials, experiment.train.epochs)
    caches = [open_cache(place, views=materials.columns) for place in materials.caches.values()]
    recorder = Recorder(folder, study, board, watch, states, caches=caches, keep=experiment.search.keep, push=push)
    recorder.begin()
    begun(board)
    if not study.over:
        trainable = tune.with_parameters(
            StudentTrial,
            experiment=experiment,
            materials=(ray.put(materials),),
            slots=slots,
            states=states,
            saved_epochs=study.saved_epochs,
        )
        run_study(recorder, trainable, slots)
    recorder.settle()
    _check_finished(recorder)
    watch.search_ended(board)
    return board


def check_search(folder: Path, experiment: Experiment, tell: Callable[[str], None]) -> None:
    """What a search needs besides data and teachers, before these cost anything: its sampler, and former searches.

    Raises KdtuneError where one is missing.
    """
    optuna_sampler_of(experiment)
    for former in former_runs(folder, experiment, keep=False):
        tell(str(former))


def run_study(recorder: Recorder, trainable: Any, slots: Slots) -> None:
    """Has Tune run what the recorder's study asks for, until that is over or somebody interrupts it.

    Tune remembers every trial of a call, 40 kB of each; so one call runs only so many.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    usage.tag_callbacks = _uncounted
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0"  # by which an interruption is known
    while not recorder.study.over:
        link = _Link(recorder, slots, left=max(TRIALS_A_CALL, CALL_SLOTS * slots.concurrent))
        with tempfile.TemporaryDirectory(prefix="kdtune-tune-") as scratch, _told_as_it_was(link):
            tune.run(
                trainable,
                name="trials",
                storage_path=scratch,
                metric=METRIC,
                mode="max",
                num_samples=-1,  # the study says when it is over
                search_alg=_Asking(link),
                scheduler=_Judging(link),
                max_concurrent_trials=slots.concurrent,
                resources_per_trial=slots.request,
                reuse_actors=True,
                max_failures=RETRIES,
                callbacks=[_Watching(link)],
                verbose=0,
                raise_on_failed_trial=False,
                trial_dirname_creator=_short_name,
                trial_name_creator=_short_name,
            )
        if link.interrupted:
            return


METRIC = "val_accuracy"


class _Link:
    """Between Tune and the study: which trial is which, and what Tune would pass on as text only."""

    def __init__(self, recorder: Recorder, slots: Slots, left: int) -> None:
        self.recorder = recorder
        self.slots = slots
        self.left = left  # trials that this call may still ask for
        self.failure: OSError | None = None
        self.interrupted = False
        self.controller: Any = None  # Tune's, which ray leaves untyped
        self.kept: Any = None  # what the processes hold that Tune keeps for us

    @property
    def study(self) -> Study:
        return self.recorder.study

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A disk that is full ends the search, as what it is."""
        try:
            yield
        except OSError as error:
            self.failure = error
            raise

    def keep_processes(self, controller: Any, held: Any) -> None:
        """Tune keeps an idle process where a trial waits for one already. A trial is asked for when another has ended,
        so of two that end at once it would end one process, and start another for the next trial.

        And it gives an idle process to the trial that has waited longest, even if that one's own is starting, and ends
        this: where trials take less time than processes need to start, one runs them all and others start for ever.
        """
        if self.controller is not None:
            return
        self.controller, self.kept = controller, held
        controller._actor_cache.increase_max(held, self.slots.concurrent)
        take = controller._maybe_reuse_cached_actor

        def take_unless_starting(trial: Trial) -> bool:
            own = controller._trial_to_actor.get(trial)
            starting = own in controller._actor_manager._live_actors_to_ray_actors_resources
            if starting and trial not in controller._resetting_trials:
                return False
            return bool(take(trial))

        controller._maybe_reuse_cached_actor = take_unless_starting

    def let_processes_go(self) -> None:
        """Nothing more will be asked for: what an idle process holds is free for others."""
        if self.kept is not None:
            self.controller._actor_cache.decrease_max(self.kept, self.slots.concurrent)
            self.kept = None


class _Asking(Searcher):
    """Tune's searcher: the study's next trial."""

    def __init__(self, link: _Link) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.link = link

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        seen = self.link.study.ask() if self.link.left else None
        if seen is None:
            if self.link.left and not self.link.study.closed:
                return None
            self.link.let_processes_go()
            return Searcher.FINISHED
        self.link.left -= 1
        parent = None
        if seen.parent is not None:
            number, epoch = seen.parent
            parent = kept_name(number, self.link.study.trials[number].config, epoch)
        return {"number": seen.number, "values": dict(seen.config), "told": seen.epoch, "parent": parent}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The study has heard of it."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored from Tune."""


class _Judging(FIFOScheduler):
    """Tune's scheduler: what the study says after each epoch."""

    def __init__(self, link: _Link) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.link = link

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.link.keep_processes(tune_controller._tune_controller, trial.placement_group_factory)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        told = json.loads(result["record"])
        with self.link.failing():
            ended = self.link.recorder.result(trial.config["number"], told, result["lost"], result["cost"])
        return str(TrialScheduler.STOP if ended else TrialScheduler.CONTINUE)


class _Watching(tune.Callback):
    """Tune's callback: what happens to trials besides results."""

    def __init__(self, link: _Link) -> None:
        self.link = link

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.link.recorder.started(trial.config["number"])

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self.link.failing():
            self.link.recorder.lost(trial.config["number"], _why(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self.link.failing():
            self.link.recorder.failed(trial.config["number"], _why(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.link.recorder.look()
        controller = self.link.controller
        if controller is not None and self.link.recorder.spent():
            for trial in trials:  # that wait for a place, which may never come
                if trial.status == Trial.PENDING:
                    controller.request_stop_trial(trial)


def _uncounted(callbacks: Any) -> bool:
    """In place of Ray's statistics on kinds of callbacks, which import MLflow, Weights & Biases and Comet, where they
    are installed, for seconds."""
    return False


def _why(trial: Trial) -> str:
    # get_error() reads the copy in storage, which is made only later
    return Path(trial.error_file).read_text() if trial.error_file else "no reason was recorded"


@contextmanager
def _told_as_it_was(link: _Link) -> Iterator[None]:
    """What ends Tune is raised as the recorder met it, and Ctrl-C is handled afterwards as it was before.

    Tune's own handler takes itself back when it is used; otherwise it stays, and ends nothing any more.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except TuneError as error:
        if link.failure is not None:
            raise link.failure from error
        raise
    finally:
        link.interrupted = signal.getsignal(signal.SIGINT) is on_interrupt
        signal.signal(signal.SIGINT, on_interrupt)


def _short_name(trial: Any) -> str:  # ray is untyped
    return str(trial.trial_id)


def _check_finished(recorder: Recorder) -> None:
    study = recorder.study
    if not study.ran and not recorder.board.spent:
        raise Interrupted
    failed = [row for row in recorder.board.rows.values() if row.status == "failed"]
    if failed and len(failed) == len(study.trials):
        raise RunError(
            f"every trial failed. The first said: {failed[0].error}\nWhole tracebacks: {recorder.path.parent / ERRORS}"
        )
