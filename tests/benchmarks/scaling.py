"""What a second worker gains, and how time grows with images, classes, epochs and trials.

Two processes of one thread each are a gloo group on this machine, and live through all rounds. A round is three epochs
of kdtune's own loop, distilled from a cache, validation included: `one` process with the whole batches, `two` that
share the same batches, and two that each train on its half `apart`, without a word to each other. Then
`ddp_efficiency` = one / (2 * two) is a product: one / (2 * apart) is what two busy cores cost each other and small
batches lose, apart / two what is left of the time once workers talk, wait, and compute the objective on whole batches.
These are seconds of the wall, since waiting counts: they mean something where two cores have nothing else to do.
`ddp_processors`, what both workers compute over what one does, is told on busy machines too, but not what they wait.

How time grows is in `growth`.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kdtune.experiment import Experiment
from kdtune.ranks import joined
from kdtune.trial import Bench, Materials
from tests.benchmarks import growth
from tests.benchmarks.making import BATCH, bench_of, experiment_in, interleaved, random_images, untrained
from tests.benchmarks.timing import row

Result = tuple[list[dict[str, Any]], dict[str, float]]
STUDENTS = {"resnet20": 768, "resnet8": 2304}  # training images
TEACHER = "resnet8"
WORKERS = 2
ONE, TWO, APART = "one", "two", "apart"
CPU = torch.device("cpu")
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload([__name__])


def measure(repeats: int = 5) -> Result:
    """an epoch with two workers against one, and how time grows with images, classes, epochs and trials"""
    rows, ratios = growth.measure(repeats)
    for student, images in STUDENTS.items():
        with tempfile.TemporaryDirectory() as folder:
            walls, computed = _rounds(Path(folder), student, images, repeats)
        wall = {name: statistics.median(seconds) for name, seconds in walls.items()}
        efficiency = wall[ONE] / (WORKERS * wall[TWO])
        rows += [row(f"{student}: an epoch, {name}", seconds, "s") for name, seconds in walls.items()]
        rows += [row(f"{student}: processor time, all workers, {name}", computed[name], "s") for name in walls]
        rows.append(row(f"{student}: efficiency, 1 is twice as fast", [efficiency], ""))
        rows.append(row(f"{student}: of that, two busy cores", [wall[ONE] / (WORKERS * wall[APART])], ""))
        rows.append(row(f"{student}: of that, talking and waiting", [wall[APART] / wall[TWO]], ""))
        ratios[f"ddp_efficiency_{student}"] = efficiency
        ratios[f"ddp_communication_share_{student}"] = 1 - wall[APART] / wall[TWO]
        ratios[f"ddp_processors_{student}"] = statistics.median(computed[TWO]) / statistics.median(computed[ONE])
    ratios["ddp_efficiency"] = min(ratios[f"ddp_efficiency_{student}"] for student in STUDENTS)
    return rows, ratios


def _rounds(
    folder: Path, student: str, images: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the wall, and those that the processors of all workers computed, of an epoch of each kind."""
    experiment = experiment_in(folder, repeats + 1, student=student, teacher={"model": TEACHER})
    dataset = random_images(images, validation=images // 9)
    bench = bench_of(experiment, dataset, untrained(TEACHER, dataset, folder / "teacher"), CPU)
    computed: dict[str, list[float]] = {ONE: [], TWO: [], APART: []}
    with _workers(folder / "store", experiment, bench.materials) as epoch:
        acts = {kind: partial(_counted, epoch, kind, computed[kind]) for kind in computed}
        walls = interleaved(acts, _wall, repeats)
    return walls, {kind: seconds[1:] for kind, seconds in computed.items()}


def _counted(epoch: Callable[[str], float], kind: str, computed: list[float]) -> None:
    computed.append(epoch(kind))


def _wall(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def _workers(store: Path, experiment: Experiment, materials: Materials) -> Iterator[Callable[[str], float]]:
    """A function that has the workers run an epoch of a kind, and gives the seconds that their processors computed."""
    orders: list[Queue[str | None]] = [FRESH.Queue() for _ in range(WORKERS)]
    answers: Queue[float] = FRESH.Queue()
    workers = [
        FRESH.Process(target=_work, args=(rank, store, experiment, materials, orders[rank], answers), daemon=True)
        for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()

    def epoch(kind: str) -> float:
        for each in orders:
            each.put(kind)
        return sum(answers.get(timeout=600) for _ in orders)

    yield epoch
    for each in orders:
        each.put(None)
    for worker in workers:
        worker.join()


def _work(
    rank: int,
    store: Path,
    experiment: Experiment,
    materials: Materials,
    orders: "Queue[str | None]",
    answers: "Queue[float]",
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    ranks, dataset = joined(), materials.dataset
    half = replace(dataset, fit=ranks.part(dataset.fit), validation=ranks.part(dataset.validation))
    halves = experiment.model_copy(
        update={"train": experiment.train.model_copy(update={"batch_size": BATCH // WORKERS})}
    )
    trials = {
        ONE: Bench(materials, CPU).start(experiment, seed=0),
        TWO: Bench(materials, CPU, ranks).start(experiment, seed=0),
        APART: Bench(replace(materials, dataset=half), CPU).start(halves, seed=0),
    }
    while (kind := orders.get()) is not None:
        began = time.process_time()
        if kind != ONE or rank == 0:
            next(trials[kind].records)
        answers.put(time.process_time() - began)
    dist.destroy_process_group()
