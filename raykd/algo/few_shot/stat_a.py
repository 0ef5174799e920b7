"""A teacher that learns from the pool itself, without labels: StatA, class means that the texts hold on to.

n images of a shard, C classes, D feature width.

    state = start(teacher, texts_CD)
    for _ in range(ITERATIONS):  # each a pass over the features, in shards, in any order
        state = update(state, sum of pool_moments(shard, state.scorer) over the shards)
    state.scorer  # a teacher of any image

Each class is a Gaussian around its own mean, all of one diagonal covariance S, and the teacher to begin with is what is
believed before an image is seen: ``z = softmax(trust log p0 - (x - mu_c)'S^-1(x - mu_c) / (2 SOFTENED))``. S is shared,
so this is linear in x beside the teacher's logits, and what comes out is a :class:`~.scorer.Scorer` again. It is EM: z
from the means, then means from z, where the text of a class, moved by the gap, counts as ``alpha`` images of it, so
that classes that the pool has no images of stay where their texts are.

Numbers are those of StatA (Zanella, Fuchs et al., CVPR 2025, arXiv 2501.03729; code at github.com/MaxZanella/StatA,
solvers/StatA.py and main.py), gamma that of TransCLIP (Zanella et al., NeurIPS 2024, arXiv 2406.01837).

Departures. No term of neighbors in the pool, which would need a graph of them. One covariance, where StatA has one a
class, as only so the outcome is linear. Texts moved by the gap, and means as long as they are, where they bring both to
length 1. A class counts the sum of its z, which StatA has as ``soft_beta``, not the images that it wins. A label weighs
at least as much as an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raykd.algo.few_shot.scorer import Scorer, linear
from raykd.algo.few_shot.support import GRID, Support, text_share
from raykd.algo.heads import softmax

ITERATIONS = 10  # StatA_solver: max_iter
TRUST = 1.0  # lambda, of the teacher to begin with; StatA_solver: lambda_y_hat
ALPHA = 1.0  # images that the text of a class counts as; main.py: alpha
GAMMA = 0.002  # all labels together count as 50 gamma of the pool; the least of TransCLIP's, who choose by validation
SOFTENED = 50.0  # divides the log-likelihood, as D dimensions are not independent; StatA.py: update_z

Z_GRID = 2.0**12  # z is a whole multiple of 1 / Z_GRID
SQUARES_GRID = GRID * Z_GRID
LEAST_SCATTER = 0.01  # of a dimension, over that of all, mean: what does not move says nothing
BLOCK = 2**22  # numbers that a block of rows has at most


@dataclass(frozen=True)
class PoolMoments:
    """All that an iteration wants to know of the pool: sums, so those of shards add up, to the same bits.

    Directions are multiples of 2^-16, z of 2^-12, so their products are multiples of 2^-28, to which squares are
    rounded, and none is above 1: in float64, whose whole numbers go to 2^53, every sum over up to 2^25 images (33
    million) is exact, whatever the order.

    Args:
        counts_C: float64 [C], the sum of z. All together: the number of images.
        sums_CD: float64 [C, D], of the images, times z.
        squares_D: float64 [D], of the images' squares. The z of an image sum to 1 exactly, so they take no part.
    """

    counts_C: np.ndarray
    sums_CD: np.ndarray
    squares_D: np.ndarray

    def __add__(self, other: PoolMoments) -> PoolMoments:
        counts, sums = self.counts_C + other.counts_C, self.sums_CD + other.sums_CD
        return PoolMoments(counts, sums, self.squares_D + other.squares_D)

    def times(self, weight: float) -> PoolMoments:
        """As if each image were there ``weight`` times."""
        return PoolMoments(weight * self.counts_C, weight * self.sums_CD, weight * self.squares_D)

    def scatter(self, means_CD: np.ndarray) -> np.ndarray:
        """Of the images around means of classes, each as far as it belongs to them, summed, float64 [D]; >= 0."""
        pulls_CD = means_CD * (self.counts_C[:, None] * means_CD - 2 * self.sums_CD)
        return np.maximum(self.squares_D + pulls_CD.sum(axis=0), 0.0)


@dataclass(frozen=True)
class State:
    """Between two passes.

    Args:
        teacher: To begin with, tempered: the softmax of its logits is p0.
        texts_CD: float [C, D], directions.
        labeled: Of the labeled images, z their labels; zeros: there are none.
        alpha: Images that the text of a class counts as, >= 0.
        gamma: Labels together count as 50 gamma of the pool, and none less than an image, >= 0.
        trust: lambda, of the teacher.
        scorer: What z is computed with next, and the outcome.
        anchors_CD: Texts, moved by the gap; None before the first pass.
        scatter_D: Of the images around the anchors by the teacher to begin with, a mean: S as the texts have it.
    """

    teacher: Scorer
    texts_CD: np.ndarray
    labeled: PoolMoments
    alpha: float
    gamma: float
    trust: float
    scorer: Scorer
    anchors_CD: np.ndarray | None = None
    scatter_D: np.ndarray | None = None


def start(
    teacher: Scorer,
    texts_CD: np.ndarray,
    labeled: Support | None = None,
    *,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
    trust: float = TRUST,
) -> State:
    """Before the first pass: z is what the teacher says.

    Args:
        teacher: Any, zero-shot or refitted.
        texts_CD: float [C, D], directions.
        labeled: Images that have labels, whose own z is not asked for; the pool is to be without them.
        alpha, gamma, trust: See :class:`State`.
    """
    num_classes, width = texts_CD.shape
    known = PoolMoments(np.zeros(num_classes), np.zeros((num_classes, width)), np.zeros(width))
    if labeled is not None:
        known = _sums(labeled.features_ND, labeled.one_hot_NC)
    return State(teacher, np.asarray(texts_CD, np.float64), known, alpha, gamma, trust, teacher)


def pool_moments(features_ND: np.ndarray, scorer: Scorer) -> PoolMoments:
    """Of one shard, whose z are the scorer's probabilities.

    The same bits for any order and any shards, as a row's z does not depend on its place: a linear scorer is computed
    exactly (:func:`exact_logits`), up to ``exp``, whose last bit may differ from one kind of machine to another. A
    kernel (ProKeR, Tip-Adapter) is not exact, either. Such a difference, about 1e-16, moves a z only on the edge of two
    grid cells.

    Cost: 2 n C D products in float64, with a kernel n M (C + D) more; memory: :data:`BLOCK` numbers, a few times.

    Args:
        features_ND: float [n, D], any length; rows without a direction (zeros, NaN) are left out.
        scorer: :attr:`State.scorer`.
    """
    num_classes, width = scorer.weights_CD.shape
    total = PoolMoments(np.zeros(num_classes), np.zeros((num_classes, width)), np.zeros(width))
    step = max(1, BLOCK // max(num_classes, width, len(scorer.keys_MD)))
    for first in range(0, len(features_ND), step):
        rows_ND = np.asarray(features_ND[first : first + step], np.float64)
        lengths_N = np.sqrt((rows_ND * rows_ND).sum(axis=1))
        some_N = np.isfinite(lengths_N) & (lengths_N > 0)
        rows_ND = np.round(rows_ND[some_N] / lengths_N[some_N, None] * GRID) / GRID
        total += _sums(rows_ND, on_grid(softmax(exact_logits(scorer, rows_ND))))
    return total


def update(state: State, pool: PoolMoments) -> State:
    """After a pass: new means, a new covariance, and the scorer that they make.

    The first pass, whose z are the teacher's, gives the gap from texts to images, ``mean of images - mean of texts,
    each as often as its class``, over pool and labels; and S around the texts moved by it. Both stay, as anchors.

    ``mu_c = b mean_c + (1 - b) anchor_c`` with ``b = n_c / (n_c + alpha)``, n_c the images of the class: what counts
    the anchor as ``alpha`` images. S counts ``alpha`` images of each class around its anchor, too. A label weighs more
    in a mean than an image of the pool (gamma), but is one image of n_c: the text is no less worth for it.

    Cost: C D.

    Args:
        state: The one that the moments were computed with.
        pool: Of all shards, added up.
    """
    num_pool, num_labels = pool.counts_C.sum(), state.labeled.counts_C.sum()
    weight = max(1.0, SOFTENED * state.gamma * num_pool / max(num_labels, 1.0))
    weighed = pool + state.labeled.times(weight)
    num_weighed = weighed.counts_C.sum()
    if not num_weighed:
        return state
    anchors_CD, around_D = state.anchors_CD, state.scatter_D
    if anchors_CD is None or around_D is None:
        gap_D = (weighed.sums_CD.sum(axis=0) - weighed.counts_C @ state.texts_CD) / num_weighed
        anchors_CD = state.texts_CD + gap_D
        around_D = weighed.scatter(anchors_CD) / num_weighed
    anchored_C1 = text_share(pool.counts_C + state.labeled.counts_C, state.alpha)[:, None]
    data_CD = weighed.sums_CD / np.maximum(weighed.counts_C, 1 / Z_GRID)[:, None]
    means_CD = (1 - anchored_C1) * data_CD + anchored_C1 * anchors_CD
    of_anchors_D = len(means_CD) * around_D + ((anchors_CD - means_CD) ** 2).sum(axis=0)
    scatter_D = weighed.scatter(means_CD) + state.alpha * of_anchors_D
    scatter_D = scatter_D / (num_weighed + state.alpha * len(means_CD))
    least = max(LEAST_SCATTER * scatter_D.mean(), GRID**-2)
    precise_CD = means_CD / np.maximum(scatter_D, least) / SOFTENED
    gaussian = linear(precise_CD, -0.5 * (precise_CD * means_CD).sum(axis=1))
    scorer = state.teacher.times(state.trust).plus(gaussian)
    return replace(state, scorer=scorer, anchors_CD=anchors_CD, scatter_D=around_D)


def exact_logits(scorer: Scorer, rows_ND: np.ndarray) -> np.ndarray:
    """float64 [n, C]; of a linear scorer each row's bits are its own, however many are computed together.

    Weights are rounded to a grid, 2^35 of whose steps are at least the length of the longest row; products with
    directions are then multiples of 2^-16 steps, their sums below 2^52 of those, and exact in any order.

    Args:
        rows_ND: float64 [n, D], directions on the grid of :func:`~.support.directions`.
    """
    longest = float(np.sqrt((scorer.weights_CD**2).sum(axis=1).max(initial=0.0)))
    grain = 2.0 ** (35 - np.ceil(np.log2(max(longest, GRID**-2))))
    logits_NC = rows_ND @ (np.round(scorer.weights_CD * grain) / grain).T + scorer.bias_C
    if len(scorer.keys_MD):
        logits_NC += np.exp(2 * scorer.beta * (rows_ND @ scorer.keys_MD.T - 1)) @ scorer.values_MC
    return logits_NC


def on_grid(probs_NC: np.ndarray) -> np.ndarray:
    """Probabilities as whole multiples of 1 / Z_GRID, float64 [n, C], whose rows sum to 1 exactly.

    What is rounded are the sums from the first class on, so no run of classes is off by more than one step: of many
    that are each below a step, a few get one.
    """
    steps_NC = np.round(np.cumsum(probs_NC, axis=1) * Z_GRID)
    return np.diff(steps_NC, axis=1, prepend=0.0) / Z_GRID


def _sums(rows_ND: np.ndarray, shares_NC: np.ndarray) -> PoolMoments:
    squares_D = (np.round(rows_ND * rows_ND * SQUARES_GRID) / SQUARES_GRID).sum(axis=0)
    return PoolMoments(shares_NC.sum(axis=0), shares_NC.T @ rows_ND, squares_D)
