"""Sections about what a run has come to: results, the winner, its errors, the time, the file."""

from collections.abc import Mapping
from typing import Any

from kdtune.experiment import Experiment, dump, textbook
from kdtune.records import ALONE, BEST, DISTILLED, TEACHER, TEXTBOOK_KD, read_object
from kdtune.report.figures import confusion as matrices
from kdtune.report.figures.calibration import reliability
from kdtune.report.figures.results import accuracies
from kdtune.report.figures.schedules import differing, schedule, values_of
from kdtune.report.figures.terms import loss_shares, shares_of
from kdtune.report.figures.time import OF_SINGLE, PARTS, time_spent
from kdtune.report.run import Run
from kdtune.report.sections.section import Section
from kdtune.report.verdict import verdict as sentence_of
from kdtune.report.wording import amount, coloured, duration, percent, points

TITLES = {"temperature": "Temperature", "alpha": "Alpha", "feature_weight": "Feature weight",
          "learning_rate": "Learning rate"}  # fmt: skip
SINGLE = "One configuration, trained once: nothing was searched, and the test set was left alone."
# Keys that rows of earlier versions do not have.
LATER = dict.fromkeys(("paired", "agreement", "flops", "size_mb", "latency_range_ms", "note"))


def verdict(run: Run) -> Section:
    """One sentence with numbers, and the figures that people ask for first."""
    if run.summary is None:
        facts = _facts_of_single(run) if run.single else _facts_so_far(run)
        return Section("verdict", None, {"sentence": so_far(run), "found": SINGLE if run.single else "",
                                         "facts": facts, "notes": []})  # fmt: skip
    search = run.summary["search"]
    found = (
        f"Found by {search['trials']:,} trials, {search['epochs_run']:,} of {search['epochs_full']:,} epochs, in "
        f"{duration(search['seconds'])}."
        if search["trials"]
        else "Nothing was searched: the configuration is the file's own."
    )
    notes = [
        f"Trial {one['trial']} was taken up again {one['times']} time{'s' * (one['times'] > 1)}: {one['error']}"
        for one in search.get("retried", [])
    ]
    says = {
        "sentence": run.summary.get("verdict") or sentence_of(run.summary),
        "found": found,
        "facts": _facts(run.summary),
        "notes": notes,
    }
    return Section("verdict", None, says)


def so_far(run: Run) -> str:
    """What a run without a summary has come to, in a sentence."""
    if run.single:
        return _of_single(run)
    if not run.searched:
        return f"Not finished: {len(run.final):,} of {_final_runs(run):,} runs of the final stage; nothing is searched."
    full = int((run.trials["status"] == "complete").sum())
    return (
        f"Not finished: {len(run.trials):,} of {run.experiment.search.trials:,} trials begun, {len(run.epochs):,} "
        f"epochs; {full:,} of them ran in full."
    )


def _of_single(run: Run) -> str:
    if run.trials.empty:
        return "Not finished: the student has no epoch behind it yet."
    trial = run.trials.iloc[0]
    epochs, planned = int(trial["epochs"]), int(trial["planned"])
    if trial["status"] == "diverged":
        return f"The student diverged in epoch {epochs:,} of {planned:,}."
    if epochs < planned:
        return f"Not finished: {epochs:,} of {planned:,} epochs, validation accuracy {percent(trial['val_accuracy'])}."
    return f"The student came to a validation accuracy of {percent(trial['val_accuracy'])} in {planned:,} epochs."


def _facts_of_single(run: Run) -> list[tuple[str, str, str]]:
    if run.trials.empty or run.trials["status"].iloc[0] == "diverged":
        return []
    last = run.epochs.iloc[-1]
    seconds = float(run.epochs["seconds"].sum() + run.epochs["waited"].sum())
    return [
        ("validation accuracy", percent(last["val_accuracy"]), f"after epoch {last['epoch']} of {last['epochs']}"),
        ("validation loss", f"{last['val_loss']:.4f}", "mean cross-entropy"),
        ("time", duration(seconds), "of training and validation"),
    ]


def _final_runs(run: Run) -> int:
    return run.experiment.final.seeds * (1 + len(run.experiment.final.baselines) + len(run.experiment.final.rows))


