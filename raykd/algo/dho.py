"""DHO: one backbone, two linear heads, one learning from labels and one from the teacher (arXiv 2505.07675).

And the baselines it is measured against, which have one head: ``ce`` learns from labels, ``kd`` from the teacher, and
the head of ``ce+kd`` from both at once (``heads.HEADS``).

N images, L labeled and U unlabeled rows of a batch, C classes, D feature width. The two reference codes call the
share of the CE head alpha and 1 - alpha; here it is ``ce_weight``, and beta is ``temperature``. How the heads are mixed
at inference is in ``heads.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from raykd.algo.heads import HEADS

LABELS_COLUMNS = ("ce_logits", "logits")  # the heads that see labels
TEACHER_COLUMNS = ("kd_logits", "logits")  # the heads that see the teacher


class Outputs(NamedTuple):
    """What the student says of N images: features [N, D] and the logits [N, C] of each head, by column."""

    features_ND: torch.Tensor
    logits: dict[str, torch.Tensor]

    def rows(self, where: slice) -> Outputs:
        return Outputs(self.features_ND[where], {name: value[where] for name, value in self.logits.items()})


class Loss(NamedTuple):
    """A training loss and what it is made of, float scalars; None for what the student's heads do not learn from."""

    total: torch.Tensor
    ce: torch.Tensor | None
    kl_labeled: torch.Tensor | None
    kl_unlabeled: torch.Tensor | None


class StudentNet(nn.Module):
    """A backbone and one or two linear heads with bias on the same feature (DHO section 2.2).

    Args:
        backbone: Maps images to features float [N, D].
        width: D.
        num_classes: C.
        heads: Their kind, a key of :data:`raykd.algo.heads.HEADS`.
        language_aware: A head that learns from a teacher is a :class:`CosineHead` (DHO section 2.3).
    """

    def __init__(
        self, backbone: nn.Module, width: int, num_classes: int, heads: str = "dho", language_aware: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.language_aware, self.backbone = heads, language_aware, backbone
        for column in HEADS[heads]:
            kind = CosineHead if language_aware and column in TEACHER_COLUMNS else nn.Linear
            self.add_module(head_of(column), kind(width, num_classes))

    @torch.no_grad()
    def begin_as_texts(self, texts_CD: torch.Tensor) -> None:
        """Let the rows of all heads be the embeddings of the classes' texts, and their biases 0.

        Args:
            texts_CD: float [C, D], of the text tower that the backbone was trained with; of any length.
        """
        for column in HEADS[self.heads]:
            for name, parameter in self.get_submodule(head_of(column)).named_parameters():
                parameter.copy_(texts_CD if name == "weight" else torch.zeros_like(parameter))

    def forward(self, images: torch.Tensor) -> Outputs:
        features_ND = self.backbone(images)
        heads = {column: self.get_submodule(head_of(column)) for column in HEADS[self.heads]}
        return Outputs(features_ND, {column: head(features_ND) for column, head in heads.items()})


class CosineHead(nn.Module):
    """``cos(z, row of the class) / zeta``: logits as a CLIP-like teacher gives them (DHO Eq. 10).

    The reference code normalises z alone: it leaves the rows as long as they are, and adds a bias (PAPERS.md 1.1). Here
    the length of a row says nothing, as in the paper.

    Args:
        width: D.
        num_classes: C.
        zeta: CLIP's temperature, > 0.
    """

    def __init__(self, width: int, num_classes: int, zeta: float = 0.01) -> None:
        super().__init__()
        self.zeta = zeta
        self.weight = nn.Parameter(torch.randn(num_classes, width) / width**0.5)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(features_ND, dim=-1), F.normalize(self.weight, dim=-1)) / self.zeta


def head_of(column: str) -> str:
    """The module that writes a column of logits: ``ce_head``, ``kd_head`` or ``head``."""
    return column.removesuffix("logits") + "head"


