"""Online distillation: the student and its peers learn side by side, all from each other.

Every network's total is (1 - alpha) * cross_entropy + alpha * T^2 * the mean of its logit losses against the others,
whose answers count as constants; the totals are summed. Zhang et al. 2018, "Deep Mutual Learning", where all networks
take their step at once. There is no teacher to wait for and none to cache; only the student is kept.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdtune.data import Batch, Dataset
from kdtune.distill.objective import Terms
from kdtune.distill.students import Student, new_network
from kdtune.experiment import Distill, Experiment
from kdtune.models import build_model
from kdtune.training import new_state


class Peers(nn.Module):
    """forward(images) -> (the student's logits [B, C], those of all networks, the student's first).

    In eval mode the student alone is asked: peers are not measured.
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        asked = self.networks if self.training else self.networks[:1]
        logits = tuple(network(images) for network in asked)
        return logits[0], logits


class MutualLearning:
    """The objective above, for the outputs of `Peers`."""

    def __init__(self, config: Distill) -> None:
        self.terms = Terms(config)

    def begin_epoch(self, epoch: int, epochs: int, column: int) -> Mapping[str, float]:
        return self.terms.begin_epoch(epoch, epochs)

    def __call__(self, outputs: tuple[Tensor, tuple[Tensor, ...]], batch: Batch) -> dict[str, Tensor]:
        everyone, labels = tuple(map(batch.gather, outputs[1])), batch.gather(batch.labels)
        cross_entropies = [self.terms.cross_entropy(logits, labels) for logits in everyone]
        distillations = [self._from_others(k, everyone, labels) for k in range(len(everyone))]
        return {
            "cross_entropy": torch.stack(cross_entropies).sum(),
            "distillation": torch.stack(distillations).sum(),
        }

    def _from_others(self, mine: int, everyone: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """What network `mine` pays for differing from each of the others, on average."""
        others = [logits.detach() for k, logits in enumerate(everyone) if k != mine]
        temperature = self.terms.temperature
        losses = [self.terms.distillation(everyone[mine], other, temperature, labels) for other in others]
        return torch.stack(losses).mean()


def peer_student(experiment: Experiment, dataset: Dataset, seed: int, device: torch.device) -> Student:
    """A student among its peers, `teacher.peers`; its own weights are those of any student of this seed."""
    assert experiment.own_teacher.peers is not None
    networks = [new_network(experiment, dataset, seed)]
    for place, name in enumerate(experiment.own_teacher.peers, start=1):
        # the CPU's generator reads 32 bits, and seeds lie below 2^31: no peer starts as the student of another seed
        torch.manual_seed((1 << 31) + (1009 * seed + place) % (1 << 31))
        networks.append(build_model(name, dataset.shape, len(dataset.classes)))
    return Student(
        networks[0], new_state(Peers(networks), experiment.train, device), MutualLearning(experiment.distill)
    )
