"""Where distances are measured: fast with a known error to rule things out, exact to decide.

The fast way is FAISS in float32 (on the GPU, where there is one), and every such distance comes with a bound on its
rounding error. The exact way is a direct sum of squared differences (or, for gradients, of products) of float32 values
in float64, each row along its own contiguous axis by numpy's pairwise reduction: its order of additions is fixed by the
width alone, so a pair's distance has the same bits in any block, shard or batch. :func:`pairs_that_matter` puts the two
together: it names the pairs that could matter and computes only those exactly.

N rows, K centers, P pairs, C classes, D feature width; W is the width of whichever vectors a space compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import faiss
import numpy as np

from raykd.algo.selection.rows import Outline, Rows, blocks, sq_lengths

EXACT_VALUES = 2**16  # float64 values worked on at a time: two such blocks stay in a core's cache
GATHER_VALUES = 2**22  # float32 values gathered at a time: 16 MiB
BATCH_VALUES = 2**24  # float32 distances computed at a time: 64 MiB; products of fewer rows are slower
BATCH_CENTERS = 8192
CACHED_VALUES = 2**20  # float32 values of centers, and of distances, that stay in cache: then few rows are faster
PROBE = 64  # every so many rows one is tried first, to see whether float32 tells its distances apart,
PROBE_PRODUCTS = 2**26  # where a block takes more products than this
MANY_PAIRS = 8  # exact distances a row above which float64 products thin them out first
FEW_CENTERS = 32  # so few are all measured against in a first bound
UNDERFLOW = 1e-30  # no squared distance is told apart below this in float32
PEAK_STEPS = 16  # how finely the peak of a distribution is told apart in a first bound


class Space(Protocol):
    """A way to turn rows into vectors and to measure the squared distance of two vectors. Small: it travels."""

    def vectors(self, rows: Rows, where: Any) -> np.ndarray:
        """Of the rows at a slice or at positions, float32 [n, W]."""
        ...

    def approximate(self, x_NW: np.ndarray, y_KW: np.ndarray, kind: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances [N, K] computed in ``kind``, and how far off each row's may be, float64 [N]."""
        ...

    def exact(self, x_PW: np.ndarray, y_PW: np.ndarray) -> np.ndarray:
        """Squared distances of pairs, float64 [P]: the same bits for the same two vectors, wherever they lie."""
        ...


