"""Picks by the distance to the nearest center so far: farthest-first (k-center) and D² sampling (k-means++).

One center at a time: every shard lowers its running minimum by the newest center and names its best row, the best of
these is the next pick. Exact; costs one pass over the rows and one question a pick.

K centers, W the width of a space's vectors, B budget.
"""

from __future__ import annotations

import math
import uuid
from typing import NamedTuple

import numpy as np

from raykd.algo.shard import Answer, Candidate, Centers, Rows, Shards


class Picks(NamedTuple):
    """What to label, in the order picked.

    ``distances`` (float64 [B]): to the nearest center at the time of the pick; NaN where that means nothing.
    """

    ids: list[str]
    distances: np.ndarray


class CenterLog:
    """All centers of one selection, in order, so that a shard that lost its state can be told again."""

    def __init__(self, space: str) -> None:
        self.run, self.space = uuid.uuid4().hex, space
        self.ids: list[str] = []
        self.vectors: list[np.ndarray] = []
        self._known = 0  # every shard knows this many, unless it was restarted since

    def add(self, name: str, vector_W: np.ndarray) -> None:
        self.ids.append(name)
        self.vectors.append(vector_W)

    def grow(self, shards: Shards, method: str, *key: int | str) -> Candidate:
        """The best of the shards' candidates ("farthest" or "race"); it becomes the next center."""
        candidates = self._ask(shards, method, *key)
        assert candidates, "no row left to pick"
        best = min(candidates, key=lambda candidate: candidate.order)
        self.add(best.id, best.vector_W)
        return best

    def _ask(self, shards: Shards, method: str, *key: int | str) -> list[Candidate]:
        """Each shard's candidate, all centers known; shards without a row left have none."""
        assert self.ids, "no center to be far from"
        start = self._known
        while True:
            news = Centers(self.run, self.space, start, self.ids[start:], np.array(self.vectors[start:]))
            answers: list[Answer] = shards.map(method, news, *key)
            start = min(answer.known for answer in answers)
            assert start <= len(self.ids), "a shard knows centers of another selection"
            if start == len(self.ids):
                self._known = start
                return [answer.candidate for answer in answers if answer.candidate is not None]


def farthest_first(shards: Shards, centers: CenterLog, budget: int) -> Picks:
    """Greedy k-center (Gonzalez 1985): again and again the row that is farthest from its nearest center.

    Exact: the picks are those of computing all distances in float64, to the last bit the same for any shards; ties go
    to the smaller id. The distances never rise. Within twice the best possible covering radius.

    Args:
        shards: The pool.
        centers: What is covered already; at least one center. Centers that are pool rows are not picked again.
        budget: B, at most the rows left.

    Cost: N * (K + B) * W, and B questions.
    """
    return _picks([centers.grow(shards, "farthest") for _ in range(budget)])


def sample_by_distance(shards: Shards, centers: CenterLog, budget: int, *key: int | str) -> Picks:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): draw rows with probability D² / sum D².

    D is the distance to the nearest center at that time. The draws are keyed by id and step (see ``Shard.race``).
    Arguments and cost as for :func:`farthest_first`.
    """
    return _picks([centers.grow(shards, "race", *key, step) for step in range(budget)])


def _picks(candidates: list[Candidate]) -> Picks:
    sq_B = np.array([candidate.sq for candidate in candidates], np.float64)
    return Picks([candidate.id for candidate in candidates], np.sqrt(sq_B))


def coverage_radius(shards: Shards, labeled: Rows) -> float:
    """How far the worst covered pool row is from its nearest labeled row, Euclidean over probabilities, 0 to sqrt(2).

    What farthest-first makes small. Quick, by FAISS in float32: never above the true radius, and below it by no more
    than float32 rounding (about 1e-3 where distances are near 0). NaN when nothing is labeled or the pool is empty.
    """
    if not len(labeled):
        return math.nan
    radii: list[float] = shards.map("farthest_from", "probs", labeled.probs)
    return max((radius for radius in radii if not math.isnan(radius)), default=math.nan)
