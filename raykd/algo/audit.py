"""How good a student is on its pool, by labels that are bought for nothing but that question.

A audited images, M set aside, N in the pool, L looks.

*Of what.* Of the pool as it was at the start, without images that came with a label: how often a student is right on a
random image of it whose label it was not trained on. Images that it was trained on are never counted: a student knows
their answers.

*How they are drawn.* All images have one random order, by seed and ``sample_id`` (:func:`audit_order`). The first M are
set aside **before the first pick**: no strategy is ever offered them. Each round's share of the budget buys the labels
of the next ones, in that order, and they are used in no training. So after any round the audited images are the
beginning of a random order of the whole pool: one simple random sample that grows, whatever was picked in between, and
every image of it counts the same. A pool that has grown since has new images at places before the last audited one:
they are audited next, and until they are the sample is of the older pool.

*Why not from what each round leaves.* What a strategy takes away are not images like the others, so a sample of the
rest is one of an easier pool (or a harder one), off by up to the share of the pool that was picked. Weights by draw
probabilities (Horvitz and Thompson) do not mend it: for them one must know of each audited image how many rounds it
would have been left in the pool had it not been audited, and nobody does. Setting aside costs nothing but that a
strategy chooses among the others; a twentieth of the pool, of a large one some 10,000 images, is plenty. The tests of
this module have both designs side by side: where the hardest third of a pool is picked, the second is 9 points off.

*What else to know.* A student is distilled on the whole pool, without labels, the images set aside among it as the
others are: leave them there, or they are no longer like the others. On images from elsewhere it may be a little worse.
And labels that have chosen something (a mixture of heads, a calibration) flatter what they have chosen: let one part of
the audit choose, and the other measure (:func:`chooses`).
"""

from __future__ import annotations

from typing import Literal, TypedDict

import numpy as np

from raykd.algo.errors import UserError
from raykd.algo.keyed import bits, generator, uniform
from raykd.algo.statistics import exact_interval, exact_low, student_t, wilson

FEW = 100  # audited images, up to which only the exact interval is sure to hold
RARE = 15  # right ones, or wrong ones: with fewer nothing is known of what goes with being wrong


def audit_order(hashes_N: np.ndarray, seed: int) -> np.ndarray:
    """The order in which a pool's images are set aside and audited: rows, int64 [N], the same images for any row order.

    Args:
        hashes_N: uint64 [N], from :func:`raykd.algo.keyed.hash_ids`.
        seed: One for all rounds of a campaign: a new order each round would be a new sample.
    """
    return np.lexsort((hashes_N, bits(hashes_N, seed, "audit")))


def last_draw(hashes_N: np.ndarray, seed: int, count: int) -> int:
    """The draw of the last of the first ``count`` images in that order: what is set aside, in one number.

    So images that come into the pool later are set aside in the same share (:func:`is_aside`).
    """
    return int(np.partition(bits(hashes_N, seed, "audit"), count - 1)[count - 1])


def is_aside(hashes_N: np.ndarray, seed: int, last: int) -> np.ndarray:
    """Which images are set aside, bool [N]; ``last`` is of :func:`last_draw`."""
    aside_N: np.ndarray = bits(hashes_N, seed, "audit") <= np.uint64(last)
    return aside_N


def places_of_audits(num_picks: int, num_audits: int, *key: int | str) -> np.ndarray:
    """Where a round's audits stand among its picks, bool [num_picks + num_audits]: people see no pattern.

    Args:
        key: What the draw is for, such as seed and round.
    """
    places = np.zeros(num_picks + num_audits, bool)
    places[generator(*key, "audit places").permutation(len(places))[:num_audits]] = True
    return places


def chooses(hashes_N: np.ndarray, seed: int, share: float = 0.5) -> np.ndarray:
    """Which audited images may choose something, bool [N]; the others measure it. A coin of each image's own.

    So an image stays on its side as the audit grows, and each side is a simple random sample of the pool.

    Args:
        hashes_N: uint64 [N], from :func:`raykd.algo.keyed.hash_ids`.
        share: Of those that choose, 0 to 1.
    """
    chosen_N: np.ndarray = uniform(hashes_N, seed, "audit chooses") < share
    return chosen_N


