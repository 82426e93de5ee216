"""`kdtune search [FILE]`: the whole way from an experiment file to an exported student."""

from kdtune.cli.options import File, Overrides, read, resumable


def search(file: File = None, overrides: Overrides = None) -> None:
    """Search, retrain the winner and its baselines, export the best student, print the table.

    The same command takes up an interrupted run. Without FILE it runs the built-in digits experiment.
    """
    experiment = read(file, overrides)

    from kdtune.cli.progress import results_table, retried, short_config, verdict, watcher, what_changed
    from kdtune.report import read_summary
    from kdtune.search.run import run_search

    with resumable(), watcher() as watch:
        folder = run_search(experiment, watch)
    summary = read_summary(folder)
    found = summary["search"]
    watch.console.print(results_table(summary))
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
        watch.console.print(line, markup=False)
