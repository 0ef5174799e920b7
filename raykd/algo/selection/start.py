"""The papers' start: some images of each class, drawn, which only who knows the labels already can give.

N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raykd.algo.keyed import hash_ids, uniform


def some_of_each_class(ids: Sequence[str], labels_N: np.ndarray, num_classes: int, shots: int, seed: int) -> np.ndarray:
    """Places of ``shots`` images of each class, drawn by seed and id, int64; all of a class that has fewer.

    First one of each class, in their order, then a second one of each: what fewer shots draw is the beginning of what
    more do.

    Args:
        ids: N different strings, in any order.
        labels_N: int [N], class indices; below 0: of no class.

    Example:
        >>> some_of_each_class(["a", "b", "c", "d"], np.array([1, 0, 1, -1]), 2, shots=2, seed=0).tolist()
        [1, 0, 2]
    """
    order_N = np.argsort(uniform(hash_ids(ids), seed, "start"), kind="stable")
    drawn_C = [order_N[labels_N[order_N] == number][:shots] for number in range(num_classes)]
    places = [drawn[shot] for shot in range(shots) for drawn in drawn_C if shot < len(drawn)]
    return np.array(places, np.int64)