class Audited(TypedDict):
    """How good a student is on the pool, by its audited images; 95 % intervals."""

    accuracy: float
    low: float
    high: float
    how: Literal["exact", "control variate"]  # which interval it is
    num_audited: int  # with an answer that is a class
    num_right: int
    worth: float  # labels that would say as much without a control variate
    exact_low: float  # of the share of right ones among the audited images, whatever ``how`` says
    exact_high: float


def audited_accuracy(
    right_A: np.ndarray,
    sure_A: np.ndarray | None = None,
    sure_M: np.ndarray | None = None,
    num_pool: int | None = None,
    known_A: np.ndarray | None = None,
) -> Audited:
    """The accuracy on the pool, without bias, and the interval that keeps its promise on as many images as there are.

    The *exact* interval (Clopper and Pearson; of a finite pool by the hypergeometric distribution) holds at any number
    of images: it is taken below 100 of them, and with fewer than 15 right or 15 wrong ones. From there on, where
    ``sure_A`` says how sure the student was, the :func:`control_variate`, which is narrower. Without it, exact always.

    Coverage of the 95 % interval (tests/algo/test_audit.py, 1,000 campaigns each): 93 to 97 % by control variate; 95 %
    or more where it is exact.

    Args:
        right_A: bool [A], A >= 1, whether the student is right on the audited images: a simple random sample of the
            pool, as the beginning of :func:`audit_order` is, that it was not trained on.
        sure_A: float [A], its calibrated probability of being right on them: the largest of each row. It need not be
            true: what it is worth is measured.
        sure_M: float [M], the same of all images set aside, audited ones among them: another simple random sample of
            the pool, that contains the first. Of images that the student was trained on it says too much: none of them.
        num_pool: N >= M, where the accuracy is meant on these images alone and they are not many; None: on images like
            them. It narrows the interval where a sizeable share of the pool is audited.
        known_A: bool [A], whether people could give the image a class (unsure, cannot label, none of the classes: no);
            then the accuracy is that on images that they can. None: of all.

    Raises:
        UserError: No audited image has a class.

    Cost: milliseconds for some hundred images.

    Example:
        >>> found = audited_accuracy(np.arange(40) < 36)
        >>> found["accuracy"], found["how"], round(found["low"], 3), round(found["high"], 3)
        (0.9, 'exact', 0.763, 0.972)
    """
    right_A = np.asarray(right_A, bool)
    known_A = np.ones(len(right_A), bool) if known_A is None else np.asarray(known_A, bool)
    num, num_right = int(known_A.sum()), int((right_A & known_A).sum())
    if not num:
        raise UserError(f"none of {len(right_A)} audited images has a class; expected at least one label to measure on")
    exact = exact_interval(num_right, num, num_pool if known_A.all() else None)
    found: Audited = {
        "accuracy": num_right / num,
        "low": exact[0],
        "high": exact[1],
        "how": "exact",
        "num_audited": num,
        "num_right": num_right,
        "worth": float(num),
        "exact_low": exact[0],
        "exact_high": exact[1],
    }
    if sure_A is None or sure_M is None or num < FEW or min(num_right, num - num_right) < RARE:
        return found
    accuracy, variance = control_variate(right_A, sure_A, sure_M, num_pool, known_A)
    if not (0 < accuracy < 1 and variance > 0):
        return found
    found["accuracy"], found["how"] = accuracy, "control variate"
    found["worth"] = accuracy * (1 - accuracy) / variance
    found["low"], found["high"] = wilson(accuracy, found["worth"], student_t(num - 2))
    return found


