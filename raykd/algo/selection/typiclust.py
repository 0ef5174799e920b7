"""TypiClust (Hacohen et al. 2022): the most typical row of each cluster, for a cold start.

Pool and labeled rows are clustered, into as many clusters as there are labeled rows and picks, at most 500. Clusters
take turns, those with the fewest labeled rows first, of these the largest first, of these the first one; those of 5
rows or fewer only when all others are used up. At its turn a cluster gives the row with the least mean distance to its
nearest 20 rows of the cluster, or to half of them, if these are fewer; labeled rows and picks before it don't count.

What is a definition here, and was left to a library there: k-means begins with centers drawn by k-means++ (Arthur and
Vassilvitskii 2007) and takes at most :data:`ITERATIONS` steps (Lloyd 1982). It is the same for any shards, as its sums
are whole numbers (``whole_numbers.py``), which also the new centers are rounded to; a row between two centers goes to
the first. So are typicalities: distances are rounded to multiples of 2^-25 before they are added up. The plain loop is
:func:`raykd.algo.selection.reference.plain_typiclust`.

N rows, K clusters, L labeled rows, M members of a cluster, B budget, W the width of the vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from raykd.algo import keyed
from raykd.algo.selection.answers import (
    Key,
    labeled_vectors,
    lowest,
    merged,
    space_of,
    vectors_by_ids,
    without_distances,
)
from raykd.algo.selection.distances import Space
from raykd.algo.selection.kcenter import Picked, sample_by_distance
from raykd.algo.selection.rows import Rows, blocks
from raykd.algo.selection.scores import keyed_draw
from raykd.algo.selection.shard import Shard, Shards, lowest_positions
from raykd.algo.selection.whole_numbers import to_whole, whole_squares

MOST_CLUSTERS = 500
SMALL_CLUSTER = 5  # rows, labeled ones too; smaller ones and these are used last
NEAREST = 20
ITERATIONS = 25
MOST_MEMBERS = 2048  # of a cluster that are looked at, or B if that is more
BLOCK_VALUES = 2**20  # float64 values worked on at a time


class Clustered(NamedTuple):
    """Of some rows, cluster by cluster: how many there are, and the sums of their whole vectors."""

    count_K: np.ndarray
    sum_KW: np.ndarray


def typiclust(shards: Shards, labeled: Rows, budget: int, key: Key, column: str = "features") -> Picked:
    """The most typical row of each cluster, those with the fewest labeled rows first; the same for any shards.

    Args:
        shards: The pool, with features unless ``column`` says otherwise.
        labeled: L labeled rows, likewise; there may be none.
        budget: B, at most the rows left.
        key: Of the draws.
        column: "features", then of length 1, or "probs".

    Cost: N * K * W float64 products, 26 times at most, and K * W numbers to and from each shard each time; then for
    each cluster that gives a pick M * M * W, M at most 2,048 or B: of a larger cluster's rows so many are looked at,
    drawn by key. Memory: 4 bytes a row, and of the driver M * M numbers.
    """
    space, draw_key = space_of(column), (*key, "typiclust")
    base_LW = labeled_vectors(shards, space, labeled)
    centers_KW, sizes_K = k_means(shards, space, base_LW, min(len(base_LW) + budget, MOST_CLUSTERS), *draw_key)
    labeled_K = np.bincount(nearest_center(to_whole(base_LW), centers_KW), minlength=len(centers_KW))
    order = sorted(
        np.flatnonzero(sizes_K > labeled_K).tolist(),
        key=lambda cluster: (sizes_K[cluster] <= SMALL_CLUSTER, labeled_K[cluster], -sizes_K[cluster], cluster),
    )
    turns = list(islice(_turns(order, (sizes_K - labeled_K).tolist(), sizes_K > SMALL_CLUSTER), budget))
    picks: dict[int, Iterator[str]] = {}
    for cluster, count in Counter(turns).items():
        answers = shards.map(members, space, centers_KW, cluster, max(MOST_MEMBERS, budget), *draw_key)
        names = sorted(merged(answers, max(MOST_MEMBERS, budget)))
        x_MW = to_whole(vectors_by_ids(shards, space, names))
        picks[cluster] = iter([names[row] for row in most_typical(x_MW, count)])
    return without_distances([next(picks[cluster]) for cluster in turns])


def _turns(order: list[int], left: list[int], is_large: np.ndarray) -> Iterator[int]:
    """Clusters in turn for as long as they have rows left, large ones first."""
    for some in ([c for c in order if is_large[c]], [c for c in order if not is_large[c]]):
        for number in range(max((left[cluster] for cluster in some), default=0)):
            yield from (cluster for cluster in some if number < left[cluster])


# ---------------------------------------------------------------- k-means


def k_means(
    shards: Shards, space: Space, base_LW: np.ndarray, num_clusters: int, *key: int | str
) -> tuple[np.ndarray, np.ndarray]:
    """Centers of the pool's rows and others, whole vectors [K, W], and how many rows each is nearest to, int64 [K].

    K is at most the number of the pool's rows. A cluster that loses all of its rows keeps its center.
    """
    first = lowest(shards, keyed_draw, 1, *key)
    num_clusters = min(num_clusters, sum(shards.map(Shard.num_included)))
    others = sample_by_distance(shards, space, vectors_by_ids(shards, space, first), num_clusters - 1, first, *key)
    centers_KW = to_whole(vectors_by_ids(shards, space, [*first, *others.ids]))
    base_LW = to_whole(base_LW)
    for number in range(ITERATIONS + 1):
        answers = [clustered(base_LW, nearest_center(base_LW, centers_KW), num_clusters)]
        answers += shards.map(clustered_shard, space, centers_KW)
        count_K, sum_KW = (np.sum(parts, axis=0) for parts in zip(*answers, strict=True))
        moved_KW = np.where(count_K[:, None], np.rint(sum_KW / np.maximum(count_K, 1)[:, None]), centers_KW)
        if number == ITERATIONS or np.array_equal(moved_KW, centers_KW):
            break
        centers_KW = moved_KW
    return centers_KW, count_K


def clustered_shard(shard: Shard, space: Space, centers_KW: np.ndarray) -> Clustered:
    """A shard's rows by their nearest center; which that is is kept."""
    cluster_N = shard.remember(_name(centers_KW), assigned(shard, space, centers_KW))
    rows, found = shard.included(), clustered(np.zeros((0, centers_KW.shape[1])), np.zeros(0, int), len(centers_KW))
    for part in blocks(len(rows), centers_KW.shape[1], BLOCK_VALUES):
        x_NW = to_whole(space.vectors(shard.rows, rows[part]))
        more = clustered(x_NW, cluster_N[rows[part]], len(centers_KW))
        found = Clustered(found.count_K + more.count_K, found.sum_KW + more.sum_KW)
    return found


