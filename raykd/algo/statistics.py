"""How sure a share of right answers is, and a change of it. N test images, S seeds, all at 95 %.

What is said of arms over seeds is in ``comparison.py``, of images that are labeled to measure on in ``audit.py``.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TypedDict

import numpy as np

from raykd.algo.keyed import generator

Z95 = 1.959963984540054  # of a normal distribution, 95 % lie within


class Change(TypedDict):
    """What a newer model gained over an older one, on the same test images."""

    gain: float  # of accuracy, -1 to 1
    low: float  # 95 % interval of the gain
    high: float
    won: int  # images that only the newer one has right
    lost: int  # that only the older one had
    num_test: int


def wilson(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen on ``count`` images, 0 to 1 (all of it for none).

    Example:
        >>> [round(end, 3) for end in wilson(0.8, 400)]
        [0.758, 0.836]
    """
    if not count:
        return 0.0, 1.0
    center = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = (center - half) / (1 + z * z / count), (center + half) / (1 + z * z / count)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # what rounding left outside


def exact_interval(right: int, count: int, pool: int | None = None, alpha: float = 0.05) -> tuple[float, float]:
    """The shares that ``right`` of ``count`` images do not refuse, 0 to 1 (all of it for none): at least 95 %, always.

    Clopper and Pearson 1934; of a finite pool its counterpart, by the hypergeometric distribution. It keeps its promise
    on any number of images and at any share, and is wider for it than :func:`wilson`: what counts is no approximation.

    Args:
        right: 0 to ``count``.
        count: Images that were drawn at random, without replacement.
        pool: That they were drawn from, where the share is meant to be that of these and no others; None: of a pool
            without end.
        alpha: How often the share may be outside, half of it at each end.

    Returns:
        Low and high. Cost: some 60 passes over ``count`` numbers, a millisecond for a few hundred images.

    Example:
        >>> [round(end, 3) for end in exact_interval(18, 20)]
        [0.683, 0.988]
        >>> exact_interval(18, 20, pool=20)
        (0.9, 0.9)
    """
    if not count:
        return 0.0, 1.0
    low, high = exact_low(right, count, pool, alpha / 2), 1 - exact_low(count - right, count, pool, alpha / 2)
    return min(low, right / count), max(high, right / count)  # what rounding left outside


def exact_low(right: int, count: int, pool: int | None = None, alpha: float = 0.05) -> float:
    """The least share under which as many as ``right`` of ``count`` are likelier than ``alpha``; as above, one-sided.

    Example:
        >>> round(exact_low(59, 59), 3)  # the rule of three: 59 right ones in a row show 95 %
        0.95
    """
    assert 0 <= right <= count <= (count if pool is None else pool), (right, count, pool)
    if not right:
        return 0.0
    if pool is None:
        low, high = 0.0, 1.0
        while (middle := (low + high) / 2) not in (low, high):
            low, high = (low, middle) if _as_many(right, count, middle) > alpha else (middle, high)
        return low
    fewest, most = right - 1, pool - (count - right)  # right ones in the pool: too few, and enough to have seen these
    while most - fewest > 1:
        between = (fewest + most) // 2
        fewest, most = (fewest, between) if _as_many_of(right, count, between, pool) > alpha else (between, most)
    return most / pool


def _as_many(right: int, count: int, share: float) -> float:
    """The chance of ``right`` or more of ``count``, each right with chance ``share``, 0 to 1 without the ends."""
    j = np.arange(count)
    return _upper(right, np.log((count - j) / (j + 1)) + math.log(share / (1 - share)))


def _as_many_of(right: int, count: int, right_in_pool: int, pool: int) -> float:
    """The same of draws without replacement."""
    least = max(0, count - (pool - right_in_pool))
    j = np.arange(least, min(count, right_in_pool))
    steps = (right_in_pool - j) * (count - j) / ((j + 1) * (pool - right_in_pool - count + j + 1))
    return _upper(max(right - least, 0), np.log(steps))


def _upper(first: int, steps: np.ndarray) -> float:
    """The share from outcome ``first`` on, of outcomes whose chances differ by these logarithms."""
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    chances = np.exp(logs - logs.max())
    return float(chances[first:].sum() / chances.sum())


