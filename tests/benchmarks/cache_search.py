"""How often a whole search asks its teacher, counted inside the teacher: a real search of digits under Ray.

The count begins when the teacher is ready and ends when the last trial has ended, whichever process asks.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdtune.cli.options import default_file
from kdtune.cli.progress import Lines
from kdtune.data import Dataset
from kdtune.experiment import load
from kdtune.models import build_model
from kdtune.models.parts import ImageShape
from kdtune.records import append_line, read_lines
from kdtune.search.run import run_search
from kdtune.teacher import Teacher
from tests.benchmarks.timing import row

TRIALS, EPOCHS = 12, 4
TEACHER = f"{__name__}:counted"
Result = tuple[list[dict[str, Any]], dict[str, float]]


class Counted(nn.Module):
    """A network that writes down how many images it answers to, training and the checks without pixels left out."""

    taps = ()

    def __init__(self, network: nn.Module, log: str) -> None:
        super().__init__()
        self.network = network
        self.log = Path(log)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and images.device.type != "meta":
            append_line(self.log, {"images": len(images)})
        logits: Tensor = self.network(images)
        return logits


def counted(image_shape: ImageShape, classes: int, log: str) -> nn.Module:
    return Counted(build_model("cnn-8-16", image_shape, classes), log)


class Watch(Lines):
    """Looks at the count before and after the trials."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log
        self.before = self.after = self.images = 0

    def count(self) -> int:
        return sum(line["images"] for line in read_lines(self.log))

    def teacher_ready(self, name: str, teacher: Teacher, dataset: Dataset) -> None:
        self.before, self.images = self.count(), len(dataset.labels)

    def final_progress(self, done: int, total: int) -> None:
        if done == 0:
            self.after = self.count()


def measure(folder: Path) -> Result:
    """Images that the teacher answers to in a search of `TRIALS` trials, over V x N."""
    log = folder / "passes.jsonl"
    watch = Watch(log)
    overrides = [
        f"storage={folder / 'search'}",
        f"teacher={{model: '{TEACHER}', options: {{log: '{log}'}}, train: {{epochs: 3, batch_size: 64}}}}",
        "data.augment=crop-flip",
        "data.crop_padding=1",
        f"train.epochs={EPOCHS}",
        f"search.trials={TRIALS}",
        "search.stopper.grace_epochs=2",
        "final.seeds=1",
        "final.baselines=[]",
    ]
    run_search(load(default_file(), overrides), watch)
    ratio = (watch.after - watch.before) / (EPOCHS * watch.images)
    return [row(f"teacher passes of {TRIALS} trials / V N", [ratio], "", "<= 1")], {"passes_over_allowed": ratio}
