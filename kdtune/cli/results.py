"""What is said at the end of a search, from its run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtune.cli.progress import short_config
from kdtune.records import ALONE, BEST, DISTILLED
from kdtune.report import read_summary, verdict
from kdtune.report.wording import megabytes
from kdtune.trial import read_run
from kdtune.tuning.warm import KEPT, former_runs

SHOWN_CHANGES = 3
WIDE = 104  # columns of a terminal from which on the table shows size and FLOPs too
SAFE, UNSAFE = 0.7, 0.3  # rank correlations from which on, and below which, an early order is called so


def print_results(folder: Path, console: Console) -> None:
    """The results table, and what stands below it."""
    summary = read_summary(folder)
    found = summary["search"]
    console.print(results_table(summary, wide=console.width >= WIDE))
    changes = what_changed(summary)
    for line in (
        verdict(summary),
        f"Found by {found['trials']} trials, {found['epochs_run']} of {found['epochs_full']} epochs, in "
        f"{found['seconds']:.1f} s: {short_config(summary['best']['config'])}"
        if found["trials"]
        else "Nothing was searched: the configuration is the file's own.",
        *stopping(summary),
        *_known(folder),
        *(["Changed most: " + "; ".join(changes)] if changes else []),
        *retried(summary),
        f"Student: {folder / 'student'}   Run: {folder}",
        *(f"The {row['name']} was {row['note']}." for row in summary["results"] if "note" in row),
    ):
        console.print(line, markup=False)
    if summary.get("pareto"):  # earlier versions had none
        console.print(front_table(summary))


def _known(folder: Path) -> list[str]:
    """How many trials of each former search the sampler knew."""
    if not (folder / KEPT).exists():
        return []
    return [f"From the start {former}." for former in former_runs(folder, read_run(folder))]


def stopping(summary: Mapping[str, Any]) -> list[str]:
    """A line on whether trials were stopped early safely: at the first rung, where most of them end."""
    search = summary["search"]
    rungs = search.get("rungs", [])  # earlier versions had none
    told = [rung for rung in rungs if rung["spearman"] is not None]
    if rungs and not told and search["stopped_early"]:
        return ["Whether stopping early was safe cannot be told: too few trials ran in full to compare their orders."]
    if not told:
        return []
    first, was = told[0], "was" if search["stopped_early"] else "would have been"
    line = f"Stopping early {was} {_how(first)}: the orders at epoch {first['epoch']} and at the end {_says(first)}"
    later = next((rung for rung in told[1:] if _how(rung) == "safe"), None)
    if _how(first) != "safe" and later is not None:
        line += f"; from epoch {later['epoch']} on by {later['spearman']:.2f} (search.stopper.grace_epochs)"
    return [f"{line}."]


def _how(rung: Mapping[str, Any]) -> str:
    if rung["low"] < UNSAFE and rung["high"] > SAFE:
        return "of unknown safety"
    return "safe" if rung["spearman"] >= SAFE else "not safe" if rung["spearman"] < UNSAFE else "a gamble"


def _says(rung: Mapping[str, Any]) -> str:
    return (
        f"agree by {rung['spearman']:.2f} (Spearman's rank correlation of {rung['trials']} trials that ran in full, "
        f"95% interval {rung['low']:.2f} to {rung['high']:.2f})"
    )


def front_table(summary: Mapping[str, Any]) -> Table:
    """The Pareto front: what no other trial beats in accuracy and cost both. The winner is its most accurate."""
    table = Table(
        title="Pareto front: validation accuracy of trials, the best is the last",
        title_justify="left",
        title_style="bold",
    )
    for name in ("trial", "accuracy", "parameters", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for one in summary["pareto"]:
        cells = one["trial"], f"{one['val_accuracy']:.2%}", f"{one['parameters']:,}", f"{one['latency_ms']:.2f} ms"
        table.add_row(*cells, Text(short_config(one["config"])))
    return table


def what_changed(summary: Mapping[str, Any]) -> list[str]:
    """The pairs of classes whose confusion changed most from the student alone to the winner; none without matrices."""
    tables = summary["confusion"]
    name = next((name for name in (BEST, DISTILLED) if name in tables), None)
    if name is None or ALONE not in tables:
        return []
    classes = summary["classes"]
    changes = []
    for label, (before, after) in enumerate(zip(tables[ALONE], tables[name], strict=True)):
        shares = [(b / max(sum(before), 1), a / max(sum(after), 1)) for b, a in zip(before, after, strict=True)]
        changes += [(a - b, classes[label], classes[k], b, a) for k, (b, a) in enumerate(shares) if k != label]
    changes.sort(key=lambda change: abs(change[0]), reverse=True)
    return [
        f"{label} taken for {answer}: {before:.1%} → {after:.1%}"
        for difference, label, answer, before, after in changes[:SHOWN_CHANGES]
        if difference
    ]


def retried(summary: Mapping[str, Any]) -> list[str]:
    """A line for each trial that was lost and taken up again."""
    return [
        f"Trial {one['trial']} was taken up again {one['times']} time{'s' * (one['times'] > 1)}; the last reason: "
        f"{one['error']}"
        for one in summary["search"].get("retried", [])
    ]


def results_table(summary: Mapping[str, Any], *, wide: bool = True) -> Table:
    """The table of a finished search: one row each for the teacher, the baselines and the best student."""
    table = Table(title="Test accuracy, last epoch, whole training set", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("model", overflow="ellipsis")  # the first to give way where a terminal is narrow
    for name in ("accuracy", "std", "runs", "parameters", *(("size", "FLOPs") if wide else ()), "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["results"]:
        style = "bold" if row["name"] in (BEST, DISTILLED) else ""
        more = (megabytes(row["size_mb"]), _count(row["flops"]) if "flops" in row else "")  # earlier versions: no FLOPs
        table.add_row(
            Text(row["name"]),  # not as markup: names may hold brackets
            row["model"],
            f"{row['mean']:.2%}",
            "" if row["std"] is None else f"{row['std']:.2%}",
            str(len(row["test_accuracy"])),
            f"{row['parameters']:,}",
            *(more if wide else ()),
            f"{row['latency_ms']:.2f} ms",
            style=style,
        )
    return table


def _count(operations: float) -> str:
    """In thousands, millions, billions (10^9), as GFLOPs are counted."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if operations >= size:
            return f"{operations / size:,.1f} {unit}"
    return f"{operations / 1e3:,.1f} k"
