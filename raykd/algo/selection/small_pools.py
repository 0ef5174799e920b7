"""Farthest-first over a pool that is small enough for one process: a running minimum in float32, decided in float64.

The loop is :func:`raykd.algo.selection.reference.running_minimum`, in float32 and with a bound on its rounding error.
Where a row is farther than any other by more than the error, it is the next pick; else those that may be are compared
exactly. The picks' own distances are worked out at the end, exactly, all at once.

Distances only fall, so those of before are bounds: only a window, the rows whose bounds are largest, is kept up to
date, for as long as the farthest in it is surely farther than any other can be. Then there is a larger one, at last of
all rows, whose rows meet the centers that they have not met. What was worked out exactly is kept until a center may
have lowered it.

N rows, L centers in the beginning, B budget, K centers by now, M rows in the window, P rows to compare, W the width of
the vectors.
"""

from __future__ import annotations

import numpy as np

from raykd.algo.selection.distances import CACHED_VALUES, Space, error_bound, exact_pairs, sq_lengths
from raykd.algo.selection.rows import blocks

MOST_TIED = 64  # rows that float32 cannot tell apart; where there are more it is of no use
NEARLY_TIED = 8  # errors that a row may be behind to be worked out exactly along with those that are tied
WINDOW_SHARE = 1 / 8  # of the rows, in the first window
GROWTH = 2  # from window to window


def farthest_first_in_float32(
    space: Space, ids_N: np.ndarray, x_NW: np.ndarray, bounds_N: np.ndarray, base_LW: np.ndarray, budget: int
) -> tuple[list[int], np.ndarray, int]:
    """The first picks of farthest-first, as many as float32 is of use for.

    Args:
        space: Points; says which distances are exact.
        ids_N: For ties.
        x_NW: Vectors of that space, float32.
        bounds_N: No less than the squared distances to the nearest center; infinity where nothing is known.
        base_LW: What is covered already: likewise vectors, at least one.
        budget: B, 1 to N.

    Returns:
        Positions of the picks, in order; their exact squared distances to the nearest center before them, float64; how
        many rows were compared exactly. Cost: N * (L + B) * W at most.
    """
    num_base = num_centers = len(base_LW)
    centers_KW = np.concatenate([base_LW, np.empty((budget, x_NW.shape[1]), np.float32)])
    centers_sq_K = np.concatenate([sq_lengths(base_LW), np.empty(budget, np.float32)])
    longest = centers_sq_K[:num_base].max(keepdims=True)
    sq_N, met_N = bounds_N.astype(np.float32), np.zeros(len(x_NW), np.int64)  # that rounding is far below the error
    if np.isinf(sq_N).any():
        _lower(sq_N, x_NW, sq_lengths(x_NW), base_LW, centers_sq_K[:num_base])
        met_N[:] = num_base
    picks: list[int] = []
    num_tied, num_compared, size = 0, 0, max(MOST_TIED, int(len(x_NW) * WINDOW_SHARE))
    while len(picks) < budget and num_tied <= MOST_TIED:
        window, limit = _farthest(sq_N, size)
        x_MW, sq_M, met_M = x_NW[window], sq_N[window], met_N[window]
        x_sq_M, exact_M = sq_lengths(x_MW), np.full(len(window), np.nan)  # exact as long as it is a number
        longest = np.maximum(longest, x_sq_M.max())
        error = float(error_bound(x_NW.shape[1], 2.0**-24, longest, longest)[0])
        for met in set(met_M.tolist()) - {num_centers}:
            some, new = np.flatnonzero(met_M == met), slice(met, num_centers)
            sq_M[some] = _lower(sq_M[some], x_MW[some], x_sq_M[some], centers_KW[new], centers_sq_K[new])
        while len(picks) < budget:
            row = int(sq_M.argmax())
            first = sq_M[row]
            if not first - 2 * error > limit:
                break
            tied = (sq_M >= first - 2 * error).nonzero()[0]
            if (num_tied := len(tied)) > MOST_TIED:
                break
            if num_tied > 1:
                if np.isnan(exact_M[tied]).any():
                    some = np.flatnonzero(np.isnan(exact_M) & (sq_M >= first - NEARLY_TIED * error))
                    now = slice(num_centers)
                    exact_M[some] = _nearest(space, x_MW[some], centers_KW[now], centers_sq_K[now], error)
                    num_compared += len(some)
                row = min(zip(-exact_M[tied], ids_N[window[tied]], tied.tolist(), strict=True))[2]
            picks.append(int(window[row]))
            centers_KW[num_centers], centers_sq_K[num_centers] = x_MW[row], x_sq_M[row]
            num_centers += 1
            to_pick_M = x_MW @ (-2 * x_MW[row])
            to_pick_M += x_sq_M
            to_pick_M += x_sq_M[row]
            exact_M[to_pick_M <= sq_M + 2 * error] = np.nan  # the pick may be nearer
            np.minimum(sq_M, to_pick_M, out=sq_M)
            sq_M[row] = -np.inf
        sq_N[window], met_N[window] = sq_M, num_centers
        size *= GROWTH
    if not picks:
        return [], np.empty(0), num_compared
    before = np.tri(len(picks), num_centers, num_base - 1, dtype=bool)
    sq_B = _nearest(space, x_NW[picks], centers_KW[:num_centers], centers_sq_K[:num_centers], error, before)
    return picks, sq_B, num_compared


def _lower(
    sq_N: np.ndarray, x_NW: np.ndarray, x_sq_N: np.ndarray, centers_KW: np.ndarray, centers_sq_K: np.ndarray
) -> np.ndarray:
    """Squared distances to the nearest center, lowered by those of more centers; the same array."""
    for part in blocks(len(x_NW), len(centers_KW), CACHED_VALUES):
        sq_KN = (-2 * centers_KW) @ x_NW[part].T  # this way round, as numpy's minimum over rows is the faster one
        sq_KN += centers_sq_K[:, None]
        np.minimum(sq_N[part], sq_KN.min(axis=0) + x_sq_N[part], out=sq_N[part])
    return sq_N


def _farthest(sq_N: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Positions of the ``count`` rows with the largest distances, and the largest of all others."""
    place = len(sq_N) - count
    if place <= 0:
        return np.arange(len(sq_N)), -np.inf
    order = np.argpartition(sq_N, place - 1)
    return order[place:], sq_N[order[place - 1]]


def _nearest(
    space: Space,
    x_PW: np.ndarray,
    centers_KW: np.ndarray,
    centers_sq_K: np.ndarray,
    error: float,
    counts_PK: np.ndarray | None = None,
) -> np.ndarray:
    """Exact squared distances to the nearest center, float64 [P]; of pairs that count, if not all do."""
    sq_PK = (-2 * x_PW) @ centers_KW.T
    sq_PK += centers_sq_K  # what all of a row have in common does not matter
    if counts_PK is not None:
        sq_PK[~counts_PK] = np.inf
    i, j = np.nonzero(sq_PK <= sq_PK.min(axis=1, keepdims=True) + 2 * error)
    sq_P = np.full(len(x_PW), np.inf)
    np.minimum.at(sq_P, i, exact_pairs(space, x_PW, i, centers_KW, j))
    return sq_P