def distillation_loss(
    labeled: Outputs,
    labels_L: torch.Tensor,
    teacher_labeled_LC: torch.Tensor | None,
    unlabeled: Outputs | None,
    teacher_unlabeled_UC: torch.Tensor | None,
    ce_weight: float = 0.5,
    temperature: float = 2.0,
    shares: tuple[float, float] = (1.0, 1.0),
) -> Loss:
    """``w * CE + (1 - w) * T^2 * (KL_labeled + KL_unlabeled)``; each mean over its own batch, the two KL added.

    The CE head sees only labeled rows, the KD head never sees a label; the one head of ``ce+kd`` sees both. A head that
    is alone has its term alone, without w: ``ce`` has CE, ``kd`` has T^2 * (KL_labeled + KL_unlabeled). The T^2 is the
    reference code's; the paper's Eq. 6 has none (PAPERS.md 1.2).

    Args:
        labeled: Student on the labeled batch, L rows.
        labels_L: int64 [L], class indices.
        teacher_labeled_LC: float [L, C], teacher logits of the labeled batch; ``ce`` looks at no teacher: None will do.
        unlabeled: Student on the unlabeled batch, U rows; likewise.
        teacher_unlabeled_UC: float [U, C], teacher logits of the unlabeled batch; likewise.
        ce_weight: w, 0 to 1 (lambda in DHO).
        temperature: T > 0, softens both sides of each KL (eta in DHO).
        shares: How much the mean over the labeled, and over the unlabeled batch counts: where a batch is spread over
            workers or taken in parts, each part's share of it, so that the parts' sum is the loss of the whole. A part
            may have no row of a kind: the mean over none is 0.
    """
    of_labeled, of_unlabeled = shares
    from_labels = next((labeled.logits[name] for name in LABELS_COLUMNS if name in labeled.logits), None)
    column = next((name for name in TEACHER_COLUMNS if name in labeled.logits), None)
    cross_entropy = None
    if from_labels is not None:
        reduction = "mean" if len(labels_L) else "sum"
        cross_entropy = of_labeled * F.cross_entropy(from_labels, labels_L, reduction=reduction)
    if column is None:
        assert cross_entropy is not None
        return Loss(cross_entropy, cross_entropy, None, None)
    assert teacher_labeled_LC is not None
    assert teacher_unlabeled_UC is not None
    assert unlabeled is not None
    kl_labeled = of_labeled * softened_kl(teacher_labeled_LC, labeled.logits[column], temperature)
    kl_unlabeled = of_unlabeled * softened_kl(teacher_unlabeled_UC, unlabeled.logits[column], temperature)
    if cross_entropy is None:
        return Loss(temperature**2 * (kl_labeled + kl_unlabeled), None, kl_labeled, kl_unlabeled)
    total = ce_weight * cross_entropy + (1 - ce_weight) * temperature**2 * (kl_labeled + kl_unlabeled)
    return Loss(total, cross_entropy, kl_labeled, kl_unlabeled)


class Learner(nn.Module):
    """Student and loss in one module, so that whatever wraps it (DDP) sees one forward pass a step.

    Args:
        model: The student.
        stacked: Whether labeled and unlabeled images go through it in one pass (one BatchNorm statistic) or in two.
        ce_weight, temperature: See :func:`distillation_loss`.
    """

    def __init__(self, model: StudentNet, stacked: bool, ce_weight: float, temperature: float) -> None:
        super().__init__()
        self.model, self.stacked, self.ce_weight, self.temperature = model, stacked, ce_weight, temperature

    @property
    def needs_teacher(self) -> bool:
        """Whether any head learns from the teacher; else unlabeled images are of no use either."""
        return any(column in TEACHER_COLUMNS for column in HEADS[self.model.heads])

    def forward(
        self,
        images: torch.Tensor,
        labels_L: torch.Tensor,
        teacher_LC: torch.Tensor | None,
        teacher_UC: torch.Tensor | None,
        shares: tuple[float, float] = (1.0, 1.0),
    ) -> Loss:
        """The loss of a batch whose first L images are the labeled ones; without a teacher there are no others.

        Images that are all labeled, or all not, go through the student in one pass: none normalises over no image, and
        every parameter has its part in the loss, as DDP wants it.
        """
        num = len(labels_L)
        unlabeled: Outputs | None = None
        if not self.needs_teacher:
            labeled = self.model(images)
        elif self.stacked or num in (0, len(images)):
            out = self.model(images)
            labeled, unlabeled = out.rows(slice(num)), out.rows(slice(num, None))
        else:
            labeled, unlabeled = self.model(images[:num]), self.model(images[num:])
        weights = self.ce_weight, self.temperature, shares
        return distillation_loss(labeled, labels_L, teacher_LC, unlabeled, teacher_UC, *weights)


def softened_kl(teacher_NC: torch.Tensor, student_NC: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the two softmaxes at ``temperature``, mean over rows (DHO Eq. 6), 0 of none."""
    return F.kl_div(
        F.log_softmax(student_NC / temperature, dim=-1),
        F.log_softmax(teacher_NC / temperature, dim=-1),
        reduction="batchmean" if len(student_NC) else "sum",
        log_target=True,
    )
