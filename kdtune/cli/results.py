"""What is said at the end of a search, from its run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtune.cli.progress import results_table, retried, short_config, verdict, what_changed
from kdtune.report import read_summary
from kdtune.trial import read_run
from kdtune.tuning.warm import KEPT, former_runs

SAFE, UNSAFE = 0.7, 0.3  # rank correlations from which on, and below which, an early order is called so


def print_results(folder: Path, console: Console) -> None:
    """The results table, and what stands below it."""
    summary = read_summary(folder)
    found = summary["search"]
    console.print(results_table(summary))
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