def clustered(x_NW: np.ndarray, cluster_N: np.ndarray, num_clusters: int) -> Clustered:
    """Whole vectors by their clusters. The sums are exact, below 2^53, for up to 2^28 rows."""
    count_K, sum_KW = np.bincount(cluster_N, minlength=num_clusters), np.zeros((num_clusters, x_NW.shape[1]))
    if len(x_NW):
        order = np.argsort(cluster_N, kind="stable")
        there = np.flatnonzero(count_K)
        sum_KW[there] = np.add.reduceat(x_NW[order], np.cumsum(count_K)[there] - count_K[there], axis=0)
    return Clustered(count_K, sum_KW)


def assigned(shard: Shard, space: Space, centers_KW: np.ndarray) -> np.ndarray:
    """The nearest center of each row, int32 [N]."""
    cluster_N = np.empty(len(shard), np.int32)
    for part in blocks(len(shard), max(centers_KW.shape), BLOCK_VALUES):
        cluster_N[part] = nearest_center(to_whole(space.vectors(shard.rows, part)), centers_KW)
    return cluster_N


def nearest_center(x_NW: np.ndarray, centers_KW: np.ndarray) -> np.ndarray:
    """Of whole vectors, int64 [N]; ties to the first center."""
    return whole_squares(x_NW, centers_KW).argmin(axis=1)


def _name(centers_KW: np.ndarray) -> tuple[str, bytes]:
    return "clusters", centers_KW.tobytes()


# ---------------------------------------------------------------- typicality


def members(
    shard: Shard, space: Space, centers_KW: np.ndarray, cluster: int, count: int, *key: int | str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a cluster, at most so many, those with the lowest draws: draws and ids."""
    cluster_N = shard.remembered(_name(centers_KW))
    if cluster_N is None:
        cluster_N = shard.remember(_name(centers_KW), assigned(shard, space, centers_KW))
    rows = shard.included()
    rows = rows[cluster_N[rows] == cluster]
    draws_N = keyed.bits(shard.hashes_N[rows], *key)
    first = lowest_positions(draws_N, shard.rank_N[rows], min(count, len(rows)))
    return draws_N[first], shard.rows.ids[rows[first]]


def most_typical(x_MW: np.ndarray, count: int) -> list[int]:
    """Again the row with the least mean distance to its nearest rows among those left; ties to the first.

    Cost: M * M * W, and M * (20 + count) for each pick. Memory: M * M numbers.
    """
    num_kept = min(NEAREST + count, len(x_MW) - 1)
    distance_MM = np.rint(np.sqrt(whole_squares(x_MW, x_MW)))
    np.fill_diagonal(distance_MM, -1)  # before all others, to be left out
    near_MK = np.argsort(distance_MM, axis=1, kind="stable")[:, 1 : num_kept + 1]
    distance_MK, left_M = np.take_along_axis(distance_MM, near_MK, axis=1), np.ones(len(x_MW), bool)
    picks: list[int] = []
    for _ in range(count):
        num_nearest = min(NEAREST, int(left_M.sum()) // 2)
        is_left_MK = left_M[near_MK]
        counts_MK = is_left_MK & (np.cumsum(is_left_MK, axis=1) <= num_nearest)
        total_M = np.where(left_M, (distance_MK * counts_MK).sum(axis=1), np.inf)  # whole, so in any order
        picks.append(int(total_M.argmin()))
        left_M[picks[-1]] = False
    return picks
