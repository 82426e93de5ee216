"""`kdtune` as a person types it, in a process of its own that must end well."""

import os
import subprocess
import sys
from pathlib import Path


def kdtune_(folder: Path, *arguments: str, **variables: str) -> str:
    """What it prints when it is called in `folder`, with environment variables besides."""
    done = subprocess.run(
        [sys.executable, "-m", "kdtune", *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout
