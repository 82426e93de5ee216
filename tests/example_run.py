"""A run folder as a finished search leaves it, without the hour that it takes: for whatever reads one.

    folder = write_run(tmp_path)                       # complete
    folder = write_run(tmp_path, finished=False)       # trials under way, no summary yet
    python -m tests.example_run FOLDER                 # to look at

Digits, a teacher of 56,554 parameters; eight trials of six epochs, two of which were stopped, one diverged; three rows
of three seeds on a test set of 200 images. Numbers are made up, but what follows from others is computed as it is in
a real one: confusion, calibration, agreement, the paired test, the verdict. `tests/test_report.py` holds that both
have the same keys.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdtune.experiment import Experiment, dump, parse, with_values
from kdtune.records import EpochRecord, append_line, write_text
from kdtune.report.answers import agreement, packed, unpacked
from kdtune.report.calibration import calibration, in_bins
from kdtune.report.verdict import paired, verdict
from kdtune.trial import Job, asked, jobs_of

EPOCHS = 6
CLASSES = tuple("0123456789")
TEST_IMAGES = 200
ROWS = {"best": 0.95, "student alone": 0.86, "textbook KD": 0.92}  # accuracy, about
TEACHER_RIGHT = 0.99
SEEDS = (1, 2, 3)

TEXTBOOK = {"distill.temperature.kind": "fixed", "distill.temperature.start": 4.0,
            "distill.alpha.kind": "fixed", "distill.alpha.start": 0.9}  # fmt: skip
DECAYS = {"distill.temperature.kind": "exponential", "distill.temperature.start": 4.0,
          "distill.temperature.end_ratio": 0.25, "distill.alpha.kind": "exponential", "distill.alpha.start": 0.9,
          "distill.alpha.end_ratio": 0.55}  # fmt: skip
BEST = 1  # number of the winner
TRIALS: tuple[tuple[dict[str, Any], int, float], ...] = (  # configuration, epochs that were run, accuracy at their end
    (TEXTBOOK, 6, 0.925),
    (DECAYS, 6, 0.954),
    ({**TEXTBOOK, "distill.temperature.start": 1.0, "distill.alpha.start": 0.5}, 6, 0.908),
    ({**TEXTBOOK, "distill.temperature.start": 17.2, "distill.alpha.start": 0.31}, 2, 0.61),  # stopped
    ({**DECAYS, "distill.temperature.start": 9.7, "distill.alpha.end_ratio": 0.12}, 6, 0.933),
    ({**DECAYS, "distill.temperature.start": 2.2, "distill.temperature.end_ratio": 3.1}, 4, 0.87),  # stopped
    ({**TEXTBOOK, "distill.temperature.start": 1.4, "distill.alpha.start": 0.98}, 3, math.nan),  # diverged
    ({**DECAYS, "distill.temperature.start": 6.1, "distill.alpha.start": 0.77}, 6, 0.942),
)


def experiment_of(storage: Path) -> Experiment:
    return parse(
        {
            "name": "example",
            "data": {"dataset": "digits", "validation": 0.2},
            "teacher": {"model": "cnn-32-64-64", "train": {"epochs": 12, "batch_size": 64, "learning_rate": 0.05}},
            "student": {"model": "cnn-16"},
            "train": {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 0.1, "schedule": "cosine"},
            "search": {
                "trials": len(TRIALS),
                "stopper": {"kind": "asha", "reduction_factor": 2, "grace_epochs": 2},
                "space": {
                    "distill.temperature.kind": {"choice": ["fixed", "exponential"]},
                    "distill.temperature.start": {"loguniform": [1, 20]},
                    "distill.temperature.end_ratio": {
                        "loguniform": [0.125, 4],
                        "when": {"distill.temperature.kind": "exponential"},
                    },
                    "distill.alpha.kind": {"choice": ["fixed", "exponential"]},
                    "distill.alpha.start": {"uniform": [0.2, 0.99]},
                    "distill.alpha.end_ratio": {
                        "uniform": [0.02, 1],
                        "when": {"distill.alpha.kind": "exponential"},
                    },
                },
            },
            "final": {"seeds": len(SEEDS), "baselines": ["student alone", "textbook KD"]},
            "storage": str(storage),
        }
    )


def curve(
    experiment: Experiment, epochs: int, accuracy: float, *, alone: bool = False, whole: bool = False
) -> list[EpochRecord]:
    """Epochs that come to `accuracy`; of NaN, to a loss that is none."""
    distill, end = experiment.distill, 0.9 if math.isnan(accuracy) else accuracy
    told = []
    for k in range(epochs):
        temperature, alpha = distill.temperature.at(k, EPOCHS), distill.alpha.at(k, EPOCHS)
        loss = math.nan if math.isnan(accuracy) and k == epochs - 1 else 2.4 / (k + 1)
        share = 0.0 if alone else alpha
        terms = {"cross_entropy": (1 - share) * loss} | ({} if alone else {"distillation": share * loss})
        told.append(
            EpochRecord(
                epoch=k + 1,
                epochs=EPOCHS,
                loss=loss,
                terms=terms,
                val_accuracy=None if whole else end - 0.5 * (1 - (k + 1) / epochs) ** 2,
                val_loss=None if whole else 1.2 * (1 - end) + 1.2 / (k + 1),
                learning_rate=0.1 * (1 + math.cos(math.pi * (k + 1) / EPOCHS)) / 2,
                seconds=0.2,
                waited=0.3 if k == 0 and not whole else 0.01,
                computed=0.25 if k == 0 and not whole else 0.0,
                temperature=None if alone else temperature,
                alpha=None if alone else alpha,
                feature_weight=None if alone else 0.0,
            )
        )
    return told


def answers_of(labels: Tensor, accuracy: float, seed: int) -> tuple[Tensor, Tensor]:
    """Answers [N] and confidences [N] of a network that is right about so often. What one of a seed gets wrong, a
    worse one of that seed does too."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=generator) > accuracy
    neighbours = (labels + torch.randint(1, 3, labels.shape, generator=generator)) % len(CLASSES)
    confidences = 1 - 0.6 * torch.rand(len(labels), generator=generator) ** torch.where(wrong, 1.0, 16.0)
    return torch.where(wrong, neighbours, labels), confidences


