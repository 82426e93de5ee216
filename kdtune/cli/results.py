"""What is said at the end of a search, from its run folder."""

from pathlib import Path

from rich.console import Console

from kdtune.cli.progress import results_table, retried, short_config, verdict, what_changed
from kdtune.report import read_summary


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
        *(["Changed most: " + "; ".join(changes)] if changes else []),
        *retried(summary),
        f"Student: {folder / 'student'}   Run: {folder}",
        *(f"The {row['name']} was {row['note']}." for row in summary["results"] if "note" in row),
    ):
        console.print(line, markup=False)
