"""LCBench as a function: the validation accuracy of a network after every epoch, for any configuration of seven fields.

A surrogate of the learning curves of Zimmer et al. 2021, "Auto-PyTorch Tabular" (2,000 configurations on each of 34
tasks, 52 epochs), as YAHPO Gym (Pfisterer et al. 2022) fitted it: `model.onnx`, whose outputs are the seconds since the
beginning and five measures, of which the fourth, balanced accuracy on validation data, is used here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TASKS, EPOCHS = 34, 52
SECONDS, ACCURACY = 0, 3  # columns of the output
SPACE: dict[str, dict[str, object]] = {
    "batch_size": {"loguniform": [16, 512]},
    "learning_rate": {"loguniform": [1e-4, 0.1]},
    "momentum": {"uniform": [0.1, 0.99]},
    "weight_decay": {"uniform": [1e-5, 0.1]},
    "num_layers": {"integer": [1, 5]},
    "max_units": {"loguniform": [64, 1024]},
    "max_dropout": {"uniform": [0, 1]},
}
WHOLE = ("batch_size", "max_units")


class Surrogate:
    """Curves of `model.onnx` in the folder `data`."""

    def __init__(self, data: Path) -> None:
        import onnxruntime  # of the extra `bench`, and no other benchmark needs it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the batches are small
        self.session = onnxruntime.InferenceSession(data / "model.onnx", options)

    def curves(self, task: int, configs: Sequence[Mapping[str, float]]) -> tuple[NDArray[np.float64], list[float]]:
        """Accuracies [configurations, EPOCHS] in 0..1, and the seconds of an epoch of each configuration."""
        rows = [[config[name] for name in SPACE] for config in configs]
        whole = [k for k, name in enumerate(SPACE) if name in WHOLE]
        fields = np.asarray(rows, dtype=np.float32)
        fields[:, whole] = fields[:, whole].round()
        epochs = np.tile(np.arange(1, EPOCHS + 1, dtype=np.float32), len(configs))
        inputs = np.column_stack([epochs, fields.repeat(EPOCHS, axis=0)])
        tasks = np.full((len(inputs), 1), task, dtype=np.int32)
        (output,) = self.session.run(["output"], {"x_cat": tasks, "x_cont": inputs})
        by_epoch = output.reshape(len(configs), EPOCHS, -1).astype(np.float64)
        seconds = np.maximum(by_epoch[:, -1, SECONDS], 1.0) / EPOCHS  # single epochs are noise, also negative
        return by_epoch[:, :, ACCURACY].clip(0, 1), seconds.tolist()
