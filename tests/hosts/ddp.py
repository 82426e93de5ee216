"""What two-host data-parallel training needs of a cluster, as a Ray job: prints one line of JSON.

Each worker computes the gradient of its half of a batch; DDP's all-reduce over gloo must make both the whole batch's.
"""

import json
import os
import socket
from typing import Any

import torch
from ray.train import RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

WORKERS = 2


def train() -> None:
    rank = get_context().get_world_rank()
    torch.manual_seed(0)
    images = torch.arange(8.0).reshape(4, 2)  # [B, D]; rank r has rows 2r and 2r + 1
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    model: Any = prepare_model(layer)  # ray is untyped
    model(images[2 * rank : 2 * rank + 2]).pow(2).mean().backward()
    assert layer.weight.grad is not None
    gathered: list[Any] = [None] * WORKERS
    answer = {"host": socket.gethostname(), "gradient": layer.weight.grad.flatten().tolist()}
    torch.distributed.all_gather_object(gathered, answer)
    report({"workers": gathered})


def main() -> None:
    trainer = TorchTrainer(
        train,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=WORKERS, resources_per_worker={"CPU": 1}, placement_strategy="STRICT_SPREAD"
        ),
        run_config=RunConfig(name="ddp", storage_path=os.environ["KDTUNE_STORAGE"]),
    )
    metrics = trainer.fit().metrics
    assert metrics is not None
    print("RESULT", json.dumps(metrics["workers"]))


if __name__ == "__main__":
    main()
