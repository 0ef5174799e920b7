"""A shard: some of the pool's rows, and small answers about them. The same class in process and inside a Ray actor.

A strategy sees the pool only through :class:`Shards`: one question, one small answer from each shard. A shard may be
lost and rebuilt from storage at any moment, and a question may be asked twice or out of order. So every method either
keeps nothing, or (:class:`News`) says how much it knows and is told the rest again.

Memory: the rows with their ids, and 16 bytes a row to find an id (its hash, its place in their order); while a
selection runs, 16 bytes a row more (bound, picks it knows of, rank of its id) and the rows of an answer. The outline of
probabilities, 12 bytes a row, is there only between the look at them and the first bounds.

N rows, C classes, D feature width, K centers, S numbers of a rule's state, W the width of a space's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from raykd.algo import keyed
from raykd.algo.selection.distances import GATHER_VALUES, Euclidean, Space, first_bounds, within
from raykd.algo.selection.priorities import Rule
from raykd.algo.selection.rows import Outline, Report, Rows, blocks, faults, outline, suspects

Score = Callable[..., np.ndarray]  # of a shard and further arguments, see scores.py

FEWEST = 256  # rows refreshed at a time, at least
READY = 0.9  # share of the wanted rows, all exact, that is enough: the last ones take many looks
FRONT = 4  # times as many rows as are wanted are kept at hand


def inspect(rows: Rows, needs: Sequence[str], hashes_N: np.ndarray, any_numbers: bool = False) -> Report:
    """Check the vectors that a strategy needs: probabilities are probabilities, features are finite.

    ``any_numbers``: probabilities need only be finite.
    """
    return _look(rows, needs, hashes_N, any_numbers)[0]


def _look(rows: Rows, needs: Sequence[str], hashes_N: np.ndarray, any_numbers: bool) -> tuple[Report, Outline | None]:
    widths: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    seen = None
    for name in needs:
        vectors_NW: np.ndarray | None = getattr(rows, name)
        if vectors_NW is None:
            continue
        widths[name] = vectors_NW.shape[1]
        if name == "probs" and not any_numbers and len(rows):
            seen, suspect_N = outline(vectors_NW)
        else:
            suspect_N = suspects(vectors_NW)
        found = faults(name, vectors_NW, np.flatnonzero(suspect_N), any_numbers)
        bad += [(rows.ids[row], what) for row, what in found.items()]
    first = [f"{name!r}: {what}" for name, what in sorted(bad)[:3]]
    return Report(len(rows), widths, len(bad), first, hashes_N), seen


class News(NamedTuple):
    """What a selection has decided: the centers it began with, and picks number ``start``, ``start + 1``, ...

    Enough for a shard that knows what came before. Centers that it began with travel only with the first question, and
    again to shards that lost them.
    """

    run: str  # names the selection; a shard that meets another one starts anew
    space: Space
    rule: Rule
    base_ids: list[str]  # pool rows among the centers it began with
    base_KW: np.ndarray | None
    start: int
    ids: list[str]
    vectors_KW: np.ndarray  # of those before the first at distance 0: from there on no pick changes anything
    times_K: np.ndarray


class Top(NamedTuple):
    """A shard's first rows, exact, and the order of the first of all others: minus its bound, and its id.

    Smaller orders go first. None: there are no others.
    """

    ids: np.ndarray
    vectors_NW: np.ndarray
    state_NS: np.ndarray
    rest: tuple[float, str] | None


class Answer(NamedTuple):
    """What a shard knows, picks counted (-1: not even what the selection began with), and its top if it knows all."""

    known: int
    top: Top | None = None
    refreshed: int = 0  # rows brought up to date for this answer


class Shard:
    """Some unlabeled rows. Their order does not matter; ties go to the smaller id."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.hashes_N = keyed.hash_ids(rows.ids)
        self._by_id = np.argsort(rows.ids, kind="stable")
        self._rank_N = np.empty(len(rows), np.int32)
        self._rank_N[self._by_id] = np.arange(len(rows), dtype=np.int32)
        self._aside = np.empty(0, np.int64)
        self._outline: Outline | None = None
        self._selection: _Selection | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def probs(self) -> np.ndarray:
        """The rows' probabilities, float32 or float16 [N, C]."""
        assert self.rows.probs is not None
        return self.rows.probs

    # ------------------------------------------------------------ questions that leave nothing behind

    def inspect(self, needs: Sequence[str], any_numbers: bool = False) -> Report:
        report, self._outline = _look(self.rows, needs, self.hashes_N, any_numbers)
        return report

    def named(self, hashes: np.ndarray) -> list[str]:
        """The ids here whose hash is among ``hashes``."""
        return self.rows.ids[np.isin(self.hashes_N, hashes)].tolist()

    def lowest(self, score: Score, count: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the lowest score (see ``scores``): scores and ids, rising, ties by id."""
        return self._lowest(score(self, *key), self._here(), count)

    def predicted(self) -> np.ndarray:
        """How many rows have each class as their most probable one, int64 [C]; [0] when the shard has no rows."""
        return np.bincount(self._top()[self._here()], minlength=self.probs().shape[1])

    def lowest_in_classes(
        self, counts: dict[int, int], score: Score, *key: int | str
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """As :meth:`lowest`, for each class among the rows predicted as it; classes without rows are left out."""
        here, scores_N = self._here(), score(self, *key)
        here = here[np.argsort(self._top()[here], kind="stable")]
        starts = np.flatnonzero(np.diff(self._top()[here], prepend=-1))
        members = {int(self._top()[rows[0]]): rows for rows in np.split(here, starts[1:]) if len(rows)}
        return {
            number: self._lowest(scores_N, members[number], count)
            for number, count in counts.items()
            if number in members
        }

    def vectors(self, space: Space, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors of those of ``ids`` that are here."""
        at = self._positions(ids)
        return dict(zip(self.rows.ids[at], space.vectors(self.rows, at), strict=True)) if len(at) else {}

    def crowded(self, space: Space, y_KW: np.ndarray, sq: float, limit: int) -> list[str]:
        """The ids of rows that have ``limit`` or more of these vectors within that squared distance."""
        found: list[str] = []
        for part in blocks(len(self.rows), space.vectors(self.rows, slice(0, 1)).shape[1], GATHER_VALUES):
            crowd_N = within(space, space.vectors(self.rows, part), y_KW, sq).sum(axis=1)
            found += self.rows.ids[part][crowd_N >= limit].tolist()
        return found

    def without(self, ids: Sequence[str], method: str, *args: Any) -> Any:
        """Another question's answer as if these rows were not there."""
        self._aside = self._positions(ids)
        try:
            return getattr(self, method)(*args)
        finally:
            self._aside = np.empty(0, np.int64)

    # ------------------------------------------------------------ the question of a selection

    def best(self, news: News, count: int, floor: float = -np.inf) -> Answer:
        """The first rows by the selection's rule, exactly, and a bound on all others.

        At most ``count``, and after the first none with a key below ``floor``.

        Only rows whose bound is among the largest are refreshed: bounds start cheap (see ``spaces.first_bounds``) and
        only fall. Cost: rows refreshed * (K + picks) * W, and a sort of N numbers now and then.
        """
        here = self._selection
        if here is None or here.run != news.run:
            if news.base_KW is None:
                return Answer(-1)
            here = self._selection = _Selection(self, news)
        if news.start > here.num_gone:
            return Answer(here.num_gone)
        here.learn(news)
        return here.answer(count, floor)

    # ------------------------------------------------------------ inside

    def _positions(self, ids: Sequence[str]) -> np.ndarray:
        """Where those of ``ids`` stand that are here."""
        names = np.array(list(ids), object)
        if not len(self.rows):
            return np.empty(0, np.int64)
        places = np.searchsorted(self.rows.ids, names, sorter=self._by_id)
        rows = self._by_id[np.minimum(places, len(self.rows) - 1)]
        return rows[self.rows.ids[rows] == names]

    def _lowest(self, scores_N: np.ndarray, where: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        first = where[lowest(scores_N[where], self._rank_N[where], count)]
        return scores_N[first], self.rows.ids[first]

    def _here(self) -> np.ndarray:
        """The rows that are there (see :meth:`without`), int64 [N]."""
        here = np.ones(len(self.rows), bool)
        here[self._aside] = False
        return np.flatnonzero(here)

    def _top(self) -> np.ndarray:
        if self._outline is None:
            self._outline = outline(self.probs())[0]
        return self._outline.top_N


class _Selection:
    """What a shard remembers of the selection that runs: a bound and a number for each row.

    ``seen``: how many picks the bound knows of; then it is the row's exact key as of then. Of rows whose bound is not
    exact even as to the centers in the beginning, it is the complement of that (-1: of none).
    """

    def __init__(self, shard: Shard, news: News) -> None:
        assert news.base_KW is not None
        self.shard, self.run, self.space, self.rule = shard, news.run, news.space, news.rule
        self.base_KW = np.ascontiguousarray(news.base_KW)
        self.picks_KW = np.empty((0, self.base_KW.shape[1]), np.float32)
        self.times_K = np.empty(0)
        outlined, shard._outline = shard._outline, None
        if not (isinstance(self.space, Euclidean) and self.space.peaked):
            outlined = None
        elif outlined is None and len(shard.rows):
            outlined = outline(shard.probs())[0]
        sq_N = first_bounds(self.space, shard.rows, outlined, self.base_KW)
        self.bounds_N = self.rule.bounds(shard.hashes_N, sq_N)
        self.seen_N = np.full(len(shard), -1, np.int32)
        self.bounds_N[shard._positions(news.base_ids)] = -np.inf
        self.bounds_N[shard._aside] = -np.inf
        self.front, self.behind = np.empty(0, np.int64), np.inf  # rows outside the front have bounds below this
        self.num_gone = 0
        self.num_left = int((self.bounds_N > -np.inf).sum())

    @property
    def num_picks(self) -> int:
        return len(self.times_K)

    def learn(self, news: News) -> None:
        new = self.num_gone - news.start
        if new < len(news.ids):
            at = self.shard._positions(news.ids[new:])
            self.bounds_N[at] = -np.inf
            self.num_left -= len(at)
            self.picks_KW = np.concatenate([self.picks_KW, news.vectors_KW[new:]])
            self.times_K = np.concatenate([self.times_K, news.times_K[new:]])
            self.num_gone += len(news.ids) - new

    def answer(self, count: int, floor: float) -> Answer:
        count = min(count, self.num_left)
        refreshed, stretch = 0, 1
        while True:
            first = self._first(count + 1)
            above = int((self.bounds_N[first] >= floor).sum())
            count = min(count, max(1, above))
            stale = self._stale(first[:count])
            ready = int((first[:count] == stale[0]).argmax()) if len(stale) else count
            if ready >= max(min(count, 1), READY * count):
                break
            if above > count or not above:
                # With some exact, others may no longer be among the first: so half of them at a time. Where that
                # changes little, bounds say little: then more rows are gone through at a time.
                stretch = 2 * stretch if refreshed and len(stale) > count / 2 else 1
                if stretch > 1:
                    more = self._first(stretch * count)
                    stale = self._stale(more if not above else more[self.bounds_N[more] >= floor])
                stale = stale[: max(FEWEST, len(stale) // 2)]
            self._refresh(stale)
            refreshed += len(stale)
        sent, rest = first[:ready], first[ready : ready + 1]
        ids_N, x_NW = self.shard.rows.ids, self.space.vectors(self.shard.rows, sent)
        limit = (-float(self.bounds_N[rest[0]]), ids_N[rest[0]]) if len(rest) else None
        return Answer(self.num_gone, Top(ids_N[sent], x_NW, self._states(sent, x_NW, self.num_picks), limit), refreshed)

    def _first(self, count: int) -> np.ndarray:
        """The rows with the largest bounds, falling, ties by id; rows that are gone are not among them.

        Bounds only fall, so for a while it is enough to look among those that were large: the front.
        """
        count = min(count, self.num_left)
        while True:
            if len(self.front) >= count:
                first = self.front[lowest(-self.bounds_N[self.front], self.shard._rank_N[self.front], count)]
                if not count or self.bounds_N[first[-1]] >= self.behind:
                    return first
            place = max(0, len(self.bounds_N) - FRONT * count)
            self.behind = np.partition(self.bounds_N, place)[place]
            self.front = np.flatnonzero(self.bounds_N >= self.behind)

    def _stale(self, where: np.ndarray) -> np.ndarray:
        return where[(self.seen_N[where] != self.num_picks) & (self.bounds_N[where] > self.rule.least)]

    def _refresh(self, where: np.ndarray) -> None:
        """Bring rows up to date, or at least lower their bounds: by the picks first, as they are few and near."""
        seen = self.seen_N[where]
        for known in set(seen.tolist()):
            rows = np.sort(where[seen == known])
            for part in blocks(len(rows), self.base_KW.shape[1], GATHER_VALUES):
                x_NW = self.space.vectors(self.shard.rows, rows[part])
                self.bounds_N[rows[part]] = self.rule.keys(self._states(rows[part], x_NW, known))
            only_lower = self.rule.restarts and known < 0 and ~known < self.num_picks
            self.seen_N[rows] = ~self.num_picks if only_lower else self.num_picks

    def _states(self, rows: np.ndarray, x_NW: np.ndarray, known: int) -> np.ndarray:
        """The states of rows whose bounds know of so many picks (see ``seen``)."""
        hashes_N = self.shard.hashes_N[rows]
        if not self.rule.restarts:
            state_NS, met = self.rule.fresh(hashes_N), 0
            self.rule.follow(self.space, x_NW, state_NS, self.base_KW, np.zeros(len(self.base_KW)))
        else:
            state_NS, met = self.rule.fresh(hashes_N, self.bounds_N[rows]), known if known >= 0 else ~known
            if known < 0 and met == self.num_picks:
                self.rule.follow(self.space, x_NW, state_NS, self.base_KW, np.zeros(len(self.base_KW)))
        if met < self.num_picks:
            self.rule.follow(self.space, x_NW, state_NS, self.picks_KW[met:], self.times_K[met:])
        return state_NS


def lowest(scores_N: np.ndarray, rank_N: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` lowest scores, rising; among equals the smaller rank comes first."""
    where = np.arange(len(scores_N))
    if count < len(scores_N):
        limit = np.partition(scores_N, count - 1)[count - 1] if count else -np.inf
        below, equal = np.flatnonzero(scores_N < limit), np.flatnonzero(scores_N == limit)
        some = count - len(below)
        if some < len(equal):
            equal = equal[np.argpartition(rank_N[equal], some)[:some]]
        where = np.concatenate([below, equal])
    return where[np.lexsort((rank_N[where], scores_N[where]))]


# ---------------------------------------------------------------- all shards


class Shards(Protocol):
    """All a strategy sees of the pool."""

    @property
    def num_shards(self) -> int: ...

    def map(self, method: str, *args: Any) -> list[Any]:
        """Ask every shard the same question (a public method of :class:`Shard`); one answer of each, in order.

        When it returns, no call of it runs or will be retried; while it waits, a shard may be lost and rebuilt.
        """
        ...


class LocalShards:
    """Shards in this process.

    Example:
        >>> from raykd.algo import scores
        >>> pool = Rows(["a", "b", "c"], probs=[[1, 0], [0, 1], [0.5, 0.5]])
        >>> LocalShards.split(pool, 2).map("lowest", scores.margin, 1)[0][1].tolist()
        ['a']
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)

    @classmethod
    def split(cls, rows: Rows, num_shards: int) -> LocalShards:
        """Neighbouring rows go to the same shard; with more shards than rows some are empty."""
        return cls([Shard(rows.take(part)) for part in np.array_split(np.arange(len(rows)), num_shards)])

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def map(self, method: str, *args: Any) -> list[Any]:
        return [getattr(shard, method)(*args) for shard in self.shards]
