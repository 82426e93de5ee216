"""What TensorBoard, MLflow and W&B themselves read of a tracked search, each in the same words."""

import glob
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]  # (step, value)


@dataclass
class Shown:
    """One run, as a tool shows it."""

    config: dict[str, str]
    curves: dict[str, Curve] = field(default_factory=dict)
    ended: str = ""  # in the tool's own word; nothing while it runs


def of_tensorboard(folder: Path) -> dict[str, Shown]:
    """By TensorBoard's own reader, and its plugin of hyperparameters."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams import metadata  # type: ignore[import-untyped]

    found = {}
    for run in sorted((folder / "tensorboard").iterdir()):
        (file,) = run.iterdir()
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        plugin = events.PluginTagToContent("hparams")
        values = metadata.parse_session_start_info_plugin_data(plugin[metadata.SESSION_START_INFO_TAG]).hparams
        config = {name: str(getattr(value, value.WhichOneof("kind"))) for name, value in values.items()}
        ended = ""
        if metadata.SESSION_END_INFO_TAG in plugin:
            status = metadata.parse_session_end_info_plugin_data(plugin[metadata.SESSION_END_INFO_TAG]).status
            ended = {1: "FINISHED", 2: "FAILED"}[status]
        curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        found[run.name] = Shown(config, curves, ended)
    return found


def of_mlflow(folder: Path) -> dict[str, Shown]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiments = [one.experiment_id for one in client.search_experiments()]
    found: dict[str, Shown] = {}
    for run in client.search_runs(experiments):
        name = str(run.info.run_name)
        assert name not in found, f"two runs of {name}"
        curves = {
            metric: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
            for metric in run.data.metrics
        }
        ended = run.info.status if run.info.status != "RUNNING" else ""
        found[name] = Shown(dict(run.data.params), curves, ended)
    return found


def of_wandb(folder: Path) -> dict[str, Shown]:
    """Of the files that `wandb sync` sends: a run that was taken up has two, of the same id."""
    found: dict[str, Shown] = {}
    for path in sorted(glob.glob(f"{folder}/wandb/offline-run-*/*.wandb")):
        for record in _wandb_records(Path(path).read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                config = {one.key: str(json.loads(one.value_json)) for one in record.run.config.update}
                shown = found.setdefault(record.run.display_name, Shown({}))
                shown.config |= {name: value for name, value in config.items() if name != "_wandb"}
            elif kind == "history":
                row = {(one.key or one.nested_key[0]): json.loads(one.value_json) for one in record.history.item}
                for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
                    shown.curves.setdefault(name, []).append((record.history.step.num or row["_step"], row[name]))
            elif kind == "exit":
                shown.ended = "FAILED" if record.exit.exit_code else "FINISHED"
    return found


def _wandb_records(content: bytes) -> Iterator[Any]:  # protobuf messages
    """LevelDB's log format: blocks of 32 KiB, of records in one piece (1) or in several (2, 3, ..., 4)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # its messages are made at import

    block, head, at, part = 32768, struct.Struct("<IHB"), 7, b""
    while at + head.size <= len(content):
        if block - at % block < head.size:
            at += block - at % block
            continue
        _, length, kind = head.unpack_from(content, at)
        part += content[at + head.size : at + head.size + length]
        at += head.size + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}
