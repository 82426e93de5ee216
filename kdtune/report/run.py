"""`load_run(path)`: everything that a run has written down, as pandas frames.

    run = kdtune.load_run("runs/digits")
    run.trials.sort_values("val_accuracy").tail()         # one row a trial, a column for each path that is searched
    run.epochs[run.epochs.trial == "0003"]                # one row an epoch of a trial

It may be read while the search is under way: `summary` is None until the run is over.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kdtune.errors import ExperimentError, RunError
from kdtune.experiment import Experiment, load, with_values
from kdtune.experiment.chain import searched_assistants
from kdtune.experiment.space import parse
from kdtune.records import BEST, DISTILLED, read_lines, read_object
from kdtune.report.reading import Told, final_epochs, final_lines, final_runs, read_told
from kdtune.report.summary import read_summary
from kdtune.trial import SINGLE, asked, is_of, jobs_of
from kdtune.tuning.curves import foretell_bounded
from kdtune.tuning.making import make_study
from kdtune.tuning.samplers import Random
from kdtune.tuning.study import DIVERGED, Seen


@dataclass(frozen=True)
class Run:
    """A run folder, as it was when it was read. Accuracies are fractions.

    trials        trial, status (complete, stopped, running, diverged, failed), epochs (how far it came), planned,
                  val_accuracy (of its last epoch; 0 where it diverged), cost (of search.second_objective), and one
                  column for each path that is searched: missing where the path is inactive in the trial, or its value
                  null (`configs` tells these apart)
    epochs        one row an epoch of a trial: trial, epoch, epochs (planned), at (seconds of the search), loss,
                  `term.<name>` (weighted terms of the loss, they add up to it), val_accuracy, val_loss, learning_rate,
                  seconds, waited, temperature, alpha, feature_weight
    final         one row a run of the final stage: name (of the row of the results table), seed, test_accuracy, ...;
                  of a search that went on, those of its present winner
    final_epochs  one row an epoch of those
    """

    folder: Path
    experiment: Experiment
    summary: dict[str, Any] | None
    trials: pd.DataFrame
    epochs: pd.DataFrame
    configs: Mapping[str, Mapping[str, Any]]  # {trial: {path: value}}
    parents: Mapping[str, tuple[str, int]]  # of forks: the trial whose state they went on from, and its epoch
    lines: Sequence[Mapping[str, Any]]  # of final.jsonl, all of them

    @property
    def paths(self) -> list[str]:
        """Dotted paths that trials differ in."""
        return list(dict.fromkeys(path for config in self.configs.values() for path in config))

    def tried(self, path: str, trials: Iterable[str]) -> tuple[list[Any], list[bool]]:
        """Of each trial the value of a path, and whether the path is inactive in it (its value is None then, too)."""
        configs = [self.configs[trial] for trial in trials]
        return [config.get(path) for config in configs], [path not in config for config in configs]

    @cached_property
    def best(self) -> str | None:
        """The trial that won; before there is a winner, the best so far. None where there is no trial."""
        outcome = _outcome(self.folder, self.experiment)
        if outcome is not None and outcome.get("trial") in self.configs:
            return str(outcome["trial"])
        trials = self.trials.assign(full=self.trials["epochs"] >= self.trials["planned"])
        sound = trials[trials["status"] != "diverged"]
        order = sound.sort_values(["full", "val_accuracy"], ascending=False, kind="stable")
        return None if order.empty else str(order["trial"].iloc[0])

    @cached_property
    def winner(self) -> Experiment:
        """The experiment with the values of the best trial."""
        found = self.summary["best"]["config"] if self.summary else self.configs.get(self.best or "", {})
        return with_values(self.experiment, found)

    @cached_property
    def final(self) -> pd.DataFrame:
        return final_runs(self._final_lines)

    @cached_property
    def final_epochs(self) -> pd.DataFrame:
        return final_epochs(self._final_lines)

    @cached_property
    def _final_lines(self) -> list[Mapping[str, Any]]:
        """One of a name and seed: that of the winner, else, where a run is over, the last: other versions may have told
        apart what runs are made of in another way. Searched assistants are not known here."""
        known = {(job.name, job.seed): job.made_of for job in jobs_of(self.experiment, self.winner)}
        ordered = sorted(self.lines, key=lambda line: is_of(line, known))
        every = self.summary is not None or bool(searched_assistants(self.experiment))
        chosen = {(line["name"], line["seed"]): line for line in ordered if every or is_of(line, known)}
        return list(chosen.values())

    @property
    def single(self) -> bool:
        """Whether it is of `kdtune train`: one student, with the file's own configuration. A search has no trial that
        tries nothing."""
        if self.configs:
            return list(self.configs.values()) == [{}]
        return self.summary is None and self.folder.resolve().name == f"{self.experiment.name}{SINGLE}"

    @property
    def searched(self) -> bool:
        """Whether there is a search at all, of which there is a winner."""
        return self.experiment.search.trials > 0 and not self.single

    @property
    def winner_name(self) -> str:
        """Of its row in the results table."""
        return BEST if self.searched else DISTILLED

    @cached_property
    def foretold(self) -> pd.DataFrame:
        """Of each trial (in their order) `value`, the validation accuracy that it reaches in full, and `spread`, the
        standard deviation of its error: 0 for one that ran in full. See `tuning.curves`."""
        curves = _whole_curves(self.epochs, self.parents)
        epochs = int(self.trials["planned"].max()) if len(self.trials) else 0
        seen = [
            Seen(number, self.configs[trial], {}, curves[trial], status)
            for number, (trial, status) in enumerate(zip(self.trials["trial"], self.trials["status"], strict=True))
        ]
        if not seen:
            return pd.DataFrame({"value": [], "spread": []}, dtype=float)
        forecast = foretell_bounded(seen, epochs)
        return pd.DataFrame({"value": forecast.values, "spread": forecast.spreads})


def load_run(path: Path | str) -> Run:
    """Reads a run folder, finished or not. Raises RunError where it is none, or where its files are damaged."""
    folder = Path(path).expanduser()
    if not folder.exists():
        raise RunError(f"there is no folder {folder}. Give that of a run, such as runs/digits")
    if not (folder / "experiment.yaml").is_file():
        raise RunError(
            f"{folder} is no run folder: it has no experiment.yaml. Give the folder that `kdtune search` names at its "
            f"end, such as runs/digits"
        )
    try:
        experiment = load(folder / "experiment.yaml")
    except ExperimentError as error:
        raise RunError(f"{folder} holds an experiment that this version cannot read: {error}") from error
    told = read_told(folder / "trials.jsonl")
    summary = read_summary(folder) if (folder / "summary.json").is_file() else None
    trials = _trials(folder, experiment, told, over=summary is not None)
    lines = final_lines(folder / "final.jsonl")
    return Run(folder, experiment, summary, trials, told.epochs, told.configs, told.parents, lines)


def _trials(folder: Path, experiment: Experiment, told: Told, *, over: bool) -> pd.DataFrame:
    last = told.epochs.drop_duplicates("trial", keep="last").reset_index(drop=True)
    diverged = last["loss"].isna()
    status = pd.Series("stopped", index=last.index).mask(last["epoch"] >= last["epochs"], "complete")
    status = status.mask(diverged, "diverged")
    begun = not over and _outcome(folder, experiment) is None and (status == "stopped").any()
    going = _going(folder, experiment, set(last["trial"][status == "stopped"])) if begun else set()
    status = status.mask(last["trial"].isin(going), "running")
    failures = _failures(folder)
    failed = last["epoch"] <= pd.Series([failures.get(trial, -1.0) for trial in last["trial"]], last.index, dtype=float)
    status = status.mask(failed & status.isin(["stopped", "running"]), "failed")
    frame = pd.DataFrame(
        {
            "trial": last["trial"],
            "status": status,
            "epochs": last["epoch"].astype(int),
            "planned": last["epochs"].astype(int),
            "val_accuracy": last["val_accuracy"].fillna(DIVERGED).mask(diverged, DIVERGED),
            "cost": told.epochs.groupby("trial", sort=False)["cost"].first().reindex(last["trial"]).to_numpy(),
        }
    )
    searched, _ = parse(experiment.search.space)
    for path in dict.fromkeys([*(one.path for one in searched), *(p for c in told.configs.values() for p in c)]):
        frame[path] = pd.Series([told.configs[trial].get(path) for trial in last["trial"]], index=frame.index)
    return frame


def _failures(folder: Path) -> dict[str, float]:
    """How many epochs each trial had behind it when it failed for the last time. The next process tries it again: one
    that has come further since has not failed. Earlier versions did not say how far; there, all have."""
    lines = read_lines(folder / "errors.jsonl")
    return {str(line["trial"]): float(line.get("epoch", math.inf)) for line in lines if not line["times"]}


def _going(folder: Path, experiment: Experiment, open_: set[str]) -> set[str]:
    """Trials of a search under way that have not ended: the records and the stopper say which were stopped.

    Where another version has judged otherwise that cannot be told: whatever may still run counts as running.
    """
    study = make_study(experiment, sampler=Random([], experiment.search.seed))  # which is not asked for anything
    try:
        study.replay(read_lines(folder / "trials.jsonl"))
    except RunError:
        return open_
    return {f"{number:04d}" for number in study.going}


def _outcome(folder: Path, experiment: Experiment) -> dict[str, Any] | None:
    """What the search of a folder has come to, once it is over, with as much search as the experiment asks for."""
    path = folder / "final" / "winner.json"
    if not path.is_file():
        return None
    outcome = read_object(path)
    goal = asked(experiment)
    return outcome if outcome.get("asked", goal) == goal else None  # an earlier version did not say


def _whole_curves(epochs: pd.DataFrame, parents: Mapping[str, tuple[str, int]]) -> dict[str, list[float]]:
    """Validation accuracy of each epoch from the first on; a fork's begins with that of its parent."""
    values = epochs["val_accuracy"].fillna(DIVERGED).mask(epochs["loss"].isna(), DIVERGED)
    own: dict[str, list[float]] = {
        str(trial): part.tolist() for trial, part in values.groupby(epochs["trial"], sort=False)
    }
    whole: dict[str, list[float]] = {}
    for trial, curve in own.items():  # parents come before their forks
        parent, epoch = parents.get(trial, ("", 0))
        whole[trial] = [*whole.get(parent, [])[:epoch], *curve]
    return whole
