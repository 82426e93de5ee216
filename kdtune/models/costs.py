"""What a network costs whoever runs it: parameters, bytes, operations and milliseconds for one image.

costs(network, dataset.shape)                                  # all of them, of a network in eval mode
cost_of(experiment, dataset.shape, classes, device)            # what the search weighs against accuracy, or None
"""

import statistics
import time
from typing import Any

import torch
from torch import nn

from kdtune.experiment import Experiment
from kdtune.models.parts import ImageShape
from kdtune.models.zoo import count_parameters, rebuild_model

LATENCY_RUNS, LATENCY_WARMUP = 100, 20


def costs(network: nn.Module, shape: ImageShape) -> dict[str, Any]:
    """`size_mb` are those of the weights; `latency_ms` is the median, `latency_range_ms` 25th and 75th percentile."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    times = latencies_ms(network, shape)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "parameters": count_parameters(network),
        "size_mb": round(stored / 1e6, 4),
        "flops": flops(network, shape),
        "latency_ms": round(statistics.median(times), 4),
        "latency_range_ms": [round(low, 4), round(high, 4)],
    }


def cost_of(experiment: Experiment, shape: ImageShape, classes: int, device: torch.device) -> float | None:
    """Of the experiment's student, in the unit of `search.second_objective`: a count, or milliseconds on `device`.

    None where nothing is weighed. A student is built for it; torch's global generator stays as it was.
    """
    student, wanted = experiment.student, experiment.search.second_objective
    if wanted is None:
        return None
    with torch.random.fork_rng(devices=[]):
        network = rebuild_model(student.model, shape, classes, student.options)
    if wanted == "parameters":
        return count_parameters(network)
    return round(latency_ms(network.to(device).eval(), shape), 4)


@torch.no_grad()
def flops(network: nn.Module, shape: ImageShape) -> int:
    """Floating-point operations of convolutions and matrix products for one image (C, H, W), attention's included.

    A multiply-add counts 2: papers that count it as 1 (He et al. 2016; torchvision's tables) have half as many.
    """
    from torch.utils.flop_counter import FlopCounterMode  # half a second of imports

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which the counter does not know
    try:
        with FlopCounterMode(display=False) as counter:
            network(_image(network, shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def latency_ms(network: nn.Module, shape: ImageShape) -> float:
    """The median of `latencies_ms`."""
    return statistics.median(latencies_ms(network, shape))


@torch.inference_mode()
def latencies_ms(network: nn.Module, shape: ImageShape) -> list[float]:
    """Milliseconds for one image (C, H, W) at a time, float32, where the network lies; one thread on a CPU."""
    image = _image(network, shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
            began = time.perf_counter()
            network(image)
            if image.device.type == "cuda":
                torch.cuda.synchronize(image.device)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        torch.set_num_threads(threads)
    return times[LATENCY_WARMUP:]


def _image(network: nn.Module, shape: ImageShape) -> torch.Tensor:
    """A black one, [1, C, H, W]."""
    return torch.zeros((1, *shape), device=next(network.parameters()).device)
