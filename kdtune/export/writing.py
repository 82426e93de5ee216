"""Writing an export: every file beside the old ones, opened again by its own runtime, compared, then moved into place.

    files = export_run(Path("runs/digits"), Path("student"), experiment, dataset, summary, Wanted(("onnx",), int8=True))

A file counts only if it gives the student's own answers to real images, one at a time and several at once. What was
seen is in config.json under `files`: bytes, the largest difference of logits, milliseconds for one image; for fewer
bits also what they cost in accuracy, on the validation images: the test set is read once, by the final stage.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kdtune.data import Dataset, read, resize_of
from kdtune.errors import ExportError
from kdtune.experiment import Experiment
from kdtune.export.card import Files, run_card
from kdtune.export.formats import FLOAT16, FLOAT32, FORMATS, INT8, Answers, Source
from kdtune.export.student import FORMAT, WEIGHTS, Description, load_student
from kdtune.export.trying import in_batches, largest_difference, median_ms, one_thread, predictions
from kdtune.models import count_parameters, rebuild_model
from kdtune.records import write_bytes, write_text
from kdtune.teacher import fingerprint, weights_of
from kdtune.training import evaluation_batch

CHECKED_IMAGES = 256
COST_IMAGES = 2048  # validation images that fewer bits are judged by, at most
SAME_CODE = 1e-6  # largest difference of logits that is allowed, of the same code
# and as a share of the largest logit: other runtimes add up in another order, half has 11 bits; what 8 bits do is
# told as accuracy, for whoever asked for them to judge
ALLOWED = {FLOAT32: 1e-4, FLOAT16: 2e-2, INT8: math.inf}
SAFETENSORS = "safetensors"
INFIX = {FLOAT32: "", FLOAT16: ".fp16", INT8: ".int8"}


@dataclass(frozen=True)
class Wanted:
    """What is written besides student.safetensors: names of FORMATS, and fewer bits."""

    formats: Sequence[str] = ()
    half: bool = False
    int8: bool = False

    def check(self) -> None:
        """Raises ExportError where nothing can be done about it, before anything is."""
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise ExportError(f"no format is named {', '.join(unknown)}; choose of {SAFETENSORS}, {', '.join(FORMATS)}")
        if self.int8 and not any(INT8 in FORMATS[name].precisions for name in self.formats):
            raise ExportError("int8 is written for ONNX Runtime: add onnx to the formats (--format onnx --int8)")
        for name in self.formats:
            FORMATS[name].need()

    @property
    def files(self) -> list[tuple[str, str]]:
        """(format, precision) of every file but student.safetensors."""
        precisions = (FLOAT32, *[FLOAT16] * self.half, *[INT8] * self.int8)
        every = [(name, one) for name in self.formats for one in precisions if one in FORMATS[name].precisions]
        return [*[(SAFETENSORS, FLOAT16)] * self.half, *every]


PLAIN = Wanted()


def check_place(folder: Path) -> None:
    """Raises ExportError where an export cannot become `folder`: a file is there or above, or another folder."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ExportError(f"{nearest} is a file, and an export is a folder; choose another (--to FOLDER)")
    if nearest == folder and any(folder.iterdir()) and not _is_export(folder):
        raise ExportError(f"{folder} exists and is no export of kdtune; choose another folder")


