"""Which row goes next, when all that matters is the distance to the nearest center: the farthest, or a race's winner.

Both order rows by one number, the key, the larger the sooner, that can only fall as centers are added. So a key worked
out earlier, or from some of the centers, or from a distance that is too large, is an upper bound, and a row whose bound
is below what another row surely has need not be refreshed: *lazy greedy* (Minoux 1978; in CELF, Leskovec et al. 2007).
That is all the engine builds on.

A priority keeps a row of numbers for each pool row, its state; the first is the squared distance to the nearest center.
N rows, K centers, S numbers of state, W the width of a space's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raykd.algo import keyed
from raykd.algo.selection.distances import Space, pairs_that_matter

NEVER = 1e300  # when clocks without a hazard ring, in the order of their draws; no real time is as late


class Priority(Protocol):
    """How a selection orders rows. Small: it travels."""

    lowest_key: float  # a key that cannot fall any more
    resumable: bool  # a state can be worked out from a bound and the centers after it; else from all centers only

    def initial_state(self, hashes_N: np.ndarray, bounds_N: np.ndarray | None = None) -> np.ndarray:
        """The state of rows without centers, float64 [N, S]; with bounds on their squared distances, if given."""
        ...

    def add_centers(
        self, space: Space, x_NW: np.ndarray, state_NS: np.ndarray, y_KW: np.ndarray, times_K: np.ndarray
    ) -> None:
        """Add centers, one after the other; ``state_NS`` is changed in place, exactly."""
        ...

    def lower(self, state_NS: np.ndarray, where: np.ndarray, sq: np.ndarray, time: float) -> None:
        """Add one center, at these exact squared distances of some rows."""
        ...

    def keys(self, state_NS: np.ndarray) -> np.ndarray:
        """What rows are ordered by, float64 [N]; larger goes first."""
        ...

    def key_bounds(self, hashes_N: np.ndarray, sq_N: np.ndarray) -> np.ndarray:
        """The keys of rows with a single center at these squared distances, float64 [N]."""
        ...

    def time(self, key: float) -> float:
        """When a row with that key goes."""
        ...


@dataclass(frozen=True)
class Farthest:
    """The row farthest from its nearest center goes first. State: its squared distance."""

    lowest_key = 0.0
    resumable = True

    def initial_state(self, hashes_N: np.ndarray, bounds_N: np.ndarray | None = None) -> np.ndarray:
        return np.full((len(hashes_N), 1), np.inf) if bounds_N is None else bounds_N[:, None].copy()

    def add_centers(
        self, space: Space, x_NW: np.ndarray, state_NS: np.ndarray, y_KW: np.ndarray, times_K: np.ndarray
    ) -> None:
        sq_N = state_NS[:, 0]
        for i, _, sq in pairs_that_matter(space, x_NW, sq_N, y_KW):
            np.minimum.at(sq_N, i, sq)

    def lower(self, state_NS: np.ndarray, where: np.ndarray, sq: np.ndarray, time: float) -> None:
        state_NS[where, 0] = np.minimum(state_NS[where, 0], sq)

    def keys(self, state_NS: np.ndarray) -> np.ndarray:
        return state_NS[:, 0].copy()

    def key_bounds(self, hashes_N: np.ndarray, sq_N: np.ndarray) -> np.ndarray:
        return sq_N

    def time(self, key: float) -> float:
        return 0.0


@dataclass(frozen=True)
class ExponentialRace:
    """Every row has an exponential clock with a hazard of D², its squared distance to the nearest center.

    The clock that rings first is the next pick: each row's with probability D² / sum D² (k-means++), D as of then, as
    exponential clocks have no memory. With constant hazards this is weighted sampling without replacement by
    exponential keys (Efraimidis and Spirakis 2006; the Gumbel trick, in logarithms). Here hazards fall: one draw E from
    Exp(1), keyed by the row's id, serves for the whole selection, and the clock rings when the hazard it was under,
    added up over time, is E (inversion of the cumulative hazard). As D only falls, a clock can only ring later than it
    seemed: so, as for the farthest, most rows need never be refreshed. Clocks of rows at distance 0 ring after all
    others, smaller draws first.

    State: D², when the clock rings, what was left of E when D² last fell, the time of that, the uniform draw behind E.

    Args:
        key: Of the draws, such as (seed, round, "badge").
    """

    key: tuple[int | str, ...]
    lowest_key = -NEVER
    resumable = False

    def initial_state(self, hashes_N: np.ndarray, bounds_N: np.ndarray | None = None) -> np.ndarray:
        draws_N = keyed.uniform(hashes_N, *self.key)
        state_NS = np.zeros((len(draws_N), 5))
        state_NS[:, 0], state_NS[:, 2], state_NS[:, 4] = np.inf, -np.log(draws_N), draws_N
        return state_NS

    def add_centers(
        self, space: Space, x_NW: np.ndarray, state_NS: np.ndarray, y_KW: np.ndarray, times_K: np.ndarray
    ) -> None:
        for i, j, sq in pairs_that_matter(space, x_NW, state_NS[:, 0], y_KW, in_turn=True):
            by_center = np.argsort(j, kind="stable")
            for pairs in np.split(by_center, np.flatnonzero(np.diff(j[by_center])) + 1):
                self.lower(state_NS, i[pairs], sq[pairs], times_K[j[pairs[0]]])

    def lower(self, state_NS: np.ndarray, where: np.ndarray, sq: np.ndarray, time: float) -> None:
        nearer = sq < state_NS[where, 0]
        where, sq = where[nearer], sq[nearer]
        hazard, rings, left, since, draw = state_NS[where].T
        used = np.zeros(len(where))
        np.multiply(hazard, time - since, out=used, where=time > since)  # at time 0 no clock was under a hazard yet
        left = np.maximum(left - used, 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            later = np.minimum(np.maximum(rings, time + left / sq), NEVER)
        rings = np.where(sq > 0, later, NEVER * (1 + draw))
        state_NS[where, :4] = np.stack([sq, rings, left, np.full(len(where), time)], axis=1)

    def keys(self, state_NS: np.ndarray) -> np.ndarray:
        return -state_NS[:, 1]

    def key_bounds(self, hashes_N: np.ndarray, sq_N: np.ndarray) -> np.ndarray:
        state_NS = self.initial_state(hashes_N)
        self.lower(state_NS, np.arange(len(sq_N)), sq_N, 0.0)
        return self.keys(state_NS)

    def time(self, key: float) -> float:
        return -key
