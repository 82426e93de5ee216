"""`run_search(experiment, watch)`: data and teacher, cache, trials under Tune, the final stage, the export.

Everything that it finds out is in the run folder, so that the same call takes an interrupted run up where it stopped,
and a finished one is only read.
"""

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdtune.errors import RunError, StorageError
from kdtune.experiment import Experiment, check_searchable, with_values
from kdtune.experiment.chain import assistant, searched_assistants, settled
from kdtune.export import export_run
from kdtune.records import TrialRecord, read_trials, write_text
from kdtune.report import summarise, write_summary
from kdtune.search.away import prepare_away, summarise_away
from kdtune.search.board import BoardWatcher
from kdtune.search.final import run_final
from kdtune.search.per_gpu import share_gpus
from kdtune.search.placing import Slots
from kdtune.search.session import LOCAL, session
from kdtune.search.sharing import check_seen, leave_link, on_cluster
from kdtune.search.states import states_of
from kdtune.search.tracking import STATE, Tracking, check_tracking, tracked
from kdtune.search.trials import check_search, run_trials
from kdtune.storage import Mirror, folder_of
from kdtune.training import default_device, free_memory
from kdtune.trial import (
    Found,
    Materials,
    Progress,
    asked,
    assistant_folder,
    columns_of,
    finished,
    prepare,
    remember,
    winner_of,
    working,
)

log = logging.getLogger(__name__)


class Watcher(Progress, BoardWatcher, Protocol):
    """What a search tells whoever watches."""

    def already_finished(self, folder: Path) -> None: ...
    def assistant_search(self, name: str, experiment: Experiment) -> None: ...
    def search_knows(self, what: str) -> None: ...
    def final_progress(self, done: int, total: int) -> None: ...


def run_search(experiment: Experiment, watch: Watcher, address: str = LOCAL) -> Path:
    """The run folder, complete: summary.json and student/ in it. Raises KdtuneError, or Interrupted on Ctrl-C.

    Trials run at the Ray cluster of `address`; by default at one of their own, on this machine. On a cluster a
    relative storage is one that its nodes share (`sharing`).
    """
    check_searchable(experiment)
    if address != LOCAL:
        experiment = on_cluster(experiment)
    with working(experiment) as (folder, mirror):
        if address != LOCAL:
            leave_link(folder)
        if finished(folder, experiment):
            watch.already_finished(folder)
            if (folder / STATE).exists():  # what was added to its tools, or had failed, hears of it now
                with tracked(folder, experiment) as tracking:
                    tracking.trials_are_over()
        else:
            _Search(folder, mirror, experiment, watch, address).run()
    return folder