def _facts_so_far(run: Run) -> list[tuple[str, str, str]]:
    if run.best is None:
        return []
    best = run.trials[run.trials["trial"] == run.best].iloc[0]
    counts = run.trials["status"].value_counts()
    return [
        ("best so far", percent(best["val_accuracy"]), f"validation, trial {run.best}, epoch {best['epochs']}"),
        ("running", str(counts.get("running", 0)), "trials"),
        ("stopped early", str(counts.get("stopped", 0)), "trials"),
        ("final stage", f"{len(run.final)} of {_final_runs(run)}", "runs"),
    ]


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = {row["name"]: row for row in summary["results"]}
    best, alone = rows[BEST if BEST in rows else DISTILLED], rows.get(ALONE)
    facts = [("test accuracy", percent(best["mean"]), _spread(best))]
    if alone is not None:
        facts.append(("against alone", points(best["mean"] - alone["mean"]), "points of accuracy"))
    teacher = rows.get(TEACHER)
    if teacher is not None:
        facts.append(("teacher", percent(teacher["mean"]), teacher["model"]))
        times = teacher["parameters"] / max(best["parameters"], 1)
        facts.append(
            (
                "parameters",
                amount(best["parameters"]),
                f"teacher {amount(teacher['parameters'])}, {times:.3g} times as many",
            )
        )
        times = teacher["latency_ms"] / max(best["latency_ms"], 1e-9)
        facts.append(
            (
                "latency",
                f"{best['latency_ms']:.2f} ms",
                f"teacher {teacher['latency_ms']:.2f} ms, {times:.3g} times as long",
            )
        )
    return facts


def _spread(row: Mapping[str, Any]) -> str:
    seeds = len(row["test_accuracy"])
    return "one run" if row["std"] is None else f"± {row['std'] * 100:.2f} over {seeds} seeds"


def results(run: Run) -> Section | None:
    """The results table, and each seed as a mark."""
    if run.summary is None:
        return None
    rows = [LATER | row for row in run.summary["results"]]
    says = {
        "rows": rows,
        "winner": run.winner_name,
        "latency_on": run.summary.get("latency_on", "the machine of the run"),
    }
    return Section("results", "Results", says, {"results": accuracies(rows)})


def schedules(run: Run) -> Section | None:
    """The winner's schedules beside the textbook's."""
    if run.experiment.search.trials and run.best is None:
        return None
    winner = "student" if run.single else f"{run.winner_name} student"
    names = differing(run)
    figures = {f"schedule-{name}": schedule(run, name) for name in names}
    sentence = f"Of the {winner}" + (f", trial {run.best}" if run.searched else "")
    sentence += ", beside textbook KD (T = 4, alpha = 0.9, both fixed; Hinton et al. 2015)."
    says = {
        "sentence": sentence
        if run.summary or not run.searched
        else sentence.replace("Of the best", "Of the best so far"),
        "names": [(name, TITLES[name]) for name in names],
        "winner": run.winner_name,
        "no_features": "feature_weight" not in names,
        "ends": [_ends(run.winner, name) for name in names],
    }
    return Section("schedules", "The winner's schedules" if run.searched else "Schedules", says, figures)


def _ends(winner: Experiment, name: str) -> dict[str, Any]:
    values = values_of(winner, name)
    kind = winner.train.schedule if name == "learning_rate" else getattr(winner.distill, name).kind
    if name == "temperature" and winner.distill.learned_temperature:
        kind = "learned"
    book = values_of(textbook(winner), name)
    same = {"title": TITLES[name], "kind": kind, "first": float(values[0]), "last": float(values[-1])}
    if name == "learning_rate":
        return {**same, "textbook": "the same"}
    return {**same, "textbook": float(book[0])}


def terms(run: Run) -> Section | None:
    """Shares of the terms of the loss, of the winner and of textbook KD."""
    rows, figures = [], {}
    for name, row in (("terms-winner", run.winner_name), ("terms-textbook", TEXTBOOK_KD)):
        shares = shares_of(run, row)
        if not shares.empty:
            figures[name] = loss_shares(shares)
            rows.append((name, row, int((run.final["name"] == row).sum())))
    return Section("terms", "Shares of the loss", {"rows": rows}, figures) if rows else None


