"""Arms against each other over seeds: what may be said, and what the seeds cannot show.

S seeds (the same of each arm: paired), R rounds. An arm is a strategy, or what else was varied. Whatever prints asks
:func:`verdict` for its word. Which of many is best, over rounds and over data sets, is in ``rankings.py``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from raykd.algo.errors import UserError
from raykd.algo.keyed import generator
from raykd.algo.statistics import sign_flip

FEWEST = 6  # seeds, from which on a sign-flip test can show something at 5 %: 2 / 2^6 = 0.031
PATTERNS = 4096  # of signs, that a band is made of at most
Verdict = Literal["better", "worse", "no difference shown", "too few seeds to tell"]


def verdict(differences_S: np.ndarray, p_value: float | None = None) -> Verdict:
    """What may be said of an arm whose figure differs from another's by this much with each seed; larger is better.

    "Better" and "worse" are what the sign-flip test shows at 5 % (:func:`raykd.algo.statistics.sign_flip`), so
    never of fewer than 6 seeds, whatever the difference. "No difference shown" does not say that there is none.

    Args:
        differences_S: float [S], paired by seed.
        p_value: Where more than one arm is compared, what :func:`joint_sign_flips` says of this one; None: its own.

    Raises:
        UserError: A seed's figure is missing (NaN).

    Example:
        >>> verdict(np.full(5, 0.1)), verdict(np.full(6, 0.1)), verdict(np.array([0.1, -0.1] * 4))
        ('too few seeds to tell', 'better', 'no difference shown')
    """
    differences_S = np.asarray(differences_S, np.float64)
    if not np.isfinite(differences_S).all():
        raise UserError(
            f"a seed's difference is {differences_S.tolist()}; expected a number of each seed, of both arms"
        )
    if len(differences_S) < FEWEST:
        return "too few seeds to tell"
    p_value = sign_flip(differences_S) if p_value is None else p_value
    if p_value > 0.05:
        return "no difference shown"
    return "better" if differences_S.mean() > 0 else "worse"


def joint_sign_flips(differences_AS: np.ndarray) -> np.ndarray:
    """p-values of several paired comparisons on the same seeds, float64 [A]; 5 % is the chance of *any* false one.

    Seeds change sign in all comparisons at once, and each comparison's t statistic is held against the largest that
    such signs give to it and to all that are less clear than it (step-down max-T; Westfall and Young 1993, Romano and
    Wolf 2005). Comparisons that hang together (all with the same arm, on the same seeds) cost little so: where raising
    each by their number (Holm 1979) lets 8 seeds show nothing of seven arms or more, whatever the difference, this
    goes down to ``2 / 2^S`` of any number of arms. Of one comparison it is :func:`raykd.algo.statistics.sign_flip`.

    Args:
        differences_AS: float [A, S], A >= 1; NaN where an arm lacks a seed.

    Returns:
        1 where a row has no seed. Up to 13 seeds all signs are gone through; of more 4096 are drawn, always the same.

    Example:
        >>> joint_sign_flips(np.array([[1.0, 2, 3, 2, 1, 2], [1, -2, 3, -4, 1, 1]])).round(3).tolist()
        [0.031, 1.0]
    """
    differences_AS = np.asarray(differences_AS, np.float64)
    known_AS = np.isfinite(differences_AS)
    values_AS = np.where(known_AS, differences_AS, 0.0)
    count_A = np.maximum(known_AS.sum(axis=1), 1)
    signs_PS = _signs(differences_AS.shape[1], "joint")
    means_PA = signs_PS @ values_AS.T / count_A
    squares_A = (values_AS**2).sum(axis=1) / count_A
    left_PA = np.maximum(squares_A - means_PA**2, 1e-18 * np.maximum(squares_A, 1e-300))
    t_PA = np.abs(means_PA) / np.sqrt(left_PA)
    t_PA[:, squares_A == 0] = 0.0
    seen_A = t_PA[0].copy()  # the first signs are as they were seen
    p_A, least = np.ones(len(seen_A)), 0.0
    order = np.argsort(-seen_A, kind="stable")
    for rank, arm in enumerate(order):
        largest_P = t_PA[:, order[rank:]].max(axis=1)
        least = max(least, float(np.mean(largest_P >= seen_A[arm] * (1 - 1e-9))))
        p_A[arm] = least if known_AS[arm].any() else 1.0
    return p_A


def aubc(labels_R: np.ndarray, accuracies_R: np.ndarray) -> np.ndarray:
    """Area under the budget curve: the mean accuracy on the way from the first number of labels to the last.

    The trapezoids of accuracy over labels, these scaled to [0, 1]; 0 to 1 (Zhan et al. 2021, IJCAI; realistic-al,
    ``src/utils/eval.py``).

    Args:
        labels_R: [R], R >= 2, ascending.
        accuracies_R: float [..., R], 0 to 1; any number of axes before.

    Returns:
        float64 [...].

    Raises:
        UserError: Fewer than two rounds, or labels that do not ascend.

    Example:
        >>> float(aubc(np.array([10, 20, 40]), np.array([0.4, 0.6, 0.6])))  # a third of the way at 0.5, the rest at 0.6
        0.5666666666666667
    """
    labels_R, accuracies_R = _curve(labels_R, accuracies_R)
    shares = np.diff(labels_R) / (labels_R[-1] - labels_R[0])
    area: np.ndarray = ((accuracies_R[..., 1:] + accuracies_R[..., :-1]) / 2) @ shares
    return area


def _curve(labels_R: np.ndarray, accuracies_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels_R, accuracies_R = np.asarray(labels_R, np.float64), np.asarray(accuracies_R, np.float64)
    assert labels_R.shape == accuracies_R.shape[-1:], (labels_R.shape, accuracies_R.shape)
    if len(labels_R) < 2 or (np.diff(labels_R) <= 0).any():
        raise UserError(
            f"labels of the rounds {labels_R.tolist()}; expected two or more, each more than the one before"
        )
    return labels_R, accuracies_R


# ---------------------------------------------------------------- curves over seeds


class Bands(NamedTuple):
    """A curve's mean over seeds with its 95 % intervals, float64 [R] each; NaN of fewer than 5 seeds."""

    mean_R: np.ndarray
    low_R: np.ndarray  # pointwise: at any one round
    high_R: np.ndarray
    all_low_R: np.ndarray  # simultaneous: the mean of endless seeds is within at every round at once
    all_high_R: np.ndarray


