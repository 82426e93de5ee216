"""The device that a process trains on, its memory, and the precision that it computes in."""

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from kdtune.experiment import Train


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_gpus() -> int:
    """Of this machine. torch alone counts those too whose driver is too old for it."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def free_memory() -> None:
    """Gives back what torch keeps of a GPU's memory after its tensors are gone: other processes wait for it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def precision_of(config: Train, device: torch.device) -> torch.dtype:
    """The type that autocast computes in; `auto` takes what the device has."""
    if config.precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = getattr(torch, config.precision)
    assert isinstance(dtype, torch.dtype)
    return dtype


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
