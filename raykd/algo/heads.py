"""Logits to probabilities, whatever the number of heads: numpy alone. N images, C classes.

alpha means opposite things in the two reference codes, so it is ``ce_weight`` here, and beta is ``temperature``. Which
numbers are best is searched in ``mixture_search.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from raykd.algo.errors import UserError

HEADS: dict[str, tuple[str, ...]] = {
    "dho": ("ce_logits", "kd_logits"),  # one head learns from labels, the other from the teacher
    "ce": ("ce_logits",),  # labels alone
    "kd": ("kd_logits",),  # the teacher alone
    "ce+kd": ("logits",),  # one head that learns from both: ordinary distillation
}
"""The columns of logits that a student of each kind writes. A teacher writes ``("logits",)``."""


@dataclass(frozen=True)
class Mixture:
    """How two heads become one probability (DHO Eq. 8), and how sure it is; one head has nothing to mix.

    Args:
        ce_weight: Share of the CE head, 0 to 1. alpha in DHO; 1 - alpha in PCoreSet.
        temperature: Divides the KD logits before their softmax, > 0. beta in both papers.
        calibration: Temperature of the probabilities that come of it, > 0: their ``1 / calibration``-th powers, scaled
            to sum 1. It changes no ranking of classes.

    Raises:
        UserError: A number is out of its range.
    """

    ce_weight: float = 0.5
    temperature: float = 1.0
    calibration: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.ce_weight <= 1:
            raise UserError(f"ce_weight {self.ce_weight!r}; expected a share, 0 to 1")
        for name in ("temperature", "calibration"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} {value!r}; expected a number above 0")

    @property
    def uncalibrated(self) -> Mixture:
        """The papers' own: what is picked in, and what a calibration is fitted to."""
        return replace(self, calibration=1.0)


def probabilities(logits: Mapping[str, np.ndarray], mixture: Mixture = Mixture()) -> np.ndarray:
    """Class probabilities of a student's or a teacher's logits; the one place where they are made.

    With the columns of two heads the mixture of their softmaxes, with any one column its softmax. Computed in float64,
    row by row, so that a row's bits do not depend on its neighbours.

    Args:
        logits: float [N, C] by column, as :data:`HEADS` names them.
        mixture: Of the two heads; of it a single head looks at ``calibration`` alone.

    Returns:
        float32 [N, C], rows sum to 1.

    Example:
        >>> probabilities({"logits": np.array([[0.0, np.log(3.0)]])})
        array([[0.25, 0.75]], dtype=float32)
        >>> probabilities({"ce_logits": np.array([[0.0, 0.0]]), "kd_logits": np.array([[0.0, np.log(3.0)]])})
        array([[0.375, 0.625]], dtype=float32)
    """
    probs_NC = uncalibrated_probabilities(logits, mixture)
    if mixture.calibration != 1.0:
        probs_NC = tempered(probs_NC, mixture.calibration)
    return probs_NC.astype(np.float32)


def uncalibrated_probabilities(logits: Mapping[str, np.ndarray], mixture: Mixture) -> np.ndarray:
    """What :func:`probabilities` gives before the calibration, float64 [N, C]."""
    if len(logits) == 1:
        (logits_NC,) = logits.values()
        return softmax(logits_NC)
    ce_NC, kd_NC = two_heads(logits)
    kd_NC = np.asarray(kd_NC, np.float64) / mixture.temperature
    probs_NC: np.ndarray = mixture.ce_weight * softmax(ce_NC) + (1 - mixture.ce_weight) * softmax(kd_NC)
    return probs_NC


def tempered(probs_NC: np.ndarray, calibration: float) -> np.ndarray:
    """``p ** (1 / calibration)`` of each row, scaled to sum 1: above 1 less sure, below 1 surer. float64 [N, C]."""
    with np.errstate(divide="ignore"):  # the logarithm of 0 is a power of 0 again
        return softmax(np.log(np.asarray(probs_NC, np.float64)) / calibration)


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax of each row, float64 [N, C]."""
    logits_NC = np.asarray(logits_NC, np.float64)
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True, initial=-np.inf))
    return powers_NC / powers_NC.sum(axis=1, keepdims=True)


def two_heads(logits: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The logits of the CE head and of the KD head."""
    assert set(logits) == set(HEADS["dho"]), f"columns {sorted(logits)}; expected one, or {HEADS['dho']}"
    return logits["ce_logits"], logits["kd_logits"]
