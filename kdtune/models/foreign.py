"""Models that are not kdtune's: any of timm's (`timm:resnet18`), or a function of your own (`nets:tiny`).

A function is called as `function(image_shape=(C, H, W), classes=..., **options)` and returns an nn.Module. Its module
is looked for in the current working directory first, then on Python's path. timm is an extra: `pip install timm`.

A model built here remembers the shape of its images as `built_for`, so that its stages can be found later.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from kdtune.errors import ModelError, nearest
from kdtune.models.parts import ImageShape


def build_foreign(name: str, image_shape: ImageShape, classes: int, options: Mapping[str, object]) -> nn.Module:
    """The model of `timm:<name>` or `module:function`. Raises ModelError with the reason where there is none."""
    source, _, member = name.partition(":")
    if source == "timm":
        network = _from_timm(member, image_shape, classes, options)
    else:
        network = _from_function(name, image_shape, classes, options)
    network.built_for = image_shape  # type: ignore[assignment]  # typed as a part of the network
    return network


def _from_timm(name: str, image_shape: ImageShape, classes: int, options: Mapping[str, object]) -> nn.Module:
    try:
        with torch.device("cpu"):  # whoever builds under the meta device: what an import makes stays for good
            import timm
    except ImportError as error:
        raise ModelError(f"timm:{name} needs timm, which is not installed ({error}): pip install timm") from error
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        hint = f"; names close to it: {', '.join(close)}" if close else "; timm.list_models() names them"
        raise ModelError(f"timm {timm.__version__} has no model {name!r}{hint}")
    _refuse_given(f"timm:{name}", options, ("in_chans", "num_classes"))
    keywords: dict[str, Any] = dict(options)  # Any: timm's and the model's own parameters
    try:
        return timm.create_model(name, in_chans=image_shape[0], num_classes=classes, **keywords)
    except Exception as error:
        raise ModelError(f"timm:{name} with options {dict(options)} cannot be built: {_reason(error)}") from error


def _from_function(name: str, image_shape: ImageShape, classes: int, options: Mapping[str, object]) -> nn.Module:
    _refuse_given(name, options, ("image_shape", "classes"))
    with _working_directory_on_path():
        function = _load(name)
        _check_options(name, function, options)
        try:
            network = function(image_shape=image_shape, classes=classes, **options)
        except Exception as error:
            raise ModelError(f"{name} raised {_reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returned {type(network).__name__}, expected a torch.nn.Module")
    return network


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        yield
    finally:
        sys.path.remove(here)


def _load(name: str) -> Callable[..., Any]:  # Any: whatever the user's function returns
    source, _, member = name.partition(":")
    try:
        with torch.device("cpu"):  # as above
            module = importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not (source == error.name or source.startswith(f"{error.name}.")):
            raise ModelError(f"{name}: importing {source} failed: {_reason(error)}") from error
        raise ModelError(f"{name}: no module {source!r} in {os.getcwd()} or on Python's path") from error
    except Exception as error:
        raise ModelError(f"{name}: importing {source} failed: {_reason(error)}") from error
    function = getattr(module, member, None)
    if not callable(function):
        callables = [n for n, value in vars(module).items() if callable(value)]
        what = "is no function" if hasattr(module, member) else "does not exist"
        raise ModelError(f"{name}: {member!r} {what} in {module.__file__}.{nearest(member, callables)}")
    return function  # type: ignore[no-any-return]


def _check_options(name: str, function: Callable[..., Any], options: Mapping[str, object]) -> None:
    """Before the call, so that the message can say which options there are."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C without a signature; the call itself then says what is wrong
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if missing := {"image_shape", "classes"} - set(known):
        raise ModelError(f"{name} is called with image_shape=(C, H, W) and classes=; it lacks {', '.join(missing)}")
    known = [option for option in known if option not in ("image_shape", "classes")]
    for option in options:
        if option not in known:
            raise ModelError(
                f"{name} has no option {option!r}; its options: {', '.join(known) or 'none'}.{nearest(option, known)}"
            )


def _refuse_given(name: str, options: Mapping[str, object], taken: tuple[str, ...]) -> None:
    if both := [option for option in taken if option in options]:
        raise ModelError(f"{name}: the data set decides {', '.join(both)}; remove it from the options")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