@dataclass
class _Search:
    """One search under way. With a cluster, what needs data or a GPU is done by its nodes, and not by its head."""

    folder: Path
    mirror: Mirror | None
    experiment: Experiment
    watch: Watcher
    address: str

    def run(self) -> None:
        with ExitStack() as stack:
            if self.address != LOCAL or searched_assistants(self.experiment):
                stack.enter_context(session(self.experiment.resources, self.address))  # those that follow find it
            if self.address != LOCAL and folder_of(self.experiment.storage) is not None:
                check_seen(self.folder)
            experiment = self.experiment
            check_search(self.folder, experiment, self.watch.search_knows)
            check_tracking(self.folder, experiment, away=self.address != LOCAL)
            for name in searched_assistants(experiment):
                check_search(assistant_folder(experiment, name), assistant(experiment, name), self.watch.search_knows)
            for name in searched_assistants(experiment):
                experiment = self._with_assistant(experiment, name)
            materials = self._prepared(self.folder, experiment)
            # of a search that goes on: it is not over any more, now that nothing refuses it
            (self.folder / "summary.json").unlink(missing_ok=True)
            with session(experiment.resources, self.address) as slots, tracked(self.folder, experiment) as tracking:
                slots = share_gpus(self.folder, experiment, materials, slots, self.watch.search_knows)
                found = None
                if experiment.search.trials:
                    found = self._winner(self.folder, experiment, materials, slots, tracking)
                winner = with_values(experiment, found.best.config) if found else experiment
                lines = run_final(self.folder, experiment, winner, materials, slots, self.watch.final_progress)
                if self.address != LOCAL:
                    summary = summarise_away(experiment, winner, lines, materials, found, slots, self.watch)
            if self.address == LOCAL:
                summary = summarise(experiment, winner, lines, materials, found, default_device())
            # within the session: parts of the data may lie in Ray's memory
            export_run(self.folder, self.folder / "student", winner, materials.dataset, summary)
            write_summary(self.folder, summary)
        draw(self.folder)

    def _prepared(self, folder: Path, experiment: Experiment) -> Materials:
        columns = columns_of(folder)
        if self.address == LOCAL:
            materials = prepare(experiment, default_device(), self.watch, columns=columns)
            free_memory()  # for the trials on this GPU: this process has no more to compute until they are over
        else:
            with session(experiment.resources, self.address) as slots:
                materials = prepare_away(experiment, slots, self.watch, columns)
        remember(folder, materials)
        return materials

    def _with_assistant(self, experiment: Experiment, name: str) -> Experiment:
        """The experiment with what the search of the assistant `name` has found; it runs unless it is over."""
        folder = assistant_folder(experiment, name)
        folder.mkdir(parents=True, exist_ok=True)
        child = assistant(experiment, name)
        self.watch.assistant_search(name, child)
        found = winner_of(folder, child)
        if found is None:
            materials = self._prepared(folder, child)
            with session(child.resources, self.address) as slots, tracked(folder, child) as tracking:
                slots = share_gpus(folder, child, materials, slots, self.watch.search_knows)
                found = self._winner(folder, child, materials, slots, tracking)
        return settled(experiment, name, found.best.config)

    def _winner(
        self, folder: Path, experiment: Experiment, materials: Materials, slots: Slots, tracking: Tracking
    ) -> Found:
        """What the search of `folder` has found. Once winner.json is there it is over, unless more is asked for."""
        found = winner_of(folder, experiment)
        if found is None:
            (folder / "final").mkdir(exist_ok=True)
            states = states_of(self.experiment.storage, folder.relative_to(self.folder.parent).as_posix())
            board = run_trials(
                folder, experiment, materials, slots, self.watch, states, self._pushed, tracking.trials_run
            )
            trials = read_trials(folder / "trials.jsonl")
            best = pick_best(trials)
            outcome = {
                "asked": asked(experiment),
                "trial": best.trial,
                "trials": len(trials),
                "stopped_early": board.count("stopped"),
                "budget_spent": board.spent,
                "seconds": round(board.seconds, 3),
                "retried": [
                    {"trial": row.trial, "times": row.retries, "error": row.error}
                    for row in board.rows.values()
                    if row.retries
                ],
            }
            write_text(folder / "final" / "winner.json", json.dumps(outcome, indent=2))
            found = Found(trials, best, outcome)
        tracking.trials_are_over()
        return found

    def _pushed(self) -> bool:
        """Whether the storage has the records. Raises RunError where another machine has taken the run up."""
        if self.mirror is not None:
            try:
                self.mirror.push()
            except StorageError as error:
                log.warning("%s", error)
                return False
        return True


def draw(folder: Path) -> None:
    """report.html. A page that cannot be drawn is said, and costs nobody a finished search."""
    try:
        from kdtune.report.page import write_report  # takes a second to import, and only a finished search needs it
        from kdtune.report.run import load_run

        write_report(load_run(folder))
    except Exception:  # whatever it is: the results are there, and the same can be tried again
        log.warning("the report of %s was not drawn; `kdtune report %s` tries again", folder, folder, exc_info=True)


def pick_best(trials: list[TrialRecord]) -> TrialRecord:
    """Highest validation accuracy of the last epoch among trials that ran in full; where a budget ended before any
    had, among those that came furthest.

    Small validation splits tie often: then the mean over the last quarter of the run decides, then who came first.
    """
    if not trials:
        raise RunError("the search ended before any trial had finished an epoch; raise search.budget")
    sound = [trial for trial in trials if not trial.epochs[-1].diverged]
    if not sound:
        raise RunError("no trial ran without diverging; lower train.learning_rate or widen search.space")
    furthest = max(trial.epochs[-1].epoch / trial.epochs[-1].epochs for trial in sound)
    complete = [trial for trial in sound if trial.epochs[-1].epoch / trial.epochs[-1].epochs == furthest]

    def merit(trial: TrialRecord) -> tuple[float, float]:
        tail = trial.epochs[-max(1, len(trial.epochs) // 4) :]
        return trial.val_accuracy, sum(record.val_accuracy or 0.0 for record in tail) / len(tail)

    return max(complete, key=merit)
