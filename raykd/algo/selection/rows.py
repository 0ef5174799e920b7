"""Rows: ids and their vectors, and one look at them that checks and outlines.

N rows, C classes, D feature width, W the width of whichever vectors are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np

MOST_LENGTH = 1e18  # of a vector: its square is still a float32
SUM_TOLERANCE = 1e-3  # how far from 1 the probabilities of a row may sum
BLOCK_VALUES = 2**18  # float32 values looked at at a time: they stay in a core's cache
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
        parts = (None if part is None else part[where] for part in (self.probs, self.features, self.labels))
        return Rows(self.ids[where], *parts)


class Outline(NamedTuple):
    """What one look at probabilities leaves behind, 12 bytes a row: enough for a first bound on any distance."""

    top_N: np.ndarray  # int32, the most probable class; ties to the smaller one
    peak_N: np.ndarray  # float32, its probability
    sq_N: np.ndarray  # float32, sum of squares


class Report(NamedTuple):
    """What a look at some rows found."""

    num_rows: int
    widths: dict[str, int]  # of the needed vectors that are there
    num_bad: int
    first_bad: list[str]  # id and what is wrong with it, of the first three
    hashes_N: np.ndarray


def outline(probs_NC: np.ndarray) -> tuple[Outline, np.ndarray]:
    """Outline probabilities, and say which rows may be none: bool [N]. Cost: one pass.

    A row that may be none holds NaN, infinity or a negative value, or its float32 sum is not clearly near 1.
    """
    num_rows, width = probs_NC.shape
    top_N, suspect_N = np.empty(num_rows, np.int32), np.empty(num_rows, bool)
    peak_N, sq_N = np.empty(num_rows, np.float32), np.empty(num_rows, np.float32)
    ones = np.ones(width, np.float32)

    @QUIET
    def look(part: slice) -> None:
        block = np.asarray(probs_NC[part], np.float32)
        top_N[part] = block.argmax(axis=1)
        peak_N[part] = block[np.arange(len(block)), top_N[part]]
        sq_N[part] = np.einsum("nc,nc->n", block, block)
        suspect_N[part] = ~(np.abs(block @ ones - 1) < SUM_TOLERANCE / 2)
        if not block.min(initial=0) >= 0:
            suspect_N[part] |= ~(block.min(axis=1) >= 0)

    in_parallel(look, num_rows, width)
    return Outline(top_N, peak_N, sq_N), suspect_N


def suspects(vectors_NW: np.ndarray) -> np.ndarray:
    """Which rows may hold NaN or infinity or be too long, bool [N]."""
    suspect_N = np.empty(len(vectors_NW), bool)

    @QUIET
    def look(part: slice) -> None:
        block = np.asarray(vectors_NW[part], np.float32)
        suspect_N[part] = ~(np.einsum("nw,nw->n", block, block) < MOST_LENGTH**2)

    in_parallel(look, *vectors_NW.shape)
    return suspect_N


def faults(name: str, vectors_NW: np.ndarray, where: np.ndarray, any_numbers: bool) -> dict[int, str]:
    """What is wrong with these rows, by position; rows with nothing wrong are left out.

    Args:
        name: "probs" or "features".
        vectors_NW: float [N, W].
        where: Positions to look at.
        any_numbers: Probabilities need not be any; it is enough that they are finite.
    """
    found = {}
    for row in where.tolist():
        vector_W = np.asarray(vectors_NW[row], np.float64)
        if not np.isfinite(vector_W).all():
            found[row] = f"{name} hold NaN or infinity"
        elif not np.linalg.norm(vector_W) < MOST_LENGTH:
            found[row] = f"{name} have length {np.linalg.norm(vector_W):.4g}"
        elif name == "features" or any_numbers:
            continue
        elif (vector_W < 0).any():
            found[row] = f"{name} hold the negative value {vector_W.min():.4g}"
        elif not abs(vector_W.sum() - 1) <= SUM_TOLERANCE:
            found[row] = f"{name} sum to {vector_W.sum():.6g}"
    return found


def blocks(num_rows: int, width: int, values: int = BLOCK_VALUES) -> Iterator[slice]:
    """Slices of rows that hold about so many values each."""
    step = max(1, values // max(1, width))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def in_parallel(look: Callable[[slice], None], num_rows: int, width: int) -> None:
    """Go over all rows in blocks, on as many threads as FAISS has (OMP_NUM_THREADS, else all cores)."""
    parts = list(blocks(num_rows, width))
    if len(parts) < 2:
        for part in parts:
            look(part)
        return
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as pool:
        for _ in pool.map(look, parts):
            pass
