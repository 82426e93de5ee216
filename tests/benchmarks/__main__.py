"""Runs one benchmark, prints its table, writes `{"name", "machine", "rows", "ratios"}` where asked.

python -m tests.benchmarks overhead --json overhead.json
python -m tests.benchmarks quickstart
python -m tests.benchmarks top-k --data ~/photographs
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import overhead, quickstart, topk

Result = tuple[list[dict[str, Any]], dict[str, float]]
BENCHMARKS: dict[str, Callable[[], Result]] = {"overhead": overhead.measure, "quickstart": quickstart.measure}
ON_IMAGES: dict[str, Callable[[Path], Result]] = {"top-k": topk.measure}  # of the folder that --data names


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS | ON_IMAGES))
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"images, for {', '.join(ON_IMAGES)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or arguments.name is None:
        print("\n".join(f"{name:<12} {measure.__doc__}" for name, measure in sorted((BENCHMARKS | ON_IMAGES).items())))
        return
    if (arguments.name in ON_IMAGES) != (arguments.data is not None):
        parser.error(f"{', '.join(ON_IMAGES)} needs --data DIR, a folder of images; the others take none")
    rows, ratios = ON_IMAGES[arguments.name](arguments.data) if arguments.data else BENCHMARKS[arguments.name]()
    table = Table(title=arguments.name)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console()
    console.print(table)
    for key, ratio in ratios.items():
        console.print(f"{key}: {ratio:.4g}")
    if arguments.json:
        content = {"name": arguments.name, "machine": machine(), "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(content, indent=2))


main()
