"""A student as a network that needs no raykd: pixels in, class probabilities out."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from raykd.algo.heads import HEADS, Mixture
from raykd.models.student import Student


class Deployable(nn.Module):
    """A student from uint8 pixels to class probabilities, in one network: normalisation, heads, mixture, calibration.

    It is :func:`raykd.algo.heads.probabilities` in torch and float32. All is added in logarithms, so that a calibration
    finds something to divide where a probability rounds to 0.

    Args:
        student: Its network is copied, to the CPU.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.model = copy.deepcopy(student.model).cpu().float().eval()
        self.columns, self.mixture = student.columns, student.mixture
        self.register_buffer("mean", torch.tensor(student.preprocess.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(student.preprocess.std).view(1, 3, 1, 1) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, H, W, 3], cropped already, to float32 [n, C], rows of sum 1."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits = self.model(images).logits
        return mixed([logits[column] for column in self.columns], self.mixture)


def mixed(logits: list[torch.Tensor], mixture: Mixture) -> torch.Tensor:
    """Class probabilities of one head, or of two in the order of ``HEADS["dho"]``, float32 [n, C]."""
    log_probs_NC = torch.log_softmax(logits[0].float(), dim=1)
    if len(logits) == len(HEADS["dho"]):
        kd_NC = torch.log_softmax(logits[1].float() / mixture.temperature, dim=1)
        if mixture.ce_weight == 0:
            log_probs_NC = kd_NC
        elif mixture.ce_weight < 1:
            ce_share, kd_share = math.log(mixture.ce_weight), math.log1p(-mixture.ce_weight)
            log_probs_NC = torch.logsumexp(torch.stack([log_probs_NC + ce_share, kd_NC + kd_share]), dim=0)
    if mixture.calibration != 1.0:
        log_probs_NC = log_probs_NC / mixture.calibration
    return torch.softmax(log_probs_NC, dim=1)
