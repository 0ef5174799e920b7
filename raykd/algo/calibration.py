"""How sure probabilities should be: what brings them to where labels are likeliest. A teacher's and a student's.

N labeled images, C classes, K terms of a sum of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from raykd.algo.heads import Mixture, uncalibrated_probabilities

USUAL = (1.0, 0.5)  # weights of a teacher's texts and of what it has learned, as long as labels say nothing of them
DEVIATIONS = (0.5, 1.0)  # how far the logarithm of a weight may be from that of the usual one, about
FARTHEST = 10.0  # that it is looked for: a step of the search may go anywhere, and its exponential to infinity
TINY = 1e-300  # what a probability of 0 counts as


def fit_calibration(logits: Mapping[str, np.ndarray], mixture: Mixture, labels_N: np.ndarray) -> float:
    """``Mixture.calibration``: the temperature of the mixed probabilities under which labels are likeliest.

    One number, fitted by log-loss (temperature scaling, Guo et al. 2017, arXiv 1706.04599), of what the mixture says
    and not of its logits; of one head that is the same. The log-loss is convex in ``1 / calibration``, so there is one
    best. The prior is that of a teacher's temperature (:func:`honest_weights`), worth about one label: ten labels that
    are all right make nothing certain, and ten that are all wrong leave something.

    So no number of labels is too small. Log-loss of the demo's digits that were not fitted to, 30 draws: where
    probabilities are far off, 0.502, ten labels bring 0.297 and fifty 0.272; where nothing is wrong with them, 0.266,
    ten labels cost 0.007 and 150 labels 0.003.

    Args:
        logits: float [N, C] by column, of images that nothing was trained on (:data:`raykd.algo.heads.HEADS`).
        mixture: Of the two heads, as it was chosen.
        labels_N: int [N], class indices; none: 1.

    Returns:
        Above 0; above 1 where the student was too sure. Cost: about 20 passes over N x C.
    """
    log_probs_NC = np.log(np.maximum(uncalibrated_probabilities(logits, mixture), TINY))
    return 1 / honest_weights([log_probs_NC], labels_N, np.ones(len(labels_N)))[0]


def honest_weights(terms: Sequence[np.ndarray], labels_N: np.ndarray, says_N: np.ndarray) -> list[float]:
    """The weights of a sum of terms under which the labels are likeliest, all above 0.

    The first is 1 over the temperature (Guo et al. 2017, arXiv 1706.04599). A prior, worth about one label, keeps them
    near :data:`USUAL` as long as labels are few.

    Args:
        terms: One or two of float64 [N, C].
        labels_N: int [N].
        says_N: float64 [N], weights of the labels.
    """
    stacked_KNC = torch.from_numpy(np.stack(terms))
    labels, says = torch.from_numpy(labels_N.astype(np.int64)), torch.from_numpy(says_N)
    usual, deviations = (torch.tensor(of[: len(terms)], dtype=torch.float64) for of in (USUAL, DEVIATIONS))
    moved_K = torch.zeros_like(usual).requires_grad_()  # logarithms, from those of the usual weights
    search = torch.optim.LBFGS([moved_K], max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def weights() -> torch.Tensor:
        return usual * moved_K.clamp(-FARTHEST, FARTHEST).exp()

    def loss() -> torch.Tensor:
        search.zero_grad()
        logits_NC = torch.tensordot(weights(), stacked_KNC, dims=1)
        losses_N = torch.nn.functional.cross_entropy(logits_NC, labels, reduction="none")
        total: torch.Tensor = says @ losses_N + 0.5 * ((moved_K / deviations) ** 2).sum()
        total.backward()
        return total

    search.step(loss)
    return [float(weight) for weight in weights().detach()]


def log_losses(logits_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """-log of the probability of each label, float64 [N]."""
    tops_N = logits_NC.max(axis=1)
    sums_N = np.exp(logits_NC - tops_N[:, None]).sum(axis=1)
    losses_N: np.ndarray = tops_N + np.log(sums_N) - logits_NC[np.arange(len(labels_N)), labels_N]
    return losses_N
