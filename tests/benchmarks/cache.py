"""The teacher-logit cache against the student alone, a live teacher, the teacher's bare inference and the bare numbers.

Steps are kdtune's own (`Bench`, `distill`, the training loop), resnet20 at batch size 128 on random images of
CIFAR-100's shape, which take as long as real ones. Teachers have random weights and BatchNorm's statistics of those
images; their cache is a real one. Every round measures an epoch of each kind, so that ratios are of neighbours in time.

A live epoch over a cached one is held against (3 student + teacher) / (3 student): by operations, a step's backward
pass is two of its forward passes. Both are forward costs as a step has them: the student's in train mode with the
graph that backward needs, the teacher's as the live trial runs it. Where backward takes less time than its operations
suggest, as on a CPU, this asks for less than operation counts do, which the table has too.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdtune.cache import Answers, begin_cache, describe, identify
from kdtune.data import Batch
from kdtune.distill import Live
from kdtune.models import Tapped, build_model
from kdtune.training import default_device
from kdtune.trial.caches import place_of
from tests.benchmarks import cache_memory, cache_search
from tests.benchmarks.making import (
    BATCH,
    CLASSES,
    SHAPE,
    STUDENT,
    TEACHERS,
    bench_of,
    experiment_in,
    interleaved,
    live_trial,
    normalised,
    random_images,
    untrained,
)
from tests.benchmarks.timing import Clock, row

PAIRS = 3  # a repeat: rounds of what differs by little, cached and alone
BATCHES = (64, 256, 1024)  # of bare inference: the best counts
Result = tuple[list[dict[str, Any]], dict[str, float]]


def measure(repeats: int = 6, images: int = 256) -> Result:
    """steps, building, size, opening, memory and teacher passes of the teacher-logit cache"""
    clock = Clock(default_device())
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in (
            steps(Path(folder), clock, repeats, images),
            building(Path(folder), clock, repeats, max(512, images)),
            cache_memory.measure(Path(folder), clock),
            cache_search.measure(Path(folder)),
        ):
            rows += part[0]
            ratios |= part[1]
    ratios["lookup_share"] = ratios.pop("lookup_ms") / ratios.pop("step_of_512_ms")
    return rows, ratios


def steps(folder: Path, clock: Clock, repeats: int, count: int) -> Result:
    """Epochs of `count` images, alone, from the cache and with live teachers, and the forward passes beside them."""
    experiment = experiment_in(folder / "steps", epochs=(1 + PAIRS) * repeats + 2)
    dataset = random_images(count)
    teachers = {name: untrained(name, dataset, folder / name) for name in TEACHERS}
    bench = bench_of(experiment, dataset, teachers[TEACHERS[0]], clock.device)
    networks = {name: teacher.load(clock.device) for name, teacher in teachers.items()}
    trials = {name: bench.start(experiment, seed=0, alone=True, whole=True) for name in ("alone", "alone again")}
    trials["cached"] = bench.start(experiment, seed=0, whole=True)
    trials |= {f"live {name}": live_trial(experiment, bench, network) for name, network in networks.items()}
    batches = list(normalised(bench.dataset, BATCH))
    network_alone = bench.start(experiment, seed=0, alone=True).student.network.train()
    acts: dict[str, Callable[[], object]] = {name: partial(next, trial.records) for name, trial in trials.items()}
    acts["forward"] = partial(each, lambda batch: network_alone(batch.images), batches)
    for name, network in networks.items():
        acts[f"forward {name}"] = partial(each, Live(Tapped(network, ())), batches)
    again = acts.pop("alone again")
    close = {"alone": acts["alone"], "alone again": again, "cached": acts["cached"]}
    pairs = interleaved(close, clock, PAIRS * repeats)
    spent = interleaved(acts, clock, repeats)
    wide = experiment.model_copy(update={"train": experiment.train.model_copy(update={"batch_size": 512})})
    of_512 = [clock(lambda: next(bench.start(wide, seed=0, alone=True, whole=True).records)) for _ in range(3)]
    rows, ratios = told(spent, len(batches))
    rows += [
        row(f"{name} / alone", [x / a for x, a in zip(pairs[name], pairs["alone"], strict=True)], "", target)
        for name, target in (("alone again", "1"), ("cached", "<= 1.03"))
    ]
    return rows, {
        "cached_over_alone": sum(pairs["cached"]) / sum(pairs["alone"]),  # steadier than the median of rounds
        "alone_over_alone": sum(pairs["alone again"]) / sum(pairs["alone"]),  # 1 but for noise
        **ratios,
        "step_of_512_ms": 1e3 * statistics.median(of_512) * 512 / count,  # images are as many as there are, up to 512
    }


def told(spent: dict[str, list[float]], count: int) -> Result:
    """Rows and ratios of epochs of `count` steps."""
    rows = [row(f"step, {name}", [1e3 * s / count for s in seconds], "ms") for name, seconds in spent.items()]
    ratios = {}
    backward = [a / f for a, f in zip(spent["alone"], spent["forward"], strict=True)]
    rows.append(row("a step in forward passes of the student", backward, "", "3 by count"))
    operations = {name: operations_of(name) for name in (STUDENT, *TEACHERS)}
    for name in TEACHERS:
        ratio = [x / c for x, c in zip(spent[f"live {name}"], spent["cached"], strict=True)]
        ideal = [1 + t / (3 * s) for t, s in zip(spent[f"forward {name}"], spent["forward"], strict=True)]
        share = [x / i for x, i in zip(ratio, ideal, strict=True)]
        by_count = 1 + operations[name] / (3 * operations[STUDENT])
        rows.append(row(f"live {name} / cached", ratio, "", f"{by_count:.2f} by count"))
        rows.append(row(f"allowed for {name}", ideal, ""))
        rows.append(row(f"live {name} / cached / allowed", share, "", ">= 0.95"))
        suffix = "" if name == TEACHERS[0] else f"_{name}"
        ratios[f"live_over_cached{suffix}"] = statistics.median(ratio)
        ratios[f"live_over_cached_ideal{suffix}"] = statistics.median(ideal)
    return rows, ratios


def building(folder: Path, clock: Clock, repeats: int, count: int) -> Result:
    """Columns of `count` images, views, writing and hashing included, against the network on images at hand."""
    experiment = experiment_in(folder / "building", epochs=repeats + 1)
    dataset = random_images(count)
    teacher = untrained(TEACHERS[0], dataset, folder / "teacher")
    on_device = dataset.to(clock.device)
    network = teacher.load(clock.device)
    answers = Answers(lambda: network, on_device, experiment.data)
    identity = identify(dataset, experiment.data, teacher)
    place = place_of(experiment, identity)
    cache = begin_cache(place, describe(identity, dataset, teacher), views=repeats + 1, teacher=answers)
    columns = iter(range(repeats + 1))
    sizes = [size for size in BATCHES if size <= count]
    acts: dict[str, Callable[[], object]] = {"column": lambda: cache.ensure(next(columns))}
    acts |= {f"bare, {size} at once": partial(infer, network, list(normalised(on_device, size))) for size in sizes}
    spent = interleaved(acts, clock, repeats)
    rates = {name: [count / s for s in seconds] for name, seconds in spent.items()}
    rows = [row(f"{TEACHERS[0]}: {name}", rate, "images/s") for name, rate in rates.items()]
    built = rates.pop("column")
    ratio = [b / max(bare) for b, *bare in zip(built, *rates.values(), strict=True)]
    rows.append(row("building / bare inference", ratio, "", ">= 0.95"))
    return rows, {"build_over_inference": statistics.median(ratio)}


def each(act: Callable[[Batch], object], batches: list[Batch]) -> None:
    """One after the other, so that what a batch leaves behind is gone before the next."""
    for batch in batches:
        act(batch)


@torch.inference_mode()
def infer(network: nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        network(batch.images)


def operations_of(name: str) -> int:
    """Floating-point operations of one image's forward pass."""
    images: Tensor = torch.zeros(1, *SHAPE)
    with FlopCounterMode(display=False) as counter:
        build_model(name, SHAPE, CLASSES).eval()(images)
    return int(counter.get_total_flops())
