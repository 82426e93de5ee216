"""`summary.json`: the numbers people quote, made from what a run has recorded.

    {"search": {"trials", "epochs_run", "epochs_full", "seconds", "stopped_early"},
     "best": {"config", "val_accuracy"},
     "results": [{"name", "test_accuracy": [one a seed], "mean", "std", "parameters", "latency_ms"}, ...]}

Accuracies are fractions in 0..1; std is the sample's (n - 1), null for a single run.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtune.errors import RunError
from kdtune.experiment import Experiment
from kdtune.models import build_model, count_parameters
from kdtune.records import ALONE, BEST, TEACHER, TEXTBOOK_KD, TrialRecord, write_text
from kdtune.training import default_device, evaluate
from kdtune.trial import Materials

ORDER = (ALONE, TEXTBOOK_KD, BEST)  # of the results, after the teacher
LATENCY_RUNS, LATENCY_WARMUP = 100, 20


def summarise(
    experiment: Experiment,
    trials: Sequence[TrialRecord],
    best: TrialRecord,
    outcome: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    materials: Materials,
) -> dict[str, Any]:
    """The summary of a run whose final stage is complete; reads the test set once for the teacher.

    `outcome` holds trials, stopped_early and seconds of the search, `lines` are those of final.jsonl.
    """
    device = default_device()
    dataset = materials.dataset.to(device)
    teacher = materials.teacher.load(device)
    on_test = evaluate(teacher, dataset, dataset.test.images, dataset.test.labels)
    row = _result(TEACHER, [on_test.accuracy], _cost(teacher, dataset.shape))
    if not materials.teacher.trained_here:
        row["note"] = "brought along: it may have been trained on validation images"
    student = build_model(experiment.student.model, dataset.shape, len(dataset.classes)).to(device).eval()
    cost = _cost(student, dataset.shape)  # measured once: all students are one architecture
    results = [row]
    for name in ORDER:
        by_seed = {line["seed"]: line["test_accuracy"] for line in lines if line["name"] == name}
        if by_seed:
            results.append(_result(name, [by_seed[seed] for seed in sorted(by_seed)], cost))
    return {
        "search": {
            "trials": outcome["trials"],
            "epochs_run": sum(len(trial.epochs) for trial in trials),
            "epochs_full": sum(trial.epochs[-1].epochs for trial in trials),
            "seconds": outcome["seconds"],
            "stopped_early": outcome["stopped_early"],
        },
        "best": {"config": dict(best.config), "val_accuracy": best.val_accuracy},
        "results": results,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    write_text(folder / "summary.json", json.dumps(summary, indent=2))


def read_summary(folder: Path) -> dict[str, Any]:
    """Raises RunError where the run has not come to its end."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no summary.json: its search has not finished. The same `kdtune search` takes it up again"
        ) from None
    return summary


def _result(name: str, accuracies: Sequence[float], cost: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "test_accuracy": list(accuracies),
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        **cost,
    }


def _cost(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"parameters": count_parameters(network), "latency_ms": round(latency_ms(network, shape), 4)}


@torch.inference_mode()
def latency_ms(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Median milliseconds for one image (C, H, W), batch 1, float32, where the network lies; one thread on a CPU."""
    device = next(network.parameters()).device
    image = torch.zeros((1, *shape), device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
            began = time.perf_counter()
            network(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[LATENCY_WARMUP:]) * 1000