@cache
def student_t(freedom: int) -> float:
    """Student's t within which 95 % lie, as :data:`Z95` of a normal distribution; ``freedom`` >= 1. To 1e-5.

    By ``t = sqrt(freedom) tan(angle)`` the density becomes a power of a cosine, which is summed.

    Example:
        >>> round(student_t(7), 3)
        2.365
    """
    width = math.pi / 2 / 20_000
    angles = width * np.arange(1, 20_001)
    shares = np.cumsum(np.cos(angles - width / 2) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, shares / shares[-1], angles)))


def half_interval(values_S: np.ndarray) -> float:
    """Half of the 95 % interval of a mean by Student's t; NaN of fewer than two values.

    Args:
        values_S: float [S], independent and about normal.

    Example:
        >>> round(half_interval(np.array([1.0, 2.0, 3.0])), 3)
        2.484
    """
    count = len(values_S)
    return float(student_t(count - 1) * np.std(values_S, ddof=1) / count**0.5) if count > 1 else math.nan


def paired_change(right_before_N: np.ndarray, right_now_N: np.ndarray) -> Change:
    """The gain in accuracy between two models that answered the same images, with Tango's score interval.

    Most images are right under both or wrong under both, and say nothing about the change: so the interval is far
    narrower than that of two accuracies held side by side. It holds 0 exactly where McNemar's test (without continuity
    correction) finds no difference at 5 %, and keeps its 95 % on few images too (Tango 1998, Statistics in Medicine 17;
    advised by Fagerland, Lydersen and Laake 2014).

    Args:
        right_before_N, right_now_N: bool [N], N >= 1, in the same order.

    Example:
        >>> change = paired_change(np.array([True, False, False, False]), np.array([True, True, True, False]))
        >>> change["gain"], change["won"], change["lost"], is_noise(change)
        (0.5, 2, 0, True)
    """
    won = int(np.sum(right_now_N & ~right_before_N))
    lost = int(np.sum(right_before_N & ~right_now_N))
    count = len(right_now_N)
    assert count == len(right_before_N) > 0
    low, high = tango(won, lost, count)
    return {"gain": (won - lost) / count, "low": low, "high": high, "won": won, "lost": lost, "num_test": count}


def is_noise(change: Change) -> bool:
    """Whether the interval leaves open if there is a change at all."""
    return change["low"] <= 0 <= change["high"]


def tango(won: int, lost: int, count: int, z: float = Z95) -> tuple[float, float]:
    """The differences of two paired shares that the score test does not refuse: where its statistic is within ``z``."""

    def statistic(gain: float) -> float:
        """Falls with ``gain``; its variance is at the likeliest share of ``lost`` if the gain were this one."""
        a, b, c = 2 * count, (2 * count - won + lost) * gain - won - lost, -lost * gain * (1 - gain)
        lost_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * lost_share + gain * (1 - gain))
        excess = won - lost - count * gain
        if variance <= 0:  # only a gain of 1, 0 or -1 leaves nothing to chance
            return math.copysign(math.inf, excess) if excess else 0.0
        return excess / math.sqrt(variance)

    def crossing(bound: float, low: float, high: float) -> float:
        while (middle := (low + high) / 2) not in (low, high):
            low, high = (middle, high) if statistic(middle) > bound else (low, middle)
        return middle

    seen = (won - lost) / count
    return crossing(z, -1.0, seen), crossing(-z, seen, 1.0)


def sign_flip(differences_S: np.ndarray) -> float:
    """The p-value of paired differences over S seeds, by the sign-flip permutation test, two-sided.

    If two methods were the same, each difference could as well have had the other sign: the share of all 2^S choices of
    signs whose sum is as far from 0 as the one that was seen. No distribution is assumed. It is at least ``2 / 2^S``:
    5 seeds can never show anything at 5 %, 6 can (0.031), 8 go down to 0.008. Exact up to 20 seeds; of more 100,000
    choices are drawn, always the same, and the one that was seen counts among them (Phipson and Smyth 2010).

    Args:
        differences_S: float [S], S >= 1, of each seed. Cost: 2^S sums, or 100,000 x S.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 3.0]))
        0.25
    """
    differences_S = np.asarray(differences_S, np.float64)
    count = len(differences_S)
    assert count >= 1
    sums = np.zeros(1)
    if count <= 20:
        for difference in differences_S:
            sums = np.concatenate([sums + difference, sums - difference])
    else:
        signs = 1 - 2 * generator(count, "sign flips").integers(2, size=(100_000, count), dtype=np.int8)
        sums = np.concatenate([[differences_S.sum()], signs @ differences_S])
    far, seen = np.abs(sums), abs(sums[0])
    return float(np.mean(far >= seen - 1e-12 * max(1.0, seen)))
