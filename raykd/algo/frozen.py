"""What stands between the features of a network that stays as it is and a student's heads.

N images, D feature width, H width of the hidden layer.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROWS = 65_536  # whose float64 copy is in memory at a time


class Frozen(nn.Module):
    """The backbone of a student that learns nothing but what comes behind stored features: centring, a hidden layer.

    Features are centred and divided by one number (:func:`centring`), so that the same learning rates fit those of any
    network: CLIP's, of length 1, would want one ten to a hundred times as high. One number and not one a dimension, so
    that distances and angles about the mean stay. What else was tried is in jobs/LOG.md.

    Args:
        width: D.
        hidden: H, of one layer with GELU; None: the heads are on the centred features.
        network: The network itself, where images come in; None: features do, float [N, D].
        unit: Whether the network's features are brought to length 1, as those that were stored.
    """

    mean_D: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self, width: int, hidden: int | None = None, network: nn.Module | None = None, unit: bool = False
    ) -> None:
        super().__init__()
        self.unit, self.network = unit, network
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(()))
        self.hidden = None if hidden is None else nn.Linear(width, hidden)

    @property
    def width(self) -> int:
        """Of what the heads are given."""
        return len(self.mean_D) if self.hidden is None else self.hidden.out_features

    def centre(self, features_ND: np.ndarray) -> None:
        """Take mean and deviation from the features to train on."""
        mean_D, deviation = centring(features_ND)
        self.mean_D, self.deviation = torch.from_numpy(mean_D).float(), torch.tensor(deviation, dtype=torch.float32)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        features_ND = given if self.network is None else self.network(given)
        if self.network is not None and self.unit:
            features_ND = F.normalize(features_ND, dim=-1)
        centred_ND = (features_ND - self.mean_D) / self.deviation
        return centred_ND if self.hidden is None else F.gelu(self.hidden(centred_ND))


def centring(features_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of features, and how far their numbers are from it: the root of the mean square of all.

    In float64, block after block, so that it hangs on the rows and their order alone. One pass.

    Args:
        features_ND: float [N, D], finite; may be mapped from a file.

    Returns:
        float64 [D], and a number above 0: 1 where all rows are the same.

    Example:
        >>> centring(np.array([[1.0, 7.0], [3.0, 7.0]], np.float16))
        (array([2., 7.]), 0.7071067811865476)
    """
    sum_D, squares_D = np.zeros((2, features_ND.shape[1]))
    for start in range(0, len(features_ND), ROWS):
        block_ND = features_ND[start : start + ROWS].astype(np.float64)
        sum_D, squares_D = sum_D + block_ND.sum(axis=0), squares_D + np.square(block_ND).sum(axis=0)
    mean_D = sum_D / len(features_ND)
    variance = float(np.mean(squares_D / len(features_ND) - mean_D**2))
    return mean_D, variance**0.5 if variance > 1e-12 * float(np.mean(mean_D**2)) else 1.0
