"""A teacher as it is kept on disk: what is known of it without loading it, and its network.

`teacher.safetensors` and, written last, `teacher.json` make a folder whole. An ensemble keeps only teacher.json,
which names its members' folders.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from kdtune.data import Dataset
from kdtune.errors import TeacherError
from kdtune.models import channels_last, rebuild_model
from kdtune.records import write_bytes, write_text
from kdtune.teacher.checkpoints import fit_weights
from kdtune.training import evaluate

WEIGHTS = "teacher.safetensors"


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
    depth: int = 0  # 1 if it was trained here on labels, one more than its own teacher if it is an assistant
    options: Mapping[str, Any] = field(default_factory=dict)  # whatever the model takes
    members: tuple["Teacher", ...] = ()  # of an ensemble
    # of training it here, generations before it included; not known of what an earlier version has kept
    seconds: float | None = field(default=None, compare=False)
    # teacher.safetensors itself, to travel to nodes that do not see the folder: uint8, so that Ray's object store
    # hands all processes of a node the same memory
    content: np.ndarray[Any, np.dtype[np.uint8]] | None = field(default=None, compare=False, repr=False)

    def load(self, device: torch.device) -> nn.Module:
        """The network in eval mode, its parameters frozen."""
        if self.members:
            network: nn.Module = Ensemble([member.load(device) for member in self.members])
        else:
            weights = (
                safetensors.torch.load_file(Path(self.folder) / WEIGHTS)
                if self.content is None
                else safetensors.torch.load(self.content.tobytes())
            )
            if fingerprint(self.model, weights, self.options) != self.fingerprint:
                raise TeacherError(
                    f"{self.folder}: teacher.safetensors is not what teacher.json describes; remove the folder"
                )
            network = rebuild_model(self.model, self.image_shape, self.classes, self.options)
            fit_weights(network, weights, f"{self.folder} into {self.model} (its code has changed? Remove the folder)")
            channels_last(network)
        return network.to(device).eval().requires_grad_(requires_grad=False)

    def carried(self) -> "Teacher":
        """The same with its weights, for processes that do not see its folder."""
        if self.members:
            return replace(self, members=tuple(member.carried() for member in self.members))
        return replace(self, content=np.fromfile(Path(self.folder) / WEIGHTS, dtype=np.uint8))


class Ensemble(nn.Module):
    """Several networks as one: logits [B, C] are the logarithm of the mean of their probabilities.

    Hinton, Vinyals & Dean 2015 distil such an average; its logarithm is a set of logits like any other, which a
    temperature softens and a cache holds.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([member(images).float() for member in self.members])  # [M, B, C]
        return torch.logsumexp(logits.log_softmax(dim=2), dim=0) - math.log(len(self.members))


def fingerprint(name: str, weights: Mapping[str, Tensor], options: Mapping[str, object] | None = None) -> str:
    """SHA-256 of a model's name and options, and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(name.encode())
    if options:
        digest.update(json.dumps(dict(options), sort_keys=True).encode())
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, each tensor in memory of its own: safetensors refuses layers that share theirs."""
    state = network.state_dict()
    return {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in state.items()}


def find(folder: Path) -> Teacher | None:
    """The teacher kept in a folder, if it is whole."""
    try:
        known = json.loads((folder / "teacher.json").read_text())
        found = [find(Path(member)) for member in known.pop("members")]
        members = tuple(member for member in found if member is not None)
        if len(members) < len(found):
            return None
        return Teacher(str(folder), members=members, **{**known, "image_shape": tuple(known["image_shape"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TeacherError(
            f"{folder / 'teacher.json'} is damaged or of another version; remove {folder} to make it anew"
        ) from error


def keep(
    network: nn.Module,
    name: str,
    options: Mapping[str, Any],
    dataset: Dataset,
    folder: Path,
    *,
    depth: int,
    seconds: float | None = None,
) -> Teacher:
    """Measures a network on the validation images and keeps it; a `depth` of 0 is a network brought along."""
    weights = weights_of(network)
    write_bytes(folder / WEIGHTS, safetensors.torch.save(weights))
    teacher = Teacher(
        folder=str(folder),
        model=name,
        image_shape=dataset.shape,
        classes=len(dataset.classes),
        fingerprint=fingerprint(name, weights, options),
        val_accuracy=_accuracy(network, dataset),
        trained_here=depth > 0,
        depth=depth,
        options=dict(options),
        seconds=seconds,
    )
    return _describe(teacher)


def keep_ensemble(members: Sequence[Teacher], dataset: Dataset, folder: Path, device: torch.device) -> Teacher:
    """Several kept teachers as one, measured together."""
    teacher = Teacher(
        folder=str(folder),
        model=" + ".join(member.model for member in members),
        image_shape=dataset.shape,
        classes=len(dataset.classes),
        fingerprint=fingerprint_together(members),
        val_accuracy=_accuracy(Ensemble([member.load(device) for member in members]), dataset),
        trained_here=all(member.trained_here for member in members),
        depth=max(member.depth for member in members),
        members=tuple(members),
    )
    return _describe(teacher)


def fingerprint_together(members: Sequence[Teacher]) -> str:
    """SHA-256 of an ensemble's members, in order."""
    return hashlib.sha256("\0".join(member.fingerprint for member in members).encode()).hexdigest()


def _accuracy(network: nn.Module, dataset: Dataset) -> float:
    return evaluate(network, dataset, dataset.images, dataset.labels, dataset.validation).accuracy


def _describe(teacher: Teacher) -> Teacher:
    """Writes teacher.json, which makes the folder whole."""
    fields = asdict(replace(teacher, content=None, members=()))
    known = {**fields, "members": [member.folder for member in teacher.members]}
    del known["folder"], known["content"]
    write_text(Path(teacher.folder) / "teacher.json", json.dumps(known, indent=2))
    return teacher


def check_it_has_learned(teacher: Teacher, dataset: Dataset, where: str) -> None:
    """Raises TeacherError, naming the section `where` the teacher is described, if it is no better than chance.

    Two standard errors above always answering the most frequent class is the least a teacher must show.
    """
    counts = torch.bincount(dataset.labels[dataset.validation])
    chance = (counts.max() / counts.sum()).item()
    least = chance + 2 * (chance * (1 - chance) / int(counts.sum())) ** 0.5
    if teacher.val_accuracy <= min(least, 1.0 - 1e-9):
        raise TeacherError(
            f"the teacher of `{where}` ({teacher.model}) is right on {teacher.val_accuracy:.1%} of {int(counts.sum())} "
            f"validation images, which is no better than chance: {chance:.1%} are of the most frequent class, up to "
            f"{least:.1%} may be luck. "
            + (
                f"Train it longer or with another learning rate ({where}.train)."
                if teacher.trained_here
                else "Usual reasons: another normalisation (data.mean, data.std) or another order of the classes."
            )
        )
