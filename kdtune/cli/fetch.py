"""`kdtune fetch [NAME]`: the results of a finished search on a cluster, into the run folder here."""

from kdtune.cli.remote import Name, reach, show_results


def fetch(name: Name = None) -> None:
    """Bring summary, report and student of a finished search here, and print its table."""
    from kdtune.cluster.remembering import find

    search = find(name)
    show_results(search if search.fetched else reach(search).bring_home(search))
