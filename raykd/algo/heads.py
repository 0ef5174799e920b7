"""The two heads' mixture at inference, and the search for its two numbers: numpy alone, no training.

N images, C classes, G grid points (rows ``ce_weight, temperature``). alpha means opposite things in the two reference
codes, so it is ``ce_weight`` here, and beta is ``temperature``.
"""

from __future__ import annotations

import numpy as np

CE_WEIGHTS = tuple(np.round(np.arange(21) * 0.05, 2).tolist())
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


def mixture(ce_logits_NC: np.ndarray, kd_logits_NC: np.ndarray, ce_weight: float, temperature: float) -> np.ndarray:
    """Student probabilities: the two heads' softmaxes, averaged (DHO Eq. 8).

    Computed in float64, row by row, so that a row's bits do not depend on its neighbours.

    Args:
        ce_logits_NC: float [N, C], head trained on labels.
        kd_logits_NC: float [N, C], head trained to match the teacher.
        ce_weight: Share of the CE head, 0 to 1. alpha in DHO; 1 - alpha in PCoreSet.
        temperature: Divides the KD logits before its softmax, > 0. beta in both papers.

    Returns:
        float32 [N, C], rows sum to 1.

    Example:
        >>> mixture(np.array([[0.0, 0.0]]), np.array([[0.0, np.log(3.0)]]), 0.5, 1.0)
        array([[0.375, 0.625]], dtype=float32)
    """
    kd_NC = np.asarray(kd_logits_NC, np.float64) / temperature
    return (ce_weight * softmax(ce_logits_NC) + (1 - ce_weight) * softmax(kd_NC)).astype(np.float32)


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax of each row, float64 [N, C]."""
    logits_NC = np.asarray(logits_NC, np.float64)
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True, initial=-np.inf))
    return powers_NC / powers_NC.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------- the search: a grid of 21 x 7, as in DHO's code


def grid(default: tuple[float, float]) -> np.ndarray:
    """The papers' grid, ce_weight 0 to 1 step 0.05 by temperature .5 to 4 (papers.md 1.5), and the default.

    Returns:
        float64 [G, 2], G = 147, or 148 when the default is not among them; nearest to the default first, so that the
        first maximum is the tie to keep.
    """
    points_G2 = np.array([(w, t) for t in TEMPERATURES for w in CE_WEIGHTS])
    points_G2 = np.unique(np.vstack([points_G2, default]), axis=0)
    far_G = np.abs(points_G2[:, 0] - default[0]) + np.abs(np.log(points_G2[:, 1] / default[1]))
    return points_G2[np.lexsort((points_G2[:, 1], points_G2[:, 0], np.round(far_G, 9)))]


def hits(ce_logits_NC: np.ndarray, kd_logits_NC: np.ndarray, labels_N: np.ndarray, points_G2: np.ndarray) -> np.ndarray:
    """Whether each mixture is right on each image, bool [G, N]. Cost: G * N * C, softmaxes once per temperature."""
    ce_NC = softmax(ce_logits_NC)
    right_GN = np.empty((len(points_G2), len(labels_N)), bool)
    for temperature in np.unique(points_G2[:, 1]):
        kd_NC = softmax(np.asarray(kd_logits_NC, np.float64) / temperature)
        for g in np.flatnonzero(points_G2[:, 1] == temperature):
            weight = points_G2[g, 0]
            right_GN[g] = (weight * ce_NC + (1 - weight) * kd_NC).argmax(axis=1) == labels_N
    return right_GN


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
