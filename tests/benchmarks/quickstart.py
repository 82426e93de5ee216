"""From the command `kdtune search` to the printed table, everything included, in a folder that is new each time."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS = 3


def measure() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """seconds from `kdtune search` to its table"""
    rows = [_once(repeat) for repeat in range(REPEATS)]
    return rows, {
        "seconds_to_table": sorted(row["seconds"] for row in rows)[len(rows) // 2],
        "least_gain_over_spread": min(row["gain"] / row["spread"] for row in rows),
    }


def _once(repeat: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kdtune", "search"], cwd=folder, check=True)
        seconds = time.perf_counter() - began
        summary = json.loads((Path(folder) / "runs" / "digits" / "summary.json").read_text())
    results = {row["name"]: row for row in summary["results"]}
    best, alone = results["best"], results["student alone"]
    return {
        "repeat": repeat,
        "seconds": seconds,
        "teacher": results["teacher"]["mean"],
        "alone": alone["mean"],
        "textbook": results["textbook KD"]["mean"],
        "best": best["mean"],
        "gain": best["mean"] - alone["mean"],
        "spread": max(best["std"], alone["std"]),
    }
