"""A shard: some of the pool's rows, and small answers about them. The same class in process and inside a Ray actor.

A strategy sees the pool only through :class:`Shards`: one question, which is a function of the shard, and one small
answer from each. A shard may be lost and rebuilt from storage at any moment, and a question may be asked twice or out
of order. So a question either keeps nothing that matters, or (:class:`Update`) says how much it builds on and is told
the rest again.

Memory: the rows with their ids, and 16 bytes a row to find an id (its hash, its place in their order); while a
selection runs, 17 bytes a row more (bound, which centers it knows of, rank of its id) and the rows of an answer; or
what a selection puts aside (:meth:`Shard.remember`, at most 41 bytes a row). The outline of probabilities, 12 bytes a
row, is there only between the check and the first bounds.

N rows, C classes, D feature width, K centers, S numbers of a priority's state, W the width of a space's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import numpy as np

from raykd.algo import keyed
from raykd.algo.selection.distances import FEW_CENTERS, GATHER_VALUES, Euclidean, Space, first_bounds, within
from raykd.algo.selection.priorities import Priority
from raykd.algo.selection.rows import Inspection, Outline, Rows, blocks, inspect_rows, outline

Score = Callable[..., np.ndarray]  # of a shard and further arguments, see scores.py
Order = tuple[float, str]  # minus a key, and the id: the smaller goes first
Params = ParamSpec("Params")
Reply = TypeVar("Reply")

FEWEST_REFRESHED = 256  # rows at a time; fewer take as long
ENOUGH_READY = 0.9  # of the wanted rows: the last ones take more passes than all before
SHORTLIST = 4  # times as many rows as are wanted are kept at hand


class Update(NamedTuple):
    """What a selection has decided: the centers it began with, and picks number ``start``, ``start + 1``, ...

    Enough for a shard that knows what came before. Centers that it began with travel only with the first question, and
    again to shards that lost them.
    """

    run: str  # names the selection; a shard that meets another one starts anew
    space: Space
    priority: Priority
    base_ids: list[str]  # pool rows among the centers it began with
    base_KW: np.ndarray | None
    start: int
    ids: list[str]
    vectors_KW: np.ndarray  # of those before the first at distance 0: from there on no pick changes anything
    times_K: np.ndarray


class Candidates(NamedTuple):
    """A shard's first rows, exact, and the order of the first of all others by its bound; None: there are no others."""

    ids: np.ndarray
    vectors_NW: np.ndarray
    state_NS: np.ndarray
    rest: Order | None


class Proposal(NamedTuple):
    """How many picks a shard knows of (-1: not even the centers in the beginning); if of all, its candidates."""

    num_known: int
    candidates: Candidates | None = None
    refreshed: int = 0  # rows brought up to date for this answer