def control_variate(
    right_A: np.ndarray,
    sure_A: np.ndarray,
    sure_M: np.ndarray,
    num_pool: int | None = None,
    known_A: np.ndarray | None = None,
) -> tuple[float, float]:
    """Accuracy with the student's own certainty as a control variate, and its variance; arguments as above.

    Where the audited images happen to be ones that it is less sure of than of the others, it is better than they say::

        accuracy = mean_A(right - lam * sure) + lam * mean_M(sure),    lam = cov_A(right, sure) / var_A(sure)

    The regression estimator of survey sampling (Cochran 1977, chapter 7), as prediction-powered inference with power
    tuning has it (Angelopoulos et al. 2023, arXiv 2311.01453). Its variance, with rho the correlation of the two, is
    ``var(right) * ((1 - rho^2) / A + rho^2 / M - 1 / N)``: rho 0.5 is worth a third more labels. Departures: that
    ``lam`` was fitted on the audited images themselves is in the variance (each image's deviation is the one that it
    has to a line fitted without it), and so is how far the two means of ``sure`` are apart. Where some images have no
    class, accuracy is a share of two means, and its linear part takes the place of ``right``.

    An interval of it: Wilson's for as many images as would have this variance, with Student's t of A - 2 in place of
    the normal's 1.96 (Franco et al. 2019, Journal of Survey Statistics and Methodology 7). The plain one, two standard
    errors around, covers in 84 to 92 % of 100 images at accuracy 0.97.
    """
    known_A = np.ones(len(right_A), bool) if known_A is None else known_A
    sure_A, sure_M = np.asarray(sure_A, np.float64), np.asarray(sure_M, np.float64)
    count, set_aside = len(sure_A), len(sure_M)
    assert count == len(right_A) <= set_aside <= (num_pool or set_aside), (count, len(right_A), set_aside, num_pool)
    share = float(right_A[known_A].mean())
    parts_A = known_A * (right_A - share) / known_A.mean()  # their mean is 0
    away_A = sure_A - sure_A.mean()
    squares = float(away_A @ away_A)
    if squares <= 1e-12 * count:  # equally sure of all
        lam, leverage_A, moved = 0.0, np.full(count, 1 / count), 0.0
    else:
        lam, leverage_A = float(parts_A @ away_A) / squares, 1 / count + away_A**2 / squares
        moved = float(sure_M.mean() - sure_A.mean())
    left_A = (parts_A - lam * away_A) / np.maximum(1 - leverage_A, 1 / count)
    left, whole = float(left_A @ left_A) / (count - 1), float(parts_A @ parts_A) / (count - 1)
    apart = moved**2 / squares if moved else 0.0
    rest = 1 / set_aside - (1 / num_pool if num_pool else 0.0)
    return share + lam * moved, left * (1 / count - 1 / set_aside + apart) + whole * rest


# ---------------------------------------------------------------- at every look


def at_least(
    num_right: int, num_audited: int, look: int, num_looks: int | None = None, num_pool: int | None = None
) -> float:
    """The student is right on at least this share of the pool: wrong at any look in 5 % of campaigns at most.

    For those who look after each round and stop when they like what they see: of twenty looks at 95 % each, one may
    well be wrong. Each round has another student, of another accuracy, judged on a sample that contains the one before.
    A confidence sequence for one number that stays the same (a betting or mixture martingale, Waudby-Smith and Ramdas
    2024) does not cover that; one for a mean that moves covers the mean *over the rounds*, which is below the last
    student only if students never get worse. So nothing of the kind is assumed: the 5 % are shared out among the looks
    (a union bound), and each takes an exact one-sided interval at its share. That holds however accuracies move and
    however the answers of two rounds hang together. It costs width (of ten planned looks 2.6 standard errors in place
    of 1.6), and promises too little rather than too much.

    Args:
        num_right, num_audited: Of this look; a simple random sample of the pool (:func:`audit_order`).
        look: From 0, of the campaign; one a round. The same student on more labels is another look.
        num_looks: How many there will be, if that is known before the first: each takes an equal share. None: look
            ``k`` takes ``1 / ((k + 1) (k + 2))`` of the 5 %, and there may be any number.
        num_pool: As of :func:`audited_accuracy`.

    Raises:
        UserError: More looks than were planned.

    Example:
        >>> round(at_least(97, 100, look=0), 3), round(at_least(97, 100, look=9), 3), round(at_least(97, 100, 9, 10), 3)
        (0.915, 0.867, 0.895)
    """
    if num_looks is not None and look >= num_looks:
        raise UserError(f"look {look + 1} of {num_looks} planned ones; expected no more, as the 5 % are spent by then")
    share = 1 / ((look + 1) * (look + 2)) if num_looks is None else 1 / num_looks
    return exact_low(num_right, num_audited, num_pool, 0.05 * share) if num_audited else 0.0
