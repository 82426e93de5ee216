"""The final stage: winner and baselines, several seeds each, full length, whole training set, test set read once.

Runs are independent and go side by side over the same slots as trials. Each finished run is one line of
final.jsonl, so a stage that was interrupted repeats only what is missing. Seeds differ from the search's own, on
which the winner was chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import safetensors.torch
import torch
from torch import Tensor

from kdtune.data import Dataset
from kdtune.errors import RunError
from kdtune.experiment import Experiment, row, textbook
from kdtune.records import ALONE, BEST, DISTILLED, TEXTBOOK_KD, append_line, mend, read_lines, write_bytes
from kdtune.search.placing import Slots
from kdtune.teacher import weights_of
from kdtune.training import evaluate
from kdtune.trial import Bench, Materials

MOST_CONFUSED = 100  # classes up to which a run's confusion matrix is kept
WEIGHTS = "best.safetensors"  # of the winner's first seed: what is exported


@dataclass(frozen=True)
class Job:
    name: str
    seed: int
    experiment: Experiment
    alone: bool


class FinalWorker:
    """An actor that trains one student after another and reads the test set once for each."""

    def __init__(self, materials: Materials, device: torch.device, threads: int) -> None:
        torch.set_num_threads(threads)
        self.bench = Bench(materials, device)

    def run(self, job: Job, folder: Path, *, keep_weights: bool) -> dict[str, Any]:
        """One line of final.jsonl. State is saved in `folder` now and then, so that a long run can be taken up."""
        trial = self.bench.start(job.experiment, seed=job.seed, alone=job.alone, whole=True)
        state = state_file(folder, job)
        for _ in trial.resumable(state):
            pass
        network, dataset = trial.student.network, self.bench.dataset
        if keep_weights:
            write_bytes(folder / WEIGHTS, safetensors.torch.save(weights_of(network)))
        test = evaluate(network, dataset, dataset.test.images, dataset.test.labels)
        state.unlink(missing_ok=True)
        return {
            "name": job.name,
            "seed": job.seed,
            "test_accuracy": test.accuracy,
            "confusion": _confusion(test.predictions, dataset) if len(dataset.classes) <= MOST_CONFUSED else None,
            "diverged": trial.history[-1].diverged,
            "epochs": [record.to_json() for record in trial.history],
        }


def state_file(folder: Path, job: Job) -> Path:
    """Of a run that has not ended; the name as it is, since `a b` and `a-b` may be two rows."""
    return folder / f"{job.name}-{job.seed}.pt"


def _confusion(predictions: Tensor, dataset: Dataset) -> list[list[int]]:
    """Test images by their label (row) and the student's answer (column)."""
    count = len(dataset.classes)
    pairs = dataset.test.labels * count + predictions
    table: list[list[int]] = torch.bincount(pairs, minlength=count * count).view(count, count).tolist()
    return table


def jobs_of(experiment: Experiment, winner: Experiment) -> list[Job]:
    """Every run of the stage, the winner's first. Baselines are trained like the winner, rows as the file says."""
    found = BEST if experiment.search.trials else DISTILLED
    baselines = {ALONE: (winner, True), TEXTBOOK_KD: (textbook(winner), False)}
    configurations = {found: (winner, False)}
    configurations |= {name: baselines[name] for name in experiment.final.baselines}
    configurations |= {name: row(experiment, changes) for name, changes in experiment.final.rows.items()}
    seeds = range(experiment.search.seed + 1, experiment.search.seed + 1 + experiment.final.seeds)
    return [Job(name, seed, one, alone) for name, (one, alone) in configurations.items() for seed in seeds]


def run_final(
    folder: Path,
    experiment: Experiment,
    winner: Experiment,
    materials: Materials,
    slots: Slots,
    watch: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Lines of final.jsonl, all of them. `watch(done, total)` hears of each run. Raises RunError if a run fails."""
    path = folder / "final.jsonl"
    (folder / "final").mkdir(exist_ok=True)
    mend(path)
    lines = list(read_lines(path))
    jobs = jobs_of(experiment, winner)
    done = {(line["name"], line["seed"]) for line in lines}
    waiting = [job for job in jobs if (job.name, job.seed) not in done]
    watch(len(lines), len(jobs))
    if not waiting:
        return lines
    worker: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(FinalWorker)
    shared = ray.put(materials)
    idle = [worker.remote(shared, slots.device, slots.threads) for _ in range(min(slots.concurrent, len(waiting)))]
    busy: dict[Any, Any] = {}  # a result's reference -> its actor; both are untyped
    while waiting or busy:
        while waiting and idle:
            actor, job = idle.pop(), waiting.pop(0)
            busy[actor.run.remote(job, folder / "final", keep_weights=job is jobs[0])] = actor
        (ready, *_), _ = ray.wait(list(busy), num_returns=1)
        try:
            line = ray.get(ready)
        except ray.exceptions.RayError as error:
            raise RunError(f"a run of the final stage failed: {error}\nThe same command takes it up again") from error
        idle.append(busy.pop(ready))
        append_line(path, line)
        lines.append(line)
        watch(len(lines), len(jobs))
    for actor in idle:
        ray.kill(actor)
    return lines
