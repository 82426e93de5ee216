"""One-worker trials as a Tune class trainable whose process is reused from trial to trial.

The class API is synchronous: `step()` is `next()` on the trial's generator of epoch records, and a stop is simply
not calling it again. A reused process keeps its bench: data on the device, cache mapped, teacher loaded.
"""

import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from kdtune.experiment import Experiment, with_values
from kdtune.experiment.space import active, parse
from kdtune.trial import Bench, Materials

SAVE_EVERY_S = 30.0


class StudentTrial(tune.Trainable):
    """config is a flat sample of the space; results hold `val_accuracy`, `epoch` and the `record`."""

    def setup(  # type: ignore[override]  # with_parameters adds the other arguments
        self, config: dict[str, Any], experiment: Experiment, materials: Materials, device: torch.device, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.experiment = experiment
        self.parameters, _ = parse(experiment.search.space)
        self.bench = Bench(materials, device)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        values = active(self.parameters, new_config, self.experiment)
        self.trial = self.bench.start(with_values(self.experiment, values), seed=self.experiment.search.seed)
        self.saved = time.monotonic()
        return True

    def step(self) -> dict[str, Any]:
        record = next(self.trial.records)
        due = not record.last and time.monotonic() - self.saved > SAVE_EVERY_S
        if due:
            self.saved = time.monotonic()
        return {
            # a diverged trial is as bad as can be, in a number that sampler and scheduler understand
            "val_accuracy": 0.0 if record.diverged else record.val_accuracy,
            "epoch": record.epoch,
            "record": record.to_json(),
            "done": record.last,
            SHOULD_CHECKPOINT: due,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.trial.save(Path(checkpoint_dir) / "trial.pt")

    def load_checkpoint(self, checkpoint: Any) -> None:  # Tune hands the folder over as a string
        self.trial.load(Path(checkpoint) / "trial.pt")
