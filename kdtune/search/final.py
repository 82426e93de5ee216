"""The final stage: winner and baselines, several seeds each, full length, whole training set, test set read once.

Runs are independent and go side by side over the same slots as trials. Each finished run is one line of
final.jsonl, so a stage that was interrupted repeats only what is missing; of a run that has not ended, its state lies
in the run folder. Seeds differ from the search's own, on which the winner was chosen.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from kdtune.data import Dataset
from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.records import append_line, mend, read_lines, write_bytes
from kdtune.report import in_bins, packed
from kdtune.search.board import last_error
from kdtune.search.crew import Crew
from kdtune.search.notice import OF_A_MACHINE, draining
from kdtune.search.placing import Slots
from kdtune.search.recorder import LOST
from kdtune.search.workplaces import arrive, leave, whereabouts, workplace
from kdtune.trial import Job, Key, Materials, Tested, is_of, jobs_of

log = logging.getLogger(__name__)

MOST_CONFUSED = 100  # classes up to which a run's confusion matrix is kept
WEIGHTS = "best.safetensors"  # of the winner's first seed: what is exported
SAVE_EVERY_S = 30.0
LOSSES = 3  # of a run's process between two states, before the stage ends


@dataclass(frozen=True)
class Ended:
    """A run that is over: its line of final.jsonl, and the student's weights."""

    line: dict[str, Any]
    weights: bytes


class FinalWorker:
    """An actor that trains one student after another and reads the test set once for each."""

    def __init__(self, materials: tuple[Any], slots: Slots) -> None:
        """`materials` holds a reference to what is in Ray's object store."""
        self.materials = materials[0]
        self.place = workplace(self.materials, slots)
        arrive(self.place)  # a group whose node was lost is given no run

    def run(self, job: Job, state: bytes | None) -> Iterator[bytes | Ended]:
        """Its state now and then, so that it can be taken up elsewhere, and at last its end."""
        trial = self.place.start(job.experiment, seed=job.seed, alone=job.alone, whole=True)
        if state is not None:
            trial.restore(state)
        saved, before = time.monotonic(), whereabouts(self.place)[1]
        for record in trial.records:
            if not record.last and (time.monotonic() - saved > SAVE_EVERY_S or draining(*whereabouts(self.place)[0])):
                yield trial.state()
                saved = time.monotonic()
        tested, lost = trial.test(), whereabouts(self.place)[1] - before
        line = {
            "name": job.name,
            "seed": job.seed,
            "made_of": job.made_of,
            "config": job.config,
            **_on_test(tested, ray.get(self.materials).dataset),
            "diverged": trial.history[-1].diverged,
            "lost": lost,  # how often workers or this process were
            "error": LOST if lost else "",  # the last time
            "epochs": [record.to_json() for record in trial.history],
        }
        trial.stop()
        yield Ended(line, tested.weights)

    def end(self) -> None:
        leave(self.place)


def state_file(folder: Path, job: Job) -> Path:
    """Of a run that has not ended; the name as it is, since `a b` and `a-b` may be two rows."""
    return folder / f"{job.name}-{job.seed}-{job.made_of}.pt"


def _on_test(tested: Tested, dataset: Dataset) -> dict[str, Any]:
    """What is kept of a student's answers to the test set."""
    return {
        "test_accuracy": tested.accuracy,
        "answers": packed(tested.predictions),
        "calibration": in_bins(tested.confidences, tested.predictions == dataset.test.labels),
        "confusion": _confusion(tested, dataset),
    }


def _confusion(tested: Tested, dataset: Dataset) -> list[list[int]] | None:
    """Test images by their label (row) and the student's answer (column)."""
    count = len(dataset.classes)
    if count > MOST_CONFUSED:
        return None
    pairs = dataset.test.labels * count + tested.predictions
    table: list[list[int]] = torch.bincount(pairs, minlength=count * count).view(count, count).tolist()
    return table


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
    jobs = jobs_of(experiment, winner)
    known = {(job.name, job.seed): job.made_of for job in jobs}
    lines = [line for line in read_lines(path) if is_of(line, known)]
    done = {(line["name"], line["seed"]) for line in lines}
    waiting = [job for job in jobs if (job.name, job.seed) not in done]
    for stale in set((folder / "final").glob("*.pt")) - {state_file(folder / "final", job) for job in jobs}:
        stale.unlink()  # of an earlier winner
    watch(len(lines), len(jobs))
    for job, ended in _runs(waiting, folder / "final", materials, slots) if waiting else ():
        if job is jobs[0]:
            write_bytes(folder / "final" / WEIGHTS, ended.weights)
        append_line(path, ended.line)
        state_file(folder / "final", job).unlink(missing_ok=True)
        lines.append(ended.line)
        watch(len(lines), len(jobs))
    return lines


def _runs(waiting: list[Job], folder: Path, materials: Materials, slots: Slots) -> Iterator[tuple[Job, Ended]]:
    """The jobs as they end, side by side. One whose process is lost is taken up by another."""
    held = {"num_cpus": slots.cpus, "num_gpus": slots.gpus} if slots.workers == 1 else {"num_cpus": 0}
    worker: Any = ray.remote(**held)(FinalWorker)
    shared = (ray.put(materials),)
    crew = Crew(lambda: worker.remote(shared, slots), slots.concurrent)
    waiting = list(waiting)
    errors: dict[Key, list[str]] = defaultdict(list)  # that ended processes
    losses: Counter[Key] = Counter()  # since the last state
    busy: dict[Any, tuple[Job, Any]] = {}  # what a run streams -> the run and its actor, which ray leaves untyped
    while waiting or busy:
        crew.call(len(waiting))
        while waiting and crew.idle:
            actor, job = crew.idle.pop(), waiting.pop(0)
            state = state_file(folder, job)
            run = actor.run.options(num_returns="streaming")
            busy[run.remote(job, state.read_bytes() if state.exists() else None)] = (job, actor)
        stream = crew.next(list(busy))
        if stream is None:
            continue
        job, actor = busy[stream]
        try:
            said: bytes | Ended = ray.get(next(stream))
        except ray.exceptions.RayError as error:
            del busy[stream]
            errors[job.key].append(last_error(str(error)))
            losses[job.key] += not getattr(error, "preempted", False)
            again = isinstance(error, ray.exceptions.RayActorError) or _of_the_machine(error)
            if not again or losses[job.key] > LOSSES:
                raise RunError(
                    f"a run of the final stage failed: {error}\nThe same command takes it up again"
                ) from error
            log.warning("a run of the final stage is taken up by another process: %s", error)
            waiting.insert(0, job)
            if slots.workers > 1 and _of_the_machine(error):
                crew.dismiss(actor)  # its group: others may have machines that do
            elif _of_the_machine(error):
                crew.retire(actor)
            else:
                crew.lost()
            continue
        if isinstance(said, bytes):
            losses[job.key] = 0  # it has come further
            write_bytes(state_file(folder, job), said)
            continue
        del busy[stream]
        crew.idle.append(actor)
        if errors[job.key]:
            said.line["lost"] += len(errors[job.key])
            said.line["error"] = errors[job.key][-1]
        yield job, said
    crew.end()


def _of_the_machine(error: Exception) -> bool:
    """Whether another machine may do what failed on this one: its disk is full, or it does not reach a storage."""
    return isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, OF_A_MACHINE)
