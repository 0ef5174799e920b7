"""Which of many arms is best: who is beaten by whom, and ranks over data sets.

A arms, S seeds, R rounds, D data sets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from raykd.algo.comparison import verdict
from raykd.algo.errors import UserError
from raykd.algo.keyed import generator


def penalty_matrix(accuracies_ASR: np.ndarray) -> np.ndarray:
    """Which arm is beaten by which, how often: the share of the rounds in which it is shown, float64 [A, A].

    **Row beats column**: entry ``[i, j]`` is the share of the R rounds in which arm ``i`` is "better" than arm ``j``
    (:func:`raykd.algo.comparison.verdict`). So a row holds an arm's wins, a column its defeats, and the **column's
    mean, over the other arms, is the ranking: lower is better** (:func:`defeats`). Of fewer than 6 seeds all is 0.

    The pairwise penalty matrix of BADGE (Ash et al. 2020, arXiv 1906.03671), with one departure: the exact sign-flip
    test in place of a t-test, so that it says what everything else here says. Rounds in which every arm is as good as
    with all labels tell nothing; leave them out before.

    Args:
        accuracies_ASR: float [A, S, R], the same seeds of each arm.

    Example:
        >>> worse = np.linspace(0.5, 0.6, 8)[:, None]
        >>> penalty_matrix(np.stack([worse + 0.1, worse])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    num_arms, _, num_rounds = accuracies_ASR.shape
    matrix_AA = np.zeros((num_arms, num_arms))
    for i in range(num_arms):
        for j in range(i):
            for column_S in (accuracies_ASR[i] - accuracies_ASR[j]).T:
                said = verdict(column_S)
                if said in ("better", "worse"):
                    matrix_AA[(i, j) if said == "better" else (j, i)] += 1 / num_rounds
    return matrix_AA


def defeats(matrix_AA: np.ndarray) -> np.ndarray:
    """How often the average other arm beats each, float64 [A], 0 to 1: the fewer the better."""
    beaten_A: np.ndarray = matrix_AA.sum(axis=0) / max(len(matrix_AA) - 1, 1)
    return beaten_A


class Ranks(NamedTuple):
    """Arms over data sets, best is 1."""

    mean_A: np.ndarray  # float64 [A]
    critical: float  # mean ranks nearer than this are not told apart (Nemenyi, 95 %)
    p_value: float  # Friedman: that the arms are all the same; above 0.05 nothing is told apart
    together: list[tuple[int, ...]]  # arms that are not told apart, best first: the bars of the diagram


def mean_ranks(scores_DA: np.ndarray, *key: int | str) -> Ranks:
    """How arms rank over data sets, and which differences of ranks are more than chance.

    Friedman's test and Nemenyi's critical difference (Demšar 2006, JMLR 7, section 3.2); arms that are level share
    their rank. Friedman's statistic is held against shuffled ranks instead of a chi-squared distribution, which is
    wrong of few data sets. Where it shows nothing (p above 0.05) all arms stand together.

    Args:
        scores_DA: float [D, A], A >= 2, larger is better: such as each data set's mean AUBC.
        key: What the draws are for.

    Raises:
        UserError: A score is missing.

    Cost: 10,000 x D x A.
    """
    scores_DA = np.asarray(scores_DA, np.float64)
    if not np.isfinite(scores_DA).all():
        raise UserError("an arm has no score on a data set; expected every arm on every data set")
    num_sets, num_arms = scores_DA.shape
    above_DA, level_DA = (
        np.sum(compare(scores_DA[:, :, None], scores_DA[:, None, :]), axis=1) for compare in (np.greater, np.equal)
    )
    ranks_DA = above_DA + (level_DA + 1) / 2
    mean_A = ranks_DA.mean(axis=0)
    draws = generator(*key, "ranks").random((10_000, num_sets, num_arms)).argsort(axis=2)
    by_chance = np.take_along_axis(np.broadcast_to(ranks_DA, draws.shape), draws, axis=2).mean(axis=1)
    middle = (num_arms + 1) / 2
    spread, spreads = (((of - middle) ** 2).sum(axis=-1) for of in (mean_A, by_chance))
    p_value = float((1 + np.sum(spreads >= spread - 1e-12)) / (1 + len(spreads)))
    critical = studentized_range(num_arms) / math.sqrt(2) * math.sqrt(num_arms * (num_arms + 1) / (6 * num_sets))
    order = np.argsort(mean_A, kind="stable").tolist()
    if p_value > 0.05:
        return Ranks(mean_A, critical, p_value, [tuple(order)])
    together: list[tuple[int, ...]] = []
    for start, best in enumerate(order):
        bar = tuple(arm for arm in order[start:] if mean_A[arm] - mean_A[best] < critical)
        if len(bar) > 1 and not (together and set(bar) <= set(together[-1])):
            together.append(bar)
    return Ranks(mean_A, critical, p_value, together)


def studentized_range(count: int) -> float:
    """Within which the range of ``count`` standard normal numbers is in 95 of 100 cases; to 1e-4, count >= 2.

    Example:
        >>> round(studentized_range(10) / math.sqrt(2), 3)  # Demšar 2006, table 5
        3.164
    """
    step = 1e-3
    x = np.arange(-9.0, 9.0, step)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    below = np.cumsum(density) * step - density * step / 2

    def share(width: float) -> float:  # that the least is at x, and the others between x and x + width
        between = np.interp(x + width, x, below, right=1.0) - below
        return float(count * np.sum(density * between ** (count - 1)) * step)

    low, high = 0.0, 18.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) > 0.95 else (middle, high)
    return high