def export_student(
    folder: Path,
    network: nn.Module,
    experiment: Experiment,
    dataset: Dataset,
    card: Callable[[Files], str],
    wanted: Wanted = PLAIN,
    *,
    seen: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Files:
    """Writes `folder`, whole or not at all, after reading it back; gives what was seen of each file.

    `card` makes the model card of that. `seen`: the student was trained on the validation images as well. Raises
    ExportError where a file does not reproduce the student on images of the data set, or a package is missing.
    """
    wanted.check()
    check_place(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = weights_of(network)
    config = _config(network, weights, experiment, dataset) | {"provenance": dict(provenance or {})}
    write_bytes(part / WEIGHTS, safetensors.torch.save(weights))
    write_text(part / "config.json", json.dumps(config, indent=2))
    # on the CPU and in the layout that is read back: others round differently, which is not the export's doing
    asked = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    writing = _Writing(part, asked, config, dataset, seen=seen)
    for name, precision in wanted.files:
        writing.write(name, precision)
    if wanted.files:
        writing.time()
    write_text(part / "config.json", json.dumps({**config, "files": writing.files}, indent=2))
    write_text(part / "README.md", card(writing.files))
    _take_the_place_of(folder, part)
    return writing.files


def _config(network: nn.Module, weights: dict[str, Tensor], experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    student = experiment.student
    return {
        "format": FORMAT,
        "model": student.model,
        "options": student.options,
        "classes": list(dataset.classes),
        "image_shape": list(dataset.shape),
        "resize": resize_of(dataset.images),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "parameters": count_parameters(network),
        "fingerprint": fingerprint(student.model, weights, student.options),
        "kdtune": version("kdtune"),
        "torch": torch.__version__,
    }


class _Writing:
    """The files of one export as they are written, each tried against the student itself."""

    def __init__(
        self, part: Path, network: nn.Module, config: Mapping[str, Any], dataset: Dataset, *, seen: bool
    ) -> None:
        self.part, self.network, self.config, self.dataset, self.seen = part, network, config, dataset, seen
        self.chunk = evaluation_batch(dataset)
        self.images = _pixels(dataset, torch.arange(min(len(dataset.labels), CHECKED_IMAGES)))
        self.expected = in_batches(self._answers, self.images, self.chunk)
        self.student = load_student(part, allow_code=True)
        difference = self._difference(self.student)
        self._refuse(WEIGHTS, difference, SAME_CODE)
        shape = self.student.image_shape
        described = Description(
            self.student.classes, shape, self.student.resize, config["model"], config["fingerprint"]
        )
        self.source = Source(self.student, described)
        self.files: Files = {WEIGHTS: self._facts(WEIGHTS, SAFETENSORS, FLOAT32, difference)}

    def write(self, kind: str, precision: str) -> None:
        """One more file, tried. Raises ExportError where it does not give the student's answers."""
        suffix = ".safetensors" if kind == SAFETENSORS else FORMATS[kind].suffix
        name, written = f"student{INFIX[precision]}{suffix}", {}
        if kind == SAFETENSORS:
            written["fingerprint"] = self._half_weights(name)
            answers: Answers = load_student(self.part / name, allow_code=True)
            difference = self._difference(answers)
        else:
            answers, difference = self._in_its_runtime(kind, precision, name)
        self._refuse(name, difference, ALLOWED[precision] * max(1.0, self.expected.abs().max().item()))
        self.files[name] = self._facts(name, kind, precision, difference) | written
        if precision != FLOAT32:
            self.files[name]["cost"] = self._cost(answers)

    def _difference(self, answers: Answers) -> float:
        return largest_difference(answers, self.images, self.expected, self.chunk)

    def _half_weights(self, name: str) -> str:
        """Writes them; gives their fingerprint."""
        weights = safetensors.torch.load_file(self.part / WEIGHTS)
        narrow = {
            key: tensor.half() if tensor.ndim >= 2 and tensor.dtype == torch.float32 else tensor
            for key, tensor in weights.items()
        }
        print_ = fingerprint(self.config["model"], narrow, self.config["options"])
        write_bytes(self.part / name, safetensors.torch.save(narrow))
        known = {**self.config, "files": {name: {"fingerprint": print_}}}
        write_text(self.part / "config.json", json.dumps(known, indent=2))
        return print_

    def _in_its_runtime(self, kind: str, precision: str, name: str) -> tuple[Answers, float]:
        """What the written file answers, and how far from the student."""
        try:
            FORMATS[kind].write(self.source, self.part / name, precision)
            answers, _ = FORMATS[kind].open(self.part / name)
            return answers, self._difference(answers)
        except Exception as error:  # whatever torch and ONNX make of somebody's network
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                f"{self.config['model']} cannot be written as {kind} in {precision}: {why[0]}. Leave {kind} out, or "
                f"change the model; what there was before is as it was"
            ) from error

    def _refuse(self, name: str, difference: float, allowed: float) -> None:
        if not (difference <= allowed and math.isfinite(difference)):
            raise ExportError(
                f"{name} differs from the student by {difference:.2e} in a logit, more than {allowed:.0e}; it was left "
                f"in {self.part}, and what there was before is as it was"
            )

    def _facts(self, name: str, kind: str, precision: str, difference: float) -> dict[str, Any]:
        size = (self.part / name).stat().st_size
        return {"format": kind, "precision": precision, "bytes": size, "difference": difference}

    @cached_property
    def _judging(self) -> tuple[Tensor, Tensor, Tensor]:
        """Validation images that lie evenly between the first and the last, labels, and the student's answers [N]."""
        validation = self.dataset.validation.cpu()
        count = min(len(validation), COST_IMAGES)
        chosen = validation[torch.arange(count) * len(validation) // count]
        images = _pixels(self.dataset, chosen)
        return images, self.dataset.labels.cpu()[chosen], predictions(self.student, images, self.chunk)

    def _cost(self, answers: Answers) -> dict[str, Any]:
        images, labels, theirs = self._judging
        mine = predictions(answers, images, self.chunk)
        return {
            "split": "validation",
            "trained_on": self.seen,
            "images": len(images),
            "accuracy_float32": _share(theirs == labels),
            "accuracy": _share(mine == labels),
            "agreement": _share(mine == theirs),
        }

    def time(self) -> None:
        """Milliseconds of every file, one after the other when all is written, on one thread of the CPU."""
        with one_thread():
            for name, facts in self.files.items():
                answers = open_file(self.part / name, facts["format"])
                facts["latency_ms"] = round(median_ms(answers, self.images[:1]), 4)

    def _answers(self, images: Tensor) -> Tensor:
        """Of the network itself, without anything of the export's."""
        device = self.dataset.labels.device
        logits: Tensor = self.network(self.dataset.normalise(images.to(device)).cpu())
        return logits


def _share(true: Tensor) -> float:
    return true.double().mean().item()


def open_file(path: Path, kind: str) -> Answers:
    return load_student(path, allow_code=True) if kind == SAFETENSORS else FORMATS[kind].open(path)[0]


def _pixels(dataset: Dataset, chosen: Tensor) -> Tensor:
    return torch.cat(list(read(dataset.images, [chosen.to(dataset.labels.device)]))).cpu()


def _is_export(folder: Path) -> bool:
    try:
        return "kdtune" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _take_the_place_of(folder: Path, new: Path) -> None:
    """Renames `new` to `folder`; what was there goes only when that has worked."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if replaced:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def export_run(
    run: Path, to: Path, experiment: Experiment, dataset: Dataset, summary: Mapping[str, Any], wanted: Wanted = PLAIN
) -> Files:
    """Exports the winner of a run, its first seed of the final stage. Raises ExportError before that has run."""
    try:
        weights = safetensors.torch.load_file(run / "final" / "best.safetensors")
    except FileNotFoundError:
        raise ExportError(f"{run} has no trained winner yet; the same `kdtune search` takes it up again") from None
    student = experiment.student
    network = rebuild_model(student.model, dataset.shape, len(dataset.classes), student.options)
    network.load_state_dict(weights)
    origin = provenance_of(run, experiment)
    return export_student(
        to,
        network.eval(),
        experiment,
        dataset,
        lambda files: run_card(experiment, dataset, summary, files, origin),
        wanted,
        seen=True,  # the final stage trains on the whole training set
        provenance=origin,
    )


def provenance_of(run: Path, experiment: Experiment) -> dict[str, Any]:
    """Where the exported weights come from: the run, its data and teachers by fingerprint, and its seeds."""
    path = run / "materials.json"
    made_of = json.loads(path.read_text()) if path.exists() else {}
    first = experiment.search.seed + 1
    return {
        "experiment": experiment.name,
        "dataset": made_of.get("dataset"),
        "teachers": {
            name.removeprefix("teacher "): print_ for name, print_ in made_of.items() if name.startswith("teacher ")
        },
        "seed": first,
        "seeds": list(range(first, first + experiment.final.seeds)),
    }
