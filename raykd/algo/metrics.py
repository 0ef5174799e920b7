"""How good predictions are. N images, C classes; probabilities float [N, C], labels int [N]."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


def accuracy(probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of rows whose largest probability is at the label (first maximum)."""
    return float(np.mean(probs_NC.argmax(axis=1) == labels_N))


def recall(probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Accuracy within each true class, float [C]; NaN for a class with no row.

    Example:
        >>> recall(np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 1, 1]))
        array([1. , 0.5, nan])
    """
    num_classes = probs_NC.shape[1]
    hits_C = np.bincount(labels_N[probs_NC.argmax(axis=1) == labels_N], minlength=num_classes)
    rows_C = np.bincount(labels_N, minlength=num_classes)
    return np.divide(hits_C, rows_C, out=np.full(num_classes, np.nan), where=rows_C > 0)


def macro_accuracy(probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean recall of the classes that have rows: every class weighs the same."""
    return float(np.nanmean(recall(probs_NC, labels_N)))


def calibration_error(
    probs_NC: np.ndarray, labels_N: np.ndarray, num_bins: int = 15, weights_N: np.ndarray | None = None
) -> float:
    """Expected calibration error of the top class: mean |confidence - accuracy| over equal-width bins, by rows.

    0 (as sure as it is right) to 1. Guo et al. 2017 (arXiv 1706.04599), Eq. 3; bins are (lower, upper], the first one
    closed. Cost: one pass.

    Args:
        weights_N: Of the rows, float [N]; None: all the same.

    Example:
        >>> calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))  # sure to 3/4, right on 1/2
        0.25
    """
    confidence_N = probs_NC.max(axis=1)
    correct_N = probs_NC.argmax(axis=1) == labels_N
    weights_N = np.ones(len(labels_N)) if weights_N is None else weights_N
    bins_N = confidence_bins(confidence_N, num_bins)
    gaps = np.bincount(bins_N, weights=weights_N * (confidence_N - correct_N), minlength=num_bins)
    return float(np.abs(gaps).sum() / weights_N.sum())


def confidence_bins(confidence_N: np.ndarray, num_bins: int = 15) -> np.ndarray:
    """The equal-width bins of :func:`calibration_error`, int64 [...]: (lower, upper], the first one closed."""
    bins_N: np.ndarray = np.clip(np.ceil(confidence_N * num_bins).astype(int) - 1, 0, num_bins - 1)
    return bins_N


def confusion(choices_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """How often each label is taken for each class, right ones too: int64 [n, 3] of label, choice, count.

    By label and choice, without those that never happen: of many classes that is nearly all.

    Example:
        >>> confusion(np.array([2, 1, 2, 2]), np.array([0, 1, 0, 2])).tolist()
        [[0, 2, 2], [1, 1, 1], [2, 2, 1]]
    """
    pairs_N2 = np.stack([labels_N, choices_N], axis=1).astype(np.int64)
    pairs, counts = np.unique(pairs_N2, axis=0, return_counts=True)
    return np.concatenate([pairs, counts[:, None]], axis=1)


def log_loss(probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean -log of the label's probability; one of 0 counts as the least that float32 holds, 1e-45.

    Example:
        >>> round(log_loss(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([1, 0])), 3)
        0.347
    """
    own_N = np.asarray(probs_NC, np.float64)[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(own_N, float(np.finfo(np.float32).smallest_subnormal))).mean())


class Scores(TypedDict):
    """How good predictions are, in plain numbers; None where there is nothing to measure on."""

    num_images: int  # that it is measured on
    accuracy: float | None
    macro_accuracy: float | None
    ece: float | None
    recall_C: list[float | None] | None  # None in it: no row of that class


class HeldOut(TypedDict):
    """How good predictions are on labels that whoever predicts has not seen."""

    accuracy: float
    log_loss: float
    ece: float


def scores(probs_NC: np.ndarray, labels_N: np.ndarray) -> Scores:
    """All of these; of no rows at all, None each."""
    if not len(labels_N):
        return {"num_images": 0, "accuracy": None, "macro_accuracy": None, "ece": None, "recall_C": None}
    return {
        "num_images": len(labels_N),
        "accuracy": accuracy(probs_NC, labels_N),
        "macro_accuracy": macro_accuracy(probs_NC, labels_N),
        "ece": calibration_error(probs_NC, labels_N),
        "recall_C": [None if np.isnan(value) else float(value) for value in recall(probs_NC, labels_N)],
    }
