"""Losses between the logits of student and teacher, both [B, C], B images and C classes.

    loss = kl(student_logits, teacher_logits, temperature)

Plain functions; `LOGIT_LOSSES` names them for experiment files. All compute in float32 whatever comes in.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at `temperature`, summed over classes, averaged over the batch; in nats.

    Without the factor T^2, which the objective applies. Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in
    a Neural Network".
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


LOGIT_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": kl}
