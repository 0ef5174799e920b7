"""Rows: ids and their vectors, and one pass over them that checks and outlines.

N rows, C classes, D feature width, W the width of whichever vectors are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np

MOST_LENGTH = 1e18  # of a vector: its square is still a float32
SUM_TOLERANCE = 1e-3  # how far from 1 the probabilities of a row may sum
BLOCK_VALUES = 2**18  # float32 values worked on at a time: they stay in a core's cache
QUIET = np.errstate(invalid="ignore", over="ignore")  # around what a thread runs: the state is a thread's own


@dataclass(eq=False)
class Rows:
    """Rows and their vectors; what a strategy does not need may be left out.

    Vectors are float32, or float16 to halve the memory: then they are rounded to 11 significant bits, picks are exact
    for the rounded vectors. They may be memory-mapped; nothing here or behind it copies all of them.

    Args:
        ids: N different strings, kept as an object array. They are compared as strings, by code point: "10" < "9".
        probs: float [N, C], class probabilities; kept as float32 unless given as float16.
        features: float [N, D]; likewise.
        vectors: float [N, W], of any kind; likewise.
        labels: int [N], class indices; of labeled rows.
    """

    ids: np.ndarray
    probs: np.ndarray | None = None
    features: np.ndarray | None = None
    labels: np.ndarray | None = None
    vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.ids = np.array(list(self.ids), object)
        for name in ("probs", "features", "vectors"):
            if (given := getattr(self, name)) is not None:
                kind = np.float16 if getattr(given, "dtype", None) == np.float16 else np.float32
                vectors = np.ascontiguousarray(given, kind)
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
        given = (self.probs, self.features, self.labels, self.vectors)
        parts = (None if part is None else part[where] for part in given)
        return Rows(self.ids[where], *parts)


class Outline(NamedTuple):
    """What one pass over probabilities leaves behind, 12 bytes a row: enough for a first bound on any distance."""

    top_N: np.ndarray  # int32, the most probable class; ties to the smaller one
    peak_N: np.ndarray  # float32, its probability
    sq_N: np.ndarray  # float32, sum of squares


class Inspection(NamedTuple):
    """What a check of some rows found."""

    num_rows: int
    widths: dict[str, int]  # of the needed vectors that are there
    num_bad: int
    first_bad: list[str]  # id and what is wrong with it, of the first three
    hashes_N: np.ndarray  # sorted, of a shard's rows


def inspect_rows(rows: Rows, needs: Sequence[str], hashes_N: np.ndarray) -> tuple[Inspection, Outline | None]:
    """Check the vectors that a strategy needs: probabilities are probabilities, others are finite.

    Args:
        rows: The rows; vectors that they lack are left out of the report.
        needs: "probs", "features", "vectors".
        hashes_N: Of the ids; they go into the report.

    Returns:
        What was found, and the outline of the probabilities, if these are among the needed vectors. Cost: one pass.
    """
    widths: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    outlined = None
    for name in needs:
        vectors_NW: np.ndarray | None = getattr(rows, name)
        if vectors_NW is None:
            continue
        widths[name] = vectors_NW.shape[1]
        if name == "probs":
            suspect_N = np.empty(len(rows), bool)
            outlined = outline(vectors_NW, suspect_N)
        else:
            suspect_N = suspects(vectors_NW)
        found = faults(name, vectors_NW, np.flatnonzero(suspect_N))
        bad += [(rows.ids[row], what) for row, what in found.items()]
    first = [f"{name!r}: {what}" for name, what in sorted(bad)[:3]]
    return Inspection(len(rows), widths, len(bad), first, hashes_N), outlined


def outline(probs_NC: np.ndarray, suspect_N: np.ndarray | None = None) -> Outline:
    """Outline probabilities; and, if there is an array for it, say which may be none. Cost: one pass."""
    num_rows, width = probs_NC.shape
    top_N, peak_N, sq_N = (np.empty(num_rows, kind) for kind in (np.int32, np.float32, np.float32))

    @QUIET
    def look(part: slice) -> None:
        block = np.asarray(probs_NC[part], np.float32)
        top_N[part] = block.argmax(axis=1)
        peak_N[part] = block[np.arange(len(block)), top_N[part]]
        sq_N[part] = sq_lengths(block)
        if suspect_N is not None:
            suspect_N[part] = _may_be_no_probs(block)

    in_parallel(look, num_rows, width)
    return Outline(top_N, peak_N, sq_N)


def suspects(vectors_NW: np.ndarray) -> np.ndarray:
    """Which rows may hold NaN or infinity or be too long, bool [N]."""
    suspect_N = np.empty(len(vectors_NW), bool)

    @QUIET
    def check(part: slice) -> None:
        block = np.asarray(vectors_NW[part], np.float32)
        suspect_N[part] = ~(sq_lengths(block) < MOST_LENGTH**2)

    in_parallel(check, *vectors_NW.shape)
    return suspect_N


def _may_be_no_probs(block_NC: np.ndarray) -> np.ndarray:
    """Holds NaN, infinity or a negative value, or the float32 sum is not clearly near 1."""
    suspect_N = ~(np.abs(block_NC @ np.ones(block_NC.shape[1], np.float32) - 1) < SUM_TOLERANCE / 2)
    if not block_NC.min(initial=0) >= 0:
        suspect_N |= ~(block_NC.min(axis=1) >= 0)
    return suspect_N


def faults(name: str, vectors_NW: np.ndarray, where: np.ndarray) -> dict[int, str]:
    """What is wrong with these rows, by position; rows with nothing wrong are left out.

    Args:
        name: "probs", which must be probabilities, or other vectors, which must be finite and not too long.
        vectors_NW: float [N, W].
        where: Positions to check.
    """
    found = {}
    for row in where.tolist():
        vector_W = np.asarray(vectors_NW[row], np.float64)
        if not np.isfinite(vector_W).all():
            found[row] = f"{name} hold NaN or infinity"
        elif not np.linalg.norm(vector_W) < MOST_LENGTH:
            found[row] = f"{name} have length {np.linalg.norm(vector_W):.4g}"
        elif name != "probs":
            continue
        elif (vector_W < 0).any():
            found[row] = f"{name} hold the negative value {vector_W.min():.4g}"
        elif not abs(vector_W.sum() - 1) <= SUM_TOLERANCE:
            found[row] = f"{name} sum to {vector_W.sum():.6g}"
    return found


def sq_lengths(vectors_NW: np.ndarray) -> np.ndarray:
    """Sums of squares, in the vectors' kind, [N]."""
    return np.einsum("nw,nw->n", vectors_NW, vectors_NW)


def blocks(num_rows: int, width: int, values: int = BLOCK_VALUES) -> Iterator[slice]:
    """Slices of rows that hold about so many values each."""
    step = max(1, values // max(1, width))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def in_parallel(work: Callable[[slice], None], num_rows: int, width: int) -> None:
    """Go over all rows in blocks, on as many threads as FAISS has (OMP_NUM_THREADS, else all cores); few on one."""
    parts = list(blocks(num_rows, width))
    num_threads = min(faiss.omp_get_max_threads(), len(parts) // 2)  # to start a thread takes as long as a block
    if num_threads < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(work, parts):
            pass
