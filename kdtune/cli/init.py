"""`kdtune init [FILE]`: an experiment file to begin with, from a few questions or from flags, each line explained."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kdtune.cli.completing import datasets, models
from kdtune.errors import ExperimentError, KdtuneError, Problem, nearest

DATASETS = "digits, mnist, fashion-mnist, cifar10, cifar100, folder or imagenet"
Target = Annotated[Path, typer.Argument(help="The file to write.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help=f"{DATASETS}.", show_default=False, autocompletion=datasets)
]
Root = Annotated[str | None, typer.Option("--root", help="Folder of the data set.", show_default=False)]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", help="Side of the images of a folder data set.", show_default=False)
]
TeacherOption = Annotated[
    str | None,
    typer.Option("--teacher", help="A model of `kdtune list models`.", show_default=False, autocompletion=models),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="The teacher's checkpoint; without one it is trained.", show_default=False),
]
StudentOption = Annotated[
    str | None, typer.Option("--student", help="A smaller model.", show_default=False, autocompletion=models)
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Of a student.", show_default=False)]
Trials = Annotated[int | None, typer.Option("--trials", help="Configurations to try.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: what no flag says is as usual for the data set.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


@dataclass(frozen=True)
class Usual:
    """What is sensible for a data set."""

    images: str
    teacher: str
    student: str
    epochs: int
    teacher_epochs: int
    augment: str
    why: str  # that augmentation
    batch_size: int
    validation: float
    root: str | None = "data"
    image_size: int | None = None


FLIPPED = "moved by up to 4 pixels and flipped"
CIFAR = Usual("32x32 in colour", "resnet56", "resnet20", 60, 100, "crop-flip", FLIPPED, 128, 0.1)
LARGE = "a part of the image, flipped or not"
USUAL = {
    "digits": Usual(
        "8x8, grey, 10 classes", "cnn-32-64-64", "cnn-16", 40, 12, "none", "too small to lose any pixels", 32, 0.2, None
    ),
    "mnist": Usual(
        "28x28, grey, 10 classes", "resnet20", "cnn-8-16", 20, 20, "crop", "moved by up to 4 pixels", 128, 0.1
    ),
    "fashion-mnist": Usual(
        "28x28, grey, 10 classes", "resnet20", "cnn-8-16", 30, 40, "crop-flip", FLIPPED, 128, 0.1
    ),
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "folder": Usual(
        "yours: one folder a class in train/ and test/", "resnet34", "resnet18", 60, 90, "random-resized-crop-flip",
        LARGE, 128, 0.1, "data", 128,
    ),
    "imagenet": Usual(
        "224x224 in colour, 1000 classes", "resnet50", "resnet18", 30, 90, "random-resized-crop-flip", LARGE, 256, 0.05
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    name: str
    dataset: str
    root: str | None
    image_size: int | None
    teacher: str
    weights: str | None
    student: str
    epochs: int
    trials: int

    @property
    def usual(self) -> Usual:
        return USUAL[self.dataset]


def init(
    file: Target = Path("experiment.yaml"),
    dataset: DatasetOption = None,
    root: Root = None,
    image_size: ImageSize = None,
    teacher: TeacherOption = None,
    weights: Weights = None,
    student: StudentOption = None,
    epochs: Epochs = None,
    trials: Trials = None,
    yes: Yes = False,
    force: Force = False,
) -> None:
    """Write an experiment file to begin with. It asks what no flag says; with --yes it asks nothing."""
    import yaml

    from kdtune.experiment import parse
    from kdtune.records import write_text

    _check_free(file, force=force, ask=not yes)
    chosen = _ask("Data set", dataset, "digits", yes, f" ({DATASETS})")
    if chosen not in USUAL:
        raise KdtuneError(f"--dataset: {chosen!r} is none of {DATASETS}.{nearest(chosen, list(USUAL))}")
    usual = USUAL[chosen]
    if usual.root is not None:
        root = _ask("Folder of the data set", root, usual.root, yes)
    if usual.image_size is not None:
        image_size = _ask("Side of the images, in pixels", image_size, usual.image_size, yes)
    teacher = _ask("Teacher", teacher, usual.teacher, yes, " (kdtune list models)")
    weights = _ask("Its checkpoint, or nothing to train it here", weights, "", yes) or None
    answers = Answers(
        name=_name(file, chosen),
        dataset=chosen,
        root=root,
        image_size=image_size,
        teacher=teacher,
        weights=weights,
        student=_ask("Student", student, usual.student, yes, " (smaller than the teacher)"),
        epochs=_ask("Epochs of a student", epochs, usual.epochs, yes),
        trials=_ask("Configurations to try", trials, 30, yes),
    )
    text = written(answers)
    parse(yaml.safe_load(text), f"the answers for {file}")  # raises with every mistake in them
    if not file.parent.is_dir():
        raise KdtuneError(f"cannot write {file}: there is no folder {file.parent}")
    write_text(file, text)
    typer.echo(f"Wrote {file}. Next:\n  kdtune plan {file}      # what it will cost\n  kdtune search {file}")


def _check_free(file: Path, *, force: bool, ask: bool) -> None:
    if not file.exists() or force:
        return
    with _stoppable():
        over = ask and typer.confirm(f"{file} is there already. Write over it?", default=False)
    if not over:
        raise ExperimentError(str(file), [Problem("", "is there already; choose another name, or give --force")])


def _ask(question: str, given: Any, usual: Any, yes: bool, hint: str = "") -> Any:  # of the type of `usual`
    if given is not None or yes:
        return usual if given is None else given
    with _stoppable():
        return typer.prompt(f"{question}{hint}", default=usual, type=type(usual))


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C at a question, or nobody there to answer it."""
    try:
        yield
    except typer.Abort:
        typer.echo("\nStopped; nothing was written. With --yes nothing is asked", err=True)
        raise typer.Exit(130) from None


