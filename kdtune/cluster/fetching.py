"""A finished run comes home: its files in one archive through SSH, whole or absent in the local run folder.

    fetch(head, "digits", Path("runs/digits"))

The driver leaves a link ~/.kdtune/runs/<name> on the head, so that nobody here needs to know the cluster's storage.
"""

import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from kdtune.cluster.ssh import Head
from kdtune.errors import ClusterError

SUMMARY, STUDENT = "summary.json", "student"
WINNER = "final/best.safetensors"  # what `kdtune export` reads
# the summary last: where it is, everything is
RECORDS = (
    "experiment.yaml", "materials.json", "trials.jsonl", "errors.jsonl", "final.jsonl", "final/winner.json",
    "report.html", WINNER, STUDENT,
)  # fmt: skip
TRACKED = ("tracking.json", "tensorboard", "wandb")
FILES = (*RECORDS, *TRACKED, SUMMARY)
PART = ".fetched.part"


def fetch(head: Head, name: str, folder: Path) -> None:
    """Brings the results. Raises ClusterError where the run has not come to its end; nothing has changed here then."""
    run = f'"$HOME"/.kdtune/runs/{shlex.quote(name)}'
    there = f"for f in {' '.join(FILES)}; do if [ -e $f ]; then echo $f; fi; done"
    part = folder / PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tempfile.TemporaryFile() as archive:
            head.output(f"cd {run}/ && tar -czf - $({there})", archive)
            archive.seek(0)
            _unpack(archive, part)
        if not (part / SUMMARY).exists() or not (part / STUDENT).is_dir():
            raise ClusterError(f"the search {name} has no results yet; `kdtune attach {name}` waits for them")
        for file in FILES:
            _replace(part, file, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(archive: IO[bytes], part: Path) -> None:
    try:
        with tarfile.open(fileobj=archive) as content:
            content.extractall(part, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ClusterError(f"the results arrived damaged ({error}); the same command fetches them again") from error


def _replace(part: Path, file: str, folder: Path) -> None:
    """Puts what has arrived in place of what was there."""
    if not (part / file).exists():
        return
    target = folder / file
    if target.is_dir():
        target.rename(part / f"{file}.old")
    target.parent.mkdir(exist_ok=True)
    (part / file).rename(target)
