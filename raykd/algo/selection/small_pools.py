"""Farthest-first over a pool that is small enough for one process: a running minimum in float32, proven in float64.

The loop is :func:`raykd.algo.selection.reference.running_minimum`, in float32 and with a bound on its rounding error.
Where a row is farther than any other by more than the error, it is the next pick; else the farthest is taken on trust,
and those that may be it are noted. After a while all that were taken and noted are compared exactly, all at once; from
the first that was wrong on, the picks are taken back.

Distances only fall, so those of before are bounds: only a window, the rows whose bounds are largest, is kept up to
date, for as long as the farthest in it is surely farther than any other can be. Then there is a larger one, at last of
all rows, whose rows meet the centers that they have not met.

N rows, L centers in the beginning, B budget, K centers by now, M rows in the window, P rows to compare, W the width of
the vectors.
"""

from __future__ import annotations

import numpy as np

from raykd.algo.selection.distances import CACHED_VALUES, Space, error_bound, exact_pairs
from raykd.algo.selection.rows import blocks, sq_lengths

MOST_TIED = 64  # rows that float32 cannot tell apart; where there are more it is of no use
MOST_ON_TRUST = 256  # rows to compare before some are
WINDOW_SHARE = 1 / 6  # of the rows, in the first window
GROWTH = 1.5  # from window to window


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
        many rows float32 could not tell from a pick. Cost: N * (L + B) * W at most.
    """
    num_base = len(base_LW)
    centers_KW = np.concatenate([base_LW, np.empty((budget, x_NW.shape[1]), np.float32)])
    centers_sq_K = np.concatenate([sq_lengths(base_LW), np.empty(budget, np.float32)])
    longest = centers_sq_K[:num_base].max(keepdims=True)
    sq_N, met_N = bounds_N.astype(np.float32), np.zeros(len(x_NW), np.int64)  # that rounding is far below the error
    if np.isinf(sq_N).any():
        x_sq_N = sq_lengths(x_NW)
        longest = np.maximum(longest, x_sq_N.max())
        _lower(sq_N, x_NW, x_sq_N, base_LW, centers_sq_K[:num_base])
        met_N[:] = num_base
    picks: list[int] = []
    sq_B: list[float] = []
    num_tied, num_compared, size = 0, 0, max(MOST_TIED, int(len(x_NW) * WINDOW_SHARE))
    while len(picks) < budget and num_tied <= MOST_TIED:
        window, limit = _farthest(sq_N, size)
        x_MW, sq_M, met_M, num_centers = x_NW[window], sq_N[window], met_N[window], num_base + len(picks)
        x_sq_M = sq_lengths(x_MW)
        longest = np.maximum(longest, x_sq_M.max(initial=0))
        error = float(error_bound(x_NW.shape[1], 2.0**-24, longest, longest)[0])
        for met in set(met_M.tolist()) - {num_centers}:
            some, new = np.flatnonzero(met_M == met), slice(met, num_centers)
            sq_M[some] = _lower(sq_M[some], x_MW[some], x_sq_M[some], centers_KW[new], centers_sq_K[new])
        sq_N[window], met_N[window] = sq_M, num_centers
        far = np.flatnonzero(sq_M > limit)  # of the others none can be next
        if not len(far):
            size = int(size * GROWTH) + 1
            continue
        window, x_MW, x_sq_M, sq_M = window[far], x_MW[far], x_sq_M[far], sq_M[far]
        steps: list[list[int]] = []  # of each pick the rows of the window that may be it, first the one that is taken
        while len(picks) + len(steps) < budget and sum(map(len, steps)) < MOST_ON_TRUST:
            row = int(sq_M.argmax())
            least = float(sq_M[row]) - 2 * error
            if not least > limit:
                size = int(size * GROWTH) + 1
                break
            step = (sq_M >= least).nonzero()[0].tolist()
            if (num_tied := len(step)) > MOST_TIED:
                break
            if num_tied > 1:
                step.sort(key=lambda row: (-sq_M[row], ids_N[window[row]]))
                row = step[0]
            steps.append(step)
            centers_KW[num_centers], centers_sq_K[num_centers] = x_MW[row], x_sq_M[row]
            num_centers += 1
            to_pick_M = x_MW @ (-2 * x_MW[row])
            to_pick_M += x_sq_M
            to_pick_M += x_sq_M[row]
            np.minimum(sq_M, to_pick_M, out=sq_M)
            sq_M[row] = -np.inf
        proven = _proven(space, steps, ids_N[window], x_MW, centers_KW[:num_centers], centers_sq_K[:num_centers], error)
        picks += [int(window[row]) for row, _ in proven]
        sq_B += [sq for _, sq in proven]
        num_compared += sum(len(step) for step in steps if len(step) > 1)
        if [row for row, _ in proven] == [step[0] for step in steps]:
            sq_N[window], met_N[window] = sq_M, num_centers
        else:
            sq_N[picks] = -np.inf
            centers_KW[num_base + len(picks) - 1] = x_NW[picks[-1]]
            centers_sq_K[num_base + len(picks) - 1] = sq_lengths(x_NW[picks[-1:]])[0]
    return picks, np.array(sq_B), num_compared


def _proven(
    space: Space,
    steps: list[list[int]],
    ids_M: np.ndarray,
    x_MW: np.ndarray,
    centers_KW: np.ndarray,
    centers_sq_K: np.ndarray,
    error: float,
) -> list[tuple[int, float]]:
    """The row that is picked in each step, and its exact squared distance; no more after another one than was taken.

    Args:
        steps: Of each pick the rows that may be it, the one that was taken first.
        centers_KW: The last ones are the rows that were taken; a row has met those of the steps before its own.
    """
    rows = [row for step in steps for row in step]
    if not rows:
        return []
    num_met_P = np.repeat(np.arange(len(steps)) + len(centers_KW) - len(steps), list(map(len, steps)))
    sq_P = _nearest(space, x_MW[rows], num_met_P, centers_KW, centers_sq_K, error)
    proven: list[tuple[int, float]] = []
    end = 0
    for step in steps:
        start, end = end, end + len(step)
        best = min(range(start, end), key=lambda p: (-sq_P[p], ids_M[rows[p]]))
        proven.append((rows[best], float(sq_P[best])))
        if best != start:
            break
    return proven


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
    """Positions of at most ``count`` rows with the largest distances, and the largest of all others."""
    place = len(sq_N) - count
    if place <= 0:
        return np.arange(len(sq_N)), -np.inf
    limit = np.partition(sq_N, place - 1)[place - 1]
    return np.flatnonzero(sq_N > limit), limit


def _nearest(
    space: Space,
    x_PW: np.ndarray,
    num_met_P: np.ndarray,
    centers_KW: np.ndarray,
    centers_sq_K: np.ndarray,
    error: float,
) -> np.ndarray:
    """Exact squared distances to the nearest of the first ``num_met`` centers, float64 [P]."""
    sq_PK = (-2 * x_PW) @ centers_KW.T
    sq_PK += centers_sq_K  # what all of a row have in common does not matter
    sq_PK[np.arange(len(centers_KW)) >= num_met_P[:, None]] = np.inf
    i, j = np.nonzero(sq_PK <= sq_PK.min(axis=1, keepdims=True) + 2 * error)
    sq_P = np.full(len(x_PW), np.inf)
    np.minimum.at(sq_P, i, exact_pairs(space, x_PW, i, centers_KW, j))
    return sq_P
