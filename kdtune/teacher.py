"""Teachers: trained here once, or brought along as a checkpoint; kept with a fingerprint.

`obtain(experiment, dataset, ...)` gives a `Teacher` whose folder holds teacher.safetensors and, written last,
teacher.json. A teacher trained here never sees the validation images, and the same experiment (or another with the
same data and teacher section) finds it again instead of training it again.
"""

import hashlib
import json
import pickle
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdtune.data import Dataset
from kdtune.errors import TeacherError
from kdtune.experiment import Experiment
from kdtune.models import build_model
from kdtune.records import EpochRecord, locked, write_bytes, write_text
from kdtune.training import CrossEntropy, evaluate, load_state, new_state, save_state, train

NESTED_UNDER = ("state_dict", "model", "model_state_dict", "net")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DDP and DataParallel; torch.compile
OWN_VIEWS = 1 << 32  # added to view_seed: the cache asks about views on which the teacher was not trained
SAVE_EVERY_S = 30.0
# what torch and safetensors raise over bytes that are no checkpoint, or not a whole one
UNREADABLE = (
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
    struct.error,
)


@dataclass(frozen=True)
class Teacher:
    """What is known of a teacher without loading it."""

    folder: str
    model: str
    image_shape: tuple[int, int, int]
    classes: int
    fingerprint: str  # SHA-256 of architecture and weights
    val_accuracy: float
    trained_here: bool  # if not, it may have seen the validation images

    def load(self, device: torch.device) -> nn.Module:
        """The network in eval mode, its parameters frozen."""
        weights = safetensors.torch.load_file(Path(self.folder) / "teacher.safetensors")
        if fingerprint(self.model, weights) != self.fingerprint:
            raise TeacherError(
                f"{self.folder}: teacher.safetensors is not what teacher.json describes; remove the folder"
            )
        network = build_model(self.model, self.image_shape, self.classes)
        network.load_state_dict(weights)
        return network.to(device).eval().requires_grad_(requires_grad=False)


def obtain(
    experiment: Experiment, dataset: Dataset, device: torch.device, on_epoch: Callable[[EpochRecord], None]
) -> Teacher:
    """The experiment's teacher: found, loaded from its checkpoint, or trained (a record an epoch to `on_epoch`).

    Raises TeacherError where the checkpoint does not fit or the teacher is no better than chance.
    """
    if experiment.teacher.weights is not None:
        teacher = _bring_along(experiment, dataset, device)
    else:
        folder = _store(experiment) / _recipe(experiment, dataset)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):  # a second search waits for the first to train the teacher that they share
            teacher = find(folder) or _train(experiment, dataset, device, folder, on_epoch)
    _check_it_has_learned(teacher, dataset)
    return teacher


def locate(experiment: Experiment, dataset: Dataset) -> Teacher:
    """The experiment's teacher where it is kept already; trains and measures nothing. Raises TeacherError."""
    store = _store(experiment)
    if experiment.teacher.weights is None:
        folder = store / _recipe(experiment, dataset)
    else:
        folder = store / _task(experiment, dataset, _read_network(experiment, dataset))
    teacher = find(folder)
    if teacher is None:
        raise TeacherError(f"there is no teacher for this experiment yet in {store}; `kdtune teacher` makes it")
    return teacher


def find(folder: Path) -> Teacher | None:
    """The teacher kept in a folder, if it is whole."""
    try:
        known = json.loads((folder / "teacher.json").read_text())
        return Teacher(folder=str(folder), **{**known, "image_shape": tuple(known["image_shape"])})
    except FileNotFoundError:
        return None


