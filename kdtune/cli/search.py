"""`kdtune search [FILE]`: the whole way from an experiment file to an exported student, here or on a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.completing import runs
from kdtune.cli.options import File, Overrides, importing, read, resumable

if TYPE_CHECKING:
    from kdtune.cluster.finding import Here, Joined
    from kdtune.experiment import Experiment

Local = Annotated[bool, typer.Option("--local", help="Search on this machine, whatever cluster there is.")]
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        show_default=False,
        help="Search on the running cluster of this cluster file; by default of cluster.yaml in this folder.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        show_default=False,
        help="Join the Ray cluster that this machine belongs to; `auto` finds it.",
    ),
]
Down = Annotated[bool, typer.Option("--down", help="Take the cluster down once the results are here.")]
WarmStart = Annotated[
    list[str] | None,
    typer.Option(
        "--warm-start",
        metavar="RUN",
        show_default=False,
        autocompletion=runs,
        help="Run folder of a former search, whose trials the sampler knows from the start; as search.warm_start. "
        "May be repeated.",
    ),
]
Shipped = Annotated[
    bool, typer.Option("--shipped", hidden=True, help="For jobs: who fetches the run prints its results.")
]


def search(
    file: File = None,
    overrides: Overrides = None,
    local: Local = False,
    cluster: Cluster = None,
    address: Address = None,
    down: Down = False,
    warm_start: WarmStart = None,
    shipped: Shipped = False,
) -> None:
    """Search, retrain the winner and its baselines, export the best student, print the table.

    The same command takes up an interrupted run. Without FILE it runs the built-in digits experiment.
    It runs on the cluster of cluster.yaml, if that is running, else on this machine, and says which, and why.
    """
    experiment = read(file, overrides, warm_start)

    from kdtune.cli.remote import begun_before, is_here, on_cluster, show_results, take_down
    from kdtune.cluster.finding import There, choose
    from kdtune.errors import ClusterError
    from kdtune.experiment import check_searchable

    check_searchable(experiment)
    before = None if address else begun_before(experiment, local=local, cluster=cluster)
    if before is not None and is_here(before, experiment):
        show_results(before)
        if down:
            take_down(before)
        return
    # a search goes on where it was begun
    place = choose(Path.cwd(), local=local, cluster=before.cluster if before else cluster, address=address)
    if isinstance(place, There):
        on_cluster(place, experiment, down=down)
    elif down:
        raise ClusterError(f"--down is for searches on a cluster, but this one runs {place.why}")
    else:
        _here(place, experiment, shipped=shipped)


def _here(place: "Here | Joined", experiment: "Experiment", *, shipped: bool) -> None:
    """On this machine, or at the Ray cluster that it belongs to."""
    with importing():
        from kdtune.cli.progress import watcher
        from kdtune.cli.results import print_results
        from kdtune.cluster.finding import Joined
        from kdtune.search.run import run_search

    with resumable(hint=not shipped), watcher() as watch:
        watch.say(f"where     {place.why}")
        folder = (
            run_search(experiment, watch, place.address) if isinstance(place, Joined) else run_search(experiment, watch)
        )
    if not shipped:
        print_results(folder, watch.console)
