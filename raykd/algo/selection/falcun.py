"""FALCUN: draw rows that are uncertain and, in the probability simplex, far from those drawn (Gilhuber et al. 2024).

With u = 1 - (lead of the first class over the second) and d = u at first, each pick is drawn with probability
(u + d)^gamma / sum (u + d)^gamma. Then d falls to the L1 distance to the pick, where that is less, and all d are
stretched so that the largest is 1. The plain loop is :func:`raykd.algo.selection.reference.plain_falcun`.

As the pick's own d is 0, to stretch is to divide by the largest. So the *gap* D = d * S is kept, where S is the largest
gap (1 before the first pick): D only falls, and nothing is divided before it is looked at. The paper's numbers differ
by rounding.

Most rows need not be measured: in class a, where a row is at its peak x, and in all other classes together, each sums
to about 1, so its L1 distance to a pick q is at least 2 |x - q_a|; where that is no less than its d, nothing changes.

Draws are by exponential race (see ``priorities.py``), with new clocks E for every pick, as stretched weights may rise:
the row with the least E / weight is next, which has just that probability.

N rows, C classes, B budget.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np

from raykd.algo import keyed
from raykd.algo.errors import UserError
from raykd.algo.selection.answers import Key
from raykd.algo.selection.followers import Followers, FollowerState, Step
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.priorities import NEVER
from raykd.algo.selection.rows import SUM_TOLERANCE, Rows, in_parallel
from raykd.algo.selection.scores import lead_of_first_class
from raykd.algo.selection.shard import Shard, Shards, lowest_positions

SLACK = 2.001 * SUM_TOLERANCE  # by how much two rows' sums may differ; and rounding
PRECISION = 26  # bits of a weight that are summed, so that the sum of 2^27 of them is exact in float64


class Ring(NamedTuple):
    """A shard's first clock: when it rings, whose it is, and its weight; and all weights of the shard, summed."""

    time: float
    id: str
    probs_C: np.ndarray
    weight: float
    sums: dict[int, int]


def falcun(shards: Shards, labeled: Rows, budget: int, key: Key, gamma: float = 10.0) -> Picked:
    """Draws by uncertainty and distance over probabilities, the same for any shards. Labeled rows take no part.

    Args:
        shards: The pool, with probabilities.
        labeled: Not looked at.
        budget: B, at most the rows left.
        key: Of the draws.
        gamma: How sharply the draws prefer, 0 (uniform) to 100; the paper's is 10. A weight (u + d)^gamma that
            underflows counts as 0.

    Raises:
        UserError: gamma is out of range.

    Returns:
        Picks with their draw probabilities, exact but for the rounding of weights to 26 bits. Rows of weight 0 come
        after all others, each as likely as another.

    Cost: two questions a pick; in each shard some ten numbers a row and pick (about 0.25 µs on one core), and C a row
    and pick where d may fall: N * C * B at worst, on flat rows; few of the rows where they are peaked. Memory: 37 bytes
    a row.
    """
    if not 0 <= gamma <= 100:
        raise UserError(f"gamma is {gamma}; expected 0 (uniform draws) to 100")
    followers = Followers(shards, partial(ContrastRace, gamma=gamma, key=(*key, "falcun")))
    num_rows, scale = sum(shards.map(Shard.num_included)), 1.0
    draw_probabilities = np.empty(budget)
    for number in range(budget):
        rings: list[Ring] = [ring for ring in followers.ask(ContrastRace.first, scale, number) if ring is not None]
        first = min(rings, key=lambda ring: (ring.time, ring.id))
        whole = joined_sums([ring.sums for ring in rings])
        share = Fraction(first.weight) / whole if whole else Fraction(1, num_rows - number)
        draw_probabilities[number] = min(float(share), 1.0)
        followers.steps.append(Step(first.id, first.probs_C, scale))
        scale = max(followers.ask(ContrastRace.widest)) or scale  # all gaps are 0: nothing is left to stretch
    ids = [step.id for step in followers.steps]
    return Picked(ids, np.full(budget, np.nan), draw_probabilities=draw_probabilities)


