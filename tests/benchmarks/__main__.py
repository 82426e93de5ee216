"""Runs one benchmark, prints its table, writes `{"name", "machine", "rows", "ratios"}` where asked.

python -m tests.benchmarks overhead --json overhead.json
python -m tests.benchmarks cache --repeats 3
python -m tests.benchmarks top-k --data ~/photographs
python -m tests.benchmarks search-lcbench --data ~/lcbench --tasks 0-9 --seeds 4

An option is an argument of the benchmarks that have one of its name; what is not given is their own default.
"""

import argparse
import inspect
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    cache,
    driver_scale,
    overhead,
    peers,
    quickstart,
    scaling,
    search_lcbench,
    search_surface,
    sharing,
    step,
    topk,
)

Result = tuple[list[dict[str, Any]], dict[str, float]]
BENCHMARKS: dict[str, Callable[..., Result]] = {
    "cache": cache.measure,
    "driver-scale": driver_scale.measure,
    "overhead": overhead.measure,
    "peers": peers.measure,
    "quickstart": quickstart.measure,
    "scaling": scaling.measure,
    "search-lcbench": search_lcbench.measure,
    "search-surface": search_surface.measure,
    "sharing": sharing.measure,
    "step": step.measure,
    "top-k": topk.measure,
}
OPTIONS = ("repeats", "images", "data", "tasks", "seeds", "trials")


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
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS))
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds of what is measured interleaved")
    parser.add_argument("--images", type=int, metavar="N", help="training images")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a folder of photographs, or of LCBench")
    parser.add_argument("--tasks", metavar="FIRST-LAST", help="of LCBench")
    parser.add_argument("--trials", type=int, metavar="N", help="of the larger search")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or arguments.name is None:
        print("\n".join(f"{name:<14} {measure.__doc__}" for name, measure in sorted(BENCHMARKS.items())))
        return
    measure = BENCHMARKS[arguments.name]
    options = {name: value for name, value in vars(arguments).items() if name in OPTIONS and value is not None}
    try:
        inspect.signature(measure).bind(**options)
    except TypeError as error:  # "missing a required argument: 'data'", "got an unexpected keyword argument 'data'"
        parser.error(f"{arguments.name}: {error}")
    rows, ratios = measure(**options)
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
