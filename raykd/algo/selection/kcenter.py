"""Picks by the distance to the nearest center so far: farthest-first (k-center) and D² sampling (k-means++).

Exact, and yet most rows are never looked at. Each shard answers with its first rows, exact, and a bound on all others;
among all of these the driver picks, one after the other, lowering what is left by each pick, for as long as the best of
them is before every bound: no other row could have been next. Then the shards hear of the picks and are asked again. A
round always yields a pick, as the first of all rows is among the candidates.

K shards, M candidates, L centers in the beginning, B budget, S numbers of state, W the width of a space's vectors.
"""

from __future__ import annotations

import math
import uuid
from typing import NamedTuple

import numpy as np

from raykd.algo.selection.distances import Euclidean, Space
from raykd.algo.selection.priorities import Farthest, Race, Rule
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Answer, News, Shards, Top, lowest

CANDIDATES = 4  # asked for at first, for each pick that is wanted
MOST_VALUES = 2**26  # in all candidates' vectors: 256 MiB
FEWEST = 1000  # candidates are always asked for
SPARE = 16  # rows asked of each shard beyond its share
TOO_FEW = 32  # a first round that gives less than this part of the picks is no guide to the next
GONE = -np.inf  # the key of a row that is picked
LAST = (np.inf, "")  # the order (minus the key, then the id) of what comes after all rows
WINDOW = 512  # candidates among which distances are all known at a time


class Picks(NamedTuple):
    """What to label, in the order picked.

    ``distances`` (float64 [B]): to the nearest center at the time of the pick; NaN where that means nothing. What it
    took: ``rounds`` of questions, ``refreshed`` rows that were brought up to date (some more than once).
    """

    ids: list[str]
    distances: np.ndarray
    rounds: int = 0
    refreshed: int = 0


def farthest_first(
    shards: Shards, space: Space, base_KW: np.ndarray, budget: int, base_ids: list[str] | None = None
) -> Picks:
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
    return _Selection(shards, space, Farthest(), base_KW, base_ids or []).pick(budget)