def _name(file: Path, dataset: str) -> str:
    """The file's own, where that may be the name of a run."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in file.stem).strip("._-")
    return dataset if name in ("", "experiment") else name[:100]


def written(answers: Answers) -> str:
    """The file. Text in quotes: a path may hold anything."""
    from kdtune.experiment.images import DOWNLOADABLE

    usual, a = answers.usual, answers
    root = f"\n  root: {json.dumps(a.root)}" if a.root is not None else ""
    if a.dataset in DOWNLOADABLE:
        root += "\n  download: true    # into that folder, where it is not there yet"
    size = f"\n  image_size: {a.image_size}         # every image becomes a square of this side" if a.image_size else ""
    return f"""\
# An experiment of kdtune. `kdtune plan` says what it will cost, `kdtune search` runs it, `kdtune schema` has every
# field; what is left out here has its default. Any field can be changed for one run: --set train.epochs=30.
name: {json.dumps(a.name)}    # of the run's folder

data:
  dataset: {a.dataset}    # {usual.images}{root}{size}
  augment: {usual.augment}    # {usual.why}; teacher and student see the same
  validation: {usual.validation}         # share of the training images that steers the search, without the test set

{_teacher(answers)}
student:
  model: {json.dumps(a.student)}    # what you want to deploy; `kdtune list models`

train:                    # a student's training; all trials and the final runs have the same
  epochs: {a.epochs}
  batch_size: {usual.batch_size}
  optimizer: sgd
  learning_rate: {0.1 if usual.batch_size < 256 else 0.2}      # its peak; in proportion to the batch size
  weight_decay: {0.0005 if usual.image_size is None else 0.0001}
  schedule: cosine        # the learning rate falls to 0

distill:                  # textbook KD (Hinton et al. 2015); the search below varies it
  temperature: 4          # softens the answers of both; the more, the more small probabilities count
  alpha: 0.9              # weight of the teacher's answers; the labels get the rest
  feature_weight: 0       # of matching the feature maps: off, so that all trials learn from cached answers

search:
  trials: {a.trials}              # configurations to try; textbook KD is the first
  # of three trials one goes on, but none stops in its first epochs
  stopper: {{kind: asha, reduction_factor: 3, grace_epochs: {math.ceil(a.epochs / 8)}}}
  space:                  # every value may be `choice`, `uniform`, `loguniform` or `integer`
    distill.temperature.kind: {{choice: [fixed, exponential]}}
    distill.temperature.start: {{loguniform: [1, 20]}}    # published ones lie between 1 and 20
    distill.temperature.end_ratio: {{loguniform: [0.125, 4], when: {{distill.temperature.kind: exponential}}}}
    distill.alpha.kind: {{choice: [fixed, exponential]}}
    distill.alpha.start: {{uniform: [0.2, 0.99]}}
    distill.alpha.end_ratio: {{uniform: [0.02, 1], when: {{distill.alpha.kind: exponential}}}}
    # feature maps too; such trials need the teacher itself beside the student and take several times as long
    # distill.feature_weight: {{choice: [0, {{loguniform: [0.01, 10]}}]}}
  points:                 # tried after textbook KD: schedules that others have found to do well
    - {{distill.temperature.kind: exponential, distill.temperature.start: 4, distill.temperature.end_ratio: 0.25,
       distill.alpha.kind: exponential, distill.alpha.start: 0.9, distill.alpha.end_ratio: 0.55}}
    - {{distill.temperature.kind: fixed, distill.temperature.start: 1,
       distill.alpha.kind: fixed, distill.alpha.start: 0.5}}
    - {{distill.temperature.kind: exponential, distill.temperature.start: 2, distill.temperature.end_ratio: 3,
       distill.alpha.kind: fixed, distill.alpha.start: 0.9}}

final:
  seeds: 5                # runs of the winner and of each baseline: fewer cannot tell a gain from chance
  baselines: [student alone, textbook KD]

resources:                # of one trial; as many run at once as the machine or the cluster holds
  workers_per_trial: 1
  gpus_per_worker: auto   # 1 where there is a GPU
  trials_per_gpu: 1       # auto: as many as train fastest together
storage: runs             # or an address: s3://bucket/runs
tracking: [tensorboard]   # mlflow and wandb, too
"""


def _teacher(answers: Answers) -> str:
    model = f"teacher:\n  model: {json.dumps(answers.teacher)}"
    if answers.weights is not None:
        return f"""{model}
  weights: {json.dumps(answers.weights)}    # its state dict; images are normalised by data.mean and data.std
"""
    usual = answers.usual
    return f"""{model}
  train:                  # it is trained here once and kept for later searches; `weights: FILE` brings one along
    epochs: {usual.teacher_epochs}
    batch_size: {usual.batch_size}
    learning_rate: {0.05 if answers.dataset == "digits" else 0.1 if usual.batch_size < 256 else 0.2}
"""
