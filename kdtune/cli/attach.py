"""`kdtune attach [NAME]`: watches a search on a cluster again, to its end."""

from kdtune.cli.remote import Name, reach, see_through, show_results


def attach(name: Name = None) -> None:
    """Show what a search on a cluster has said and says, and fetch its results at the end. Ctrl-C detaches."""
    from kdtune.cluster.remembering import find

    search = find(name)
    if search.fetched:
        show_results(search)
    else:
        see_through(reach(search), search)
