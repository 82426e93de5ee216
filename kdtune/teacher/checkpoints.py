"""Checkpoints as others save them: read without running code in them, loaded with every misfit named."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdtune.errors import TeacherError, nearest

NESTED_UNDER = ("state_dict", "model", "model_state_dict", "net")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DDP and DataParallel; torch.compile
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


def read_weights(path: Path, where: str = "teacher.weights") -> dict[str, Tensor]:
    """State dict of a .safetensors file or of a torch checkpoint as others save them.

    Nested under `state_dict`, `model`, `model_state_dict` or `net`, and with the prefixes of DDP or torch.compile.
    Only tensors are unpickled. Raises TeacherError that begins with `where`, the field of the experiment file.
    """
    if path.is_dir():
        inside = nearest("student.safetensors", sorted(file.name for file in path.iterdir() if file.is_file()))
        raise TeacherError(f"{where}: {path} is a folder; give the file of the weights in it.{inside}")
    if not path.is_file():
        raise TeacherError(f"{where}: no file {path} (from {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            return _strip(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):  # neither a zip archive nor a pickle
            raise TeacherError(f"{where}: {path} is no checkpoint (a web page or a Git LFS pointer?)") from error
        raise TeacherError(
            f"{where}: {path} holds objects besides tensors, which kdtune does not unpickle, because they can "
            f"run code. If you trust the file, save its state dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except UNREADABLE as error:
        raise TeacherError(f"{where}: {path} is not a readable checkpoint: {error}") from error
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((content[name] for name in NESTED_UNDER if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            raise TeacherError(
                f"{where}: {path} has no state dict under {', '.join(NESTED_UNDER)}; "
                f"it holds: {', '.join(map(str, list(content)[:8])) or 'nothing'}"
            )
        content = inner
    if not isinstance(content, Mapping):
        raise TeacherError(f"{where}: {path} holds a {type(content).__name__}, expected a state dict")
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
            + "\nCheck the model, and that the class counts are the same."
        )
    network.load_state_dict(dict(weights), strict=False)
