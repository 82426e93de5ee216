"""Facts and tables as a person reads them: as wide as the terminal, one fact a line in a pipe."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from kdtune.cache import User

PIPE_WIDTH = 140


def console() -> Console:
    """Of stdout. A pipe has no width: tables in it should not be squeezed into 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_facts(facts: Mapping[str, str]) -> None:
    """Names on the left; long values are wrapped beside them in a terminal, and left whole in a pipe."""
    width = max(map(len, facts))
    out = console()
    if not out.is_terminal:
        for name, value in facts.items():
            out.print(Text(f"{name:<{width}}  {value}"), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))  # not as markup: paths may hold brackets
    out.print(table)


def megabytes(size: float) -> str:
    """Of bytes, in MB; of very few in kB, of very many in GB."""
    if size == 0:
        return "0 MB"
    if size >= 1e10:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def user_in_words(user: "User") -> str:
    return f"{user.name} ({f'on {user.host}' if user.state == 'elsewhere' else user.state})"
