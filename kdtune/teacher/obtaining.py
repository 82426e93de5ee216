"""Teachers that need no teacher themselves: trained on the labels, brought along, or several as one.

Each is kept under a name that says everything on which it depends, so that it is made once. A second process that
needs the same teacher waits for the first.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdtune.data import Dataset, stream
from kdtune.errors import TeacherError
from kdtune.experiment import Data, Distill, Experiment
from kdtune.experiment import Teacher as Section
from kdtune.models import build_model, rebuild_model
from kdtune.records import EpochRecord, locked, write_bytes
from kdtune.storage import local_root
from kdtune.teacher.checkpoints import fit_weights, read_weights
from kdtune.teacher.kept import Teacher, find, fingerprint, fingerprint_together, keep, keep_ensemble
from kdtune.training import CrossEntropy, from_bytes, new_state, to_bytes, train

OWN_VIEWS = 1 << 32  # added to view_seed: the cache asks about views on which the teacher was not trained
OF_TEACHERS = 2  # this stream of a seed
SAVE_EVERY_S = 30.0
TEACHERS = ".teachers"
OnEpoch = Callable[[EpochRecord], None]


def store_of(experiment: Experiment) -> Path:
    """Where teachers are kept, beside the runs: searches with the same data and teacher share it.

    Of an object store it is the folder here from which they are copied there.
    """
    return local_root(experiment.storage).resolve() / TEACHERS


def own_views(data: Data, depth: int) -> Data:
    """The data section with views that neither students nor a teacher of another `depth` trains on.

    New ones every epoch, since none is kept: a teacher is asked only about views that it was not trained on.
    """
    return data.model_copy(update={"view_seed": data.view_seed + depth * OWN_VIEWS, "views": "auto"})


def own_seed(config: Section) -> int:
    """A teacher's weights and order: other ones than a student of the same architecture and seed has."""
    return stream(config.seed, OF_TEACHERS)


def recipe(
    config: Section,
    data: Data,
    dataset: Dataset,
    taught_by: Teacher | None = None,
    their_taps: tuple[str, ...] | None = None,
) -> str:
    """Name of the folder of a teacher trained here: everything that decides its weights.

    `their_taps` are those of its own teacher, which matter where it learns from features.
    """
    distill = (config.distill or Distill()) if taught_by else None
    fields = {"augment", "crop_padding", "crop_scale", "validation", "split_seed", "view_seed"}
    if config.labels == "kept" or taught_by is not None:
        fields |= {"labels_kept", "unlabelled"}
    if taught_by is not None and data.views != "auto":
        fields |= {"views"}
    decides = {
        "dataset": dataset.fingerprint,
        "mean": dataset.mean,
        "std": dataset.std,
        "data": data.model_dump(include=fields),
        "teacher": config.model_dump(include={"model", "options", "train", "seed", "stop_at", "labels"}),
        "taught_by": taught_by and taught_by.fingerprint,
        "distill": distill and distill.model_dump(),
        "taps": [config.taps, their_taps] if distill and not distill.feature_weight.is_zero else None,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def task(print_: str, data: Data, dataset: Dataset) -> str:
    """Name of the folder of a teacher that is only measured here: its weights, and what its accuracy depends on."""
    depends = [print_, dataset.fingerprint, dataset.mean, dataset.std, data.validation, data.split_seed]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """Where a teacher is kept, and how it is made if it is not there."""

    folder: Path
    make: Callable[[Path], Teacher]

    def obtain(self) -> Teacher:
        """Found or made; one process at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            return find(self.folder) or self.make(self.folder)


def trained(
    config: Section, data: Data, dataset: Dataset, store: Path, device: torch.device, on_epoch: OnEpoch
) -> Plan:
    """A teacher trained on the labels. Making it raises TeacherError where it diverges."""
    folder = store / recipe(config, data, dataset)
    return Plan(folder, lambda folder: _train(config, data, dataset, device, folder, on_epoch))


def _train(
    config: Section, data: Data, dataset: Dataset, device: torch.device, folder: Path, on_epoch: OnEpoch
) -> Teacher:
    assert config.model is not None
    torch.manual_seed(own_seed(config))
    network = build_model(config.model, dataset.shape, len(dataset.classes), config.options)
    state = new_state(network, config.train, device)
    unfinished = folder / "training.pt"
    seconds: float | None = 0.0
    if unfinished.exists():
        before = from_bytes(unfinished.read_bytes(), device)
        state.load_state_dict(before)
        seconds = before.get("seconds")  # earlier versions did not say
    saved = time.monotonic()
    known = dataset if config.labels == "kept" else dataset.with_all_labels()
    last = config.stop_at or config.train.epochs
    records = train(
        state,
        CrossEntropy(),
        known,
        own_views(data, depth=1),
        config.train,
        known.training_indices(data, whole=False, labelled_only=True),
        seed=own_seed(config),
        views=config.train.epochs,
        validate=True,
    )
    while state.epoch < last:
        record = next(records)
        on_epoch(record)
        if record.diverged:
            raise diverged(config, record)
        seconds = None if seconds is None else seconds + record.seconds
        if state.epoch < last and time.monotonic() - saved > SAVE_EVERY_S:
            write_bytes(unfinished, to_bytes({**state.state_dict(), "seconds": seconds}))
            saved = time.monotonic()
    teacher = keep(network, config.model, config.options, dataset, folder, depth=1, seconds=seconds)
    unfinished.unlink(missing_ok=True)
    return teacher


def diverged(config: Section, record: EpochRecord) -> TeacherError:
    return TeacherError(
        f"the teacher ({config.named}) diverged in epoch {record.epoch}; lower its train.learning_rate "
        f"({config.train.learning_rate})"
    )


def brought_along(name: str, config: Section, data: Data, dataset: Dataset, store: Path, device: torch.device) -> Plan:
    """The teacher of a checkpoint. Raises TeacherError where it does not fit its architecture."""
    network = _read_network(name, config, dataset)
    model, options = str(config.model), config.options
    folder = store / task(fingerprint(model, network.state_dict(), options), data, dataset)
    return Plan(folder, lambda folder: keep(network.to(device), model, options, dataset, folder, depth=0))


def _read_network(name: str, config: Section, dataset: Dataset) -> nn.Module:
    """The network of a checkpoint, on the CPU."""
    assert config.weights is not None
    assert config.model is not None
    path = Path(config.weights)
    network = rebuild_model(config.model, dataset.shape, len(dataset.classes), config.options)
    weights = read_weights(path, f"{name}.weights")
    fit_weights(network, weights, f"{name}: {path} into {config.model} for {len(dataset.classes)} classes")
    return network


def ensemble(members: Sequence[Teacher], data: Data, dataset: Dataset, store: Path, device: torch.device) -> Plan:
    """Several kept teachers as one."""
    folder = store / task(fingerprint_together(members), data, dataset)
    return Plan(folder, lambda folder: keep_ensemble(members, dataset, folder, device))
