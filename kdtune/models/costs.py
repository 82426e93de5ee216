"""What a network costs whoever runs it: parameters, bytes, milliseconds for one image.

costs(network, dataset.shape)                                  # all of them, of a network in eval mode
cost_of(experiment, dataset.shape, classes, device)            # what the search weighs against accuracy, or None
"""

import statistics
import time

import torch
from torch import nn

from kdtune.experiment import Experiment
from kdtune.models.parts import ImageShape
from kdtune.models.zoo import count_parameters, rebuild_model

LATENCY_RUNS, LATENCY_WARMUP = 100, 20


def costs(network: nn.Module, shape: ImageShape) -> dict[str, float]:
    stored = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    return {
        "parameters": count_parameters(network),
        "size_mb": round(stored / 1e6, 4),
        "latency_ms": round(latency_ms(network, shape), 4),
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


@torch.inference_mode()
def latency_ms(network: nn.Module, shape: ImageShape) -> float:
    """Median milliseconds for one image (C, H, W), batch 1, float32, where the network lies; one thread on a CPU."""
    device = next(network.parameters()).device
    image = torch.zeros((1, *shape), device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
            began = time.perf_counter()
            network(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[LATENCY_WARMUP:]) * 1000
