"""What former searches know: their trials, for the sampler of a new one (`search.warm_start`).

    formers = former_runs(folder, experiment)              # of the run folder of the new search
    study = make_study(experiment, known=[seen for former in formers for seen in former.trials])

A trial is known by its values at the paths that are searched now: what its own search varied, or what its experiment
said. It fits where these lie within the new space, and what else differs counts for nothing. Accuracies of another
search are on another scale (other data, other lengths); `Seen.run` says of which they are, and a sampler compares them
within it only. The first time, what fits is copied to warm.jsonl in the new run's folder, whole or not at all: a search
that is taken up again knows the same, whatever has become of the others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdtune.errors import ExperimentError, RunError
from kdtune.experiment import Experiment, load, with_values
from kdtune.experiment.space import Parameter, active, encoded, parse, value_in
from kdtune.records import TrialRecord, read_lines, read_trials, write_text
from kdtune.tuning.study import DIVERGED, Seen, Status

KEPT = "warm.jsonl"
NOT_A_RUN = "give the folder of a search that kdtune has run, such as runs/digits"


@dataclass(frozen=True)
class Former:
    """A former search: its folder as the experiment names it, how many trials it has, and those that fit."""

    run: str
    count: int
    trials: tuple[Seen, ...]

    def __str__(self) -> str:
        return f"{len(self.trials)} of the {self.count} trials of {self.run} were known, those that fit the space"


def former_runs(folder: Path, experiment: Experiment, *, keep: bool = True) -> list[Former]:
    """The searches that the experiment names, from the run folder or, the first time, from their own.

    Trials have numbers below 0, the last -1. Without `keep` nothing is written: whoever asks beforehand has not begun.
    Raises RunError where one is no run, or has no trial that fits.
    """
    runs = experiment.search.warm_start
    if not runs:
        return []
    parameters, _ = parse(experiment.search.space)
    path = folder / KEPT
    lines = list(read_lines(path)) or [_line(run, folder, parameters, experiment) for run in runs]
    if keep and not path.exists():
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    number = -sum(len(line["known"]) for line in lines)
    formers = []
    for line in lines:
        known = tuple(
            Seen(number + k, one["config"], encoded(parameters, one["config"]), **_rest(one), run=line["run"])
            for k, one in enumerate(line["known"])
        )
        number += len(known)
        formers.append(Former(line["run"], line["trials"], known))
    return formers


@dataclass(frozen=True)
class _Known:
    """A trial as warm.jsonl has it."""

    config: Mapping[str, Any]  # of the paths that are searched now
    values: Sequence[float]
    status: Status
    cost: float | None


def _rest(one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name != "config"}


def _line(run: str, folder: Path, parameters: Sequence[Parameter], experiment: Experiment) -> dict[str, Any]:
    """What warm.jsonl keeps of a former search."""
    path = Path(run).expanduser()
    if path.resolve() == folder.resolve():
        raise RunError(f"{run} is this very run, whose trials it knows already; remove it from search.warm_start")
    former, trials = _read(path)
    alike = former.search.second_objective == experiment.search.second_objective
    costs = dict(_costs(path)) if alike else {}
    known, reasons = [], []
    for trial in trials:
        found = _fitted(parameters, trial, former, experiment)
        if isinstance(found, str):
            reasons.append(f"trial {trial.trial}: {found}")
        else:
            known.append(asdict(_Known(found, _values(trial), _status(trial), costs.get(trial.trial))))
    if not known:
        raise RunError(
            f"{run} has no trial that fits search.space, so nothing is known from it: "
            f"{reasons[0] if reasons else 'it has no trial at all'}. Remove it from search.warm_start, or search where "
            f"it has searched"
        )
    return {"run": run, "trials": len(trials), "known": known}


def _read(path: Path) -> tuple[Experiment, list[TrialRecord]]:
    if not (path / "experiment.yaml").is_file():
        raise RunError(f"{path} is no run folder, it has no experiment.yaml; {NOT_A_RUN}")
    if not (path / "trials.jsonl").is_file():
        raise RunError(f"{path} has no trials.jsonl: nothing was searched there; {NOT_A_RUN}")
    try:
        former = load(path / "experiment.yaml")
    except ExperimentError as error:
        raise RunError(f"{path} holds an experiment that this version cannot read: {error}") from error
    # one that was continued from the middle of another has no curve of its own
    return former, [trial for trial in read_trials(path / "trials.jsonl") if trial.epochs[0].epoch == 1]


def _costs(path: Path) -> Iterator[tuple[str, float]]:
    for line in read_lines(path / "trials.jsonl"):
        if line.get("cost") is not None:
            yield str(line["trial"]), line["cost"]


def _fitted(
    parameters: Sequence[Parameter], trial: TrialRecord, former: Experiment, experiment: Experiment
) -> dict[str, Any] | str:
    """The trial's values at the paths of the new space, or why it does not fit."""
    values = {p.path: trial.config[p.path] for p in parameters if p.path in trial.config}
    found = _within(parameters, values, experiment)
    if isinstance(found, str):  # what its search did not vary, or varied by another path, is in its experiment
        try:
            whole = with_values(former, trial.config)
        except ExperimentError as error:
            return str(error)
        read = {p.path: value_in(whole, p.path) for p in parameters}
        found = _within(parameters, {path: value for path, value in read.items() if value is not None}, experiment)
    return found


def _within(parameters: Sequence[Parameter], values: Mapping[str, Any], experiment: Experiment) -> dict[str, Any] | str:
    """Those of the values that the space asks for, or which of them is missing or outside."""
    codes = encoded(parameters, values)
    sample = {p.label: codes.get(p.label, p.middle()) for p in parameters}
    asked = active(parameters, sample, experiment)
    for path in asked:
        if not any(p.path == path and p.label in codes for p in parameters):
            return f"{path} is {values[path]!r}, outside" if path in values else f"{path} is not set"
    return asked


def _values(trial: TrialRecord) -> list[float]:
    return [DIVERGED if record.diverged else record.val_accuracy or 0.0 for record in trial.epochs]


def _status(trial: TrialRecord) -> Status:
    """A former search may still be going on: what a trial has shown by now is all that is known of it."""
    last = trial.epochs[-1]
    return "diverged" if last.diverged else "complete" if last.last else "stopped"