@dataclass(frozen=True)
class Euclidean:
    """Vectors are points: a column's rows, as they are or divided by their length.

    Args:
        column: "probs" or "features".
        unit_length: Divide each row by its Euclidean length.
        peaked: Rows are probabilities, so their peaks give a first bound (see :func:`peak_bounds`).
    """

    column: str
    unit_length: bool = False
    peaked: bool = False

    def vectors(self, rows: Rows, where: Any) -> np.ndarray:
        found = np.asarray(getattr(rows, self.column)[where], np.float32)
        return unit(found) if self.unit_length else found

    def approximate(self, x_NW: np.ndarray, y_KW: np.ndarray, kind: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
        x_NW, y_KW = np.ascontiguousarray(x_NW, kind), np.ascontiguousarray(y_KW, kind)
        middle_W, y_sq_K = y_KW.mean(axis=0), sq_lengths(y_KW)
        if len(y_KW) > 1 and 2 * (middle_W @ middle_W) > y_sq_K.mean():  # what all have in common only costs precision
            x_NW, y_KW = x_NW - middle_W, y_KW - middle_W
            y_sq_K = sq_lengths(y_KW)
        x_sq_N = sq_lengths(x_NW)
        if kind is np.float32:
            return _pairwise(x_NW, y_KW), error_bound(x_NW.shape[1], _unit_roundoff(), x_sq_N, y_sq_K)
        width, used = x_NW.shape[1], np.flatnonzero(x_NW.any(axis=0) & y_KW.any(axis=0))
        if len(used) < width / 2:  # classes that are never likely, units that are dead
            x_NW, y_KW = x_NW[:, used], y_KW[:, used]
        sq_NK = x_NW @ (-2 * y_KW).T
        sq_NK += x_sq_N[:, None]
        sq_NK += y_sq_K
        return sq_NK, error_bound(width, 2.0**-53, x_sq_N, y_sq_K)

    def exact(self, x_PW: np.ndarray, y_PW: np.ndarray) -> np.ndarray:
        work = np.subtract(x_PW, y_PW, dtype=np.float64, order="C")
        np.multiply(work, work, out=work)
        return work.sum(axis=1)


@dataclass(frozen=True)
class Gradients:
    """Vectors are BADGE's gradient embeddings ``(onehot(argmax p) - p) ⊗ z``, which are never made.

    ``‖a⊗x − b⊗y‖² = ‖a‖²‖x‖² + ‖b‖²‖y‖² − 2 (a·b)(x·y)``: three numbers a pair, from C + D values instead of C * D.
    Rounding can make it slightly negative, so it is clamped at 0; equal rows give exactly 0. Ties in the argmax go to
    the smaller class. A vector travels as its probabilities and features, one after the other: W = C + D.

    Args:
        num_classes: C.
    """

    num_classes: int
    peaked = False

    def vectors(self, rows: Rows, where: Any) -> np.ndarray:
        assert rows.probs is not None
        assert rows.features is not None
        return np.concatenate([rows.probs[where], rows.features[where]], axis=1, dtype=np.float32)

    def approximate(self, x_NW: np.ndarray, y_KW: np.ndarray, kind: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
        (a, x), (b, y) = self._factors(x_NW, kind), self._factors(y_KW, kind)
        x_sq_N, y_sq_K = sq_lengths(a) * sq_lengths(x), sq_lengths(b) * sq_lengths(y)
        sq_NK = a @ (-2 * b).T
        sq_NK *= x @ y.T
        sq_NK += x_sq_N[:, None]
        sq_NK += y_sq_K
        # both inner products are off by their share, so their product by twice that of one
        return sq_NK, 2 * error_bound(x_NW.shape[1], float(np.finfo(kind).eps) / 2, x_sq_N, y_sq_K)

    def exact(self, x_PW: np.ndarray, y_PW: np.ndarray) -> np.ndarray:
        (a, x), (b, y) = self._factors(x_PW, np.float64), self._factors(y_PW, np.float64)
        norms = (a * a).sum(axis=1) * (x * x).sum(axis=1) + (b * b).sum(axis=1) * (y * y).sum(axis=1)
        return np.maximum(norms - 2 * ((a * b).sum(axis=1) * (x * y).sum(axis=1)), 0.0)

    def _factors(self, vectors_NW: np.ndarray, kind: type) -> tuple[np.ndarray, np.ndarray]:
        probs_NC, features_ND = vectors_NW[:, : self.num_classes], vectors_NW[:, self.num_classes :]
        return residuals(probs_NC, kind), np.asarray(features_ND, kind, order="C")


def residuals(probs_NC: np.ndarray, kind: type = np.float64) -> np.ndarray:
    """``onehot(argmax p) - p`` of each row, [N, C]: minus the loss's gradient if the guess were right."""
    rows_NC = np.negative(probs_NC, dtype=kind, order="C")
    rows_NC[np.arange(len(rows_NC)), np.asarray(probs_NC).argmax(axis=1)] += 1.0
    return rows_NC


def unit(rows_NW: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean length, float32 [N, W]; rows of zeros stay zeros."""
    out_NW = np.empty(rows_NW.shape, np.float32)
    for part in blocks(len(rows_NW), rows_NW.shape[1], EXACT_VALUES):
        rows = rows_NW[part].astype(np.float64, order="C")
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        out_NW[part] = rows / np.where(lengths > 0, lengths, 1.0)
    return out_NW


# ---------------------------------------------------------------- exact, where it matters


def pairs_that_matter(
    space: Space, x_NW: np.ndarray, sq_N: np.ndarray, y_KW: np.ndarray, in_turn: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Exact distances of all pairs that may lower a row's ``sq_N``: rows, centers, float64 squared distances.

    Pairs that are left out change nothing: another center is surely nearer or, ``in_turn``, an earlier one was nearer
    already. The caller lowers ``sq_N`` as the answers come; between two of them it is read again. Cost: N * K * W
    float32 products by FAISS, and a few exact distances a row.

    Args:
        space: What the vectors are.
        x_NW: Rows, float32 [N, W].
        sq_N: What is known of each row's squared distance to its nearest center: exact, or an upper bound, or infinity.
        y_KW: Centers, float32 [K, W].
        in_turn: Every lowering counts, center after center, not only the last one.
    """
    small = y_KW.size <= CACHED_VALUES
    for rows in blocks(len(x_NW), min(len(y_KW), BATCH_CENTERS), CACHED_VALUES if small else BATCH_VALUES):
        for centers in blocks(len(y_KW), 1, BATCH_CENTERS):
            x, y, sq = x_NW[rows], y_KW[centers], sq_N[rows]
            kind: type = np.float32
            if len(x) * y.size > PROBE_PRODUCTS:
                i, _ = _undecided(*space.approximate(x[::PROBE], y), sq[::PROBE], in_turn)
                kind = np.float64 if len(i) * PROBE > MANY_PAIRS * len(x) else np.float32
            i, j = _undecided(*space.approximate(x, y, kind), sq, in_turn)
            if kind is np.float32 and len(i) > MANY_PAIRS * len(x):
                some = np.unique(i)
                i, j = _undecided(*space.approximate(x[some], y, np.float64), sq[some], in_turn)
                i = some[i]
            if len(i):
                yield i + rows.start, j + centers.start, exact_pairs(space, x, i, y, j)


def exact_pairs(space: Space, x_NW: np.ndarray, i_P: np.ndarray, y_KW: np.ndarray, j_P: np.ndarray) -> np.ndarray:
    """Exact squared distances of row ``i`` and center ``j``, pair by pair, float64 [P]."""
    sq_P = np.empty(len(i_P))
    for part in blocks(len(i_P), x_NW.shape[1], EXACT_VALUES):
        sq_P[part] = space.exact(x_NW[i_P[part]], y_KW[j_P[part]])
    return sq_P


def _undecided(
    sq_NK: np.ndarray, error_N: np.ndarray, known_N: np.ndarray, in_turn: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and centers of the pairs whose distance may be below what the row has without it.

    Args:
        sq_NK: Approximate squared distances.
        error_N: How far they may be off.
        known_N: What the row has already, exact or an upper bound; at 0 nothing can be lower.
        in_turn: Centers come one after the other, and each that lowers a row counts.
    """
    nearest_N = sq_NK.min(axis=1)
    some = np.flatnonzero((nearest_N <= known_N + error_N) & (known_N > 0))
    if not len(some):
        return some, some
    sq_NK = sq_NK if len(some) == len(sq_NK) else sq_NK[some]
    nearest_N, error_N, known_N = nearest_N[some, None], error_N[some, None], known_N[some, None]
    if not in_turn:  # only the nearest counts: both distances are off by the error at most
        limit_N = np.minimum(known_N, nearest_N + error_N) + error_N
        i, j = np.divmod(np.flatnonzero(sq_NK <= limit_N.astype(sq_NK.dtype)), sq_NK.shape[1])
    else:  # ... nearest so far, which is any distance before it
        so_far_NK = np.minimum.accumulate(sq_NK, axis=1) + error_N
        before_NK = np.concatenate([known_N, so_far_NK[:, :-1]], axis=1)
        i, j = np.nonzero(sq_NK <= np.minimum(before_NK, known_N) + error_N)
    return some[i], j


def within(space: Space, x_NW: np.ndarray, y_KW: np.ndarray, sq: float) -> np.ndarray:
    """Which pairs are no farther apart than this squared distance, bool [N, K]: exactly."""
    within_NK = np.empty((len(x_NW), len(y_KW)), bool)
    for part in blocks(len(x_NW), len(y_KW), BATCH_VALUES):
        approx_NK, error_N = space.approximate(x_NW[part], y_KW)
        within_NK[part] = approx_NK <= sq
        i, j = np.nonzero(np.abs(approx_NK - sq) <= error_N[:, None])
        within_NK[part][i, j] = exact_pairs(space, x_NW[part], i, y_KW, j) <= sq
    return within_NK


# ---------------------------------------------------------------- first bounds, for next to nothing


def first_bounds(space: Space, rows: Rows, outline: Outline | None, base_KW: np.ndarray) -> np.ndarray:
    """No less than each row's exact squared distance to its nearest center, float64 [N].

    Of probabilities by their peaks; otherwise, or when there are few centers, by the distance to some of them.
    """
    if outline is not None and len(base_KW) > FEW_CENTERS:
        return peak_bounds(outline, base_KW)
    some = base_KW[np.unique(np.linspace(0, len(base_KW) - 1, min(len(base_KW), 2 * FEW_CENTERS)).astype(int))]
    bounds_N = np.empty(len(rows))
    for part in blocks(len(rows), some.shape[1], GATHER_VALUES):
        sq_NK, error_N = space.approximate(space.vectors(rows, part), some)
        bounds_N[part] = sq_NK.min(axis=1) + error_N
    return np.maximum(bounds_N, 0.0, out=bounds_N)


def peak_bounds(outline: Outline, base_KC: np.ndarray) -> np.ndarray:
    """The bound from centers with the same most probable class k, without reading the rows, float64 [N].

    No probability is negative, so ``x·c >= x_k c_k`` and ``‖x − c‖² <= ‖x‖² + ‖c‖² − 2 x_k c_k``: for peaked rows not
    far from the truth. For each class and each step of x_k, the center that makes the right side least at the step's
    middle is chosen beforehand; every center gives a bound. For flat rows, and those of a class without centers, the
    flattest of all centers may give a better one: ``x·c >= 0``. Cost: K * :data:`PEAK_STEPS`, and some numbers a row.
    """
    num_classes = base_KC.shape[1]
    top_K = base_KC.argmax(axis=1)
    peak_K = base_KC[np.arange(len(base_KC)), top_K].astype(np.float64)
    sq_K = sq_lengths(base_KC).astype(np.float64)
    chosen = np.full((num_classes, PEAK_STEPS), -1)
    middles = (np.arange(PEAK_STEPS) + 0.5) / PEAK_STEPS
    by_class = np.argsort(top_K, kind="stable")
    starts = np.flatnonzero(np.diff(top_K[by_class], prepend=-1))
    costs = sq_K[by_class, None] - 2 * peak_K[by_class, None] * middles
    least = np.minimum.reduceat(costs, starts).repeat(np.diff(starts, append=len(by_class)), axis=0)
    which, step = np.nonzero(costs == least)
    chosen[top_K[by_class[which]], step] = by_class[which]
    center_N = chosen[outline.top_N, np.minimum(outline.peak_N * PEAK_STEPS, PEAK_STEPS - 1).astype(np.int32)]
    same_class_N = np.where(center_N < 0, np.inf, sq_K[center_N] - 2 * peak_K[center_N] * outline.peak_N)
    bounds_N = outline.sq_N + np.minimum(same_class_N, sq_K.min())
    return np.maximum(bounds_N, 0.0) + error_bound(num_classes, 2.0**-24, outline.sq_N, sq_K)


# ---------------------------------------------------------------- float32 and its errors


def _pairwise(x_NW: np.ndarray, y_KW: np.ndarray) -> np.ndarray:
    if (gpu := _gpu()) is not None:
        return faiss.pairwise_distance_gpu(gpu, x_NW, y_KW)
    return faiss.pairwise_distances(x_NW, y_KW)


@cache
def _gpu() -> Any:
    """FAISS's handle of the GPU that this process may use, or None."""
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return None
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(2**28)
    return resources


def _unit_roundoff() -> float:
    """Of one float32 operation; on a GPU of one with TF32 factors, as it may use those."""
    return 2.0**-24 if _gpu() is None else 2.0**-11


def error_bound(width: int, unit_roundoff: float, x_sq_N: np.ndarray, y_sq_K: np.ndarray) -> np.ndarray:
    """How far ``‖x‖² + ‖y‖² − 2 x·y`` may be off for any of the centers, float64 [N].

    That is Higham's gamma times ``(‖x‖ + ‖y‖)²``, which holds for any order of the sums, and a little for values that
    underflow. Sums are float32 also where only the factors are coarser.
    """
    sums = (width + 16) * min(unit_roundoff, 2.0**-24)
    assert sums < 0.1, f"vectors of {width} values are too long for float32 sums"
    share = 1.01 * (sums / (1 - sums) + 4 * unit_roundoff)
    reach_N = np.sqrt(x_sq_N.astype(np.float64)) + np.sqrt(float(y_sq_K.max(initial=0.0)))
    return share * (1 + sums) * reach_N**2 + UNDERFLOW