def write_run(parent: Path, *, finished: bool = True) -> Path:
    """`parent`/example, written anew."""
    folder = parent / "example"
    (folder / "final").mkdir(parents=True)
    experiment = experiment_of(parent)
    write_text(folder / "experiment.yaml", dump(experiment))
    write_text(folder / "materials.json", json.dumps({"dataset": "d" * 64, "teacher teacher": "e" * 64}))
    for number, (config, epochs, accuracy) in enumerate(TRIALS):
        for k, record in enumerate(curve(with_values(experiment, config), epochs, accuracy)):
            if finished or number < 6 or k < 1:
                line = {"trial": f"{number:04d}", "config": config, "at": round(2.0 + number + 0.2 * k, 3)}
                append_line(folder / "trials.jsonl", {**line, **record.to_json()})
    if finished:
        _finish(folder, experiment)
    return folder


def _finish(folder: Path, experiment: Experiment) -> None:
    winner = with_values(experiment, TRIALS[BEST][0])
    retried = [{"trial": "0004", "times": 1, "error": "OSError: No space left on device (node 10.0.0.3)"}]
    outcome = {"asked": asked(experiment), "trial": f"{BEST:04d}", "trials": len(TRIALS), "stopped_early": 2,
               "budget_spent": None, "seconds": 12.5, "retried": retried}  # fmt: skip
    write_text(folder / "final" / "winner.json", json.dumps(outcome, indent=2))
    labels = torch.arange(TEST_IMAGES) % len(CLASSES)
    lines = [_line(job, labels) for job in jobs_of(experiment, winner)]
    for line in lines:
        append_line(folder / "final.jsonl", line)
    write_text(folder / "summary.json", json.dumps(_summary(labels, lines, outcome), indent=2))


