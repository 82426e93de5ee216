"""Feature taps: a model's logits together with the outputs of named modules inside it.

`Tapped` is itself a module whose forward returns both, so a wrapper around it (DDP, torch.compile) sees the feature
maps as ordinary outputs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn


class Tapped(nn.Module):
    """forward(images) -> (logits [B, classes], feature maps in the order of `taps`).

    Raises ValueError where a tap names no module of the model.
    """

    def __init__(self, model: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(taps)
        self._caught: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        for tap in self.taps:
            if tap not in modules:
                raise ValueError(f"model {type(model).__name__} has no module {tap!r}")
            modules[tap].register_forward_hook(partial(self._catch, tap))

    def _catch(self, tap: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._caught[tap] = output

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits = self.model(images)
        features = tuple(self._caught[tap] for tap in self.taps)
        self._caught.clear()
        return logits, features
