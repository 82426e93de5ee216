"""The tools that show a search while it runs: TensorBoard, MLflow, Weights & Biases.

Each takes what a run (a trial, or a run of the final stage) tells of its epochs, keeps it under a name that stays the
same in every process, and is asked first what it has: no epoch is told twice, whoever was killed when.

    tracker = TRACKERS["tensorboard"](place)
    tracker.epochs(Run("0007", {"distill.alpha.start": 0.5}), [Point(1, time.time(), {"val_accuracy": 0.5})])
    tracker.ended(Run("0007", ...), "complete")
"""

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdtune.errors import RunError

SHOWN = "val_accuracy"  # what tables of hyperparameters show of a trial
TESTED = "test_accuracy"
FAILED = ("failed", "diverged")


@dataclass(frozen=True)
class Place:
    """What a tool's copy of a search belongs to."""

    folder: Path  # of the search
    title: str
    key: str  # nobody else's: another search of the same name has another
    away: bool = False  # on a cluster, where what is left in the working folder is lost


@dataclass(frozen=True)
class Run:
    """A trial, or a run of the final stage."""

    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    epoch: int
    at: float  # seconds since 1970
    numbers: Mapping[str, float]  # finite


class Tracker(Protocol):
    """One tool. What its client raises is passed on: who calls decides what follows, and asks for a new tracker."""

    def epochs(self, run: Run, points: Sequence[Point]) -> None:
        """Epochs of a run in their order, of which the tool may have some already."""
        ...

    def ended(self, run: Run, status: str) -> None:
        """complete, stopped, diverged or failed; more may follow where a search goes on."""
        ...

    def close(self) -> None: ...


def flat(config: Mapping[str, Any]) -> dict[str, str | float | int | bool]:
    """Values as every tool takes them: numbers, yes or no, or text."""
    return {
        path: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for path, value in config.items()
    }


def _plain(run: Run) -> str:
    """The name as every tool's ids and queries take it: rows of a table may be named with quotes, or anything."""
    if re.fullmatch(r"[\w.-]+", run.name, flags=re.ASCII):
        return run.name
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', run.name)}-{hashlib.sha256(run.name.encode()).hexdigest()[:8]}"


