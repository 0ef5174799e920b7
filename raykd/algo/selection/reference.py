"""The plain algorithms, in float64: what the engine's picks must equal, and where to begin reading.

Farthest-first traversal (Gonzalez 1985) picks again and again the row that is farthest from its nearest center, and
makes the pick a center: within twice the best possible covering radius. :func:`plain_farthest_first` is its definition;
:func:`running_minimum` keeps each row's distance to its nearest center, which a new center can only lower, so that a
pick costs one pass over the rows. k-means++ (Arthur and Vassilvitskii 2007) draws the next center instead of taking the
farthest, with probability D² / sum D²: :func:`plain_kmeans_plus_plus` is its definition, and :func:`plain_race` the
same law by one exponential clock a row, so that a row's turn can only come later as centers are added.

Further down, likewise: FALCUN's draws (:func:`plain_falcun`), rows that are uncertain but apart (:func:`plain_spread`),
greedy coverage (:func:`plain_cover`), clusters' most typical rows (:func:`plain_typiclust`), and picks balanced over
classes (:func:`plain_balance`).

Distances are direct sums of squared differences, as those are that decide in the engine, so all agree to the last bit.
Ties go to the smaller id. N rows, K centers, C classes, W the width of the vectors, B budget.
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


def plain_falcun(
    ids: Sequence[str], probs_NC: np.ndarray, budget: int, gamma: float, draws: Callable[[int], np.ndarray]
) -> Pairs:
    """FALCUN (Gilhuber et al. 2024): draw rows with probability (u + d)^gamma / sum (u + d)^gamma.

    u is 1 less the lead of the first class over the second; d is u at first, then at most the L1 distance to each pick,
    divided by the largest d after each pick. Here gap / scale is d, so that one division does for all.

    Args:
        ids: Of the rows, all different.
        probs_NC: Their probabilities.
        budget: B, at most N.
        gamma: How sharply the draws prefer.
        draws: From the number of a pick to uniform draws in (0, 1), one a row; the least -ln(draw) / weight is next.

    Returns:
        Picks, each with the probability that it was drawn with.
    """
    p_NC, left = np.asarray(probs_NC, np.float64), sorted(range(len(ids)), key=lambda row: ids[row])
    top_N2 = np.sort(np.pad(p_NC, ((0, 0), (1, 0))), axis=1)[:, -2:]
    unsure_N = 1 - (top_N2[:, 1] - top_N2[:, 0])
    gap_N, scale = unsure_N, 1.0
    picks: Pairs = []
    for number in range(budget):
        weight_N, draw_N = (unsure_N + gap_N / scale) ** gamma, draws(number)
        with np.errstate(divide="ignore", over="ignore"):
            ring_N = np.where(weight_N > 0, np.minimum(-np.log(draw_N) / weight_N, 1e300), 1e300 * (1 + draw_N))
        whole = weight_N[left].sum()
        row = left.pop(int(ring_N[left].argmin()))
        picks.append((ids[row], weight_N[row] / whole if whole else 1 / (len(left) + 1)))
        gap_N = np.minimum(gap_N, scale * np.abs(p_NC - p_NC[row]).sum(axis=1))
        scale = gap_N[left].max(initial=0.0) or scale
    return picks


def plain_spread(
    ids: Sequence[str], score_N: Sequence[float], x_NW: np.ndarray, base_KW: np.ndarray, budget: int, apart: float
) -> Pairs:
    """By rising score, rows that are at least ``apart`` from what is labeled and picked; then half as far, ten times.

    Args:
        ids: Of the rows, all different.
        score_N: The lowest is wanted.
        x_NW: The rows.
        base_KW: What is labeled; there may be nothing.
        budget: B, at most N.
        apart: The least distance.

    Example:
        >>> plain_spread(["a", "b", "c"], [1, 2, 3], np.array([[0.0], [0.1], [9.0]]), np.array([[8.0]]), 2, 0.5)
        [('a', 8.0), ('c', 1.0)]
    """
    left, centers = sorted(range(len(ids)), key=lambda row: (score_N[row], ids[row])), list(base_KW)
    picks: Pairs = []
    for least in [*(apart / 2**halving for halving in range(11)), 0.0]:
        for row in list(left):
            sq = min((squared_distances(x_NW[[row]], center_W)[0] for center_W in centers), default=math.inf)
            if len(picks) < budget and sq >= least * least:
                picks.append((ids[row], math.sqrt(sq) if centers else math.nan))
                centers.append(x_NW[row])
                left.remove(row)
    return picks


def plain_cover(
    ids: Sequence[str],
    x_NW: np.ndarray,
    base_KW: np.ndarray,
    weight_N: np.ndarray,
    kernel: Callable[[np.ndarray], np.ndarray],
    budget: int,
    candidates: Sequence[str] | None = None,
) -> list[str]:
    """Again the row that adds most to sum w_n max k(s, n), in multiples of 2^-32; anew when nothing can be added.

    Args:
        ids: Of the rows, all different.
        x_NW: The rows, in whole numbers (``whole_numbers.py``).
        base_KW: What covers already, likewise; there may be nothing.
        weight_N: How much each row matters.
        kernel: From squared distances to how well a row covers, falling.
        budget: B, at most as many as there are candidates.
        candidates: Ids of rows that may be picked; None: all.
    """
    left = [
        row for row in sorted(range(len(ids)), key=lambda row: ids[row]) if not candidates or ids[row] in candidates
    ]
    picks: list[str] = []
    covered_N, is_new = np.zeros(len(ids)), not len(base_KW)
    for center_W in base_KW:
        covered_N = np.maximum(covered_N, kernel(squared_distances(x_NW, center_W)))
    while len(picks) < budget:
        values = [kernel(squared_distances(x_NW, x_NW[row])) for row in left]
        gains = [np.rint(weight_N * np.maximum(value - covered_N, 0) * 2.0**32).sum() for value in values]
        best = int(np.argmax(gains))
        if gains[best] == 0 and not is_new:
            covered_N, is_new = np.zeros(len(ids)), True
            continue
        covered_N, is_new = np.maximum(covered_N, values[best]), gains[best] == 0
        picks.append(ids[left.pop(best)])
    return picks


def plain_typiclust(
    ids: Sequence[str], x_NW: np.ndarray, base_LW: np.ndarray, centers_KW: np.ndarray, budget: int
) -> list[str]:
    """k-means, and in turn the most typical row of each cluster, those with the fewest labeled rows first.

    Args:
        ids: Of the rows, all different.
        x_NW: The rows, in whole numbers (``whole_numbers.py``).
        base_LW: The labeled rows, likewise.
        centers_KW: Where k-means begins, likewise.
        budget: B, at most N.
    """
    all_NW, num_clusters = np.concatenate([x_NW, base_LW]), len(centers_KW)
    for step in range(26):
        cluster_N = np.argmin([squared_distances(all_NW, center_W) for center_W in centers_KW], axis=0)
        parts = [all_NW[cluster_N == cluster] for cluster in range(num_clusters)]
        moved = [np.rint(part.mean(axis=0)) if len(part) else centers_KW[k] for k, part in enumerate(parts)]
        if step == 25 or np.array_equal(moved, centers_KW):
            break
        centers_KW = np.array(moved)
    size_K, labeled_K = (np.bincount(some, minlength=num_clusters) for some in (cluster_N, cluster_N[len(ids) :]))
    left: list[list[int]] = [[] for _ in range(num_clusters)]
    for row in sorted(range(len(ids)), key=lambda row: ids[row]):
        left[cluster_N[row]].append(row)
    picks: list[str] = []
    for some in np.flatnonzero(size_K > 5), np.flatnonzero(size_K <= 5):
        order = sorted(some.tolist(), key=lambda k: (labeled_K[k], -size_K[k], k))
        while len(picks) < budget and any(left[k] for k in order):
            for rows in (left[k] for k in order if left[k]):
                num_nearest = min(20, len(rows) // 2)
                distances = [np.sort(np.rint(np.sqrt(squared_distances(x_NW[rows], x_NW[row])))) for row in rows]
                totals = [distance[1 : num_nearest + 1].sum() for distance in distances]  # the first is the row itself
                picks.append(ids[rows.pop(int(np.argmin(totals)))])
    return picks[:budget]


def plain_balance(proposed: Sequence[tuple[str, int]], labels_C: Sequence[int], budget: int) -> list[str]:
    """Of rows that a strategy proposes, in its order and with their classes: again the first whose class has fewest.

    Example:
        >>> plain_balance([("a", 0), ("b", 0), ("c", 1), ("d", 1)], labels_C=[1, 0], budget=3)
        ['c', 'a', 'd']
    """
    left, count, picks = list(proposed), list(labels_C), []
    for _ in range(budget):
        first = min(left, key=lambda row: count[row[1]])  # the first of equals
        left.remove(first)
        count[first[1]] += 1
        picks.append(first[0])
    return picks
