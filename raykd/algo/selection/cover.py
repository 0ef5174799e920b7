"""Cover the pool: again and again the row that covers most of what is not covered (facility location, greedily).

A row covers another by a kernel k of their distance, 0 to 1; how well the pool is covered is the sum over all its rows
n of U_n max k(s, n), s the labeled rows and picks. The gain of a row a is sum U_n max(0, k(a, n) - max k(s, n)).

- ``probcover`` (Yehuda et al. 2022): k is 1 up to a distance delta and 0 beyond it, U is 1. So a gain is how many rows
  in a ball are not covered yet. For a cold start.
- ``uherding`` (Bae et al. 2025): k is exp(-(distance / width)^2), U is 1 less the lead of the first class over the
  second. With all rows as uncertain it is MaxHerding (Bae et al. 2024). The probabilities are taken as they are given;
  the paper first fits a temperature.

Every row of the pool is to be covered, but not every row is a candidate: there are at most ``candidates`` of them,
drawn by key, or all rows, where the pool has no more. A gain is a sum over all shards; each of its terms is rounded to
a whole multiple of 2^-32, and distances are exact (``whole_numbers.py``), so that no order of sums changes anything.
Gains only fall, also rounded, so *lazy greedy* (Minoux 1978) is exact: only candidates whose last known gain is largest
are worked out again. When nothing is left to gain, all rows count as not covered again. The plain loop is
:func:`raykd.algo.selection.reference.plain_cover`.

N rows, M candidates, L labeled rows, K centers, B budget, W the width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from raykd.algo.errors import UserError
from raykd.algo.selection.answers import Key, labeled_vectors, lowest, space_of, vectors_by_ids, without_distances
from raykd.algo.selection.distances import Space
from raykd.algo.selection.followers import Followers, FollowerState, Step
from raykd.algo.selection.kcenter import Picked, SelectionRound
from raykd.algo.selection.rows import Rows, blocks
from raykd.algo.selection.scores import keyed_draw, lead_of_first_class
from raykd.algo.selection.shard import Shard, Shards
from raykd.algo.selection.whole_numbers import ONE, to_whole, whole_squares

CANDIDATES, CANDIDATES_PER_PICK = 4096, 4  # the larger number of the two, unless told otherwise
PURE_SHARE = 0.95  # of the balls, for delta
ASKED = 512  # candidates in a question
REFRESHED = 8  # at first, for a pick; then twice as many
BLOCK_VALUES = 2**20  # float64 values worked on at a time
GAIN_ONE = 2.0**32


class Kernel(Protocol):
    """How well a row is covered at a squared distance, in multiples of 2^-50: 0 to 1, falling. Small: it travels."""

    @property
    def reach(self) -> float:
        """The squared distance beyond which nothing is gained."""
        ...

    def values(self, sq: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Ball:
    """Covered up to ``reach``, and not beyond."""

    reach: float

    def values(self, sq: np.ndarray) -> np.ndarray:
        return (sq <= self.reach).astype(np.float64)


@dataclass(frozen=True)
class Gaussian:
    """``exp(-(distance / width)^2)``."""

    width: float

    @property
    def reach(self) -> float:
        return 23 * (self.width * ONE) ** 2  # exp(-23) is below half of 2^-32

    def values(self, sq: np.ndarray) -> np.ndarray:
        return np.exp(-sq / (self.width * ONE) ** 2)


def probcover(
    shards: Shards,
    labeled: Rows,
    budget: int,
    key: Key,
    delta: float | None = None,
    candidates: int | None = None,
    column: str = "features",
) -> Picked:
    """ProbCover: the row with most rows around it that no ball around a labeled row or a pick covers yet.

    Args:
        shards: The pool, with probabilities and, unless ``column`` says otherwise, features.
        labeled: L labeled rows, likewise; there may be none.
        budget: B, at most the rows left.
        key: Of the draw of candidates.
        delta: Radius of a ball, Euclidean, above 0 to 2; where it is so small that all balls hold as many rows, picks
            go by id. None: the largest at which 95 % of the candidates' balls are pure, of one predicted class, by all
            rows. (The paper asks that of clusters by k-means instead.)
        candidates: M, how many rows may be picked; None: 4,096, or 4 B if that is more. At least B.
        column: "features", then of length 1, or "probs".

    Raises:
        UserError: A number out of range.

    Cost: N * (L + M) * W float64 products for the first gains, as much again for delta, and N * W times the candidates
    that are worked out again, 8 and more a pick. Memory: 16 bytes a row.
    """
    if delta is not None and not 0 < delta <= 2:
        raise UserError(f"delta is {delta}; expected above 0, to 2, the farthest that vectors can be")
    space, names = space_of(column), drawn_candidates(shards, budget, key, candidates)
    ball = Ball((delta * ONE) ** 2) if delta else Ball(pure_radius(shards, space, names))
    return greedy_cover(shards, space, ball, False, labeled_vectors(shards, space, labeled), names, budget)


def uherding(
    shards: Shards,
    labeled: Rows,
    budget: int,
    key: Key,
    kernel_width: float | None = None,
    candidates: int | None = None,
    column: str = "features",
) -> Picked:
    """UHerding: the row that covers most of the uncertain rows around it that are not covered well yet.

    Args:
        shards: As for :func:`probcover`.
        labeled: Likewise.
        budget: Likewise.
        key: Likewise.
        kernel_width: Euclidean distance at which a row is covered by 1/e, above 0 to 2. None: the smallest distance
            between labeled rows that differ, as in the paper; 1 where there are no two.
        candidates: As for :func:`probcover`.
        column: Likewise.

    Raises:
        UserError: A number out of range.

    Cost: As :func:`probcover`, and an exponential for each pair of a candidate and a row in reach of it.
    """
    if kernel_width is not None and not 0 < kernel_width <= 2:
        raise UserError(f"kernel_width is {kernel_width}; expected above 0, to 2, the farthest that vectors can be")
    space, names = space_of(column), drawn_candidates(shards, budget, key, candidates)
    base_KW = labeled_vectors(shards, space, labeled)
    kernel = Gaussian(kernel_width or smallest_distance(base_KW))
    return greedy_cover(shards, space, kernel, True, base_KW, names, budget)


def drawn_candidates(shards: Shards, budget: int, key: Key, candidates: int | None) -> list[str]:
    """The ids of rows that may be picked, sorted; all rows where there are no more."""
    if candidates is not None and candidates < 1:
        raise UserError(f"candidates is {candidates}; expected at least 1")
    count = max(CANDIDATES, CANDIDATES_PER_PICK * budget) if candidates is None else max(candidates, budget)
    return sorted(lowest(shards, keyed_draw, count, *key, "candidates"))


def smallest_distance(base_KW: np.ndarray) -> float:
    """Between vectors that differ; 1 where there are no two. Cost: K * K * W."""
    base_KW, least = to_whole(base_KW), np.inf
    for part in blocks(len(base_KW), len(base_KW), BLOCK_VALUES):
        sq = whole_squares(base_KW[part], base_KW)
        least = min(least, float(sq[sq > 0].min(initial=np.inf)))
    return float(np.sqrt(least)) / ONE if np.isfinite(least) else 1.0


def pure_radius(shards: Shards, space: Space, names: list[str]) -> float:
    """The largest squared radius at which 95 % of these rows' balls hold rows of one predicted class only.

    A ball is pure up to the nearest row of another class, so it is a quantile of the distances to those.
    """
    x_MW = vectors_by_ids(shards, space, names)
    class_of = {name: number for part in shards.map(Shard.classes_of, names) for name, number in part.items()}
    classes_M, nearest = np.array([class_of[name] for name in names]), []
    for part in blocks(len(names), 1, ASKED):
        answers = shards.map(nearest_of_other_class, space, x_MW[part], classes_M[part])
        nearest.append(np.min(answers, axis=0))
    rising = np.sort(np.concatenate(nearest))
    first_impure = rising[int(np.ceil(len(names) * (1 - PURE_SHARE) - 1e-9)) if len(names) > 1 else 0]
    return max(float(first_impure) - 1, 0.0)


def nearest_of_other_class(shard: Shard, space: Space, x_MW: np.ndarray, classes_M: np.ndarray) -> np.ndarray:
    """The squared distance from each vector to the nearest row that is predicted as another class; infinite: none."""
    rows, x_MW, sq_M = shard.included(), to_whole(x_MW), np.full(len(x_MW), np.inf)
    for part in blocks(len(rows), max(x_MW.shape), BLOCK_VALUES):
        some = rows[part]
        sq_NM = whole_squares(to_whole(space.vectors(shard.rows, some)), x_MW)
        sq_NM[shard.outlined().top_N[some][:, None] == classes_M] = np.inf
        sq_M = np.minimum(sq_M, sq_NM.min(axis=0))
    return sq_M


class Coverage(FollowerState):
    """Of a shard's rows: how much each matters, and the squared distance to the nearest center."""

    def __init__(self, shard: Shard, space: Space, kernel: Kernel, by_uncertainty: bool, base_KW: np.ndarray) -> None:
        self.shard, self.space, self.kernel = shard, space, kernel
        self.weight_N, included = np.zeros(len(shard)), shard.included()
        self.weight_N[included] = 1 - lead_of_first_class(shard)[included] if by_uncertainty else 1.0
        self.sq_N = np.full(len(shard), np.inf)
        self._add(base_KW)

    def add(self, step: Step) -> None:
        self._add(step.vector_W[None])

    def _add(self, centers_KW: np.ndarray) -> None:
        if not len(centers_KW):
            return
        centers_KW = to_whole(centers_KW)
        for part in blocks(len(self.shard), max(centers_KW.shape), BLOCK_VALUES):
            sq_NK = whole_squares(to_whole(self.space.vectors(self.shard.rows, part)), centers_KW)
            self.sq_N[part] = np.minimum(self.sq_N[part], sq_NK.min(axis=1))

    def gains(self, x_MW: np.ndarray) -> np.ndarray:
        """What each vector as a center would add, in multiples of 2^-32, int64 [M]."""
        x_MW, gains_M, value_N = to_whole(x_MW), np.zeros(len(x_MW), np.int64), self.kernel.values(self.sq_N)
        rows = np.flatnonzero((self.weight_N > 0) & (value_N < 1))
        for part in blocks(len(rows), max(x_MW.shape), BLOCK_VALUES):
            some = rows[part]
            sq_NM = whole_squares(to_whole(self.space.vectors(self.shard.rows, some)), x_MW)
            i, j = np.nonzero((sq_NM < self.sq_N[some][:, None]) & (sq_NM <= self.kernel.reach))
            more = self.weight_N[some][i] * (self.kernel.values(sq_NM[i, j]) - value_N[some][i])
            gains_M += np.bincount(j, np.rint(more * GAIN_ONE), len(x_MW)).astype(np.int64)  # whole, so exact
        return gains_M


