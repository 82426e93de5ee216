"""`kdtune cache ...`: the teacher-logit caches, those of one experiment and all of a storage. One file per command."""

import typer

from kdtune.cli.cache.build import build
from kdtune.cli.cache.estimate import estimate
from kdtune.cli.cache.info import info
from kdtune.cli.cache.listing import list_caches
from kdtune.cli.cache.prune import prune
from kdtune.cli.cache.verify import verify

app = typer.Typer(no_args_is_help=True, help="Teacher-logit caches: what they cost, what is there, what may go.")
app.command("build")(build)
app.command("estimate")(estimate)
app.command("info")(info)
app.command("list")(list_caches)
app.command("prune")(prune)
app.command("verify")(verify)
