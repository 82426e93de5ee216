"""`kdtune logs [NAME]`: what a search on a cluster has said so far."""

import typer

from kdtune.cli.remote import Name, reach


def logs(name: Name = None) -> None:
    """Print what a search on a cluster has said so far; `kdtune attach` goes on with what it says next."""
    from kdtune.cluster.remembering import find

    search = find(name)
    typer.echo(reach(search).log(search), nl=False)