def greedy_cover(
    shards: Shards,
    space: Space,
    kernel: Kernel,
    by_uncertainty: bool,
    base_KW: np.ndarray,
    names: list[str],
    budget: int,
) -> Picked:
    """Candidates, each with the largest gain at its turn; ties by id.

    Args:
        shards: The pool.
        space: Where distances are measured; no vector is much longer than 1.
        kernel: How well a row covers another.
        by_uncertainty: Rows matter by how small the lead of their first class is; else all the same.
        base_KW: What covers already: vectors, float32 [K, W]; there may be none.
        names: Ids of the candidates, sorted; at least ``budget``.
        budget: B.
    """
    x_MW, left_M = vectors_by_ids(shards, space, names), np.ones(len(names), bool)
    ids: list[str] = []
    refreshed = 0
    while len(ids) < budget:
        begin = partial(Coverage, space=space, kernel=kernel, by_uncertainty=by_uncertainty, base_KW=base_KW)
        followers, before = Followers(shards, begin), len(ids)
        gains_M, met_M = np.full(len(names), -1, np.int64), np.zeros(len(names), np.int64)
        for part in blocks(len(names), 1, ASKED):
            gains_M[part] = np.sum(followers.ask(Coverage.gains, x_MW[part]), axis=0)
        gains_M[~left_M] = -1
        count = REFRESHED
        while len(ids) < budget:
            best = int(gains_M.argmax())  # the first of equals, which has the smaller id
            if gains_M[best] <= 0:
                break
            if met_M[best] == len(followers.steps):
                ids.append(names[best])
                followers.steps.append(Step(names[best], x_MW[best]))
                gains_M[best], left_M[best], count = -1, False, REFRESHED
                continue
            stale = np.flatnonzero((met_M < len(followers.steps)) & (gains_M > 0))
            stale = stale[np.argsort(-gains_M[stale], kind="stable")[:count]]
            gains_M[stale] = np.sum(followers.ask(Coverage.gains, x_MW[stale]), axis=0)
            met_M[stale], count, refreshed = len(followers.steps), min(2 * count, ASKED), refreshed + len(stale)
        if len(ids) == before and not len(base_KW):  # nothing is covered, and yet there is nothing to gain
            ids += [names[row] for row in np.flatnonzero(left_M)[: budget - len(ids)]]
        base_KW = base_KW[:0]
    picked = without_distances(ids)
    return picked._replace(history=(SelectionRound(len(names), refreshed, budget),))