class Shard:
    """Some unlabeled rows. Their order does not matter; ties go to the smaller id.

    Attributes:
        rows: The rows.
        hashes_N: Of their ids, uint64 [N].
        rank_N: Place of each id among the shard's sorted ids, int32 [N].
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.hashes_N = keyed.hash_ids(rows.ids)
        self._by_hash = np.argsort(self.hashes_N, kind="stable")
        self.rank_N = np.empty(len(rows), np.int32)
        self.rank_N[np.argsort(rows.ids, kind="stable")] = np.arange(len(rows), dtype=np.int32)
        self._excluded = np.empty(0, np.int64)
        self._outline: Outline | None = None
        self._selection: ShardSelection | None = None
        self._remembered: tuple[object, Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def probs(self) -> np.ndarray:
        """The rows' probabilities, float32 or float16 [N, C]."""
        assert self.rows.probs is not None
        return self.rows.probs

    # ------------------------------------------------------------ questions whose answers hang on nothing before them
    # (an outline of the probabilities may be kept, to save another pass)

    def inspect(self, needs: Sequence[str]) -> Inspection:
        """Check the vectors that a strategy needs, see :func:`raykd.algo.selection.rows.inspect_rows`."""
        report, self._outline = inspect_rows(self.rows, needs, self.hashes_N[self._by_hash])
        return report

    def ids_of_hashes(self, hashes: np.ndarray) -> list[str]:
        """The ids here whose hash is among ``hashes``."""
        return self.rows.ids[np.isin(self.hashes_N, hashes)].tolist()

    def lowest(self, score: Score, count: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the lowest score (see ``scores``): scores and ids, rising, ties by id."""
        return self._lowest(score(self, *key), self.included(), count)

    def predicted(self) -> np.ndarray:
        """How many rows have each class as their most probable one, int64 [C]; [0] when the shard has no rows."""
        return np.bincount(self.outlined().top_N[self.included()], minlength=self.probs().shape[1])

    def classes_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The most probable class of those of ``ids`` that are here; ties to the smaller class."""
        at = self.positions(ids)
        return dict(zip(self.rows.ids[at], self.probs()[at].argmax(axis=1).tolist(), strict=True)) if len(at) else {}

    def lowest_in_classes(
        self, counts: dict[int, int], score: Score, *key: int | str
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """As :meth:`lowest`, for each class among the rows predicted as it; classes without rows are left out."""
        rows, scores_N, top_N = self.included(), score(self, *key), self.outlined().top_N
        rows = rows[np.argsort(top_N[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(top_N[rows], prepend=-1))
        members = {int(top_N[some[0]]): some for some in np.split(rows, starts[1:]) if len(some)}
        return {
            number: self._lowest(scores_N, members[number], count)
            for number, count in counts.items()
            if number in members
        }

    def vectors_by_id(self, space: Space, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors of those of ``ids`` that are here."""
        at = self.positions(ids)
        return dict(zip(self.rows.ids[at], space.vectors(self.rows, at), strict=True)) if len(at) else {}

    def all_vectors(
        self, space: Space, without: Sequence[str], base_KW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All rows but those ``without``, for small pools only: ids, vectors, bounds on squared distances to centers.

        The bounds are infinite where they would not come for next to nothing.
        """
        included = self.included()
        if len(without):
            included = np.setdiff1d(included, self.positions(without))
        where = slice(None) if len(included) == len(self) else included
        bounds_N = np.full(len(self), np.inf)
        if isinstance(space, Euclidean) and space.peaked and len(base_KW) > FEW_CENTERS and len(self):
            bounds_N = self._first_bounds(space, base_KW)
        return self.rows.ids[where], space.vectors(self.rows, where), bounds_N[where]

    def crowded(self, space: Space, y_KW: np.ndarray, sq: float, limit: int) -> list[str]:
        """The ids of rows that have ``limit`` or more of these vectors within that squared distance."""
        found: list[str] = []
        for part in blocks(len(self.rows), space.vectors(self.rows, slice(0, 1)).shape[1], GATHER_VALUES):
            crowd_N = within(space, space.vectors(self.rows, part), y_KW, sq).sum(axis=1)
            found += self.rows.ids[part][crowd_N >= limit].tolist()
        return found

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Where those of ``ids`` stand that are here."""
        names, hashes = np.array(list(ids), object), keyed.hash_ids(ids)
        first, end = (np.searchsorted(self.hashes_N, hashes, side, sorter=self._by_hash) for side in ("left", "right"))
        rows = np.full(len(names), -1)
        while len(some := np.flatnonzero((rows < 0) & (first < end))):  # once, but where hashes collide
            found = self._by_hash[first[some]]
            is_it = self.rows.ids[found] == names[some]
            rows[some[is_it]] = found[is_it]
            first[some] += 1
        return rows[rows >= 0]

    # ------------------------------------------------------------ for questions of other modules

    def num_included(self) -> int:
        """How many rows count (see :meth:`excluding`)."""
        return len(self) - len(self._excluded)

    def included(self) -> np.ndarray:
        """The rows that count (see :meth:`excluding`), int64 [N]."""
        included = np.ones(len(self.rows), bool)
        included[self._excluded] = False
        return np.flatnonzero(included)

    def outlined(self) -> Outline:
        """The outline of the probabilities; kept, as others will want it."""
        if self._outline is None:
            self._outline = outline(self.probs())
        return self._outline

    def remembered(self, key: object) -> Any:
        """What was last put aside by :meth:`remember`, if it was under this key; else None: then make it anew."""
        return self._remembered[1] if self._remembered is not None and self._remembered[0] == key else None

    def remember(self, key: object, value: Reply) -> Reply:
        """Put one thing aside until another comes, or the shard is lost. No answer may hang on whether it is there."""
        self._remembered = (key, value)
        return value

    # ------------------------------------------------------------ questions of a selection

    def propose(self, update: Update, count: int, floor: float = -np.inf) -> Proposal:
        """The first rows by the selection's priority, exactly, and a bound on all others.

        Kept until another selection begins: what :class:`ShardSelection` remembers. Asked again, the answer is the
        same; a question that is older than what is known is answered by what is known.

        Args:
            update: What was decided since.
            count: At most so many rows.
            floor: After the first none with a key below this.
        """
        if self._selection is None or self._selection.run != update.run:
            if update.base_KW is None:
                return Proposal(-1)
            gone = np.concatenate([self.positions(update.base_ids), self._excluded])
            self._selection = ShardSelection(self, update, self._first_bounds(update.space, update.base_KW), gone)
        selection = self._selection
        if update.start > selection.num_known:
            return Proposal(selection.num_known)
        selection.add_picks(update, self.positions(update.ids[selection.num_known - update.start :]))
        return selection.propose(count, floor)

    def excluding(
        self, ids: Sequence[str], question: Callable[Concatenate[Shard, Params], Reply], *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Reply:  # fmt: skip
        """Another question's answer as if these rows were not there; of a selection: from its first question on."""
        self._excluded = self.positions(ids)
        try:
            return question(self, *args, **kwargs)
        finally:
            self._excluded = np.empty(0, np.int64)

    # ------------------------------------------------------------ inside

    def _lowest(self, scores_N: np.ndarray, where: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        first = where[lowest_positions(scores_N[where], self.rank_N[where], count)]
        return scores_N[first], self.rows.ids[first]

    def _included(self) -> np.ndarray:
        """The rows that count (see :meth:`excluding`), int64 [N]."""
        included = np.ones(len(self.rows), bool)
        included[self._excluded] = False
        return np.flatnonzero(included)

    def _top_classes(self) -> np.ndarray:
        if self._outline is None:
            self._outline = outline(self.probs())
        return self._outline.top_N

    def _first_bounds(self, space: Space, base_KW: np.ndarray) -> np.ndarray:
        """Of the squared distance to the nearest center; the outline, if there is one, is used up."""
        outlined, self._outline = self._outline, None
        if not (isinstance(space, Euclidean) and space.peaked):
            outlined = None
        elif outlined is None and len(self):
            outlined = outline(self.probs())
        return first_bounds(space, self.rows, outlined, base_KW)


class ShardSelection:
    """What a shard remembers of the selection that runs: for each row a bound on its key, and what that knows of.

    ``bounds_N`` never rise. ``num_met_N`` counts the picks that a bound knows of. ``met_base_N`` says whether it is the
    row's exact key as of then; otherwise it is not exact as to the centers that the selection began with. Rows that are
    picked, or never were to be, have the bound minus infinity.

    Args:
        shard: Whose rows; read, never changed.
        update: The first one, with the centers that the selection began with.
        sq_N: Upper bounds on the squared distances to the nearest of these.
        gone: Positions of rows that are not to be picked.
    """

    def __init__(self, shard: Shard, update: Update, sq_N: np.ndarray, gone: np.ndarray) -> None:
        assert update.base_KW is not None
        self.rows, self.hashes_N, self.rank_N = shard.rows, shard.hashes_N, shard.rank_N
        self.run, self.space, self.priority = update.run, update.space, update.priority
        self.base_KW = np.ascontiguousarray(update.base_KW)
        self.picks_KW = np.empty((0, self.base_KW.shape[1]), np.float32)
        self.times_K = np.empty(0)
        self.num_known = 0  # picks, also those that change nothing and so are no centers
        self.bounds_N = self.priority.key_bounds(self.hashes_N, sq_N)
        self.bounds_N[gone] = -np.inf
        self.met_base_N = np.zeros(len(shard), bool)
        self.num_met_N = np.zeros(len(shard), np.int32)
        self.num_left = int((self.bounds_N > -np.inf).sum())
        self.shortlist, self.shortlist_from = np.empty(0, np.int64), np.inf  # others have bounds below this

    @property
    def num_centers(self) -> int:
        """Picks that are centers."""
        return len(self.times_K)

    def add_picks(self, update: Update, gone: np.ndarray) -> None:
        """Hear of picks; those known already are skipped. ``gone``: where the others stand, if they are here."""
        new = self.num_known - update.start
        if new < len(update.ids):
            self.bounds_N[gone] = -np.inf
            self.num_left -= len(gone)
            self.picks_KW = np.concatenate([self.picks_KW, update.vectors_KW[new:]])
            self.times_K = np.concatenate([self.times_K, update.times_K[new:]])
            self.num_known += len(update.ids) - new

    def propose(self, count: int, floor: float) -> Proposal:
        """Refresh rows until the first ones are exact.

        Invariant: ``first`` are the rows with the largest bounds, falling. Of these ``first[:ready]`` are exact, and
        the bound of the row after them bounds all others, so the exact ones go before any other row of this shard.
        Each pass refreshes at least one row that is stale, and none twice (once by the picks and once by the base, see
        :meth:`_refresh`), so there is an end.

        Args:
            count: How many are wanted.
            floor: Rows with a key below are not wanted, but for the first row.

        Cost: rows refreshed * (K + picks) * W, and a sort of some multiple of ``count`` numbers a pass.
        """
        count = min(count, self.num_left)
        refreshed, reach = 0, 1
        while True:
            first = self._first(count + 1)
            num_above = int((self.bounds_N[first] >= floor).sum())
            floor_decides = 0 < num_above <= count
            count = min(count, max(1, num_above))
            stale = self._stale(first[:count])
            ready = int((first[:count] == stale[0]).argmax()) if len(stale) else count
            if ready >= max(min(count, 1), ENOUGH_READY * count):
                break
            if not floor_decides:  # else all of them are needed
                reach = 2 * reach if refreshed and len(stale) > count / 2 else 1
                stale = self._some_stale(stale, reach * count if reach > 1 else 0, floor if num_above else -np.inf)
            self._refresh(stale)
            refreshed += len(stale)
        sent, rest = first[:ready], first[ready : ready + 1]
        x_NW = self.space.vectors(self.rows, sent)
        state_NS = self._states(sent, x_NW, True, self.num_centers)
        limit = (-float(self.bounds_N[rest[0]]), self.rows.ids[rest[0]]) if len(rest) else None
        return Proposal(self.num_known, Candidates(self.rows.ids[sent], x_NW, state_NS, limit), refreshed)

    def _some_stale(self, stale: np.ndarray, reach: int, floor: float) -> np.ndarray:
        """The stale rows to refresh in this pass, when only a number of rows is wanted.

        Half of them at a time: with some exact, others may no longer be among the first. But where a pass changes
        little, bounds say little, and rows will have to be gone through anyhow: then from a ``reach`` that doubles, as
        large blocks are faster.
        """
        if reach:
            more = self._first(reach)
            stale = self._stale(more[self.bounds_N[more] >= floor])
        return stale[: max(FEWEST_REFRESHED, len(stale) // 2)]

    def _first(self, count: int) -> np.ndarray:
        """The rows with the largest bounds, falling, ties by id; rows that are gone are not among them.

        Bounds only fall, so for a while it is enough to search those that were large: the shortlist.
        """
        count = min(count, self.num_left)
        while True:
            if len(self.shortlist) >= count:
                listed = self.shortlist
                first = listed[lowest_positions(-self.bounds_N[listed], self.rank_N[listed], count)]
                if not count or self.bounds_N[first[-1]] >= self.shortlist_from:
                    return first
            place = max(0, len(self.bounds_N) - SHORTLIST * count)
            self.shortlist_from = np.partition(self.bounds_N, place)[place]
            self.shortlist = np.flatnonzero(self.bounds_N >= self.shortlist_from)

    def _stale(self, where: np.ndarray) -> np.ndarray:
        """Those that are not exact, and might fall."""
        exact = self.met_base_N[where] & (self.num_met_N[where] == self.num_centers)
        return where[~exact & (self.bounds_N[where] > self.priority.lowest_key)]

    def _refresh(self, where: np.ndarray) -> None:
        """Bring rows up to date, or at least lower their bounds: by the picks first, as they are few and near."""
        met_base_N, num_met_N = self.met_base_N[where], self.num_met_N[where]
        for met_base, num_met in set(zip(met_base_N.tolist(), num_met_N.tolist(), strict=True)):
            rows = np.sort(where[(met_base_N == met_base) & (num_met_N == num_met)])
            for part in blocks(len(rows), self.base_KW.shape[1], GATHER_VALUES):
                x_NW = self.space.vectors(self.rows, rows[part])
                self.bounds_N[rows[part]] = self.priority.keys(self._states(rows[part], x_NW, met_base, num_met))
            self.met_base_N[rows] = not (self.priority.resumable and not met_base and num_met < self.num_centers)
            self.num_met_N[rows] = self.num_centers

    def _states(self, rows: np.ndarray, x_NW: np.ndarray, met_base: bool, num_met: int) -> np.ndarray:
        """The states of rows whose bounds know of this: exact, or, by the picks alone, lower than they were."""
        hashes_N = self.hashes_N[rows]
        if self.priority.resumable:
            state_NS = self.priority.initial_state(hashes_N, self.bounds_N[rows])
            add_base = not met_base and num_met == self.num_centers
        else:
            state_NS, add_base, num_met = self.priority.initial_state(hashes_N), True, 0
        if add_base:
            self.priority.add_centers(self.space, x_NW, state_NS, self.base_KW, np.zeros(len(self.base_KW)))
        if num_met < self.num_centers:
            picks_KW, times_K = self.picks_KW[num_met:], self.times_K[num_met:]
            self.priority.add_centers(self.space, x_NW, state_NS, picks_KW, times_K)
        return state_NS


def lowest_positions(scores_N: np.ndarray, rank_N: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` lowest scores, rising; among equals the smaller rank comes first."""
    where = np.arange(len(scores_N))
    if count < len(scores_N):
        limit = np.partition(scores_N, count - 1)[count - 1] if count else -np.inf
        below, equal = np.flatnonzero(scores_N < limit), np.flatnonzero(scores_N == limit)
        some = count - len(below)
        if some < len(equal):
            equal = equal[np.argpartition(rank_N[equal], some)[:some]]
        where = np.concatenate([below, equal])
    found = scores_N[where]
    order = np.argsort(found)
    rising = found[order]
    if (rising[1:] == rising[:-1]).any():
        order = np.lexsort((rank_N[where], found))  # four times as long
    return where[order]


# ---------------------------------------------------------------- all shards


class Shards(Protocol):
    """All a strategy sees of the pool."""

    @property
    def num_shards(self) -> int: ...

    def map(
        self, question: Callable[Concatenate[Shard, Params], Reply], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> list[Reply]:
        """Ask every shard the same question, such as ``Shard.predicted``; one answer of each, in order.

        When it returns, no call of it runs or will be retried; while it waits, a shard may be lost and rebuilt.

        Args:
            question: A function of a shard and the arguments, from a module that the workers can import.
        """
        ...


class LocalShards:
    """Shards in this process.

    Example:
        >>> from raykd.algo.selection import scores
        >>> pool = Rows(["a", "b", "c"], probs=[[1, 0], [0, 1], [0.5, 0.5]])
        >>> LocalShards.split(pool, 2).map(Shard.lowest, scores.lead_of_first_class, 1)[0][1].tolist()
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

    def map(
        self, question: Callable[Concatenate[Shard, Params], Reply], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> list[Reply]:
        return [question(shard, *args, **kwargs) for shard in self.shards]
