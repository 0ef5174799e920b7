"""Picks by the distance to the nearest center so far: farthest-first (k-center) and D² sampling (k-means++).

The plain algorithms are in ``reference.py``, ten lines each; here are the same picks, and yet most rows are hardly
looked at. It is lazy greedy (see ``priorities.py``) with speculation over shards: each shard proposes its first rows,
exact, and a bound on all others; among all of these the driver picks, one after the other, lowering what is left by
each pick, for as long as the best of them is before every bound: no other row could have been next. Then the shards
hear of the picks and are asked again. A round always yields a pick, as the first of all rows is among the candidates.

A small pool is no work for shards: it is gathered, and a running minimum takes less than all that (``small_pools.py``).

K shards, M candidates, L centers in the beginning, B budget, S numbers of state, W the width of a space's vectors.
"""

from __future__ import annotations

import math
import uuid
from typing import NamedTuple

import numpy as np

from raykd.algo.selection.distances import Euclidean, Space
from raykd.algo.selection.priorities import ExponentialRace, Farthest, Priority
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Candidates, Order, Proposal, Shard, Shards, Update, lowest_positions
from raykd.algo.selection.small_pools import farthest_first_in_float32

SMALL_VALUES = 2**22  # 16 MiB travel fast, and
SMALL_PRODUCTS = 3 * 2**28  # a running minimum of so many products is over before shards have answered,
SMALL_BUDGET, SMALL_SHARE = 100, 1 / 32  # if it is of no more picks than these, or than this share of the rows
CANDIDATES_PER_PICK = 4  # asked for at first
MOST_VALUES = 2**26  # in all candidates' vectors: 256 MiB
FEWEST_CANDIDATES = 1000  # always asked for
SPARE = 16  # rows asked of each shard beyond its share
GUIDE_SHARE = 1 / 32  # of the picks: a first round that gives less is no guide to the next
WINDOW = 512  # candidates among which distances are all known at a time
GONE = -np.inf  # the key of a row that is picked
AFTER_ALL: Order = (np.inf, "")


class SelectionRound(NamedTuple):
    """What a round of questions came to."""

    candidates: int  # exact rows that the shards proposed
    refreshed: int  # rows that were brought up to date for it
    picked: int


class Picked(NamedTuple):
    """What to label, in the order picked.

    ``distances`` (float64 [B]): to the nearest center at the time of the pick; NaN where that means nothing.
    ``history``: the rounds of questions that it took; none where every row was scored once. ``draw_probabilities``
    (float64 [B]): with which each pick was drawn at its turn, given the picks before it, among all rows that were left;
    NaN where nothing was drawn, or where it is not worked out. None: NaN for all.
    """

    ids: list[str]
    distances: np.ndarray
    history: tuple[SelectionRound, ...] = ()
    draw_probabilities: np.ndarray | None = None

    @property
    def rounds(self) -> int:
        """How many rounds of questions."""
        return len(self.history)

    @property
    def refreshed(self) -> int:
        """Rows that were brought up to date, some more than once."""
        return sum(each.refreshed for each in self.history)


def farthest_first(
    shards: Shards, space: Space, base_KW: np.ndarray, budget: int, base_ids: list[str] | None = None
) -> Picked:
    """Greedy k-center (Gonzalez 1985): again and again the row that is farthest from its nearest center.

    Exact: the picks are those of computing all distances in float64, to the last bit the same for any shards; ties go
    to the smaller id. The distances never rise. Within twice the best possible covering radius.

    Args:
        shards: The pool.
        space: Where distances are measured.
        base_KW: What is covered already: vectors of that space, float32 [L, W]; at least one.
        budget: B, at most the rows left.
        base_ids: Those of the centers that are pool rows; they are not picked again.

    Cost: rows refreshed * (L + B) * W; the worst case, on data without structure, is a running minimum's N * (L + B) *
    W. Memory of the driver: the centers and M candidates, M about 4 B.
    """
    return _Driver(shards, space, Farthest(), base_KW, base_ids or []).pick(budget)


