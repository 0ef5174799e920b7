"""Which row goes next, when all that matters is the distance to the nearest center: the farthest, or a race's winner.

Both rules order rows by one number, the larger the sooner, that can only fall as centers are added. So a number worked
out earlier, or from some of the centers, or from a distance that is too large, is an upper bound: a row whose bound is
below what another row surely has need not be looked at. That is all the engine builds on.

A rule keeps a row of numbers for each pool row, its state; the first is the squared distance to the nearest center.
N rows, K centers, S numbers of state, W the width of a space's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raykd.algo import keyed
from raykd.algo.selection.distances import Space, meetings

NEVER = 1e300  # when rows without distance come home, in the order of their draws; no real time is as late


class Rule(Protocol):
    """How a selection orders rows. Small: it travels."""

    least: float  # a key that cannot fall any more
    restarts: bool  # a state can be worked out from a bound and the centers after it; else from all centers only

    def fresh(self, hashes_N: np.ndarray, bounds_N: np.ndarray | None = None) -> np.ndarray:
        """The state of rows that met no center, float64 [N, S]; with bounds on their squared distances, if given."""
        ...

    def follow(
        self, space: Space, x_NW: np.ndarray, state_NS: np.ndarray, y_KW: np.ndarray, times_K: np.ndarray
    ) -> None:
        """Let rows meet centers, one after the other; ``state_NS`` is changed in place, exactly."""
        ...

    def meet(self, state_NS: np.ndarray, where: np.ndarray, sq: np.ndarray, time: float) -> None:
        """Let some rows meet one center at these exact squared distances."""
        ...

    def keys(self, state_NS: np.ndarray) -> np.ndarray:
        """What rows are ordered by, float64 [N]; larger goes first."""
        ...

    def bounds(self, hashes_N: np.ndarray, sq_N: np.ndarray) -> np.ndarray:
        """The keys of rows with a single center at these squared distances, float64 [N]."""
        ...

    def time(self, key: float) -> float:
        """When a row with that key goes."""
        ...


@dataclass(frozen=True)
class Farthest:
    """The row farthest from its nearest center goes first. State: its squared distance."""

    least = 0.0
    restarts = True

    def fresh(self, hashes_N: np.ndarray, bounds_N: np.ndarray | None = None) -> np.ndarray:
        return np.full((len(hashes_N), 1), np.inf) if bounds_N is None else bounds_N[:, None].copy()

    def follow(
        self, space: Space, x_NW: np.ndarray, state_NS: np.ndarray, y_KW: np.ndarray, times_K: np.ndarray
    ) -> None:
        sq_N = state_NS[:, 0]
        for i, _, sq in meetings(space, x_NW, sq_N, y_KW):
            np.minimum.at(sq_N, i, sq)

    def meet(self, state_NS: np.ndarray, where: np.ndarray, sq: np.ndarray, time: float) -> None:
        state_NS[where, 0] = np.minimum(state_NS[where, 0], sq)

    def keys(self, state_NS: np.ndarray) -> np.ndarray:
        return state_NS[:, 0].copy()

    def bounds(self, hashes_N: np.ndarray, sq_N: np.ndarray) -> np.ndarray:
        return sq_N

    def time(self, key: float) -> float:
        return 0.0


@dataclass(frozen=True)
class Race:
    """Rows run home, each with a hazard of D², its squared distance to the nearest center; the first one home is next.

    A row's fuel is one draw E from Exp(1), keyed by its id, for the whole selection; it is home when the hazard it was
    under, added up over time, is E. As exponential clocks have no memory, whoever comes next is each row with
    probability D² / sum D² (k-means++), D as of then. And as D only falls, a row can only be later than it seemed: so,
    as for the farthest, most rows need never be looked at. Rows at distance 0 come home after all others, smaller draws
    first.

    State: D², when the row is due, its fuel left at its last turn, the time of that turn, its draw.

    Args:
        key: Of the draws, such as (seed, round, "badge").
    """

    key: tuple[int | str, ...]
    least = -NEVER
    restarts = False

    def fresh(self, hashes_N: np.ndarray, bounds_N: np.ndarray | None = None) -> np.ndarray:
        draws_N = keyed.uniform(hashes_N, *self.key)
        state_NS = np.zeros((len(draws_N), 5))
        state_NS[:, 0], state_NS[:, 2], state_NS[:, 4] = np.inf, -np.log(draws_N), draws_N
        return state_NS

    def follow(
        self, space: Space, x_NW: np.ndarray, state_NS: np.ndarray, y_KW: np.ndarray, times_K: np.ndarray
    ) -> None:
        for i, j, sq in meetings(space, x_NW, state_NS[:, 0], y_KW, in_turn=True):
            by_turn = np.argsort(j, kind="stable")
            for pairs in np.split(by_turn, np.flatnonzero(np.diff(j[by_turn])) + 1):
                self.meet(state_NS, i[pairs], sq[pairs], times_K[j[pairs[0]]])

    def meet(self, state_NS: np.ndarray, where: np.ndarray, sq: np.ndarray, time: float) -> None:
        nearer = sq < state_NS[where, 0]
        where, sq = where[nearer], sq[nearer]
        before, due, fuel, since, draw = state_NS[where].T
        # at time 0 all rows start, under no hazard yet
        used = np.multiply(before, time - since, out=np.zeros(len(where)), where=time > since)
        fuel = np.maximum(fuel - used, 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            due = np.where(sq > 0, np.minimum(np.maximum(due, time + fuel / sq), NEVER), NEVER * (1 + draw))
        state_NS[where, :4] = np.stack([sq, due, fuel, np.full(len(where), time)], axis=1)

    def keys(self, state_NS: np.ndarray) -> np.ndarray:
        return -state_NS[:, 1]

    def bounds(self, hashes_N: np.ndarray, sq_N: np.ndarray) -> np.ndarray:
        state_NS = self.fresh(hashes_N)
        self.meet(state_NS, np.arange(len(sq_N)), sq_N, 0.0)
        return self.keys(state_NS)

    def time(self, key: float) -> float:
        return -key