def bands(curves_SR: np.ndarray, *key: int | str) -> Bands:
    """How sure a mean curve over seeds is, or a mean difference of two arms, round by round and as a whole.

    A studentised bootstrap by signs (wild bootstrap; Liu 1988, Mammen 1993): each seed's deviation from the mean keeps
    or changes its sign, over the whole curve, and how far the mean then is from 0, in standard errors, is what is asked
    of the mean that was seen; for a band that holds at once, at the round where it is farthest. Drawing seeds with
    replacement instead would be too narrow of few seeds (percentiles) or far too wide (studentised: twice, of 6).
    Measured on normal curves of 10 rounds that are correlated by half, 5, 6, 8 and 10 seeds: the truth is within at 95
    to 96 % of the rounds, and within at all of them at once in 94 to 97 % of the curves.

    Args:
        curves_SR: float [S, R], a row each seed. For a difference of arms: the difference with each seed.
        key: What the draws are for. Up to 13 seeds all signs are gone through, and nothing is drawn.

    Raises:
        UserError: A value is missing.

    Cost: 4096 x S x R.
    """
    curves_SR = np.asarray(curves_SR, np.float64)
    if not np.isfinite(curves_SR).all():
        raise UserError("a round of a seed is missing; expected every round of every seed")
    count = len(curves_SR)
    mean_R = curves_SR.mean(axis=0)
    if count < 5:
        none_R = np.full_like(mean_R, np.nan)
        return Bands(mean_R, none_R, none_R, none_R, none_R)
    away_SR = curves_SR - mean_R
    signs_PS = _signs(count, *key)
    means_PR = signs_PS @ away_SR / count
    squares_R = (away_SR**2).mean(axis=0)  # the signs do not change them
    errors_PR = np.sqrt(np.maximum(squares_R - means_PR**2, 0) / (count - 1))
    tiny_R = 1e-9 * np.sqrt(squares_R)  # what rounding leaves of an error that is 0
    far_PR = np.divide(np.abs(means_PR), errors_PR, out=np.full_like(means_PR, np.inf), where=errors_PR > tiny_R)
    far_PR[:, squares_R == 0] = 0.0  # every seed says the same
    error_R = away_SR.std(axis=0, ddof=1) / math.sqrt(count)
    half_R, half = (np.quantile(of, 0.95, axis=0, method="higher") for of in (far_PR, far_PR.max(axis=1)))
    at, whole = half_R * error_R, half * error_R
    return Bands(mean_R, mean_R - at, mean_R + at, mean_R - whole, mean_R + whole)


