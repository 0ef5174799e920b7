"""The papers' start: some images of each class, drawn, which only who knows the labels already can give.

N images, C classes.
"""

from __future__ import annotations

import itertools

import numpy as np

from raykd.algo.keyed import uniform


def some_of_each_class(
    hashes_N: np.ndarray, labels_N: np.ndarray, num_classes: int, shots: int, seed: int
) -> np.ndarray:
    """Places of ``shots`` images of each class, drawn by seed and id, int64; all of a class that has fewer.

    First one of each class, in their order, then a second one of each: what fewer shots draw is the beginning of what
    more do.

    Args:
        hashes_N: uint64 [N], of :func:`raykd.algo.keyed.hash_ids`; in any order.
        labels_N: int [N], class indices; below 0: of no class.

    Example:
        >>> from raykd.algo.keyed import hash_ids
        >>> some_of_each_class(hash_ids(["a", "b", "c", "d"]), np.array([1, 0, 1, -1]), 2, shots=2, seed=0).tolist()
        [1, 0, 2]
    """
    order_N = np.argsort(uniform(hashes_N, seed, "start"), kind="stable")
    order_N = order_N[np.argsort(labels_N[order_N], kind="stable")]  # class after class, each in the order drawn
    begins_C = np.searchsorted(labels_N[order_N], np.arange(num_classes + 1))
    drawn_C = [order_N[begin:end][:shots] for begin, end in itertools.pairwise(begins_C)]
    places = [drawn[shot] for shot in range(shots) for drawn in drawn_C if shot < len(drawn)]
    return np.array(places, np.int64)
