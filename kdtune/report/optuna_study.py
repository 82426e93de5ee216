"""A search as an Optuna study in SQLite, for optuna-dashboard and whatever else reads one.

    write_study(load_run("runs/digits"), Path("digits.db"))
    optuna.load_study(study_name="digits", storage="sqlite:///digits.db")

What was stopped early is pruned there, what diverged or failed has failed; every epoch's validation accuracy is an
intermediate value. A choice is categorical; an option that is a range is named like the parameter that its number is
then (`distill.feature_weight@1`). A parameter that is not active in a trial is left out.
"""

import json
import math
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdtune.errors import ExportError
from kdtune.experiment.space import NESTED, Parameter, encoded, parse
from kdtune.records import writing
from kdtune.report.run import Run

if TYPE_CHECKING:  # an extra, and slow to import
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MADE_BY = "kdtune"  # a study's attribute: the run folder that it is a view of
STATES = {"complete": "COMPLETE", "stopped": "PRUNED", "diverged": "FAIL", "failed": "FAIL", "running": "RUNNING"}


def write_study(run: Run, file: Path) -> int:
    """Writes the study, whole or not at all; the number of its trials. A study of the same run is replaced.

    Raises ExportError where Optuna is not installed, where it cannot write, or where `file` is something else.
    """
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise ExportError(f"an Optuna study needs Optuna ({error}): pip install 'kdtune[optuna]'") from error
    _check_free(run, file)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as beside:  # Optuna reads braces in the name of a file as its own
        made = Path(beside) / "study.db"
        try:
            count = _fill(run, made)
        except SQLAlchemyError as error:
            told = getattr(error, "orig", None) or error  # of several lines otherwise, with the statement
            raise ExportError(f"Optuna cannot write its study in {beside}: {told}. Set TMPDIR to another") from error
        with made.open("rb") as content, writing(file) as out:
            shutil.copyfileobj(content, out)
    return count


def _fill(run: Run, file: Path) -> int:
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage
    from optuna.study import StudyDirection

    storage = RDBStorage(f"sqlite:///{file}")
    try:
        second = run.experiment.search.second_objective
        names = ["val_accuracy", second] if second else ["val_accuracy"]
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(names)]
        study = optuna.create_study(storage=storage, study_name=run.experiment.name, directions=directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # a name to show, and nothing besides
            study.set_metric_names(names)
        study.set_user_attr(MADE_BY, str(run.folder.resolve()))
        trials = list(_trials(run))
        for trial in trials:
            storage.create_new_trial(study._study_id, template_trial=trial)  # add_trial reads all others each time
        return len(trials)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_free(run: Run, file: Path) -> None:
    """Raises ExportError where there is something that is no study of this run."""
    if not file.parent.is_dir():
        raise ExportError(f"cannot write {file}: there is no folder {file.parent}")
    if not file.exists():
        return
    try:
        with sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", (MADE_BY,))
            known = [json.loads(value) for (value,) in rows]
    except sqlite3.Error:
        known = []  # no database, or none of Optuna's
    if known != [str(run.folder.resolve())]:
        raise ExportError(f"{file} exists and is no study of {run.folder}; nothing was changed. Choose another file")


def _trials(run: Run) -> Iterator["FrozenTrial"]:
    from optuna.trial import TrialState, create_trial

    parameters, _ = parse(run.experiment.search.space)
    distributions = {parameter.label: _distribution(parameter) for parameter in parameters}
    epochs = dict(list(run.epochs.groupby("trial", sort=False)))
    clock = _Clock(run)
    for row in run.trials.sort_values("trial").to_dict("records"):
        trial, told = str(row["trial"]), epochs[str(row["trial"])]
        config = run.configs[trial]
        sample = encoded(parameters, config)
        state = TrialState[STATES[row["status"]]]
        values = _values(run, row) if state in (TrialState.COMPLETE, TrialState.PRUNED) else None
        if state == TrialState.COMPLETE and values is None:  # its cost is not known
            state = TrialState.FAIL
        made = create_trial(
            state=state,
            values=values,
            params={p.label: _value(p, sample[p.label]) for p in parameters if p.label in sample},
            distributions={label: distributions[label] for label in sample},
            user_attrs=_attributes(run, row, config),
            intermediate_values=_curve(told),
        )
        made.datetime_start = clock.at(told["at"].iloc[0] - told["seconds"].iloc[0])
        made.datetime_complete = clock.at(told["at"].iloc[-1]) if state.is_finished() else None
        yield made


def _curve(told: pd.DataFrame) -> dict[int, float]:
    known = told.dropna(subset="val_accuracy")
    return dict(zip(known["epoch"].astype(int).tolist(), known["val_accuracy"].tolist(), strict=True))


def _values(run: Run, row: Mapping[str, Any]) -> list[float] | None:
    if run.experiment.search.second_objective is None:
        return [float(row["val_accuracy"])]
    return None if pd.isna(row["cost"]) else [float(row["val_accuracy"]), float(row["cost"])]


def _attributes(run: Run, row: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna has no word for. Numbers of trials are those of the records."""
    found = {"trial": row["trial"], "status": row["status"], "epochs": int(row["epochs"]), "config": dict(config)}
    if not pd.isna(row["cost"]):
        found["cost"] = float(row["cost"])
    if row["trial"] in run.parents:
        parent, epoch = run.parents[row["trial"]]
        found["parent"] = f"{parent} after epoch {epoch}"
    return found


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution([_option(parameter, k) for k in range(len(parameter.options))])
    if parameter.kind == "integer":
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.kind == "loguniform")


def _value(parameter: Parameter, code: float) -> Any:  # of any type that an option may have
    if parameter.kind == "choice":
        return _option(parameter, int(code))
    return int(code) if parameter.kind == "integer" else float(code)


def _option(parameter: Parameter, k: int) -> bool | int | float | str | None:
    """As Optuna keeps options: lists and mappings as text."""
    option = parameter.options[k]
    if option is NESTED:
        return f"{parameter.label}@{k}"
    return option if option is None or isinstance(option, bool | int | float | str) else json.dumps(option)


class _Clock:
    """Records tell seconds of the search. Their file was last written when the last of them was told."""

    def __init__(self, run: Run) -> None:
        records = run.folder / "trials.jsonl"
        last = run.epochs["at"].max() if len(run.epochs) else math.nan
        end = datetime.fromtimestamp(records.stat().st_mtime) if records.exists() else datetime.now()
        self.began = end - timedelta(seconds=0.0 if math.isnan(last) else float(last))

    def at(self, seconds: float) -> datetime:
        """Earlier versions did not tell: then everything was at once."""
        return self.began + timedelta(seconds=0.0 if math.isnan(seconds) else max(0.0, float(seconds)))
