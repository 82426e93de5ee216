"""Opening a student for use: an export folder, or any one file of it, wherever that was copied to.

student = open_student(Path("runs/digits/student"))             # or .../student.onnx, student.int8.onnx
logits = student.answers(images)                                # uint8 [B, C, H, W]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdtune.errors import ExportError
from kdtune.export.formats import FORMATS, Answers
from kdtune.export.student import Description, load_student
from kdtune.training import default_device


@dataclass(frozen=True)
class Opened:
    """A student that answers, whatever runs it."""

    answers: Answers
    classes: Sequence[str]
    image_shape: tuple[int, int, int]  # C, H, W
    resize: str  # how files become images of that shape, one of data.RESIZES
    runtime: str


def open_student(path: Path, *, allow_code: bool = False) -> Opened:
    """The student of a folder or a file; weights run where there is a GPU, other formats on the CPU.

    With `allow_code` also what may run code of its maker's: a .pt2 or .torchscript, a model that is a function of
    somebody's module; without it nothing is run that the file brings (formats.py says more). Raises ExportError where
    it is no student, is damaged or needs `allow_code`, or a package is missing.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        device = default_device()
        student = load_student(path, allow_code=allow_code).to(device)

        def answers(images: Tensor) -> Tensor:
            logits: Tensor = student(images.to(device)).cpu()
            return logits

        return Opened(answers, student.classes, student.image_shape, student.resize, f"PyTorch on {device}")
    for one in FORMATS.values():
        if one.suffix == path.suffix:
            one.need()
            return _in_its_runtime(path, *one.opened(path, allow_code=allow_code), one.runtime)
    known = ", ".join(one.suffix for one in FORMATS.values())
    what = f"{path} is no student" if path.exists() else f"there is no {path}"
    raise ExportError(f"{what}; give an export folder such as runs/digits/student, or a file {known}, .safetensors")


def _in_its_runtime(path: Path, answers: Answers, described: str, runtime: str) -> Opened:
    description = Description.from_json(described, path)
    return Opened(answers, description.classes, description.image_shape, description.resize, f"{runtime} on cpu")
