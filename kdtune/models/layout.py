"""Memory layout: with the channels of a pixel side by side, convolutions of narrow networks take a quarter less time.

network = channels_last(build_model("resnet20", (3, 32, 32), 100))

It is the layout that oneDNN's and cuDNN's kernels compute in. Convolutions pass it on, so images may come in any.
"""

import copy

import torch
from torch import nn

from kdtune.models.parts import ImageShape

TRIED = 2  # images: code that is wrong for several may be right for one


def channels_last(network: nn.Module) -> nn.Module:
    """The network itself, its convolutions' weights laid out anew; values, names and shapes stay.

    A network from elsewhere whose forward needs the other layout (a `view` of a feature map) stays as it is.
    """
    foreign = ((module, vars(module).get("built_for")) for module in network.modules())
    if all(_takes_it(module, shape) for module, shape in foreign if shape is not None):
        network.to(memory_format=torch.channels_last)
    return network


def _takes_it(network: nn.Module, image_shape: ImageShape) -> bool:
    """Whether images pass through a copy of the network in that layout, as in training and as afterwards."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            tried = copy.deepcopy(network).cpu().to(memory_format=torch.channels_last)
            for training in (True, False):
                tried.train(training)(torch.zeros(TRIED, *image_shape))
        except Exception:  # noqa: BLE001  # a `view`, a check of its own, what cannot be copied: it stays as it was
            return False
    return True