class TensorBoard:
    """tensorboard/<run>/, one event file each, to which every epoch is appended as it comes: no file is held open.

    tensorboardX has the format's messages and checksums; its writer begins a new file each time, with a thread."""

    FILE = "events.out.tfevents.kdtune"

    def __init__(self, place: Place) -> None:
        import tensorboardX.summary  # noqa: F401  # that it is there is found out before anything starts

        self.root = place.folder / "tensorboard"
        self.last: dict[str, int] = {}  # epoch that a file has, of runs that have not ended

    def epochs(self, run: Run, points: Sequence[Point]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        last, events = self._last(run), []
        for point in points:
            if point.epoch > last:
                values = [Summary.Value(tag=name, simple_value=value) for name, value in point.numbers.items()]
                events.append(Event(wall_time=point.at, step=point.epoch, summary=Summary(value=values)))
                last = point.epoch
        self._append(run, events)
        self.last[run.name] = last

    def ended(self, run: Run, status: str) -> None:
        from tensorboardX.proto.api_pb2 import Status
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
        from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

        self._last(run)
        outcome = Status.Value("STATUS_FAILURE" if status in FAILED else "STATUS_SUCCESS")
        content = HParamsPluginData(session_end_info=SessionEndInfo(status=outcome), version=0)
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
        value = Summary.Value(tag="_hparams_/session_end_info", metadata=SummaryMetadata(plugin_data=plugin))
        self._append(run, [Event(summary=Summary(value=[value]))])
        self.last.pop(run.name, None)

    def close(self) -> None:
        """Nothing is held."""

    def _append(self, run: Run, events: Sequence[Any]) -> None:  # protobuf messages
        with (self.root / run.name / self.FILE).open("ab") as file:
            file.write(b"".join(_framed(event.SerializeToString()) for event in events))

    def _last(self, run: Run) -> int:
        """The last epoch that the file has; 0 where it is new. What a crash cut is taken off."""
        if run.name in self.last:
            return self.last[run.name]
        from tensorboardX.proto.event_pb2 import Event

        path = self.root / run.name / self.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = last = 0
        for frame, end in _frames(content):
            event = Event()
            event.ParseFromString(frame)
            last, whole = max(last, event.step), end
        if whole:
            os.truncate(path, whole)
        else:
            path.unlink(missing_ok=True)
            self._append(run, list(_head(run)))
        self.last[run.name] = last
        return last


def _head(run: Run) -> Iterator[Any]:
    """The file's version, then the run's configuration as TensorBoard's table of hyperparameters wants it."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import hparams

    yield Event(file_version="brain.Event:2")
    shown = TESTED if run.name.startswith(FINAL) else SHOWN
    experiment, begun, _ = hparams(flat(run.config), {shown: 0.0})
    yield Event(summary=experiment)
    yield Event(summary=begun)


FINAL = "final-"  # begins the name of a run of the final stage


def _framed(event: bytes) -> bytes:
    """As a TFRecord: length, its checksum, the bytes, theirs."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_crc32c(length)) + event + struct.pack("<I", masked_crc32c(event))


def _frames(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Every whole TFRecord, and where it ends."""
    begin = 0
    while begin + 16 <= len(content):
        end = begin + 16 + struct.unpack_from("<Q", content, begin)[0]
        if end > len(content):
            return
        yield content[begin + 12 : end - 4], end
        begin = end


class MLflow:
    """One MLflow run each, in the experiment MLFLOW_EXPERIMENT_NAME or that of the search's name, where
    MLFLOW_TRACKING_URI leads. A run is known by its tag `kdtune.run`."""

    KEY = "kdtune.run"
    ALWAYS = "seconds"  # a number that every epoch has

    def __init__(self, place: Place) -> None:
        from mlflow.tracking import MlflowClient

        if place.away and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise RunError("a search on a cluster needs a server that its head node reaches")
        for name, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "20")):  # whoever is told later need not be waited for
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.client = MlflowClient()
        self.place = place
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", place.title)
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.runs: dict[str, tuple[str, int]] = {}  # id, and the last epoch that it has

    def epochs(self, run: Run, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        known, last = self._known(run)
        for point in points:
            if point.epoch > last:
                at = int(point.at * 1000)
                metrics = [Metric(name, value, at, point.epoch) for name, value in point.numbers.items()]
                self.client.log_batch(known, metrics)
                last = point.epoch
                self.runs[run.name] = known, last

    def ended(self, run: Run, status: str) -> None:
        known, _ = self._known(run)
        self.client.set_tag(known, "kdtune.status", status)
        self.client.set_terminated(known, "FAILED" if status in FAILED else "FINISHED")
        del self.runs[run.name]

    def close(self) -> None:
        """Nothing is held: a run that has not ended goes on as soon as its search does."""

    def _known(self, run: Run) -> tuple[str, int]:
        if run.name not in self.runs:
            key = f"{self.place.key}/{_plain(run)}"
            found = self.client.search_runs([self.experiment], f"tags.`{self.KEY}` = '{key}'")
            if found:
                known = found[0].info.run_id
                self.client.update_run(known, "RUNNING")
                history = self.client.get_metric_history(known, self.ALWAYS)
                last = max((metric.step for metric in history), default=0)
            else:
                known, last = self._begin(run, key), 0
            self.runs[run.name] = known, last
        return self.runs[run.name]

    def _begin(self, run: Run, key: str) -> str:
        from mlflow.entities import Param

        tags = {self.KEY: key, "kdtune.folder": str(self.place.folder)}
        known: str = self.client.create_run(self.experiment, tags=tags, run_name=run.name).info.run_id
        self.client.log_batch(known, params=[Param(path, str(value)) for path, value in flat(run.config).items()])
        return known


class WeightsAndBiases:
    """One W&B run each, in the project WANDB_PROJECT or that of the search's name, grouped by the search. With
    WANDB_MODE=offline files in the run folder, which `wandb sync` sends later."""

    def __init__(self, place: Place) -> None:
        import wandb

        online = os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled")
        if online and not wandb.login(prompt=False):
            raise RunError("it has no key of this machine")
        self.place = place
        self.open: dict[str, Any] = {}  # wandb's runs

    def epochs(self, run: Run, points: Sequence[Point]) -> None:
        known = self._known(run)
        for point in points:
            if point.epoch >= known.step:  # the step that it expects next
                known.log(dict(point.numbers), step=point.epoch)

    def ended(self, run: Run, status: str) -> None:
        known = self._known(run)
        known.summary["status"] = status
        known.finish(exit_code=1 if status in FAILED else 0)
        del self.open[run.name]

    def close(self) -> None:
        for known in self.open.values():
            known.finish()
        self.open.clear()

    def _known(self, run: Run) -> Any:
        if run.name not in self.open:
            import wandb

            self.open[run.name] = wandb.init(
                project=os.environ.get("WANDB_PROJECT", self.place.title),
                group=self.place.title,
                id=f"{self.place.key}-{_plain(run)}",
                name=run.name,
                config=flat(run.config),
                dir=os.environ.get("WANDB_DIR", str(self.place.folder)),
                resume="allow",
                reinit="create_new",  # runs go side by side
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_code=True),
            )
        return self.open[run.name]


TRACKERS: Mapping[str, Callable[[Place], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
