"""The runs of the final stage: what each of them trains, and which lines of final.jsonl are theirs.

A search that went on may have found another winner: lines of the earlier one stay in the file, and do not count.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdtune.experiment import Experiment, row, textbook
from kdtune.records import ALONE, BEST, DISTILLED, TEXTBOOK_KD

Key = tuple[str, int, str]  # of a run: its row, its seed, and what it is made of


@dataclass(frozen=True)
class Job:
    name: str
    seed: int
    experiment: Experiment
    alone: bool

    @property
    def key(self) -> Key:
        return self.name, self.seed, self.made_of

    @cached_property
    def made_of(self) -> str:
        """Of everything that decides what the run gives: a search that went on may have found another winner."""
        sections = ("data", "student", "train", "distill")
        raw = {name: getattr(self.experiment, name).model_dump(mode="json") for name in sections}
        raw["teacher"] = None if self.alone else self.experiment.own_teacher.model_dump(mode="json")
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def config(self) -> dict[str, Any]:
        """{dotted path: value} of all that decides how the student is trained, as trials name it; what is not set is
        left out."""
        sections = ("student", "train") if self.alone else ("student", "train", "distill")
        raw = {name: getattr(self.experiment, name).model_dump(mode="json") for name in sections}
        teacher = {} if self.alone else {"teacher": self.experiment.teacher_name}
        return teacher | dict(_leaves(raw))


def _leaves(raw: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}", value


def jobs_of(experiment: Experiment, winner: Experiment) -> list[Job]:
    """Every run of the stage, the winner's first. Baselines are trained like the winner, rows as the file says."""
    found = BEST if experiment.search.trials else DISTILLED
    baselines = {ALONE: (winner, True), TEXTBOOK_KD: (textbook(winner), False)}
    configurations = {found: (winner, False)}
    configurations |= {name: baselines[name] for name in experiment.final.baselines}
    configurations |= {name: row(experiment, changes) for name, changes in experiment.final.rows.items()}
    seeds = range(experiment.search.seed + 1, experiment.search.seed + 1 + experiment.final.seeds)
    return [Job(name, seed, one, alone) for name, (one, alone) in configurations.items() for seed in seeds]


def is_of(line: Mapping[str, Any], known: Mapping[tuple[str, int], str]) -> bool:
    """Whether a line is of a run that is wanted, and not of an earlier winner; earlier versions had only one.

    `known` is what each run is made of, by name and seed."""
    wanted = known.get((line["name"], line["seed"]))
    return wanted is not None and line.get("made_of", wanted) == wanted