def sample_by_distance(
    shards: Shards, space: Space, base_KW: np.ndarray, budget: int, base_ids: list[str], *key: int | str
) -> Picks:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): draw rows with probability D² / sum D².

    D is the distance to the nearest center at that time. The draws are keyed by id (see ``rules.Race``). Arguments as
    for :func:`farthest_first`. Cost: a look at all rows, and then as there; about (L + B) * B * W.
    """
    return _Selection(shards, space, Race(key), base_KW, base_ids).pick(budget)


def coverage_radius(shards: Shards, labeled: Rows) -> float:
    """How far the worst covered pool row is from its nearest labeled row, Euclidean over probabilities, 0 to sqrt(2).

    What farthest-first makes small: the distance of its first pick. NaN when nothing is labeled or the pool is empty.
    """
    if not len(labeled) or not sum(shards.map("__len__")):
        return math.nan
    space = Euclidean("probs", peaked=True)
    return float(farthest_first(shards, space, space.vectors(labeled, slice(None)), 1).distances[0])


class _Selection:
    """One selection: what is picked so far, and the rounds of questions and answers."""

    def __init__(self, shards: Shards, space: Space, rule: Rule, base_KW: np.ndarray, base_ids: list[str]) -> None:
        self.shards, self.space, self.rule, self.base_ids = shards, space, rule, base_ids
        base_KW = np.asarray(base_KW, np.float32)
        different = {vector_W.tobytes(): row for row, vector_W in enumerate(base_KW)}
        assert different, "no center to be far from"
        self.base_KW = base_KW[list(different.values())]
        self.run = uuid.uuid4().hex
        self.ids: list[str] = []
        self.sq: list[float] = []
        self.keys: list[float] = []
        self.centers: list[np.ndarray] = []  # of the picks, up to the first at distance 0: from there on none matters
        self.times: list[float] = []
        self.known = -1  # picks that every shard knows of, unless it was restarted since
        self.rounds = self.refreshed = 0

    def pick(self, budget: int) -> Picks:
        wanted, floor = max(CANDIDATES * budget, FEWEST), GONE
        while (left := budget - len(self.ids)) > 0:
            candidates, horizon = self._ask(min(wanted, MOST_VALUES // self.base_KW.shape[1]), floor)
            self._pick_among(candidates, horizon, budget)
            if self.rounds == 1 and len(self.ids) < budget // TOO_FEW:
                continue  # the first outliers cover many candidates at once: nothing to go by yet
            num_picked = left - (budget - len(self.ids))
            at_this_rate = 1.5 * len(candidates.ids) / num_picked * (left - num_picked)
            wanted = int(min(max(at_this_rate, wanted / 4, FEWEST), wanted * 4))
            floor = self._floor(budget)
        return Picks(self.ids, np.sqrt(np.array(self.sq, np.float64)), self.rounds, self.refreshed)

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
            return float(self.keys[-1] * ratio ** (steps * (1 + (self.rounds - 1) / 4)))

    def _ask(self, wanted: int, floor: float) -> tuple[Top, tuple[float, str]]:
        """All shards' first rows; and the order of the first of all others.

        About ``wanted`` rows; fewer where their keys are below ``floor``.
        """
        count, known = wanted // self.shards.num_shards + SPARE, self.known
        while True:
            base_KW, start = (None, known) if known >= 0 else (self.base_KW, 0)
            vectors_KW, times_K = self._since(start)
            news = News(
                self.run, self.space, self.rule, self.base_ids, base_KW, start, self.ids[start:], vectors_KW, times_K
            )
            answers: list[Answer] = self.shards.map("best", news, count, floor)
            self.refreshed += sum(answer.refreshed for answer in answers)
            known = min(answer.known for answer in answers)
            assert known <= len(self.ids), "a shard knows picks of another selection"
            if known == len(self.ids):
                break
        self.known, self.rounds = known, self.rounds + 1
        tops = [answer.top for answer in answers if answer.top is not None and len(answer.top.ids)]
        horizon = min((top.rest for top in tops if top.rest is not None), default=LAST)
        ids_M, states_MS = np.concatenate([top.ids for top in tops]), np.concatenate([top.state_NS for top in tops])
        return Top(ids_M, _joined([top.vectors_NW for top in tops]), states_MS, horizon), horizon

    def _since(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Centers from this number on, and when they came."""
        vectors_KW = np.array(self.centers[start:], np.float32).reshape(-1, self.base_KW.shape[1])
        return vectors_KW, np.array(self.times[start:], np.float64)

    def _pick_among(self, candidates: Top, horizon: tuple[float, str], budget: int) -> None:
        """Pick for as long as the first candidate goes before all rows that are no candidates.

        Only a window of candidates is kept up to date at a time, as there the same holds: it is good until another
        candidate's bound goes before it.
        """
        ids, x_MW, state_MS, _ = candidates
        keys_M, rank_M = self.rule.keys(state_MS), np.empty(len(ids), np.int64)
        rank_M[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        met_M = np.full(len(ids), len(self.centers))
        while len(self.ids) < budget and len(left := np.flatnonzero(keys_M > GONE)):
            front = left[lowest(-keys_M[left], rank_M[left], min(WINDOW + 1, len(left)))]
            window, others = front[:WINDOW], front[WINDOW:]
            window = window[np.argsort(rank_M[window])]  # so the first of equals has the smaller id
            limit = min([horizon, *((-keys_M[row], ids[row]) for row in others)])
            stale = window[met_M[window] < len(self.centers)]
            for met in set(met_M[stale].tolist()):
                rows = stale[met_M[stale] == met]
                state = state_MS[rows]
                self.rule.follow(self.space, x_MW[rows], state, *self._since(met))
                state_MS[rows], keys_M[rows] = state, self.rule.keys(state)
            state, keys = state_MS[window], keys_M[window]
            some_picked = self._pick_in(ids[window], x_MW[window], state, keys, limit, budget)
            state_MS[window], keys_M[window], met_M[window] = state, keys, len(self.centers)
            if not some_picked and not len(stale):
                break

    def _pick_in(
        self,
        ids: np.ndarray,
        x_NW: np.ndarray,
        state_NS: np.ndarray,
        keys_N: np.ndarray,
        limit: tuple[float, str],
        budget: int,
    ) -> bool:
        """Pick among rows that are up to date, and keep them so, until one is not before ``limit``. Was any picked?"""
        near_NN = slack_N = None
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
            self.times.append(time := self.rule.time(key))
            if near_NN is None or slack_N is None:
                near_NN, slack_N = self.space.near(x_NW, x_NW)
            met = np.flatnonzero(near_NN[row] <= state_NS[:, 0] + slack_N[row])
            if len(met):
                self.rule.meet(state_NS, met, self.space.exact(x_NW[met], x_NW[row : row + 1]), time)
                keys_N[met] = self.rule.keys(state_NS[met])
        return len(self.ids) > before


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array; the same one if there is no other, as candidates may be large."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
