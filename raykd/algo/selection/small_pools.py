"""Farthest-first over a pool that is small enough for one process: a running minimum in float32, decided in float64.

The loop is :func:`raykd.algo.selection.reference.running_minimum`, in float32 and with a bound on its rounding error.
Where a row is farther than any other by more than the error, it is the next pick; else those that may be are compared
exactly. The picks' own distances are worked out at the end, exactly, all at once.

N rows, L centers in the beginning, B budget, W the width of the vectors.
"""

from __future__ import annotations

import numpy as np

from raykd.algo.selection.distances import BATCH_VALUES, Space, error_bound, exact_pairs
from raykd.algo.selection.rows import blocks

MOST_TIED = 64  # rows that float32 cannot tell apart; where there are more it is of no use


def farthest_first_in_float32(
    space: Space, ids_N: np.ndarray, x_NW: np.ndarray, base_LW: np.ndarray, budget: int
) -> tuple[list[int], np.ndarray, int]:
    """The first picks of farthest-first, as many as float32 is of use for.

    Args:
        space: Points; says which distances are exact.
        ids_N: For ties.
        x_NW: Vectors of that space, float32.
        base_LW: Likewise: what is covered already; at least one.
        budget: B, at most N.

    Returns:
        Positions of the picks, in order; their exact squared distances to the nearest center before them, float64; how
        many rows were compared exactly. Cost: N * (L + B) * W.
    """
    sq_N, error = np.empty(len(x_NW), np.float32), 0.0
    for part in blocks(len(x_NW), len(base_LW), BATCH_VALUES):
        approx_NL, error_N = space.approximate(x_NW[part], base_LW)
        sq_N[part], error = approx_NL.min(axis=1), max(error, float(error_N.max()))
    lengths_N = np.einsum("nw,nw->n", x_NW, x_NW)
    error = max(error, float(error_bound(x_NW.shape[1], 2.0**-24, lengths_N.max(keepdims=True), lengths_N)[0]))
    picks: list[int] = []
    compared = 0
    while len(picks) < budget:
        pick = int(sq_N.argmax())
        tied = np.flatnonzero(sq_N >= sq_N[pick] - 2 * error)
        if len(tied) > MOST_TIED:
            break
        if len(tied) > 1:
            nearest = _nearest(space, x_NW[tied], np.concatenate([base_LW, x_NW[picks]]), error)
            pick = int(min(zip(-nearest, ids_N[tied], tied, strict=True))[2])
            compared += len(tied)
        picks.append(pick)
        to_pick_N = x_NW @ (-2 * x_NW[pick])
        to_pick_N += lengths_N
        to_pick_N += lengths_N[pick]
        np.minimum(sq_N, to_pick_N, out=sq_N)
        sq_N[pick] = -np.inf
    picks_BW = x_NW[picks]
    before = np.tri(len(picks), len(base_LW) + len(picks), len(base_LW) - 1, dtype=bool)
    return picks, _nearest(space, picks_BW, np.concatenate([base_LW, picks_BW]), error, before), compared


def _nearest(
    space: Space, x_PW: np.ndarray, y_KW: np.ndarray, error: float, counts_PK: np.ndarray | None = None
) -> np.ndarray:
    """Exact squared distances to the nearest center, float64 [P]; of pairs that count, if not all do."""
    sq_PK = x_PW @ (-2 * y_KW).T
    sq_PK += np.einsum("kw,kw->k", y_KW, y_KW)  # what all of a row have in common does not matter
    if counts_PK is not None:
        sq_PK[~counts_PK] = np.inf
    i, j = np.nonzero(sq_PK <= sq_PK.min(axis=1, keepdims=True) + 2 * error)
    sq_P = np.full(len(x_PW), np.inf)
    np.minimum.at(sq_P, i, exact_pairs(space, x_PW, i, y_KW, j))
    return sq_P
