"""What the commands for searches on a cluster share: beginning one, watching it, its results; Ctrl-C detaches."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtune.cli.completing import searches
from kdtune.errors import RunError

if TYPE_CHECKING:
    from kdtune.cluster.finding import There
    from kdtune.cluster.remembering import Remembered
    from kdtune.cluster.remote import Remote
    from kdtune.experiment import Experiment

Name = Annotated[
    str | None,
    typer.Argument(
        help="Name of a search on a cluster, or its run folder; by default the only one.",
        show_default=False,
        autocompletion=searches,
    ),
]
LABEL = 10  # characters, as in the lines of a local search


def begun_before(experiment: "Experiment", *, local: bool, cluster: Path | None) -> "Remembered | None":
    """The search of that name which went to a cluster. Raises RunError where this one is to go elsewhere."""
    from kdtune.cluster.remembering import local_folder, recall

    before = recall(local_folder(experiment).resolve())
    if before is None:
        return None
    elsewhere = "this machine" if local else str(cluster) if cluster and cluster.resolve() != before.cluster else None
    if elsewhere:
        raise RunError(
            f"{before.folder} is of a search on the cluster of {before.cluster}; for one on {elsewhere} choose another "
            f"name (--set name=...), or remove that folder"
        )
    return before


def is_here(search: "Remembered", experiment: "Experiment") -> bool:
    """Whether the results of this very experiment have been fetched. Raises RunError where they are another's."""
    if not search.fetched:
        return False
    from kdtune.cluster.shipping import resolve

    if resolve(experiment, Path.cwd()).digest != search.digest:
        earlier = _as_asked(search, experiment)
        if earlier is not None and resolve(earlier, Path.cwd()).digest == search.digest:
            return False  # it asks for more
        raise RunError(
            f"{search.folder} holds the results of another experiment, or of other checkpoints; nothing was changed. "
            f"Choose another name (--set name=...), or remove that folder"
        )
    say("finished", f"{search.folder} holds this very experiment; --set name=... searches anew")
    return True


def _as_asked(search: "Remembered", experiment: "Experiment") -> "Experiment | None":
    """The experiment with the limits of the search that was fetched, if it goes no less far."""
    from kdtune.experiment.search import Budget
    from kdtune.report import read_summary

    fetched = search.folder / "summary.json"
    asked = read_summary(search.folder)["search"].get("asked") if fetched.exists() else None  # earlier versions: no
    if not asked or asked["trials"] > experiment.search.trials:
        return None
    budget = Budget(**{name: limit for name, limit in asked.items() if name != "trials"})
    limits = {"trials": asked["trials"], "budget": budget}
    return experiment.model_copy(update={"search": experiment.search.model_copy(update=limits)})


def on_cluster(there: "There", experiment: "Experiment", *, down: bool) -> None:
    """Begins the search there, or takes it up again, and sees it through."""
    from kdtune.cluster.remote import Remote
    from kdtune.search.placing import Node, place

    say("where", there.why)
    nodes = there.cluster.nodes()
    if nodes is not None:
        place(experiment.resources, [Node(**node) for node in nodes])  # type: ignore[arg-type]  # count is whole
    remote = Remote(there.cluster, there.head)
    try:
        search = remote.begin(experiment, Path.cwd(), lambda text: say("job", text))
    except KeyboardInterrupt:
        typer.echo(
            f"\nInterrupted before the search was watched; it goes on on the cluster if it has begun.\n"
            f"  kdtune status {experiment.name}    tells whether it has\n"
            f"  the same `kdtune search` begins it, or watches it",
            err=True,
        )
        raise typer.Exit(130) from None
    see_through(remote, search, down=down)


def see_through(remote: "Remote", search: "Remembered", *, down: bool = False) -> None:
    """Shows the search's progress to its end, fetches and prints its results, takes the cluster down if asked."""
    with detachable(search, down=down):
        if not remote.details(search).status.is_terminal():
            for text in remote.follow(search, lambda text: say("cluster", text)):
                sys.stdout.write(text)
                sys.stdout.flush()
        search = remote.bring_home(search)
    show_results(search)
    if down:
        remote.down(search)


def show_results(search: "Remembered") -> None:
    from kdtune.cli.results import print_results
    from kdtune.cli.tables import console

    out = console()
    out.soft_wrap = not sys.stdout.isatty()
    print_results(search.folder, out)


@contextmanager
def detachable(search: "Remembered", *, down: bool) -> Iterator[None]:
    """Ctrl-C leaves the search running, and says how to come back to it."""
    try:
        yield
    except KeyboardInterrupt:
        name = search.name
        typer.echo(
            f"\nDetached; the search {name} goes on on the cluster, which costs until it is taken down."
            + (" It has not been taken down (--down is for searches that were seen through)." if down else "")
            + f"\n  kdtune attach {name}    watches it again and fetches its results\n"
            f"  kdtune status {name}    how far it is\n"
            f"  kdtune stop {name}      stops it; the same `kdtune search` takes it up again",
            err=True,
        )
        raise typer.Exit(130) from None


def reach(search: "Remembered") -> "Remote":
    """The cluster of a search, reached. Raises ClusterError where it is not running."""
    from kdtune.cluster.finding import running
    from kdtune.cluster.remote import Remote

    there = running(search.cluster_file(), str(search.cluster))
    return Remote(there.cluster, there.head)


def take_down(search: "Remembered") -> None:
    """Takes down the cluster of a search whose results are here, if that still runs."""
    from kdtune.cluster.finding import NotRunningError

    try:
        reach(search).down(search)
    except NotRunningError as error:
        say("cluster", str(error))


def say(label: str, text: str) -> None:
    typer.echo(f"{label:<{LABEL}}{text}")