def _line(job: Job, labels: Tensor) -> dict[str, Any]:
    answers, confidences = answers_of(labels, ROWS[job.name], job.seed)
    pairs = labels * len(CLASSES) + answers
    table = torch.bincount(pairs, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)
    records = curve(job.experiment, EPOCHS, 0.9, alone=job.alone, whole=True)
    return {
        "name": job.name,
        "seed": job.seed,
        "made_of": "0" * 12,
        "config": job.config,
        "test_accuracy": agreement(answers, labels),
        "answers": packed(answers),
        "calibration": in_bins(confidences, answers == labels),
        "confusion": table.tolist(),
        "diverged": False,
        "lost": 0,
        "error": "",
        "epochs": [record.to_json() for record in records],
    }


def _summary(labels: Tensor, lines: list[dict[str, Any]], outcome: dict[str, Any]) -> dict[str, Any]:
    answers, confidences = answers_of(labels, TEACHER_RIGHT, 7)
    teacher = _row("teacher", "cnn-32-64-64", {0: agreement(answers, labels)}, {}, None)
    teacher |= {"parameters": 56554, "size_mb": 0.2275, "flops": 922_880, "latency_ms": 0.34,
                "latency_range_ms": [0.33, 0.37]}  # fmt: skip
    runs = {name: {line["seed"]: line for line in lines if line["name"] == name} for name in ROWS}
    by_seed = {name: {seed: line["test_accuracy"] for seed, line in runs[name].items()} for name in ROWS}
    agreed = {
        name: statistics.fmean(agreement(unpacked(line["answers"]), answers) for line in runs[name].values())
        for name in ROWS
    }
    students = [
        _row(name, "cnn-16", by_seed[name], by_seed["student alone"], agreed[name])
        for name in ("student alone", "textbook KD", "best")
    ]
    summary = {
        "search": {
            "trials": len(TRIALS),
            "epochs_run": sum(epochs for _, epochs, _ in TRIALS),
            "epochs_full": len(TRIALS) * EPOCHS,
            "seconds": outcome["seconds"],
            "stopped_early": outcome["stopped_early"],
            "asked": outcome["asked"],
            "retried": outcome["retried"],
            "rungs": [
                {"epoch": 2, "trials": 5, "spearman": 0.9, "kendall": 0.8, "low": 0.37, "high": 0.99},
                {"epoch": 4, "trials": 5, "spearman": 1.0, "kendall": 1.0, "low": 0.64, "high": 1.0},
            ],
        },
        "best": {"config": TRIALS[BEST][0], "val_accuracy": TRIALS[BEST][2]},
        "pareto": [],
        "results": [teacher, *students],
        "latency_on": "CPU, one thread",
        "classes": list(CLASSES),
        "confusion": {
            name: torch.tensor([line["confusion"] for line in runs[name].values()]).sum(dim=0).tolist()
            for name in ("student alone", "best")
        },
        "calibration": {"teacher": calibration([in_bins(confidences, answers == labels) or []])}
        | {name: calibration([line["calibration"] for line in runs[name].values()]) for name in runs},
        "time": {"teacher": 9.42, "cache": 2.31, "training": 7.8, "waiting": 0.71, "final": 11.34},
    }
    return {**summary, "verdict": verdict(summary)}


def _row(
    name: str, model: str, accuracies: dict[int, float], alone: dict[int, float], agreed: float | None
) -> dict[str, Any]:
    said = [accuracies[seed] for seed in sorted(accuracies)]
    return {
        "name": name,
        "model": model,
        "test_accuracy": said,
        "mean": statistics.fmean(said),
        "std": statistics.stdev(said) if len(said) > 1 else None,
        "parameters": 346,
        "size_mb": 0.0015,
        "flops": 18_752,
        "latency_ms": 0.12,
        "latency_range_ms": [0.115, 0.131],
        "paired": paired(accuracies, alone, "student alone") if name not in ("teacher", "student alone") else None,
        "agreement": agreed,
    }


if __name__ == "__main__":
    write_run(Path(sys.argv[1]))
