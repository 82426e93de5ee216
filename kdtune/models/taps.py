"""Feature taps: a model's logits together with the outputs of named modules inside it.

`Tapped` is itself a module whose forward returns both, so a wrapper around it (DDP, torch.compile) sees the feature
maps as ordinary outputs. `stages_of` names the taps of a model whose user names none.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from kdtune.errors import ModelError
from kdtune.models.parts import ImageShape

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Tapped(nn.Module):
    """forward(images) -> (logits [B, classes], feature maps in the order of `taps`).

    Raises ModelError where a tap names no module of the model. A module that runs several times shows its last output.
    """

    def __init__(self, model: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(taps)
        self._catcher = _Catcher()
        modules = dict(model.named_modules())
        for tap in self.taps:
            if not tap or tap not in modules:
                raise ModelError(_no_such_module(model, tap))
        for tap in dict.fromkeys(self.taps):
            modules[tap].register_forward_hook(partial(self._catcher.catch, tap))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        catcher = self._catcher
        catcher.catching = True
        try:
            logits = self.model(images)
            for tap in self.taps:
                if tap not in catcher.caught:
                    raise ModelError(f"{type(self.model).__name__} does not run its module {tap!r}: tap another one")
            return logits, tuple(catcher.caught[tap] for tap in self.taps)
        finally:
            catcher.catching = False
            catcher.caught.clear()


class _Catcher:
    """Holds outputs while forward runs: a tensor left here would be kept alive, and cannot be copied.

    Hooks know it and not the whole module, which would hold itself and keep a GPU's memory until Python looks for
    circles.
    """

    def __init__(self) -> None:
        self.catching = False
        self.caught: dict[str, Tensor] = {}

    def catch(self, tap: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.catching:  # a copy: a ReLU in place that follows would write into what the tapped module gave
            self.caught[tap] = output.clone() if isinstance(output, Tensor) else output


def stages_of(network: nn.Module, image_shape: ImageShape | None = None) -> tuple[str, ...]:
    """The network's own taps, in the order in which they run.

    They are its `taps` where it has them; else the modules that timm lists in its `feature_info`; else those that this
    rule finds: of the children that give a feature map [B, channels, height, width] and run once, the last one at each
    size. A child is replaced by its own children where it gives no map itself, and where it is a container or an only
    child and the image changes size inside. Global pooling at the end does not count.

    `image_shape` (C, H, W) is needed by the rule for a network that `build_model` did not build. Raises ModelError
    with the names of the modules where nothing is found.
    """
    if (own := getattr(network, "taps", None)) is not None:
        if isinstance(own, str) or not isinstance(own, Sequence) or not all(isinstance(tap, str) for tap in own):
            raise ModelError(f"{type(network).__name__}.taps is {own!r}, expected the names of its modules")
        return tuple(own)
    if listed := _listed_by_timm(network):
        return listed
    image_shape = image_shape or getattr(network, "built_for", None)
    if image_shape is None:
        raise ModelError(f"{type(network).__name__} has no `taps`, and the shape of its images is not known")
    stages = _last_at_each_size(network, image_shape)
    if not stages:
        raise ModelError(
            f"{type(network).__name__}: no module with a feature map [B, channels, height, width] was found; "
            f"name some in `taps`. Its modules: {_names(network)}"
        )
    return stages


def _listed_by_timm(network: nn.Module) -> tuple[str, ...]:
    """`feature_info` is a list of dicts, or an object with `module_name()`; nothing where it names no modules."""
    info = getattr(network, "feature_info", None)
    if info is not None and hasattr(info, "module_name"):
        names = info.module_name()
    elif isinstance(info, list) and all(isinstance(entry, dict) for entry in info):
        names = [entry.get("module") for entry in info]
    else:
        return ()
    modules = dict(network.named_modules())
    return tuple(dict.fromkeys(names)) if all(name in modules and name for name in names) else ()


def _last_at_each_size(network: nn.Module, image_shape: ImageShape) -> tuple[str, ...]:
    sizes = _map_sizes(network, image_shape)
    candidates = {name for name, _ in _spread(network, sizes)}
    in_order = [name for name in sizes if name in candidates]
    runs = [list(names) for _, names in groupby(in_order, key=lambda name: sizes[name])]
    if len(runs) > 1 and sizes[runs[-1][-1]] == (1, 1) and not any(_has_weights(network, name) for name in runs[-1]):
        runs.pop()
    return tuple(run[-1] for run in runs)


def _has_weights(network: nn.Module, name: str) -> bool:
    return next(network.get_submodule(name).parameters(), None) is not None


def _spread(parent: nn.Module, sizes: dict[str, tuple[int, int]], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of a module that give feature maps, some replaced by theirs, as `stages_of` describes."""
    children = [(prefix + name, child) for name, child in parent.named_children()]
    seen = [(n, c) for n, c in children if n in sizes or any(other.startswith(f"{n}.") for other in sizes)]
    for name, child in seen:
        inner = {size for other, size in sizes.items() if other.rpartition(".")[0] == name}
        opens = isinstance(child, CONTAINERS) or len(seen) == 1
        if name not in sizes or (opens and len(inner) > 1):
            yield from _spread(child, sizes, f"{name}.")
        else:
            yield name, child


def _map_sizes(network: nn.Module, image_shape: ImageShape) -> dict[str, tuple[int, int]]:
    """Height and width of the output of each module that gives a feature map and runs once, in order of running."""
    runs: dict[str, list[tuple[int, int] | None]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4
        runs.setdefault(name, []).append((output.shape[2], output.shape[3]) if is_map else None)

    _listen(copy.deepcopy(network), image_shape, note)
    return {name: sizes[0] for name, sizes in runs.items() if len(sizes) == 1 and sizes[0] is not None}


def _listen(copied: nn.Module, image_shape: ImageShape, note: Callable[..., None]) -> None:
    on_meta = any(parameter.is_meta for parameter in copied.parameters())  # whoever wants shapes alone
    device = "meta" if on_meta else "cpu"
    copied.to(device).eval()
    for name, module in copied.named_modules():
        if name:
            module.register_forward_hook(partial(note, name))
    try:
        with torch.no_grad(), torch.device(device):
            copied(torch.zeros((1, *image_shape)))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{type(copied).__name__} fails on an image of shape {image_shape}: {reason}") from error


def _no_such_module(model: nn.Module, tap: str) -> str:
    names = [name for name, _ in model.named_modules() if name]
    close = get_close_matches(tap, names, n=3)
    hint = f" Names close to it: {', '.join(close)}." if close else ""
    return f"model {type(model).__name__} has no module {tap!r}; it has {_names(model)}.{hint}"


def _names(model: nn.Module) -> str:
    """The top-level modules, at most 20."""
    names = [name for name, _ in model.named_children()]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
