"""Which labels may be slips, by what a teacher that has not seen them says of the images. N labels, C classes.

A label that such a teacher finds improbable may be wrong, or the image hard. Confident learning (Northcutt et al. 2021,
arXiv 1911.00068) marks a label where another class is above the mean probability of that class's own labels, and ranks
by the margin. With few labels a class and a teacher that is right on half of the images that marks most of the labels
when none is wrong. So the line is drawn by a model of both::

    P(label y of image x) = (1 - share) p_x(y) + share / C

A label is what the teacher's probabilities say or, a share of them, a slip: any class, whatever the image shows. The
share, and the temperature of p, are those under which all labels are likeliest. A teacher that is often wrong and knows
it explains improbable labels by itself, and the share is 0; what no temperature explains is slips. As long as labels do
not speak for any at 95 %, none is suspected.

It finds what a hand does wrong: the wrong line, a shifted column, an answer without a look. Who takes a class for its
neighbour does to the teacher what a hard image does, and is found only where the teacher is sure.

Measured (``python jobs/bench_teachers.py slips --data FOLDER``, 8 seeds; all figures in jobs/results/teachers.md): of
200 labels of digits 20 were changed at random, 16.5 are suspected, and 15.8 of these are wrong. Of 400 labels of
Tiny-ImageNet, two a class and a teacher that is often wrong, it was 20, 8.2 and 6.0, and 12 wrong ones are among the
first 20 of the order. With no label changed none was suspected in any of 48 sets; confident learning's line marks 2 to
252 labels of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from raykd.algo.calibration import DEVIATIONS, TINY
from raykd.algo.few_shot.rules import fit_rule, say_enough
from raykd.algo.few_shot.support import Support
from raykd.algo.heads import softmax
from raykd.algo.statistics import Z95

FEW = 2000  # labels, up to which ProKeR judges: its leave-one-out is the better calibrated one, but costs N^3
MOST = 0.5  # share of slips at most: with more there is nothing to go by
WIDEST = 3.0  # of the logarithm of the temperature: how far from 0 it is looked for
TRIED = 13  # of these first,
CLOSE = 1e-3  # and then so closely


@dataclass(frozen=True)
class Slips:
    """Labels, and what a teacher that has not seen them says.

    Args:
        labels_N: int64 [N], class indices.
        probs_NC: float64 [N, C], the teacher's, with the temperature under which the labels are likeliest.
        share: Of the labels that are slips, 0 to :data:`MOST`; 0: the labels do not speak for any.
    """

    labels_N: np.ndarray
    probs_NC: np.ndarray
    share: float

    @cached_property
    def given_N(self) -> np.ndarray:
        """How probable each label is, float64 [N]."""
        given_N: np.ndarray = self.probs_NC[np.arange(len(self.labels_N)), self.labels_N]
        return given_N

    @cached_property
    def suggested_N(self) -> np.ndarray:
        """The likeliest other class, int64 [N]."""
        others_NC = self.probs_NC.copy()
        others_NC[np.arange(len(self.labels_N)), self.labels_N] = -1.0
        suggested_N: np.ndarray = others_NC.argmax(axis=1)
        return suggested_N

    @property
    def margins_N(self) -> np.ndarray:
        """The probability of the label less that of the likeliest other class, float64 [N], -1 to 1."""
        margins_N: np.ndarray = self.given_N - self.probs_NC[np.arange(len(self.labels_N)), self.suggested_N]
        return margins_N

    @property
    def slip_N(self) -> np.ndarray:
        """How probable it is of each label that it is a slip, float64 [N]."""
        blind = self.share / self.probs_NC.shape[1]
        slip_N: np.ndarray = blind / np.maximum((1 - self.share) * self.given_N + blind, TINY)
        return slip_N

    @property
    def suspects_N(self) -> np.ndarray:
        """Which labels are slips rather than not, bool [N]."""
        suspects_N: np.ndarray = self.slip_N > 0.5
        return suspects_N

    @property
    def order_N(self) -> np.ndarray:
        """The labels, int64 [N], likeliest slips first: the least probable; of equals, by margin."""
        return np.lexsort((self.margins_N, self.given_N))

    @property
    def by_chance(self) -> float:
        """How many right labels of such images would be suspected: as the teacher is not certain of any."""
        line = self.share / (1 - self.share) / self.probs_NC.shape[1]  # a suspected label is less probable than this
        return float(self.probs_NC[self.probs_NC < line].sum())


def slips_among(support: Support) -> Slips:
    """Which labels of a support are slips, by few-shot teachers that have each not seen one of them.

    ProKeR's exact leave-one-out, of more than :data:`FEW` labels GDA's. The teacher's own rule is not asked: it may
    learn nothing, or cost far more. Views are not looked at. As long as labels do not say enough of how good a teacher
    is (:func:`raykd.algo.few_shot.rules.say_enough`; one of each class), no slips are looked for, and the texts alone
    are asked.

    Cost: that of the rule, less than a second for some hundred labels of some classes. With D = 512 and 1,000 classes
    2,000 labels take 33 s of one core (ProKeR), 8,000 labels 28 s (GDA) and 2.3 GiB.

    Raises:
        UserError: As :class:`Support` does.
    """
    if not say_enough(support):
        return find_slips(fit_rule("zero_shot", support).logits_NC, support.labels_N, 0.0)
    fitted = fit_rule("proker" if len(support.labels_N) <= FEW else "gda", support)
    return find_slips(fitted.logits_NC, support.labels_N, MOST)


def find_slips(logits_NC: np.ndarray, labels_N: np.ndarray, most: float = MOST) -> Slips:
    """Which labels are slips, as far as out-of-sample logits can tell.

    Whether there are any is told by the likelihood ratio of the best share against none; it must be above that of a
    95 % test. The temperature, of both alike, has the prior that it has everywhere
    (:func:`raykd.algo.calibration.honest_weights`).

    Args:
        logits_NC: float [N, C], of each image by a teacher that has not seen its label; C > 1.
        labels_N: int [N], class indices.
        most: Share of slips at most, below 1; 0: none are looked for.

    Returns:
        Cost: about 40 passes over N x C.

    Example:
        >>> labels = np.arange(60) % 3
        >>> logits = np.linspace(1, 12, 60)[:, None] * np.eye(3)[labels]  # surer and surer
        >>> labels[55] = 2  # what was a 1
        >>> found = find_slips(logits, labels)
        >>> np.flatnonzero(found.suspects_N).tolist(), found.suggested_N[55].item(), found.by_chance < 0.1
        ([55], 1, True)
    """
    logits_NC = np.asarray(logits_NC, np.float64)
    rows_N, uniform = np.arange(len(labels_N)), 1 / logits_NC.shape[1]

    @cache
    def given_N(moved: float) -> np.ndarray:
        """The probability of each label at a temperature of which this is the logarithm."""
        probs_N: np.ndarray = softmax(logits_NC / math.exp(moved))[rows_N, labels_N]
        return probs_N

    def share_at(moved: float) -> float:
        return best_share(given_N(moved), uniform, most)

    def loss(moved: float, share: float) -> float:
        likely_N = (1 - share) * given_N(moved) + share * uniform
        return float(-np.log(np.maximum(likely_N, TINY)).sum() + 0.5 * (moved / DEVIATIONS[0]) ** 2)

    none = lowest_loss(lambda moved: loss(moved, 0.0))
    some = lowest_loss(lambda moved: loss(moved, share_at(moved)))
    if 2 * (loss(none, 0.0) - loss(some, share_at(some))) > Z95**2:
        return Slips(labels_N, softmax(logits_NC / math.exp(some)), share_at(some))
    return Slips(labels_N, softmax(logits_NC / math.exp(none)), 0.0)


def best_share(given_N: np.ndarray, uniform: float, most: float = MOST) -> float:
    """The share of slips, 0 to ``most``, under which labels of these probabilities are likeliest.

    The likelihood is concave in the share, so it is where the slope is 0: found by halving.
    """

    def rises_at(share: float) -> bool:
        likely_N = np.maximum((1 - share) * given_N + share * uniform, TINY)
        return float(((uniform - given_N) / likely_N).sum()) > 0

    if not rises_at(0.0):
        return 0.0
    low, high = 0.0, most
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rises_at(middle) else (low, middle)
    return low


def lowest_loss(loss: Callable[[float], float]) -> float:
    """Where a loss of a temperature's logarithm is lowest: the best of a few, then golden section around it."""
    tried = np.linspace(-WIDEST, WIDEST, TRIED).tolist()
    best = min(range(TRIED), key=lambda n: loss(tried[n]))
    low, high = tried[max(best - 1, 0)], tried[min(best + 1, TRIED - 1)]
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    while high - low > CLOSE:
        if loss(left) <= loss(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    return (low + high) / 2