def _signs(count: int, *key: int | str) -> np.ndarray:
    """Signs of S seeds, float64 [P, S]: all that differ in more than all their signs, or as many as P drawn."""
    if 2 ** (count - 1) <= PATTERNS:
        number_P = np.arange(2 ** (count - 1))
        return 1.0 - 2 * ((number_P[:, None] >> np.arange(count)) & 1)
    drawn_PS = 1.0 - 2 * generator(*key, "bands").integers(2, size=(PATTERNS, count))
    drawn_PS[0] = 1.0  # what was seen is one of them
    return drawn_PS


class Reach(TypedDict):
    """How many labels an arm needs to be as accurate as asked; None: more than the most that were tried."""

    num_reached: int  # seeds
    num_seeds: int
    labels: float | None  # the median of the seeds
    low: float | None  # of it, 95 % or more; both None of fewer than 6 seeds, too
    high: float | None


def labels_to_reach(labels_R: np.ndarray, accuracies_SR: np.ndarray, accuracy: float) -> Reach:
    """How many labels it takes to be right this often, read off the curves between rounds, over seeds.

    Of each seed where its curve is first at ``accuracy``, straight between rounds. The median, and as its interval the
    seeds' own values by rank (the sign test's interval: no distribution is assumed, and seeds that never get there
    are the largest). An accuracy that is there from the first round on is reached with the first round's labels.

    Args:
        labels_R: [R], ascending.
        accuracies_SR: float [S, R].
        accuracy: 0 to 1.

    Example:
        >>> curves = np.array([[0.5, 0.7], [0.6, 0.7], [0.5, 0.6]])
        >>> labels_to_reach(np.array([10, 20]), curves, 0.625)["labels"]
        16.25
    """
    labels_R, accuracies_SR = _curve(labels_R, accuracies_SR)
    needed_S = np.sort([_first_at(labels_R, accuracies_R, accuracy) for accuracies_R in accuracies_SR])
    count = len(needed_S)
    middle, upper = needed_S[(count - 1) // 2], needed_S[count // 2]
    found: Reach = {
        "num_reached": int(np.isfinite(needed_S).sum()),
        "num_seeds": count,
        "labels": _or_none((middle + upper) / 2),
        "low": None,
        "high": None,
    }
    if count >= FEWEST:
        outside = [sum(math.comb(count, j) for j in range(rank + 1)) / 2**count for rank in range(count // 2)]
        rank = max(rank for rank, chance in enumerate(outside) if chance <= 0.025)
        found |= {"low": _or_none(needed_S[rank]), "high": _or_none(needed_S[count - 1 - rank])}
    return found


def _first_at(labels_R: np.ndarray, accuracies_R: np.ndarray, accuracy: float) -> float:
    there = np.flatnonzero(accuracies_R >= accuracy)
    if not len(there):
        return math.inf
    after = there[0]
    if after == 0:
        return float(labels_R[0])
    return float(np.interp(accuracy, accuracies_R[after - 1 : after + 1], labels_R[after - 1 : after + 1]))


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
