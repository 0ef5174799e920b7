"""Logits to probabilities, whatever the number of heads, and the search for the mixture's two numbers: numpy alone.

N images, C classes, G grid points (rows ``ce_weight, temperature``). alpha means opposite things in the two reference
codes, so it is ``ce_weight`` here, and beta is ``temperature``.
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

CE_WEIGHTS = tuple(np.round(np.arange(21) * 0.05, 2).tolist())
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


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
    ce_NC, kd_NC = _both(logits)
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


def _both(logits: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    assert set(logits) == set(HEADS["dho"]), f"columns {sorted(logits)}; expected one, or {HEADS['dho']}"
    return logits["ce_logits"], logits["kd_logits"]


# ---------------------------------------------------------------- the search: a grid of 21 x 7, as in DHO's code


def grid(default: Mixture) -> np.ndarray:
    """The papers' grid, ce_weight 0 to 1 step 0.05 by temperature .5 to 4 (PAPERS.md 1.5), and the default.

    Returns:
        float64 [G, 2], G = 147, or 148 when the default is not among them; nearest to the default first, so that the
        first maximum is the tie to keep.
    """
    start = (default.ce_weight, default.temperature)
    points_G2 = np.array([(w, t) for t in TEMPERATURES for w in CE_WEIGHTS])
    points_G2 = np.unique(np.vstack([points_G2, start]), axis=0)
    far_G = np.abs(points_G2[:, 0] - start[0]) + np.abs(np.log(points_G2[:, 1] / start[1]))
    return points_G2[np.lexsort((points_G2[:, 1], points_G2[:, 0], np.round(far_G, 9)))]


def hits(logits: Mapping[str, np.ndarray], labels_N: np.ndarray, points_G2: np.ndarray) -> np.ndarray:
    """Whether each mixture of a student of two heads is right on each image, bool [G, N].

    Cost: G * N * C, softmaxes once per temperature.

    Args:
        logits: float [N, C] of both heads.
        labels_N: int [N], class indices.
        points_G2: float [G, 2], as :func:`grid` gives them.
    """
    ce_logits_NC, kd_logits_NC = _both(logits)
    ce_NC = softmax(ce_logits_NC)
    right_GN = np.empty((len(points_G2), len(labels_N)), bool)
    for temperature in np.unique(points_G2[:, 1]):
        kd_NC = softmax(np.asarray(kd_logits_NC, np.float64) / temperature)
        for g in np.flatnonzero(points_G2[:, 1] == temperature):
            weight = points_G2[g, 0]
            right_GN[g] = (weight * ce_NC + (1 - weight) * kd_NC).argmax(axis=1) == labels_N
    return right_GN


def better_mixture(
    logits: Mapping[str, np.ndarray],
    labels_N: np.ndarray,
    default: Mixture,
    points_G2: np.ndarray,
    correct_G: np.ndarray,
) -> tuple[Mixture, bool, str]:
    """The most accurate point of a grid, if it beats the default by a standard error (:func:`is_real_gain`).

    Args:
        logits, labels_N: What was searched on; see :func:`hits`.
        default: What stays otherwise.
        points_G2: float64 [G, 2], as :func:`grid` gives them; of equals the first is taken.
        correct_G: int [G], how many images each point has right.

    Returns:
        The mixture, whether it is another than the default, and the best point's gain in words.
    """
    best = points_G2[int(correct_G.argmax())]
    both = np.array([best, (default.ce_weight, default.temperature)])
    real, gain = is_real_gain(*hits(logits, labels_N, both))
    return Mixture(float(best[0]), float(best[1])) if real else default, real, gain


def is_real_gain(right_best_N: np.ndarray, right_default_N: np.ndarray) -> tuple[bool, str]:
    """The one-standard-error rule: whether the best point's paired gain over the default exceeds its standard error.

    The best of 147 points on few images is mostly luck, so the default stays unless the data say otherwise.

    Args:
        right_best_N, right_default_N: bool [N], from :func:`hits`.

    Returns:
        The answer, and the gain in words.
    """
    gain_N = right_best_N.astype(float) - right_default_N
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else np.inf
    won, lost = (gain_N > 0).sum(), (gain_N < 0).sum()
    # Exactly mean > error, in whole numbers: for one image won the two are equal, and rounding would decide.
    real = won > lost and (won - lost) ** 2 > won + lost
    return bool(real), f"{gain_N.mean():+.3f} ± {error:.3f}"