def sample_by_distance(
    shards: Shards, space: Space, base_KW: np.ndarray, budget: int, base_ids: list[str], *key: int | str
) -> Picked:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): draw rows with probability D² / sum D².

    D is the distance to the nearest center at that time. The draws are keyed by id (see
    :class:`raykd.algo.selection.priorities.ExponentialRace`). Arguments as for :func:`farthest_first`. Cost: a pass
    over all rows, and then as there; about (L + B) * B * W.
    """
    return _Driver(shards, space, ExponentialRace(key), base_KW, base_ids).pick(budget)


def coverage_radius(shards: Shards, labeled: Rows) -> float:
    """How far the worst covered pool row is from its nearest labeled row, Euclidean over probabilities, 0 to sqrt(2).

    What farthest-first makes small: the distance of its first pick. NaN when nothing is labeled or the pool is empty.
    """
    if not len(labeled) or not sum(shards.map(Shard.__len__)):
        return math.nan
    space = Euclidean("probs", peaked=True)
    return float(farthest_first(shards, space, space.vectors(labeled, slice(None)), 1).distances[0])


class _Driver:
    """One selection, on the driver's side: what is picked so far, and the rounds of questions and answers."""

    def __init__(
        self, shards: Shards, space: Space, priority: Priority, base_KW: np.ndarray, base_ids: list[str]
    ) -> None:
        self.shards, self.space, self.priority, self.base_ids = shards, space, priority, base_ids
        base_KW = np.asarray(base_KW, np.float32)
        different = {vector_W.tobytes(): row for row, vector_W in enumerate(base_KW)}
        assert different, "no center to be far from"
        self.base_KW = base_KW[list(different.values())]
        self.width = base_KW.shape[1]
        self.run = uuid.uuid4().hex
        self.ids: list[str] = []
        self.sq: list[float] = []
        self.keys: list[float] = []
        self.centers: list[np.ndarray] = []  # of the picks, up to the first at distance 0: from there on none matters
        self.times: list[float] = []
        self.num_known = -1  # picks that every shard knows of, unless it was restarted since
        self.history: list[SelectionRound] = []

    def pick(self, budget: int) -> Picked:
        num_rows = sum(self.shards.map(Shard.__len__))
        num_values = num_rows * self.width
        is_small = (
            num_values <= SMALL_VALUES
            and num_values * (len(self.base_KW) + budget) <= SMALL_PRODUCTS
            and 0 < budget <= max(SMALL_BUDGET, SMALL_SHARE * num_rows)
        )
        if is_small and isinstance(self.priority, Farthest) and isinstance(self.space, Euclidean):
            self._pick_gathered(budget)
        self._pick_by_rounds(budget)
        return Picked(self.ids, np.sqrt(np.array(self.sq, np.float64)), tuple(self.history))

    def _pick_gathered(self, budget: int) -> None:
        """Gather the pool and pick by a running minimum, for as long as float32 is of use."""
        answers = self.shards.map(Shard.all_vectors, self.space, self.base_ids, self.base_KW)
        if not (parts := [answer for answer in answers if len(answer[0])]):
            return
        ids_N, x_NW, bounds_N = (_joined(list(arrays)) for arrays in zip(*parts, strict=True))
        picks, sq_B, compared = farthest_first_in_float32(self.space, ids_N, x_NW, bounds_N, self.base_KW, budget)
        self.ids, self.sq, self.keys = ids_N[picks].tolist(), sq_B.tolist(), sq_B.tolist()
        num_centers = int((sq_B > 0).sum())  # distances only fall, so these are the first ones
        self.centers, self.times = list(x_NW[picks[:num_centers]]), [self.priority.time(0.0)] * num_centers
        self.history.append(SelectionRound(len(ids_N), compared, len(picks)))

    # ------------------------------------------------------------ rounds of questions

    def _pick_by_rounds(self, budget: int) -> None:
        wanted, floor = max(CANDIDATES_PER_PICK * budget, FEWEST_CANDIDATES), GONE
        while (left := budget - len(self.ids)) > 0:
            candidates, refreshed = self._ask(min(wanted, MOST_VALUES // self.width), floor)
            self._pick_among(candidates, budget)
            num_picked = left - (budget - len(self.ids))
            self.history.append(SelectionRound(len(candidates.ids), refreshed, num_picked))
            if len(self.history) == 1 and num_picked < int(budget * GUIDE_SHARE):
                continue  # the first outliers cover many candidates at once: nothing to go by yet
            at_this_rate = 1.5 * len(candidates.ids) / num_picked * (left - num_picked)
            wanted = int(min(max(at_this_rate, wanted / 4, FEWEST_CANDIDATES), wanted * 4))
            floor = self._floor(budget)

    def _floor(self, budget: int) -> float:
        """A guess at the last pick's key, from how keys went over the last quarter of the picks.

        At first they fall by a power law, toward the end rather as they did: so in between, by the share picked, and
        lower after every round. Too low a guess costs rows that are refreshed in vain, too high a one a round.
        """
        num_picks = len(self.keys)
        earlier = 3 * num_picks // 4
        if not earlier or not self.keys[-1]:
            return GONE
        ratio = np.float64(self.keys[-1] / self.keys[earlier - 1])
        straight = (budget - num_picks) / (num_picks - earlier)
        by_power = math.log(budget / num_picks) / math.log(num_picks / earlier)
        steps = by_power + num_picks / budget * (straight - by_power)  # of falling by that ratio
        with np.errstate(over="ignore"):
            return float(self.keys[-1] * ratio ** (steps * (1 + (len(self.history) - 1) / 4)))

    def _ask(self, wanted: int, floor: float) -> tuple[Candidates, int]:
        """All shards' candidates with the order of the first of all other rows; and how many rows were refreshed.

        About ``wanted`` rows; fewer where their keys are below ``floor``. Shards that lost what they knew are told.
        """
        count, num_known, refreshed = wanted // self.shards.num_shards + SPARE, self.num_known, 0
        while True:
            base_KW, start = (None, num_known) if num_known >= 0 else (self.base_KW, 0)
            decided = (base_KW, start, self.ids[start:], *self._centers_from(start))
            update = Update(self.run, self.space, self.priority, self.base_ids, *decided)
            answers: list[Proposal] = self.shards.map(Shard.propose, update, count, floor)
            refreshed += sum(answer.refreshed for answer in answers)
            num_known = min(answer.num_known for answer in answers)
            assert num_known <= len(self.ids), "a shard knows picks of another selection"
            if num_known == len(self.ids):
                break
        self.num_known = num_known
        found = [each.candidates for each in answers if each.candidates is not None and len(each.candidates.ids)]
        vectors_MW = _joined([each.vectors_NW for each in found])
        ids_M, states_MS = (np.concatenate(parts) for parts in zip(*((e.ids, e.state_NS) for e in found), strict=True))
        rest = min((each.rest for each in found if each.rest is not None), default=None)
        return Candidates(ids_M, vectors_MW, states_MS, rest), refreshed

    def _centers_from(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Picks from this number on that are centers, and when they were picked."""
        centers_KW = np.array(self.centers[start:], np.float32).reshape(-1, self.width)
        return centers_KW, np.array(self.times[start:], np.float64)

    # ------------------------------------------------------------ picking

    def _pick_among(self, candidates: Candidates, budget: int) -> None:
        """Pick for as long as the first candidate goes before all rows that are no candidates.

        Lazy greedy by blocks: only a window of candidates, those with the largest bounds, is kept exact at a time. It
        is good until the bound of a candidate outside goes before all in it.
        """
        ids, x_MW, state_MS, rest = candidates
        keys_M, rank_M = self.priority.keys(state_MS), np.empty(len(ids), np.int64)
        rank_M[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        num_met_M = np.full(len(ids), len(self.centers))
        while len(self.ids) < budget and len(left := np.flatnonzero(keys_M > GONE)):
            first = left[lowest_positions(-keys_M[left], rank_M[left], min(WINDOW + 1, len(left)))]
            window, others = first[:WINDOW], first[WINDOW:]
            window = window[np.argsort(rank_M[window])]  # so the first of equals has the smaller id
            limit = min([rest or AFTER_ALL, *((-keys_M[row], ids[row]) for row in others)])
            stale = window[num_met_M[window] < len(self.centers)]
            for num_met in set(num_met_M[stale].tolist()):
                rows = stale[num_met_M[stale] == num_met]
                state_NS = state_MS[rows]
                self.priority.add_centers(self.space, x_MW[rows], state_NS, *self._centers_from(num_met))
                state_MS[rows], keys_M[rows] = state_NS, self.priority.keys(state_NS)
            state_NS, keys_N = state_MS[window], keys_M[window]
            some_picked = self._pick_in(ids[window], x_MW[window], state_NS, keys_N, limit, budget)
            state_MS[window], keys_M[window], num_met_M[window] = state_NS, keys_N, len(self.centers)
            if not some_picked and not len(stale):
                break

    def _pick_in(
        self,
        ids: np.ndarray,
        x_NW: np.ndarray,
        state_NS: np.ndarray,
        keys_N: np.ndarray,
        limit: Order,
        budget: int,
    ) -> bool:
        """Pick among rows that are up to date, and keep them so, until one is not before ``limit``. Was any picked?"""
        approx_NN = error_N = None
        before = len(self.ids)
        while len(self.ids) < budget:
            row = int(keys_N.argmax())
            if not keys_N[row] > GONE or not (-keys_N[row], ids[row]) < limit:
                break
            sq, key = float(state_NS[row, 0]), float(keys_N[row])
            self.ids.append(ids[row])
            self.keys.append(key)
            self.sq.append(sq)
            keys_N[row], state_NS[row, 0] = GONE, -np.inf
            if sq <= 0:
                continue
            self.centers.append(x_NW[row])
            self.times.append(time := self.priority.time(key))
            if approx_NN is None or error_N is None:
                approx_NN, error_N = self.space.approximate(x_NW, x_NW)
            near = np.flatnonzero(approx_NN[row] <= state_NS[:, 0] + error_N[row])
            if len(near):
                self.priority.lower(state_NS, near, self.space.exact(x_NW[near], x_NW[row : row + 1]), time)
                keys_N[near] = self.priority.keys(state_NS[near])
        return len(self.ids) > before


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array; the same one if there is no other, as candidates may be large."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
