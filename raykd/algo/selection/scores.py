"""One number a row, the lowest is wanted: what the simple strategies pick by.

A score is a function of a shard (``shard.rows``, ``shard.hashes_N``) and any further arguments, to float or uint64 [N].
It runs where the rows are; anyone's function will do that workers can import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raykd.algo import keyed
from raykd.algo.selection.distances import EXACT_VALUES, Euclidean
from raykd.algo.selection.rows import blocks

if TYPE_CHECKING:
    from raykd.algo.selection.shard import Shard


def keyed_draw(shard: Shard, *key: int | str) -> np.ndarray:
    """A random number that belongs to the row's id and the key."""
    return keyed.bits(shard.hashes_N, *key)


def negative_entropy(shard: Shard) -> np.ndarray:
    """``sum p ln p``, 0 ln 0 = 0."""
    probs_NC = shard.probs()
    out_N = np.empty(len(probs_NC))
    for part in blocks(len(probs_NC), probs_NC.shape[1], EXACT_VALUES):
        block = probs_NC[part].astype(np.float64, order="C")
        out_N[part] = (block * np.log(np.maximum(block, 1e-300))).sum(axis=1)
    return out_N


def lead_of_first_class(shard: Shard) -> np.ndarray:
    """The most probable class's lead over the next."""
    probs_NC = shard.probs()
    out_N = np.empty(len(probs_NC))
    for part in blocks(len(probs_NC), probs_NC.shape[1], EXACT_VALUES):
        top = np.partition(probs_NC[part], max(0, probs_NC.shape[1] - 2), axis=1)[:, -2:].astype(np.float64)
        out_N[part] = top[:, -1] - (top[:, 0] if top.shape[1] > 1 else 0.0)
    return out_N


def negative_peakedness(shard: Shard) -> np.ndarray:
    """Minus the squared distance from the uniform distribution."""
    probs_NC = shard.probs()
    num_rows, width = probs_NC.shape
    uniform_1C = np.full((1, max(width, 1)), 1.0 / max(width, 1))
    sq_N = np.empty(num_rows)
    for part in blocks(num_rows, width, EXACT_VALUES):
        sq_N[part] = Euclidean("probs").exact(np.asarray(probs_NC[part], np.float32), uniform_1C)
    return -sq_N
