"""The plain algorithms, in float64: what the engine's picks must equal, and where to begin reading.

Farthest-first traversal (Gonzalez 1985) picks again and again the row that is farthest from its nearest center, and
makes the pick a center: within twice the best possible covering radius. :func:`plain_farthest_first` is its definition;
:func:`running_minimum` keeps each row's distance to its nearest center, which a new center can only lower, so that a
pick costs one pass over the rows. k-means++ (Arthur and Vassilvitskii 2007) draws the next center instead of taking the
farthest, with probability D² / sum D²: :func:`plain_kmeans_plus_plus` is its definition, and :func:`plain_race` the
same law by one exponential clock a row, so that a row's turn can only come later as centers are added.

Distances are direct sums of squared differences, as those are that decide in the engine, so all agree to the last bit.
Ties go to the smaller id. N rows, K centers, W the width of the vectors, B budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Pairs = list[tuple[str, float]]  # picks in order: the id, and the distance to the nearest center at that time


def squared_distances(x_NW: np.ndarray, y_W: np.ndarray) -> np.ndarray:
    """Of each row to one vector, float64 [N]."""
    return (np.subtract(x_NW, y_W, dtype=np.float64) ** 2).sum(axis=1)


def plain_farthest_first(ids: Sequence[str], x_NW: np.ndarray, centers_KW: np.ndarray, budget: int) -> Pairs:
    """Farthest-first: all distances to all centers, for every pick. Cost: N * (K + B) * W, B times.

    Args:
        ids: Of the rows, all different.
        x_NW: The rows.
        centers_KW: What is covered already; at least one.
        budget: B, at most N.

    Example:
        >>> plain_farthest_first(["a", "b", "c"], np.array([[0.0], [5.0], [9.0]]), np.array([[1.0]]), 2)
        [('c', 8.0), ('b', 4.0)]
    """
    left, centers = sorted(range(len(ids)), key=lambda row: ids[row]), list(centers_KW)
    picks: Pairs = []
    for _ in range(budget):
        sq = np.min([squared_distances(x_NW[left], center_W) for center_W in centers], axis=0)
        row = left.pop(int(sq.argmax()))  # the first of equals, which has the smaller id
        picks.append((ids[row], math.sqrt(sq.max())))
        centers.append(x_NW[row])
    return picks


def running_minimum(ids: Sequence[str], x_NW: np.ndarray, centers_KW: np.ndarray, budget: int) -> Pairs:
    """The same as :func:`plain_farthest_first` at a cost of N * W for every center, and so for every pick."""
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    x_NW = x_NW[order]
    picks: Pairs = []
    sq_N, left_N = np.full(len(ids), np.inf), np.ones(len(ids), bool)
    for center_W in centers_KW:
        sq_N = np.minimum(sq_N, squared_distances(x_NW, center_W))
    for _ in range(budget):
        row = int(np.where(left_N, sq_N, -1.0).argmax())
        picks.append((ids[order[row]], math.sqrt(sq_N[row])))
        sq_N, left_N[row] = np.minimum(sq_N, squared_distances(x_NW, x_NW[row])), False
    return picks


def plain_kmeans_plus_plus(
    ids: Sequence[str], x_NW: np.ndarray, first: str, budget: int, rng: np.random.Generator
) -> Pairs:
    """Draw rows with probability D² / sum D², D the distance to the nearest row drawn so far, ``first`` to begin with.

    Args:
        ids: Of the rows, all different.
        x_NW: The rows.
        first: The id of the row that is there already.
        budget: B, at most as many as there are rows at a distance from all others.
        rng: What draws.
    """
    picks: Pairs = []
    sq_N = squared_distances(x_NW, x_NW[list(ids).index(first)])
    for _ in range(budget):
        row = int(rng.choice(len(ids), p=sq_N / sq_N.sum()))
        picks.append((ids[row], math.sqrt(sq_N[row])))
        sq_N = np.minimum(sq_N, squared_distances(x_NW, x_NW[row]))
    return picks


def plain_race(
    ids: Sequence[str],
    x_NW: np.ndarray,
    first: str,
    budget: int,
    draws_N: Sequence[float],
    squared: Callable[[np.ndarray, np.ndarray], np.ndarray] = squared_distances,
) -> Pairs:
    """k-means++ as an exponential race: every row's clock rings after E ~ Exp(1) of hazard, and its hazard is D².

    When a pick lowers D² at time t, what is left of E is used up more slowly from then on. Rows at distance 0 ring
    after all others, by their draws. The law is that of :func:`plain_kmeans_plus_plus`, as exponential clocks have no
    memory.

    Args:
        ids: Of the rows, all different.
        x_NW: The rows.
        first: The id of the row that is there already.
        budget: B, at most N - 1.
        draws_N: Uniform draws in (0, 1], one a row: E is minus the logarithm.
        squared: Squared distances of rows to one vector.
    """
    position = list(ids).index(first)
    sq_N = squared(x_NW, x_NW[position])
    left_N, since_N = -np.log(draws_N), np.zeros(len(ids))
    order = sorted(set(range(len(ids))) - {position}, key=lambda row: ids[row])
    picks: Pairs = []

    def rings(row: int) -> float:
        return since_N[row] + left_N[row] / sq_N[row] if sq_N[row] > 0 else 1e300 * (1 + draws_N[row])

    at = {row: rings(row) for row in order}
    while len(picks) < budget:
        best = min(order, key=at.__getitem__)
        order.remove(best)
        picks.append((ids[best], math.sqrt(sq_N[best])))
        for row, sq in zip(order, squared(x_NW[order], x_NW[best]).tolist(), strict=True):
            if sq < sq_N[row]:
                left_N[row] = max(left_N[row] - sq_N[row] * (at[best] - since_N[row]), 0.0)
                since_N[row], sq_N[row] = at[best], sq
                at[row] = max(at[row], rings(row)) if sq > 0 else rings(row)
    return picks