class ContrastRace(FollowerState):
    """A shard's rows in the race: their uncertainty u and their gap D."""

    def __init__(self, shard: Shard, gamma: float, key: tuple[int | str, ...]) -> None:
        self.shard, self.gamma = shard, gamma
        self.bits_N = keyed.bits(shard.hashes_N, *key)
        self.unsure_N = 1 - lead_of_first_class(shard)
        self.gap_N = self.unsure_N.copy()
        self.left_N = np.zeros(len(shard), bool)
        self.left_N[shard.included()] = True

    def add(self, step: Step) -> None:
        """The pick is gone, and gaps fall to ``scale`` times the L1 distance to it."""
        probs_NC, q_C = self.shard.probs(), step.vector_W
        self.left_N[self.shard.positions([step.id])] = False
        outline = self.shard.outlined()
        least_N = 2 * np.abs(outline.peak_N.astype(np.float64) - q_C[outline.top_N]) - SLACK
        near = np.flatnonzero(least_N * step.scale < self.gap_N)

        def lower(part: slice) -> None:
            apart = np.subtract(probs_NC[near[part]], q_C, dtype=np.float64, order="C")
            np.abs(apart, out=apart)
            self.gap_N[near[part]] = np.minimum(self.gap_N[near[part]], step.scale * apart.sum(axis=1))

        in_parallel(lower, len(near), len(q_C))

    def widest(self) -> float:
        """The largest gap."""
        return float(self.gap_N[self.left_N].max(initial=0.0))

    def first(self, scale: float, number: int) -> Ring | None:
        """Whose clock rings first for pick ``number``, when the largest gap is ``scale``; None: no row is left."""
        rows = np.flatnonzero(self.left_N)
        if not len(rows):
            return None
        weights = (self.unsure_N[rows] + self.gap_N[rows] / scale) ** self.gamma
        draws = keyed.uniform(self.bits_N[rows], number)
        with np.errstate(divide="ignore", over="ignore"):
            times = np.minimum(-np.log(draws) / weights, NEVER)
        times = np.where(weights > 0, times, NEVER * (1 + draws))
        best = int(lowest_positions(times, self.shard.rank_N[rows], 1)[0])
        row = rows[best]
        probs_C = np.asarray(self.shard.probs()[row], np.float32)
        rounded = float(rounded_to_bits(weights[best : best + 1])[0])
        return Ring(float(times[best]), self.shard.rows.ids[row], probs_C, rounded, sums_by_exponent(weights))


# ---------------------------------------------------------------- sums that no order changes


def rounded_to_bits(numbers: np.ndarray) -> np.ndarray:
    """Rounded to :data:`PRECISION` bits, as :func:`sums_by_exponent` does."""
    parts, exponents = np.frexp(numbers)
    return np.ldexp(np.rint(parts * 2.0**PRECISION), exponents - PRECISION)


def sums_by_exponent(numbers: np.ndarray) -> dict[int, int]:
    """The sum of numbers, at least 0, as whole multiples of powers of two: {exponent: multiple}.

    Each is rounded to :data:`PRECISION` bits; from there on the sum is exact, so the same in any order and any parts.

    Example:
        >>> joined_sums([sums_by_exponent(np.array([0.5, 3.0])), sums_by_exponent(np.array([0.25]))])
        Fraction(15, 4)
    """
    parts, exponents = np.frexp(numbers)
    least = int(exponents.min())
    sums = np.bincount(exponents - least, np.rint(parts * 2.0**PRECISION))
    return {least - PRECISION + place: int(sums[place]) for place in np.flatnonzero(sums).tolist()}


def joined_sums(parts: list[dict[int, int]]) -> Fraction:
    """The whole of several such sums."""
    least = min((exponent for part in parts for exponent in part), default=0)
    multiples = sum(multiple << (exponent - least) for part in parts for exponent, multiple in part.items())
    return multiples * Fraction(2) ** least
