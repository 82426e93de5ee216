"""`kdtune stop [NAME]`: ends a search on a cluster so that it can be taken up again."""

from kdtune.cli.remote import Name, reach, say


def stop(name: Name = None) -> None:
    """Stop a search on a cluster as Ctrl-C stops one here: what has finished is kept. The cluster stays up."""
    from kdtune.cluster.remembering import find

    search = find(name)
    say("job", f"stopping {search.job}; it writes down what a resumed run needs")
    ended = reach(search).stop(search)
    say("job", f"{search.job} has {'finished' if ended.value == 'SUCCEEDED' else ended.value.lower()}")
    say("", f"the same `kdtune search` takes it up again; `ray down {search.cluster}` ends the cluster")
