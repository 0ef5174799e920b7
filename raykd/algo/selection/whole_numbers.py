"""Distances that any order of sums leaves the same to the last bit: vectors as whole multiples of 2^-25.

A vector no longer than about 1 has then whole coordinates of at most 2^25, and products and squared distances below
2^53: so float64 holds every partial sum exactly, and a matrix product (BLAS, any block, any number of threads) gives
the same numbers as a plain loop. It costs a float64 product, twice a float32 one. Float32 itself rounds the coordinates
of a vector of length 1 by up to 2^-25; distances here are off by sqrt(W) times 2^-26 at most.

N rows, K others, W the width of the vectors.
"""

from __future__ import annotations

import numpy as np

ONE = 2.0**25


def to_whole(x_NW: np.ndarray) -> np.ndarray:
    """Vectors no longer than about 1 in multiples of 2^-25: float64 [N, W], whole numbers."""
    return np.rint(np.multiply(x_NW, ONE, dtype=np.float64))


def whole_squares(x_NW: np.ndarray, y_KW: np.ndarray) -> np.ndarray:
    """Squared distances of whole vectors, in multiples of 2^-50: float64 [N, K], exact. Cost: N * K * W."""
    sq_NK = x_NW @ (-2 * y_KW).T
    sq_NK += (x_NW * x_NW).sum(axis=1)[:, None]
    sq_NK += (y_KW * y_KW).sum(axis=1)
    return sq_NK
