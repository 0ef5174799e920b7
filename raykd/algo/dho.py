"""DHO: one backbone, two linear heads, one learning from labels and one from the teacher (arXiv 2505.07675).

N images, L labeled and U unlabeled rows of a batch, C classes, D feature width. The two reference codes call the
share of the CE head alpha and 1 - alpha; here it is ``ce_weight``, and beta is ``temperature``. How the heads are mixed
at inference is in ``mixture.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Outputs(NamedTuple):
    """What the student says of N images: features [N, D] and each head's logits [N, C]."""

    features_ND: torch.Tensor
    ce_logits_NC: torch.Tensor
    kd_logits_NC: torch.Tensor


class DualHead(nn.Module):
    """A backbone and two independent linear heads with bias on the same feature (DHO section 2.2).

    Args:
        backbone: Maps images to features float [N, D].
        width: D.
        num_classes: C.
    """

    def __init__(self, backbone: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.ce_head = nn.Linear(width, num_classes)
        self.kd_head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> Outputs:
        features_ND = self.backbone(images)
        return Outputs(features_ND, self.ce_head(features_ND), self.kd_head(features_ND))


def dho_loss(
    labeled: Outputs,
    labels_L: torch.Tensor,
    teacher_labeled_LC: torch.Tensor,
    unlabeled: Outputs,
    teacher_unlabeled_UC: torch.Tensor,
    ce_weight: float = 0.5,
    temperature: float = 2.0,
) -> torch.Tensor:
    """``w * CE + (1 - w) * T^2 * (KL_labeled + KL_unlabeled)``; each mean over its own batch, the two KL added.

    The CE head sees only labeled rows, the KD head never sees a label. The T^2 is the reference code's; the paper's
    Eq. 6 has none (papers.md 1.2).

    Args:
        labeled: Student on the labeled batch, L rows.
        labels_L: int64 [L], class indices.
        teacher_labeled_LC: float [L, C], teacher logits of the labeled batch.
        unlabeled: Student on the unlabeled batch, U rows.
        teacher_unlabeled_UC: float [U, C], teacher logits of the unlabeled batch.
        ce_weight: w, 0 to 1 (lambda in DHO).
        temperature: T > 0, softens both sides of each KL (eta in DHO).

    Returns:
        The loss, a float scalar.
    """
    cross_entropy = F.cross_entropy(labeled.ce_logits_NC, labels_L)
    distillation = softened_kl(teacher_labeled_LC, labeled.kd_logits_NC, temperature) + softened_kl(
        teacher_unlabeled_UC, unlabeled.kd_logits_NC, temperature
    )
    return ce_weight * cross_entropy + (1 - ce_weight) * temperature**2 * distillation


def softened_kl(teacher_NC: torch.Tensor, student_NC: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the two softmaxes at ``temperature``, mean over rows (DHO Eq. 6)."""
    return F.kl_div(
        F.log_softmax(student_NC / temperature, dim=-1),
        F.log_softmax(teacher_NC / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
