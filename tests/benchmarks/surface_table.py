"""A search space on digits whose every point has been trained: `surface.json.gz`, and how it was made.

    nice -n 15 python -m tests.benchmarks.surface_table --folder /tmp/surface     # 17 minutes of one core

100 configurations (temperature, alpha, a fixed or falling temperature, with and without feature maps) times several
seeds, each trained in full by kdtune's own loop with the accuracy of every epoch kept. A student of 346 parameters and
half of the training images make the best of them 13 points better than the worst, many times the spread over seeds.
What is in the folder already is not trained again, so that it may be interrupted, or asked for more seeds later.
"""

import argparse
import gzip
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdtune.experiment import parse, with_values
from kdtune.records import append_line, mend, read_lines
from kdtune.trial import Bench, Silent, prepare

TABLE = Path(__file__).with_name("surface.json.gz")
SEEDS = 3
EXPERIMENT: dict[str, Any] = {
    "name": "surface",
    "data": {"dataset": "digits", "validation": 0.5},
    "teacher": {"model": "cnn-32-64-64", "train": {"epochs": 12, "batch_size": 64, "learning_rate": 0.05}},
    "student": {"model": "cnn-16"},
    "train": {"epochs": 30, "batch_size": 64, "learning_rate": 0.2},
    "distill": {"temperature": {"kind": "exponential", "start": 4, "end_ratio": 0.25}},
}
GRID: dict[str, list[Any]] = {
    "distill.temperature.kind": ["fixed", "exponential"],
    "distill.temperature.start": [1, 2, 4, 8, 16],
    "distill.alpha": [0.2, 0.5, 0.8, 0.9, 0.99],
    "distill.feature_weight": [0, 1],
}


def configurations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every point of a grid, in the order of its table."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


@dataclass(frozen=True)
class Surface:
    """The table: validation accuracy of every configuration, seed and epoch."""

    experiment: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    accuracy: Sequence[Sequence[Sequence[float]]]  # [configuration][seed][epoch]

    @property
    def seeds(self) -> int:
        return len(self.accuracy[0])

    @property
    def epochs(self) -> int:
        return len(self.accuracy[0][0])

    @cached_property
    def _indices(self) -> dict[tuple[Any, ...], int]:
        return {tuple(config.values()): k for k, config in enumerate(configurations(self.grid))}

    def index(self, config: Mapping[str, Any]) -> int:
        """Of a configuration, whose values are the grid's."""
        return self._indices[tuple(config[path] for path in self.grid)]


def read_surface(path: Path = TABLE) -> Surface:
    content = json.loads(gzip.decompress(path.read_bytes()))
    images = content["images"]
    accuracy = [
        [[right / images for right in epochs] for epochs in of_seeds] for of_seeds in content["right"]
    ]  # as counts they are a quarter of the size
    return Surface(content["experiment"], content["grid"], accuracy)


def make(folder: Path, seeds: int) -> None:
    """Trains what the folder lacks, seed by seed, then writes the table."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    mend(path)
    done = {(line["configuration"], line["seed"]): line["right"] for line in read_lines(path)}
    experiment = parse({**EXPERIMENT, "storage": str(folder)})
    materials = prepare(experiment, torch.device("cpu"), Silent())
    bench, images = Bench(materials, torch.device("cpu")), len(materials.dataset.validation)
    configs = configurations(GRID)
    for seed, k in itertools.product(range(seeds), range(len(configs))):
        if (k, seed) in done:
            continue
        trial = bench.start(with_values(experiment, configs[k]), seed=seed)
        done[k, seed] = [round((record.val_accuracy or 0.0) * images) for record in trial.records]
        append_line(path, {"configuration": k, "seed": seed, "right": done[k, seed]})
        print(f"seed {seed}, configuration {k}: {done[k, seed][-1] / images:.2%}", flush=True)
    right = [[done[k, seed] for seed in range(seeds)] for k in range(len(configs))]
    table = {"experiment": EXPERIMENT, "grid": GRID, "images": images, "right": right}
    # without a time in it: the same numbers are the same file
    TABLE.write_bytes(gzip.compress(json.dumps(table, separators=(",", ":")).encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.surface_table")
    parser.add_argument("--folder", type=Path, required=True, help="of the teacher and of what has been trained")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.seeds)


if __name__ == "__main__":
    main()
