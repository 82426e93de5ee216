"""Training: the loop over any objective, what it starts from and goes on from, and what a network answers."""

from kdtune.training.devices import autocast, default_device, free_memory, precision_of, usable_gpus
from kdtune.training.evaluation import Evaluation, evaluate, evaluation_batch
from kdtune.training.loop import CrossEntropy, Objective, cross_entropy, train
from kdtune.training.optimizers import learning_rate
from kdtune.training.state import TrainingState, from_bytes, new_state, to_bytes

__all__ = [
    "CrossEntropy",
    "Evaluation",
    "Objective",
    "TrainingState",
    "autocast",
    "cross_entropy",
    "default_device",
    "evaluate",
    "evaluation_batch",
    "free_memory",
    "from_bytes",
    "learning_rate",
    "new_state",
    "precision_of",
    "to_bytes",
    "train",
    "usable_gpus",
]
