"""How sure a share of right answers is, and a change of it. N test images, all at 95 %."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

Z95 = 1.959963984540054  # of a normal distribution, 95 % lie within


class Change(TypedDict):
    """What a newer model gained over an older one, on the same test images."""

    gain: float  # of accuracy, -1 to 1
    low: float  # 95 % interval of the gain
    high: float
    won: int  # images that only the newer one has right
    lost: int  # that only the older one had
    num_test: int


def wilson(share: float, count: int, z: float = Z95) -> tuple[float, float]:
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
    """The p-value of paired differences over S seeds, by the exact sign-flip permutation test, two-sided.

    If two methods were the same, each difference could as well have had the other sign: the share of all 2^S choices of
    signs whose sum is as far from 0 as the one that was seen. No distribution is assumed. It is at least ``2 / 2^S``:
    5 seeds can never show anything at 5 %, 6 can (0.031), 8 go down to 0.008.

    Args:
        differences_S: float [S], 1 <= S <= 20, of each seed. Cost: 2^S sums.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 3.0]))
        0.25
    """
    count = len(differences_S)
    assert 1 <= count <= 20, count
    signs_2S = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    sums_2 = np.abs(signs_2S @ np.asarray(differences_S, np.float64))
    seen = sums_2[0]
    return float(np.mean(sums_2 >= seen - 1e-12 * max(1.0, seen)))
