"""A shard: some of the pool's rows, and small answers about them. The same class in process and inside a Ray actor.

A strategy sees the pool only through :class:`Shards`: one question, one small answer from each shard. A shard may be
lost and rebuilt from storage at any moment, and a question may be asked twice or out of order. So every method either
keeps nothing, or (:class:`Centers`) says how much it knows and is told the rest again.

N rows, C classes, D feature width, K centers, W the width of a space's vectors.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from raykd.algo import keyed
from raykd.algo.spaces import Euclidean, Gradients, blocks, unit

SUM_TOLERANCE = 1e-3  # how far from 1 the probabilities of a row may sum


@dataclass(eq=False)
class Rows:
    """Rows and their vectors; what a strategy does not need may be left out.

    Args:
        ids: N different strings, kept as an object array. They are compared as strings, by code point: "10" < "9".
        probs: float [N, C], class probabilities, kept as float32.
        features: float [N, D], kept as float32.
        labels: int [N], class indices; of labeled rows.
    """

    ids: np.ndarray
    probs: np.ndarray | None = None
    features: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.ids = np.array(list(self.ids), object)
        for name in ("probs", "features"):
            if (given := getattr(self, name)) is not None:
                vectors = np.ascontiguousarray(given, np.float32)
                assert vectors.ndim == 2, f"{name} of shape {vectors.shape}"
                assert len(vectors) == len(self.ids), f"{len(vectors)} {name} for {len(self.ids)} ids"
                setattr(self, name, vectors)
        if self.labels is not None:
            self.labels = np.asarray(self.labels)

    @classmethod
    def none(cls) -> Rows:
        return cls(np.array([], object))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, where: np.ndarray) -> Rows:
        """Some of the rows, by position or mask, in that order (a copy)."""
        parts = (None if part is None else part[where] for part in (self.probs, self.features, self.labels))
        return Rows(self.ids[where], *parts)


class Report(NamedTuple):
    """What a look at some rows found."""

    num_rows: int
    widths: dict[str, int]  # of the needed vectors that are there
    num_bad: int
    first_bad: list[str]  # id and what is wrong with it, of the first three
    hashes_N: np.ndarray


def inspect(rows: Rows, needs: Sequence[str], hashes_N: np.ndarray) -> Report:
    """Check the vectors that a strategy needs: probabilities are probabilities, features are finite."""
    widths: dict[str, int] = {}
    num_bad = 0
    first_bad: list[str] = []
    for name in needs:
        vectors_NW: np.ndarray | None = getattr(rows, name)
        if vectors_NW is None:
            continue
        widths[name] = vectors_NW.shape[1]
        for part in blocks(*vectors_NW.shape):
            block = vectors_NW[part]
            sums = block.sum(axis=1, dtype=np.float64)
            right = np.isfinite(block).all(axis=1)
            if name == "probs":
                right &= (block >= 0).all(axis=1) & (np.abs(sums - 1) <= SUM_TOLERANCE)
            num_bad += int((~right).sum())
            for row in np.flatnonzero(~right)[: 3 - len(first_bad)]:
                first_bad.append(f"{rows.ids[part][row]!r}: {_what_is_wrong(name, block[row])}")
    return Report(len(rows), widths, num_bad, first_bad, hashes_N)


def _what_is_wrong(name: str, vector_W: np.ndarray) -> str:
    if not np.isfinite(vector_W).all():
        return f"{name} hold NaN or infinity"
    if (vector_W < 0).any():
        return f"{name} hold the negative value {vector_W.min():.4g}"
    return f"{name} sum to {vector_W.sum(dtype=np.float64):.6g}"


class Centers(NamedTuple):
    """Centers ``start``, ``start + 1``, ... of a selection: enough for a shard that knows those before."""

    run: str  # names the selection; a shard that meets another one starts anew
    space: str
    start: int
    ids: list[str]
    vectors_KW: np.ndarray


class Candidate(NamedTuple):
    """A shard's best row. Of several shards the smallest ``order`` wins; it ends in the id, so no two are equal."""

    order: tuple[Any, ...]
    id: str
    sq: float  # squared distance to the nearest center
    vector_W: np.ndarray


class Answer(NamedTuple):
    """A shard's candidate, if it knows all centers and has any row left, and how many centers it knows."""

    known: int
    candidate: Candidate | None


