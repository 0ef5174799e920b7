"""What strategies have in common: what all shards answer, put together, and where they measure distances.

B picks, L labeled rows, C classes, W the width of the vectors of a space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raykd.algo.selection.distances import Euclidean, Space
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.scores import keyed_draw
from raykd.algo.selection.shard import Score, Shard, Shards

Key = tuple[int, int]  # seed, round


def lowest(shards: Shards, score: Score, count: int, *key: int | str) -> list[str]:
    """The ids of the pool's rows with the lowest score, rising, ties by id.

    Args:
        shards: The pool.
        score: From a shard and the key to numbers [N] (see ``scores``); computed where the rows are.
        count: How many rows; all, if there are fewer.
        key: Handed to ``score``.
    """
    return merged(shards.map(Shard.lowest, score, count, *key), count)


def merged(answers: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> list[str]:
    """The ids of the ``count`` lowest scores of all shards' (scores, ids), rising, ties by id."""
    scores, ids = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    by_id = np.argsort(ids, kind="stable")
    return ids[by_id[np.argsort(scores[by_id], kind="stable")]][:count].tolist()


def vectors_by_ids(shards: Shards, space: Space, ids: Sequence[str]) -> np.ndarray:
    """The vectors of rows, float32 [n, W], in the order of ``ids``; all of them must be in the pool."""
    found = {name: vector_W for some in shards.map(Shard.vectors_by_id, space, ids) for name, vector_W in some.items()}
    return np.array([found[name] for name in ids])


def class_counts(shards: Shards) -> np.ndarray:
    """How many rows have each class as their most probable one, int64 [C]."""
    return np.sum([counts_C for counts_C in shards.map(Shard.predicted) if len(counts_C)], axis=0)


def without_distances(ids: list[str], draw_probabilities: np.ndarray | None = None) -> Picked:
    """Picks in that order, with NaN distances."""
    return Picked(ids, np.full(len(ids), np.nan), draw_probabilities=draw_probabilities)


def space_of(column: str) -> Euclidean:
    """Features of length 1 ("features"), or probabilities ("probs")."""
    return Euclidean("probs", peaked=True) if column == "probs" else Euclidean("features", unit_length=True)


def labeled_vectors(shards: Shards, space: Space, labeled: Rows) -> np.ndarray:
    """Vectors of the labeled rows, float32 [L, W]; with none, [0, W] by the pool's."""
    if len(labeled):
        return space.vectors(labeled, slice(None))
    return vectors_by_ids(shards, space, lowest(shards, keyed_draw, 1))[:0]
