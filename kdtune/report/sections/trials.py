"""Sections about the trials of a search: how they ran, and what their values have to do with it."""

from typing import Any

from kdtune.report.figures import style
from kdtune.report.figures.curves import learning_curves
from kdtune.report.figures.fidelity import rank_correlation
from kdtune.report.figures.importance import importance_bars
from kdtune.report.figures.parallel import MOST_LINES, parallel_coordinates
from kdtune.report.figures.pareto import UNITS
from kdtune.report.figures.pareto import pareto as pareto_figure
from kdtune.report.figures.temperature import accuracy_by_temperature, temperature_alpha_map, varies
from kdtune.report.importance import importance
from kdtune.report.run import Run
from kdtune.report.sections.section import Section
from kdtune.tuning.rungs import rungs_of_search

SHOWN = 20  # trials of the table
TITLES = {"complete": "ran in full", "stopped": "were stopped early", "running": "are running",
          "diverged": "diverged", "failed": "failed"}  # fmt: skip


def curves(run: Run) -> Section | None:
    """Learning curves, and the best trials as a table."""
    if run.trials.empty:
        return None
    if run.single:
        return Section("curves", "Learning curve", {"single": True}, {"curves": learning_curves(run)})
    counts = run.trials["status"].value_counts()
    told = ", ".join(f"{counts[status]:,} {words}" for status, words in TITLES.items() if status in counts)
    run_of = f"{len(run.epochs):,} of {_full_epochs(run):,} epochs were run"
    stops = run.experiment.search.stopper.kind
    says = {
        "single": False,
        "summary": f"{len(run.trials):,} trials: {told}. {run_of} (stopper: {stops}).",
        "thinned": _thinned(run, style.MOST_CURVES, "curves"),
        "rungs": "" if stops == "none" else f"epochs {', '.join(map(str, rungs_of_search(run.experiment)))}",
        "trials": best_trials(run),
        "paths": run.paths,
        "best": run.best,
    }
    return Section("curves", "Learning curves", says, {"curves": learning_curves(run)})


def _full_epochs(run: Run) -> int:
    """Had none been stopped; a fork does not run those of its parent."""
    first = run.epochs.drop_duplicates("trial", keep="first")
    return int((first["epochs"] - first["epoch"] + 1).sum())


def best_trials(run: Run) -> list[dict[str, Any]]:
    """Rows of a table: by what is foretold, those that ran in full first among equals."""
    trials = run.trials.assign(foretold=run.foretold["value"], spread=run.foretold["spread"])
    trials = trials.sort_values(["foretold", "spread"], ascending=[False, True], kind="stable").head(SHOWN)
    names = ["trial", "status", "epochs", "planned", "val_accuracy", "foretold", "spread"]
    return [{**row, "config": run.configs[row["trial"]]} for row in trials[names].to_dict("records")]


def _thinned(run: Run, most: int, what: str) -> str:
    if len(run.trials) <= most:
        return ""
    return f" (the best quarter of {most:,} {what} and an even choice of the others; there are {len(run.trials):,})"


def temperature(run: Run) -> Section | None:
    """Accuracy against temperature, and the temperature x alpha map."""
    if run.trials.empty or run.single:
        return None
    drawn = {}
    by_temperature, by_alpha = varies(run, "temperature"), varies(run, "alpha")
    if by_temperature:
        drawn["temperature"] = accuracy_by_temperature(run)
    if by_temperature and by_alpha:
        drawn["map"] = temperature_alpha_map(run)
    says = {
        "searched": by_temperature or by_alpha,
        "temperature": by_temperature,
        "both": by_temperature and by_alpha,
        "thinned": _thinned(run, style.MOST_POINTS, "trials"),
    }
    return Section("temperature", "Temperature and alpha", says, drawn)


def parallel(run: Run) -> Section | None:
    """Parallel coordinates of what is searched."""
    if run.trials.empty or not run.paths:
        return None
    says = {"thinned": _thinned(run, MOST_LINES, "lines"), "axes": len(run.paths) + 1}
    return Section("parallel", "Parallel coordinates", says, {"parallel": parallel_coordinates(run)})


def importances(run: Run) -> Section | None:
    """What matters, or why that cannot be told."""
    if run.trials.empty or run.single:
        return None
    found = importance(run)
    drawn = {} if found.why else {"importance": importance_bars(found)}
    says = {"found": found, "paths": found.paths.to_dict("records")}
    return Section("importance", "What matters", says, drawn)


def fidelity(run: Run) -> Section | None:
    """Whether stopping early was safe."""
    if run.summary is None or not run.experiment.search.trials:
        return None
    rungs = run.summary["search"].get("rungs")
    if rungs is None:
        sentence = "The version that ran this search did not say."
    elif not any(rung["spearman"] is not None for rung in rungs):
        sentence = "That cannot be told: too few trials ran in full to compare their orders."
    else:
        first = next(rung for rung in rungs if rung["spearman"] is not None)
        sentence = (
            f"At epoch {first['epoch']}, where most trials end, it is {first['spearman']:.2f} over {first['trials']} "
            f"trials, with a 95% interval from {first['low']:.2f} to {first['high']:.2f}."
        )
    told = [rung for rung in rungs or [] if rung["spearman"] is not None]
    drawn = {"fidelity": rank_correlation(rungs)} if rungs and told else {}
    says = {"rungs": rungs or [], "told": bool(told), "sentence": sentence}
    return Section("fidelity", "Was stopping early safe?", says, drawn)


def pareto(run: Run) -> Section | None:
    """Accuracy against the second objective, where there is one."""
    second = run.experiment.search.second_objective
    if second is None or run.trials.empty or run.single:
        return None
    says = {"second": UNITS[second], "front": (run.summary or {}).get("pareto", [])}
    return Section("pareto", "Accuracy against size", says, {"pareto": pareto_figure(run)})