class Shard:
    """Some unlabeled rows, kept sorted by id, so that the first of equals is the one with the smaller id."""

    def __init__(self, rows: Rows) -> None:
        order = np.argsort(rows.ids, kind="stable")
        self.rows = rows if (order[1:] > order[:-1]).all() else rows.take(order)
        self.hashes_N = keyed.hash_ids(self.rows.ids)
        self._spaces: dict[str, Euclidean | Gradients] = {}
        self._run: str | None = None
        self._known = 0
        self._sq_N = np.empty(0)

    def __len__(self) -> int:
        return len(self.rows)

    # ------------------------------------------------------------ questions that leave nothing behind

    def inspect(self, needs: Sequence[str]) -> Report:
        return inspect(self.rows, needs, self.hashes_N)

    def named(self, hashes: np.ndarray) -> list[str]:
        """The ids here whose hash is among ``hashes``."""
        return self.rows.ids[np.isin(self.hashes_N, hashes)].tolist()

    def lowest(self, score: str, count: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` rows with the lowest score: scores and ids, rising, ties by id. ``score`` is in SCORES."""
        return _lowest(SCORES[score](self, *key), self.rows.ids, count)

    def predicted(self) -> np.ndarray:
        """How many rows have each class as their most probable one, int64 [C]; [0] when the shard is empty."""
        probs_NC = self._probs()
        return np.bincount(probs_NC.argmax(axis=1), minlength=probs_NC.shape[1]) if len(self.rows) else np.zeros(0, int)

    def lowest_in_classes(
        self, counts: dict[int, int], score: str, *key: int | str
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """As :meth:`lowest`, for each class among the rows predicted as it."""
        if not len(self.rows):
            return {}
        predicted_N = self._probs().argmax(axis=1)
        scores_N = SCORES[score](self, *key)
        found = {}
        for number, count in counts.items():
            where = np.flatnonzero(predicted_N == number)
            found[number] = _lowest(scores_N[where], self.rows.ids[where], count)
        return found

    def vectors(self, space: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors, as centers, of those of ``ids`` that are here."""
        at = {name: self._position(name) for name in ids}
        return {name: self._space(space).vector(row) for name, row in at.items() if row is not None}

    def farthest_from(self, space: str, centers_KW: np.ndarray) -> float:
        """The largest distance of a row to its nearest center, NaN when the shard is empty.

        The row is found by FAISS (float32), its distance is exact: the answer is at most the true one, and below it
        by no more than float32 rounding.
        """
        import faiss  # here, as only this needs it

        here = self._space(space)
        assert isinstance(here, Euclidean)
        if not len(self.rows):
            return float("nan")
        index = faiss.IndexFlatL2(here.rows_NW.shape[1])
        index.add(np.ascontiguousarray(centers_KW, np.float32))
        row = int(index.search(here.rows_NW, 1)[0].argmax())
        sq = np.array([np.inf])
        Euclidean(here.rows_NW[row : row + 1]).lower(sq, centers_KW)
        return float(np.sqrt(sq[0]))

    # ------------------------------------------------------------ questions about the distance to the nearest center

    def farthest(self, centers: Centers) -> Answer:
        """The row farthest from its nearest center. Cost: new centers * N * W."""
        if not self._learn(centers):
            return Answer(self._known, None)
        row = int(self._sq_N.argmax()) if len(self._sq_N) else 0
        if not len(self._sq_N) or self._sq_N[row] < 0:
            return Answer(self._known, None)
        return Answer(self._known, self._candidate(centers.space, row, (-self._sq_N[row],)))

    def race(self, centers: Centers, *key: int | str) -> Answer:
        """The winner of an exponential race: each row's time is Exp(1) / D², the first one home is picked.

        That draws a row with probability D² / sum D² exactly, D its distance to the nearest center, and the first of
        all shards' winners is the winner over all. Rows at distance 0 never come home; when no other is left, the
        smallest draw wins.
        """
        if not self._learn(centers):
            return Answer(self._known, None)
        left_N = np.flatnonzero(self._sq_N >= 0)
        if not len(left_N):
            return Answer(self._known, None)
        draws_N = keyed.uniform(self.hashes_N, *key)[left_N]
        with np.errstate(divide="ignore", over="ignore"):
            times_N = -np.log(draws_N) / self._sq_N[left_N]
        first = int(times_N.argmin())
        order = (times_N[first], 0.0)
        if np.isinf(times_N[first]):
            first = int(draws_N.argmin())
            order = (np.inf, draws_N[first])
        return Answer(self._known, self._candidate(centers.space, int(left_N[first]), order))

    def _learn(self, centers: Centers) -> bool:
        """Bring the running minimum up to date; False when centers before these are missing (a restart)."""
        if centers.run != self._run:
            self._run, self._known, self._sq_N = centers.run, 0, np.full(len(self.rows), np.inf)
        if centers.start > self._known:
            return False
        new = self._known - centers.start
        if new < len(centers.ids):
            if len(self.rows):
                self._space(centers.space).lower(self._sq_N, centers.vectors_KW[new:])
            for name in centers.ids[new:]:
                if (row := self._position(name)) is not None:
                    self._sq_N[row] = -1.0  # picked: below any distance, for good
            self._known = centers.start + len(centers.ids)
        return True

    def _candidate(self, space: str, row: int, order: tuple[Any, ...]) -> Candidate:
        name = self.rows.ids[row]
        order = (*(float(part) for part in order), name)
        return Candidate(order, name, float(self._sq_N[row]), self._space(space).vector(row))

    # ------------------------------------------------------------ inside

    def _position(self, name: str) -> int | None:
        row = bisect.bisect_left(self.rows.ids, name)
        return row if row < len(self.rows) and self.rows.ids[row] == name else None

    def _probs(self) -> np.ndarray:
        return np.empty((0, 0), np.float32) if self.rows.probs is None else self.rows.probs

    def _features(self) -> np.ndarray:
        return np.empty((0, 0), np.float32) if self.rows.features is None else self.rows.features

    def _space(self, name: str) -> Euclidean | Gradients:
        if name not in self._spaces:
            self._spaces[name] = SPACES[name](self)
        return self._spaces[name]


SPACES: dict[str, Callable[[Shard], Euclidean | Gradients]] = {
    "probs": lambda shard: Euclidean(shard._probs()),
    "unit_features": lambda shard: Euclidean(unit(shard._features())),
    "gradients": lambda shard: Gradients(shard._probs(), shard._features()),
}


# ---------------------------------------------------------------- scores: one number a row, the lowest is wanted


def _lowest(scores_N: np.ndarray, ids_N: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids of the ``count`` lowest, rising; among equals the first rows, which have the smaller ids."""
    where = np.arange(len(scores_N))
    if count < len(scores_N):
        limit = np.partition(scores_N, count - 1)[count - 1]
        below = np.flatnonzero(scores_N < limit)
        where = np.concatenate([below, np.flatnonzero(scores_N == limit)[: count - len(below)]])
    where = where[np.lexsort((where, scores_N[where]))]
    return scores_N[where], ids_N[where]


def _keyed_draw(shard: Shard, *key: int | str) -> np.ndarray:
    return keyed.bits(shard.hashes_N, *key)


def _negative_entropy(shard: Shard) -> np.ndarray:
    """``sum p ln p``, 0 ln 0 = 0."""
    probs_NC = shard._probs()
    out_N = np.empty(len(probs_NC))
    for part in blocks(*probs_NC.shape):
        block = probs_NC[part].astype(np.float64, order="C")
        out_N[part] = (block * np.log(np.maximum(block, 1e-300))).sum(axis=1)
    return out_N


def _margin(shard: Shard) -> np.ndarray:
    """The most probable class's lead over the next."""
    probs_NC = shard._probs()
    out_N = np.empty(len(probs_NC))
    for part in blocks(*probs_NC.shape):
        top = np.sort(probs_NC[part], axis=1)[:, -2:].astype(np.float64)
        out_N[part] = top[:, -1] - (top[:, 0] if top.shape[1] > 1 else 0.0)
    return out_N


def _negative_peakedness(shard: Shard) -> np.ndarray:
    """Minus the squared distance from the uniform distribution."""
    probs_NC = shard._probs()
    sq_N = np.full(len(probs_NC), np.inf)
    if len(probs_NC):
        Euclidean(probs_NC).lower(sq_N, np.full((1, probs_NC.shape[1]), 1.0 / probs_NC.shape[1]))
    return -sq_N


SCORES: dict[str, Callable[..., np.ndarray]] = {
    "keyed_draw": _keyed_draw,
    "negative_entropy": _negative_entropy,
    "margin": _margin,
    "negative_peakedness": _negative_peakedness,
}


# ---------------------------------------------------------------- all shards


class Shards(Protocol):
    """All a strategy sees of the pool."""

    def map(self, method: str, *args: Any) -> list[Any]:
        """Ask every shard the same question (a public method of :class:`Shard`); one answer of each, in order.

        When it returns, no call of it runs or will be retried; while it waits, a shard may be lost and rebuilt.
        """
        ...


class LocalShards:
    """Shards in this process.

    Example:
        >>> pool = Rows(["a", "b", "c"], probs=[[1, 0], [0, 1], [0.5, 0.5]])
        >>> LocalShards.split(pool, 2).map("lowest", "margin", 1)[0][1].tolist()
        ['a']
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)

    @classmethod
    def split(cls, rows: Rows, num_shards: int) -> LocalShards:
        """Neighbouring rows go to the same shard; with more shards than rows some are empty."""
        return cls([Shard(rows.take(part)) for part in np.array_split(np.arange(len(rows)), num_shards)])

    def map(self, method: str, *args: Any) -> list[Any]:
        return [getattr(shard, method)(*args) for shard in self.shards]
