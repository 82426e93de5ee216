"""Trials as a Tune class trainable whose process is reused from trial to trial.

The class API is synchronous: `step()` is `next()` on the trial's generator of epoch records, and a stop is simply
not calling it again. Of one worker, the trial runs in this very process, which keeps its bench: data on the device,
cache mapped, teacher loaded. Of several, the process keeps their group.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray import tune

from kdtune.errors import RunError
from kdtune.experiment import Experiment, with_values
from kdtune.models import cost_of
from kdtune.records import EpochRecord
from kdtune.search.notice import draining, held_back
from kdtune.search.placing import Slots
from kdtune.search.states import States, kept_name, state_name
from kdtune.search.workplaces import leave, whereabouts, workplace

SAVE_EVERY_S = 30.0


class StudentTrial(tune.Trainable):
    """config is {"number": of the trial, "values": {path: value}, "told": epochs that are in the records, "parent":
    name of the state that it goes on from, if any}; results hold `val_accuracy`, the `record` as JSON, the student's
    `cost`, and how often workers were `lost` since the last one."""

    def setup(  # type: ignore[override]  # with_parameters adds the other arguments
        self,
        config: dict[str, Any],
        experiment: Experiment,
        materials: tuple[Any],
        slots: Slots,
        states: States,
        saved_epochs: Sequence[int],
    ) -> None:
        """`materials` holds a reference to what is in Ray's object store."""
        self.saved_epochs = saved_epochs
        self.experiment = experiment
        self.states = states
        self.materials = materials[0]
        # a process that keeps a group of workers holds no GPU itself
        self.device = slots.device if slots.workers == 1 else torch.device("cpu")
        self.costs: dict[str, float | None] = {}  # of students that were measured here
        with held_back():
            self.place = workplace(self.materials, slots)
        self.losses = 0  # of workers, as told so far
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.trial.stop()
        del self.trial  # its memory, before another takes as much
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number, self.values = config["number"], config["values"]
        self.told = config["told"]
        experiment = with_values(self.experiment, self.values)
        self.cost = self._cost_of(experiment)
        with held_back():
            state = self._state(config["parent"])
            self.trial = self.place.start(experiment, seed=self.experiment.search.seed)
            if state is not None:
                self.trial.restore(state)
        self.saved = time.monotonic()

    def _state(self, parent: str | None) -> bytes | None:
        """What the trial goes on from: its own state, or that of the trial that it takes over from."""
        state = self.states.read(state_name(self.number, self.values))
        if state is None and parent is not None:
            state = self.states.read(parent)
            if state is None:
                raise RunError(f"the state {parent} in {self.states.address} is gone, from which a trial was to go on")
        return state

    def _cost_of(self, experiment: Experiment) -> float | None:
        student = experiment.student.model_dump_json()
        if experiment.search.second_objective is not None and student not in self.costs:
            dataset = ray.get(self.materials).dataset
            self.costs[student] = cost_of(experiment, dataset.shape, len(dataset.classes), self.device)
        return self.costs.get(student)

    def step(self) -> dict[str, Any]:
        with held_back():
            record = self._next()
            nodes, losses = whereabouts(self.place)
            if self._due(record, nodes):
                self.states.write(state_name(self.number, self.values), self.trial.state())
                self.saved = time.monotonic()
            # a trial that is ahead of the records left this state behind when it came by
            if record.epoch in self.saved_epochs and len(self.trial.history) == record.epoch:
                self.states.write(kept_name(self.number, self.values, record.epoch), self.trial.state())
        lost, self.losses = losses - self.losses, losses
        told = json.dumps(record.to_json())
        return {"val_accuracy": record.val_accuracy or 0.0, "record": told, "lost": lost, "cost": self.cost}

    def _next(self) -> EpochRecord:
        """A state may be newer than the records: what they lack is told first."""
        history = self.trial.history
        record = history[self.told] if len(history) > self.told else next(self.trial.records)
        self.told = record.epoch
        return record

    def _due(self, record: EpochRecord, nodes: tuple[str, ...]) -> bool:
        if record.last:
            return bool(self.experiment.search.keep) and not record.diverged
        return time.monotonic() - self.saved > SAVE_EVERY_S or draining(*nodes)

    def cleanup(self) -> None:
        leave(self.place)
