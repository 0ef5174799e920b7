"""Where distances are measured: exactly, and so that a row's bits do not depend on its block, shard or position.

Every distance is a direct sum of squared differences (or, for gradients, of products) of float32 values in float64.
Each row is summed along its own contiguous axis by numpy's pairwise reduction, whose order of additions is fixed by
the row's width alone; matrix products choose theirs by the shape of the matrix and are not used.

N rows, K centers, C classes, D feature width; W is the width of whichever vectors a space compares.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK_VALUES = 2**16  # float64 values worked on at a time: two such blocks stay in a core's cache


class Euclidean:
    """Rows are points, distance is Euclidean.

    Args:
        rows_NW: float32 [N, W], kept and never written to.
    """

    def __init__(self, rows_NW: np.ndarray) -> None:
        self.rows_NW = rows_NW

    def vector(self, row: int) -> np.ndarray:
        """What makes a row a center elsewhere, float32 [W]."""
        return self.rows_NW[row].copy()

    def lower(self, sq_N: np.ndarray, centers_KW: np.ndarray) -> None:
        """Lower ``sq_N`` (float64, in place) to the squared distance to the nearest center. Cost: N * K * W."""
        centers_KW = np.asarray(centers_KW, np.float64)
        for part in blocks(*self.rows_NW.shape):
            rows = self.rows_NW[part].astype(np.float64, order="C")
            work = np.empty_like(rows)
            for center_W in centers_KW:
                np.subtract(rows, center_W, out=work)
                np.multiply(work, work, out=work)
                np.minimum(sq_N[part], work.sum(axis=1), out=sq_N[part])


class Gradients:
    """Rows are BADGE's gradient embeddings ``(onehot(argmax p) - p) ⊗ z``, which are never made.

    ``‖a⊗x − b⊗y‖² = ‖a‖²‖x‖² + ‖b‖²‖y‖² − 2 (a·b)(x·y)``: three numbers a pair, from C + D values instead of C * D.
    Rounding can make it slightly negative, so it is clamped at 0; equal rows give exactly 0. Ties in the argmax go to
    the smaller class. A center travels as its probabilities and features, one after the other.

    Args:
        probs_NC: float32 [N, C].
        features_ND: float32 [N, D].
    """

    def __init__(self, probs_NC: np.ndarray, features_ND: np.ndarray) -> None:
        self.probs_NC, self.features_ND = probs_NC, features_ND
        self._norms_N: np.ndarray | None = None

    def vector(self, row: int) -> np.ndarray:
        """What makes a row a center elsewhere, float32 [C + D]."""
        return np.concatenate([self.probs_NC[row], self.features_ND[row]])

    def lower(self, sq_N: np.ndarray, centers_KW: np.ndarray) -> None:
        """Lower ``sq_N`` (float64, in place) to the squared distance to the nearest center. Cost: N * K * (C + D)."""
        if self._norms_N is None:
            self._norms_N = np.empty(len(sq_N))
            for part, a, x in self._factors():
                self._norms_N[part] = (a * a).sum(axis=1) * (x * x).sum(axis=1)
        num_classes = self.probs_NC.shape[1]
        b_KC = residuals(centers_KW[:, :num_classes])
        y_KD = np.asarray(centers_KW[:, num_classes:], np.float64, order="C")
        norms_K = (b_KC * b_KC).sum(axis=1) * (y_KD * y_KD).sum(axis=1)
        for part, a, x in self._factors():
            for b_C, y_D, norm in zip(b_KC, y_KD, norms_K, strict=True):
                products = (a * b_C).sum(axis=1) * (x * y_D).sum(axis=1)
                distances = np.maximum(self._norms_N[part] + norm - 2 * products, 0.0)
                np.minimum(sq_N[part], distances, out=sq_N[part])

    def _factors(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        num_rows, num_classes = self.probs_NC.shape
        for part in blocks(num_rows, num_classes + self.features_ND.shape[1]):
            yield part, residuals(self.probs_NC[part]), self.features_ND[part].astype(np.float64, order="C")


def residuals(probs_NC: np.ndarray) -> np.ndarray:
    """``onehot(argmax p) - p`` of each row, float64 [N, C]: minus the loss's gradient if the guess were right."""
    rows_NC = np.negative(probs_NC, dtype=np.float64, order="C")
    rows_NC[np.arange(len(rows_NC)), np.asarray(probs_NC).argmax(axis=1)] += 1.0
    return rows_NC


def unit(rows_NW: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean length, float32 [N, W]; rows of zeros stay zeros."""
    out_NW = np.empty(rows_NW.shape, np.float32)
    for part in blocks(*rows_NW.shape):
        rows = rows_NW[part].astype(np.float64, order="C")
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        out_NW[part] = rows / np.where(lengths > 0, lengths, 1.0)
    return out_NW


def blocks(num_rows: int, width: int) -> Iterator[slice]:
    """Slices of rows that hold about :data:`BLOCK_VALUES` values each."""
    step = max(1, BLOCK_VALUES // max(1, width))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
