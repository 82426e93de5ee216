"""Losses between the logits of student and teacher, both [B, C], B images and C classes.

    loss = dkd(student_logits, teacher_logits, temperature, labels, nontarget_weight=8.0)
    loss = LOGIT_LOSSES[config.logit_loss](student_logits, teacher_logits, temperature, labels, config)

Plain functions, each with the arguments that it needs. `LOGIT_LOSSES` names them for experiment files behind one
signature, in which labels [B] are -1 where an image has none and `config` is the `distill` section. All compute in
float32 whatever comes in, and none applies the factor T^2, which is the objective's. A temperature is a number, or a
scalar tensor where it is learned.

Scales: `kl` and `dkd` are in nats, unbounded; `dist` is 0 to 2 plus 0 to 2 times intra_class_weight, about 1 a part
where the two have nothing in common.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtune.experiment import Distill

Temperature = float | Tensor
LogitLoss = Callable[[Tensor, Tensor, Temperature, Tensor, Distill], Tensor]

FLAT = 1e-7  # a row whose deviations from its mean are shorter has no shape, and a gradient without bounds


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature) -> Tensor:
    """KL(teacher || student) at `temperature`, summed over classes, averaged over the batch; in nats.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network".
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def dkd(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature, labels: Tensor, nontarget_weight: float
) -> Tensor:
    """KL in two parts: right class against all others, plus `nontarget_weight` times the others among themselves.

    `kl` is the same sum with the teacher's probability of "not the right class" as the weight, so that a certain
    teacher says next to nothing about the others. Where a label is -1, the teacher's answer stands for it. Zhao et
    al. 2022, "Decoupled Knowledge Distillation"; their weight of the first part is 1.
    """
    right = torch.where(labels < 0, teacher_logits.argmax(dim=1), labels)
    student, student_others = _parted(student_logits.float() / temperature, right)
    teacher, teacher_others = _parted(teacher_logits.float() / temperature, right)
    target = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    nontarget = F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return target + nontarget_weight * nontarget


def _parted(logits: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (right, not right) [B, 2], and of the other classes among themselves [B, C - 1]."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = logits.gather(1, columns + (columns >= right.unsqueeze(1)))
    binary = torch.cat([logits.gather(1, right.unsqueeze(1)), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


def dist(student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature, intra_class_weight: float) -> Tensor:
    """1 - correlation of an image's probabilities over classes, plus that of a class's over the images of the batch.

    Each is a mean, over images and over classes. A correlation with something flat counts as 0, without a gradient;
    so does that within the classes of a batch of one. Huang et al. 2022, "Knowledge Distillation from A Stronger
    Teacher".
    """
    student = F.softmax(student_logits.float() / temperature, dim=1)
    teacher = F.softmax(teacher_logits.float() / temperature, dim=1)
    between, within = _correlation(student, teacher, dim=1), _correlation(student, teacher, dim=0)
    return 1 - between.mean() + intra_class_weight * (1 - within.mean())


def _correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Pearson's, along `dim`; less where both are all but flat, since 1e-8 is the authors' own guard."""
    student, teacher = student - student.mean(dim, keepdim=True), teacher - teacher.mean(dim, keepdim=True)
    mine, theirs = torch.linalg.vector_norm(student, dim=dim), torch.linalg.vector_norm(teacher, dim=dim)
    return torch.where(mine.detach() > FLAT, (student * teacher).sum(dim) / (mine * theirs + 1e-8), 0.0)


def standardise(logits: Tensor) -> Tensor:
    """Logits of mean 0 and standard deviation 1 an image, so that the student need not match the teacher's range.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation".
    """
    logits = logits.float()
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


LOGIT_LOSSES: dict[str, LogitLoss] = {
    "kl": lambda student, teacher, temperature, labels, config: kl(student, teacher, temperature),
    "dkd": lambda student, teacher, temperature, labels, config: dkd(
        student, teacher, temperature, labels, config.nontarget_weight
    ),
    "dist": lambda student, teacher, temperature, labels, config: dist(
        student, teacher, temperature, config.intra_class_weight
    ),
}


def logit_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature, labels: Tensor, config: Distill
) -> Tensor:
    """The loss that `config` names, of standardised logits where it says so."""
    if config.standardise_logits:
        student_logits, teacher_logits = standardise(student_logits), standardise(teacher_logits)
    return LOGIT_LOSSES[config.logit_loss](student_logits, teacher_logits, temperature, labels, config)
