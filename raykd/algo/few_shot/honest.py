"""The numbers that a rule leaves open, from labels that each teacher has not seen; and how good it then is.

N labeled images, V augmented views of each, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raykd.algo.calibration import USUAL, honest_weights, log_losses
from raykd.algo.few_shot.scorer import Scorer, linear
from raykd.algo.few_shot.support import Support, Texts
from raykd.algo.heads import softmax
from raykd.algo.metrics import HeldOut, calibration_error

FLAT = 1e-6  # of the texts' spread: what says less says nothing


class Learned(NamedTuple):
    """What a rule makes of labels: ``texts + strength * learned``, whose weights are still to be found.

    Args:
        texts, learned: Scorers; None: nothing is learned beside the texts.
        texts_NC, learned_NC: What they say of each labeled image, float64 [N, C], by a teacher that has not seen it.
        again: The same, with all that is chosen, of other labels; only its scorers count.
        chosen: What the labels have chosen so far.
    """

    texts: Scorer
    texts_NC: np.ndarray
    again: Callable[[Support], Learned]
    learned: Scorer | None = None
    learned_NC: np.ndarray | None = None
    chosen: Mapping[str, float] = {}


def text_scorer(texts: Texts) -> Scorer:
    """Zero-shot: ``scale * cosine``."""
    return linear(texts.scale * texts.directions_CD)


def text_only(support: Support) -> Learned:
    """Nothing learned beside the texts."""
    return Learned(text_scorer(support.texts), support.text_logits_NC, text_only)


Rule = Callable[[Support], Iterator[Learned]]  # what may be made of the labels; the likeliest is taken


class Fitted(NamedTuple):
    """A teacher after its refit.

    Args:
        rule: Its name; of ``auto`` the one that was taken.
        scorer: Of any image.
        chosen: What the labels chose, by name: ``temperature``, ``strength`` (of what is learned, 1 where it says as
            much as the texts) and the rule's own.
        before, untempered, after: On labels that it has not seen: the texts alone, with what is learned, and with the
            temperature, too. None: the labels say nothing of it (:attr:`Support.shares_C`).
        losses_M, says_M: float64 [M], of ``after``: -log of each label's probability, and what that says
            (:class:`Evidence`).
        logits_NC: float64 [N, C], of ``after``: what is said of each labeled image by a teacher that has not seen it.
    """

    rule: str
    scorer: Scorer
    chosen: Mapping[str, float]
    before: HeldOut | None
    untempered: HeldOut | None
    after: HeldOut | None
    losses_M: np.ndarray
    says_M: np.ndarray
    logits_NC: np.ndarray

    @property
    def choices_N(self) -> np.ndarray:
        """The likeliest class of each labeled image, int64 [N]."""
        choices_N: np.ndarray = self.logits_NC.argmax(axis=1)
        return choices_N


class Evidence(NamedTuple):
    """Labeled images, for teachers that have not seen them to be judged by; some twice, left out alone and by class.

    Args:
        labels_M: int [M], class indices; the first N are those of the support, left out one by one.
        says_M: float64 [M], what each says; their sum is the effective number.
        folds: The rows of the others among the support, and the support without all of their classes.
    """

    labels_M: np.ndarray
    says_M: np.ndarray
    folds: list[tuple[np.ndarray, Support]]


def evidence_of(support: Support) -> Evidence:
    """What there is to judge a teacher by; see :attr:`Support.shares_C`."""
    (one_C, all_C), labels_N = support.shares_C, support.labels_N
    counts_N = support.counts_C[labels_N]
    folds = support.without_classes() if all_C.any() else []
    rows = np.concatenate([np.arange(0), *(rows for rows, _ in folds)])
    share = len(np.unique(labels_N)) / max(len(np.unique(labels_N[rows])), 1)  # of classes that are left out
    says_M = np.concatenate([one_C[labels_N] / counts_N, share * (all_C[labels_N] / counts_N)[rows]])
    says_M = says_M * (says_M.sum() / max((says_M**2).sum(), 1e-12))
    return Evidence(np.concatenate([labels_N, labels_N[rows]]), says_M, folds)


def fitted(name: str, support: Support, rule: Rule, tempered: bool = True) -> Fitted:
    """Of all that a rule offers what makes the labels likeliest; the first where they say nothing.

    Args:
        tempered: Whether the labels choose weights at all; else the usual ones.
    """
    labels_M, says_M, folds = evidence = evidence_of(support)
    best: tuple[float, Learned, list[float], float, np.ndarray] | None = None
    for offer in rule(support):
        others = [offer.again(left) for _, left in folds]
        terms, unit = [judged(support, offer.texts_NC, [other.texts for other in others], evidence)], 1.0
        if offer.learned_NC is not None:  # in units of the texts' spread, so that a strength means the same anywhere
            learned_MC = judged(support, offer.learned_NC, [other.learned for other in others], evidence)
            spreads = row_spread(offer.texts_NC), row_spread(learned_MC)
            unit = spreads[0] / spreads[1] if spreads[1] > FLAT * spreads[0] else 0.0
            terms.append(unit * learned_MC)
        weights = honest_weights(terms, labels_M, says_M) if tempered else list(USUAL[: len(terms)])
        logits_MC = np.sum([weight * term_MC for weight, term_MC in zip(weights, terms, strict=True)], axis=0)
        loss = float(says_M @ log_losses(logits_MC, labels_M))
        if best is None or loss < best[0]:
            best = loss, offer, weights, unit, logits_MC
    assert best is not None, name
    _, offer, weights, unit, logits_MC = best
    scorer, chosen = offer.texts.times(weights[0]), {"temperature": 1 / weights[0]}
    if offer.learned is not None:
        scorer = scorer.plus(offer.learned.times(weights[1] * unit))
        chosen["strength"] = weights[1] / weights[0]
    texts_NC = support.text_logits_NC
    texts_MC = np.concatenate([texts_NC, *(texts_NC[rows] for rows, _ in folds)])
    return Fitted(
        name,
        scorer,
        {**chosen, **offer.chosen},
        before=held_out(texts_MC, labels_M, says_M),
        untempered=held_out(logits_MC / weights[0], labels_M, says_M),
        after=held_out(logits_MC, labels_M, says_M),
        losses_M=log_losses(logits_MC, labels_M),
        says_M=says_M,
        logits_NC=logits_MC[: len(support.labels_N)],
    )


def judged(support: Support, one_NC: np.ndarray, others: Sequence[Scorer | None], evidence: Evidence) -> np.ndarray:
    """What a term says of the images of the evidence, float64 [M, C].

    Args:
        one_NC: Of those that are left out one by one.
        others: The same term without the classes of each fold.
    """
    found = [one_NC]
    for (rows, _), scorer in zip(evidence.folds, others, strict=True):
        assert scorer is not None
        found.append(scorer.logits(support.features_ND[rows]).astype(np.float64))
    return np.concatenate(found)


def row_spread(logits_NC: np.ndarray) -> float:
    """How far apart the logits of a row are, root mean square."""
    return float(np.sqrt(np.mean((logits_NC - logits_NC.mean(axis=1, keepdims=True)) ** 2)))


def held_out(logits_NC: np.ndarray, labels_N: np.ndarray, says_N: np.ndarray) -> HeldOut | None:
    """Of logits that have not seen the labels, which weigh what they say; None where they say nothing."""
    if not says_N.any():
        return None
    probs_NC = softmax(logits_NC)
    return {
        "accuracy": float(np.average(probs_NC.argmax(axis=1) == labels_N, weights=says_N)),
        "log_loss": float(np.average(log_losses(logits_NC, labels_N), weights=says_N)),
        "ece": calibration_error(probs_NC, labels_N, weights_N=says_N),
    }
