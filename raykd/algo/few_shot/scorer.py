"""What every rule comes to: a scorer of any image.

n images, C classes, D feature width, M keys of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

SCORED_ROWS = 4096  # that are scored together


@dataclass(frozen=True)
class Scorer:
    """``logits = x W' + b + exp(-2 beta (1 - x'key)) V``, over directions x: what every rule comes to.

    Args:
        weights_CD: float [C, D].
        bias_C: float [C].
        keys_MD, values_MC: Of the kernel, float; no rows: it has none. With keys of length 1, as all but trained ones
            are, it is ``exp(-beta |x - key|^2)``.
        beta: Of the kernel, > 0.
    """

    weights_CD: np.ndarray
    bias_C: np.ndarray
    keys_MD: np.ndarray
    values_MC: np.ndarray
    beta: float = 1.0

    def times(self, factor: float) -> Scorer:
        """All logits, times a factor."""
        weights, bias, values = (factor * each for each in (self.weights_CD, self.bias_C, self.values_MC))
        return replace(self, weights_CD=weights, bias_C=bias, values_MC=values)

    def plus(self, other: Scorer) -> Scorer:
        """The sum of both; two kernels must be over the same keys."""
        weights, bias = self.weights_CD + other.weights_CD, self.bias_C + other.bias_C
        kernel = self if len(self.keys_MD) else other
        values = kernel.values_MC
        if len(self.keys_MD) and len(other.keys_MD):
            assert self.beta == other.beta
            assert self.keys_MD is other.keys_MD
            values = self.values_MC + other.values_MC
        return Scorer(weights, bias, kernel.keys_MD, values, kernel.beta)

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        """float32 [n, C]. Cost: n D C products, with a kernel n M (D + C) more; memory: a block of rows.

        Args:
            features_ND: float [n, D], any length; NaN gives NaN, a row without a direction the bias.
        """
        weights_DC, bias_C, keys_DM, values_MC = (
            torch.from_numpy(np.ascontiguousarray(array, np.float32))
            for array in (self.weights_CD.T, self.bias_C, self.keys_MD.T, self.values_MC)
        )
        logits_NC = np.empty((len(features_ND), len(bias_C)), np.float32)
        for start in range(0, len(features_ND), SCORED_ROWS):
            rows_ND = torch.from_numpy(np.asarray(features_ND[start : start + SCORED_ROWS], np.float32))
            rows_ND = torch.nn.functional.normalize(rows_ND, dim=1)
            some_NC = torch.from_numpy(logits_NC[start : start + SCORED_ROWS])
            torch.addmm(bias_C, rows_ND, weights_DC, out=some_NC)
            if len(values_MC):
                some_NC.addmm_((rows_ND @ keys_DM).sub_(1).mul_(2 * self.beta).exp_(), values_MC)
        return logits_NC


def linear(weights_CD: np.ndarray, bias_C: np.ndarray | None = None) -> Scorer:
    """A scorer without a kernel."""
    num_classes, width = weights_CD.shape
    bias_C = np.zeros(num_classes) if bias_C is None else bias_C
    return Scorer(weights_CD, bias_C, np.empty((0, width)), np.empty((0, num_classes)))