def confusion(run: Run) -> Section | None:
    """Matrices of the student alone and of the winner, and what changed most."""
    if run.summary is None:
        return None
    tables, classes = run.summary.get("confusion", {}), run.summary.get("classes", [])
    after = next((name for name in (BEST, DISTILLED) if name in tables), None)
    if after is None or ALONE not in tables:
        why = (
            f"There are no confusion matrices: with {len(classes)} classes they are not kept."
            if after is None
            else "There is no student alone to compare with (final.baselines)."
        )
        return Section("confusion", "Confusion before and after", {"why": why})
    worst = matrices.worst_error({name: tables[name] for name in (ALONE, after)})
    figures = {
        "confusion-before": matrices.matrix(tables[ALONE], classes, worst),
        "confusion-after": matrices.matrix(tables[after], classes, worst),
        "confusion-change": matrices.change(tables[ALONE], tables[after], classes),
    }
    says = {
        "before": ALONE,
        "after": after,
        "why": None,
        "changes": matrices.largest_changes(tables[ALONE], tables[after], classes),
    }
    return Section("confusion", "Confusion before and after", says, figures)


def calibration(run: Run) -> Section | None:
    """Reliability diagram, ECE, and agreement with the teacher."""
    if run.summary is None:
        return None
    told = run.summary.get("calibration")
    if not told:
        return Section("calibration", "Calibration", {"why": "The version that ran this search did not measure it."})
    by_name = {row["name"]: row for row in run.summary["results"]}
    rows = [
        {"name": name, "ece": one["ece"], "agreement": by_name.get(name, {}).get("agreement")}
        for name, one in told.items()
    ]
    says = {"rows": rows, "winner": run.winner_name, "why": None}
    return Section("calibration", "Calibration and agreement", says, {"calibration": reliability(told)})


def time(run: Run) -> Section | None:
    """Where the time went."""
    told: Mapping[str, float | None] | None = (run.summary or {}).get("time")
    labels = OF_SINGLE if run.single else PARTS
    if told is None:
        if run.epochs.empty:
            return None
        told = {  # what the trials' own records say
            "training": float(run.epochs["seconds"].sum()),
            "waiting": float(run.epochs["waited"].sum()),
            "final": float(run.final_epochs[["seconds", "waited"]].sum().sum()) if len(run.final_epochs) else None,
        }
    total = sum(seconds for seconds in told.values() if seconds)
    parts = [
        (label, told.get(name), None if told.get(name) is None or not total else (told.get(name) or 0.0) / total)
        for name, label in labels.items()
    ]
    searched = (run.summary or {}).get("search", {})
    wall = f" The search took {duration(searched['seconds'])} by the clock." if searched.get("trials") else ""
    says = {
        "sentence": f"{duration(total)} of work in all.{wall}",
        "unknown": ", ".join(label for label, seconds, _ in parts if seconds is None),
        "parts": parts,
        "parallel": not run.single,
    }
    return Section("time", "Where the time went", says, {"time": time_spent(told, labels)})


def experiment(run: Run) -> Section:
    """The experiment file, and the fingerprints of what it was run on."""
    path = run.folder / "materials.json"
    made_of = read_object(path) if path.is_file() else {}
    facts = [(_of(name), given) for name, given in made_of.items() if isinstance(given, str)]
    seed = run.experiment.search.seed
    facts.append(("seed", str(seed)) if run.single else ("seeds", f"search {seed}, final stage {_seeds(run)}"))
    says = {
        "command": "train" if run.single else "search",
        "source": coloured(dump(run.experiment)),
        "facts": facts,
    }
    return Section("experiment", "The experiment", says)


def _of(name: str) -> str:
    kind, _, rest = name.partition(" ")
    return f"fingerprint of the {kind}{f' {rest}' if rest and rest != kind else ''}"


def _seeds(run: Run) -> str:
    first = run.experiment.search.seed + 1
    last = first + run.experiment.final.seeds - 1
    return str(first) if first == last else f"{first} to {last}"