def fingerprint(name: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's name and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(name.encode())
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _recipe(experiment: Experiment, dataset: Dataset) -> str:
    """Name of the folder of a teacher trained here: everything that decides its weights."""
    data = experiment.data.model_dump(include={"augment", "crop_padding", "validation", "split_seed", "view_seed"})
    recipe = {
        "dataset": dataset.fingerprint,
        "mean": dataset.mean,
        "std": dataset.std,
        "data": data,
        "teacher": experiment.teacher.model_dump(),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _train(
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> Teacher:
    config = experiment.teacher
    torch.manual_seed(config.seed)
    network = build_model(config.model, dataset.shape, len(dataset.classes))
    state = new_state(network, config.train, device)
    unfinished = folder / "training.pt"
    if unfinished.exists():
        state.load_state_dict(load_state(unfinished, device))
    views = experiment.data.model_copy(update={"view_seed": experiment.data.view_seed + OWN_VIEWS})
    saved = time.monotonic()
    for record in train(
        state,
        CrossEntropy(),
        dataset,
        views,
        config.train,
        dataset.fit,
        seed=config.seed,
        views=config.train.epochs,
        validate=True,
    ):
        on_epoch(record)
        if record.diverged:
            raise TeacherError(
                f"the teacher diverged in epoch {record.epoch}; lower teacher.train.learning_rate "
                f"({config.train.learning_rate})"
            )
        if not record.last and time.monotonic() - saved > SAVE_EVERY_S:
            save_state(unfinished, state.state_dict())
            saved = time.monotonic()
    teacher = _keep(network, config.model, dataset, folder, trained_here=True)
    unfinished.unlink(missing_ok=True)
    return teacher


def _bring_along(experiment: Experiment, dataset: Dataset, device: torch.device) -> Teacher:
    network = _read_network(experiment, dataset)
    folder = _store(experiment) / _task(experiment, dataset, network)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        return find(folder) or _keep(network.to(device), experiment.teacher.model, dataset, folder, trained_here=False)


def _read_network(experiment: Experiment, dataset: Dataset) -> nn.Module:
    config = experiment.teacher
    assert config.weights is not None
    path = Path(config.weights)
    network = build_model(config.model, dataset.shape, len(dataset.classes))
    fit_weights(network, read_weights(path), f"{path} into {config.model} for {len(dataset.classes)} classes")
    return network


def _task(experiment: Experiment, dataset: Dataset, network: nn.Module) -> str:
    """Name of the folder of a teacher brought along: its weights, and what its recorded accuracy depends on."""
    task = [
        fingerprint(experiment.teacher.model, network.state_dict()),
        dataset.fingerprint,
        dataset.mean,
        dataset.std,
        experiment.data.validation,
        experiment.data.split_seed,
    ]
    return hashlib.sha256(json.dumps(task).encode()).hexdigest()[:16]


def _store(experiment: Experiment) -> Path:
    """Beside the runs: searches with the same data and teacher section share their teacher."""
    return Path(experiment.storage).resolve() / ".teachers"


def _keep(network: nn.Module, name: str, dataset: Dataset, folder: Path, *, trained_here: bool) -> Teacher:
    validation = evaluate(network, dataset, dataset.images, dataset.labels, dataset.validation)
    weights = {key: tensor.cpu().contiguous() for key, tensor in network.state_dict().items()}
    teacher = Teacher(
        folder=str(folder),
        model=name,
        image_shape=dataset.shape,
        classes=len(dataset.classes),
        fingerprint=fingerprint(name, weights),
        val_accuracy=validation.accuracy,
        trained_here=trained_here,
    )
    write_bytes(folder / "teacher.safetensors", safetensors.torch.save(weights))
    write_text(
        folder / "teacher.json", json.dumps({k: v for k, v in asdict(teacher).items() if k != "folder"}, indent=2)
    )
    return teacher


def _check_it_has_learned(teacher: Teacher, dataset: Dataset) -> None:
    """Two standard errors above always answering the most frequent class is the least a teacher must show."""
    counts = torch.bincount(dataset.labels[dataset.validation])
    chance = (counts.max() / counts.sum()).item()
    least = chance + 2 * (chance * (1 - chance) / int(counts.sum())) ** 0.5
    if teacher.val_accuracy <= min(least, 1.0 - 1e-9):
        raise TeacherError(
            f"the teacher ({teacher.model}) is right on {teacher.val_accuracy:.1%} of {int(counts.sum())} validation "
            f"images, which is no better than chance: {chance:.1%} are of the most frequent class, up to "
            f"{least:.1%} may be luck. "
            + (
                "Train it longer or with another learning rate (teacher.train)."
                if teacher.trained_here
                else "Usual reasons: another normalisation (data.mean, data.std) or another order of the classes."
            )
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors file or of a torch checkpoint as others save them.

    Nested under `state_dict`, `model`, `model_state_dict` or `net`, and with the prefixes of DDP or torch.compile.
    Only tensors are unpickled. Raises TeacherError.
    """
    if not path.is_file():
        raise TeacherError(f"teacher.weights: no file {path} (from {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            return _strip(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):  # neither a zip archive nor a pickle
            raise TeacherError(
                f"teacher.weights: {path} is no checkpoint (a web page or a Git LFS pointer?)"
            ) from error
        raise TeacherError(
            f"teacher.weights: {path} holds objects besides tensors, which kdtune does not unpickle, because they can "
            f"run code. If you trust the file, save its state dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except UNREADABLE as error:
        raise TeacherError(f"teacher.weights: {path} is not a readable checkpoint: {error}") from error
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((content[name] for name in NESTED_UNDER if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            raise TeacherError(
                f"teacher.weights: {path} has no state dict under {', '.join(NESTED_UNDER)}; "
                f"it holds: {', '.join(map(str, list(content)[:8])) or 'nothing'}"
            )
        content = inner
    if not isinstance(content, Mapping):
        raise TeacherError(f"teacher.weights: {path} holds a {type(content).__name__}, expected a state dict")
    return _strip(dict(content))


def _is_state_dict(content: Mapping[Any, Any]) -> bool:  # whatever the file held
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _strip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES * 2:  # either may wrap the other
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Loads `weights` into `network`. Raises TeacherError that names the keys which do not fit.

    BatchNorm's step counters may be missing: checkpoints older than PyTorch 0.4.1 have none.
    """
    own = network.state_dict()
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in weights if k not in own]
    shapes = [
        f"{k}: {tuple(weights[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    found = [
        f"{label} ({len(keys)}): {'; '.join(keys[:6])}{'; ...' if len(keys) > 6 else ''}"
        for label, keys in (("other shapes", shapes), ("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if found:
        raise TeacherError(
            f"cannot load {what}:\n  "
            + "\n  ".join(found)
            + "\nCheck teacher.model, and that the class counts are the same."
        )
    network.load_state_dict(dict(weights), strict=False)
