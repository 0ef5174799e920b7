"""From a config to the mixture of one round, found in this process: for simulations and sweeps.

A campaign's round finds the same on Ray Tune (``stages/mix.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from raykd.algo.heads import Mixture
from raykd.algo.mixture_search import TRIALS, searched
from raykd.config import MixtureConfig


def mixture_by(
    config: MixtureConfig, logits: Mapping[str, np.ndarray], labels_N: np.ndarray, *key: int, fixed: bool = False
) -> Mixture:
    """The mixture that a config finds, and its calibration, as far as it asks for them.

    Args:
        config: What to search, and whether to calibrate.
        logits: float [N, C] of each head; of one there is nothing to mix.
        labels_N: int [N], class indices, N >= 1.
        key: Of the draws: seed and round.
        fixed: The configured mixture stays.
    """
    mixture = Mixture(config.ce_weight, config.temperature)
    if config.search and len(logits) > 1 and not fixed:
        how = (str(config.search), config.objective, config.points, config.trials or TRIALS)
        mixture = searched(logits, labels_N, mixture, *how, *key)
    if config.calibrate:
        from raykd.algo.calibration import fit_calibration  # torch, which who begins a sweep has not needed so far

        mixture = replace(mixture, calibration=fit_calibration(logits, mixture, labels_N))
    return mixture
