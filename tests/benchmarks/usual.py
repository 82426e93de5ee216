"""A distillation loop as it is usually written, which `peers` measures kdtune against.

Drawn from what the widely used repositories for CIFAR have in common: a `Dataset` of arrays that become PIL images,
torchvision's transforms in a `DataLoader` with worker processes, the teacher asked in every step, loss and top-1 and
top-5 accuracy read in every step, all threads that torch takes by itself, no autocast.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed
from torchvision import transforms

MEAN, STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
AUGMENTED = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class Arrays(Indexed[tuple[Any, int]]):
    """Images [N, 32, 32, 3] with their labels, transformed one by one."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: list[int], transform: transforms.Compose) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class UsualLoop:
    """A student and a live teacher; `epoch()` trains on all images and validates."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: npt.NDArray[np.uint8],
        labels: list[int],
        validation: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        """The last `validation` images are not trained on."""
        self.student, self.teacher = student.to(device), teacher.to(device).eval()
        self.device = device
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        workers = min(8, os.cpu_count() or 1)
        count = len(labels) - validation
        trained = Arrays(images[:count], labels[:count], AUGMENTED)
        validated = Arrays(images[count:], labels[count:], PLAIN)
        self.loader = DataLoader(
            trained, batch_size=batch_size, shuffle=True, num_workers=workers, pin_memory=self.cuda
        )
        self.validation = DataLoader(validated, batch_size=batch_size, num_workers=workers, pin_memory=self.cuda)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def epoch(self) -> dict[str, float]:
        seen = {"loss": 0.0, "top1": 0.0, "top5": 0.0}
        self.student.train()
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.student(images)
            with torch.no_grad():
                answers = self.teacher(images)
            soft = F.kl_div(F.log_softmax(logits / 4, dim=1), F.softmax(answers / 4, dim=1), reduction="batchmean") * 16
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
            top1, top5 = self._accuracies(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            for name, value in (("loss", loss.item()), ("top1", top1), ("top5", top5)):
                seen[name] += value * len(labels)
        self.student.eval()
        with torch.no_grad():
            for images, labels in self.validation:
                self._accuracies(self.student(images.to(self.device)), labels.to(self.device))
        return seen

    @staticmethod
    def _accuracies(logits: Tensor, labels: Tensor) -> tuple[float, float]:
        right = logits.topk(5, dim=1).indices == labels[:, None]
        return right[:, :1].float().sum().item() / len(labels), right.float().sum().item() / len(labels)
