"""What looks wrong with a class list and its prompts, from embeddings and logits alone: before anybody labels.

N images, C classes, D embedding width. Each rule holds for the narrow cone that a CLIP's embeddings lie in, as it
compares what the same teacher says of one thing and another, and never a cosine with a number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

NEUTRAL = "something"  # stands in a class's place where no class is meant
BLOCK = 2**24  # distances that are looked at together
CLOSE = 0.3  # of the usual distance between two classes: far below what different words come to


class ClosePair(NamedTuple):
    """Two classes, by index, and their distance as a share of the usual one."""

    first: int
    second: int
    share: float


def first_choices(logits_NC: np.ndarray) -> np.ndarray:
    """Of how many images each class is the likeliest, int [C]; counts of parts add up.

    Example:
        >>> first_choices(np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 5.0, 1.0]]))
        array([2, 1, 0])
    """
    return np.bincount(logits_NC.argmax(axis=1), minlength=logits_NC.shape[1])


def neutral_margins(logits_NC: np.ndarray, neutral_N: np.ndarray) -> np.ndarray:
    """By how much a neutral text is likelier than every class, float [N]: above 0 an image looks like none of them.

    The neutral text is the classes' own prompts with :data:`NEUTRAL` for the name ("a photo of a something."), so what
    the prompts say besides the name is on both sides. A class that an image shows should beat it; neutral prompts so
    used are known from the detection of what lies outside a class list (CMA, arXiv 2405.16766). It is a hint to look at
    the images and no test of a single one: a class that the teacher does not know by its name, or a vague prompt, looks
    the same as an image that does not belong.

    Args:
        logits_NC: float [N, C], of the classes.
        neutral_N: float [N], of the neutral text, by the same rule.
    """
    return neutral_N - logits_NC.max(axis=1)


def close_pairs(classes_CD: np.ndarray, neutral_D: np.ndarray, close: float = CLOSE) -> list[ClosePair]:
    """Pairs of classes whose prompts nearly coincide, the closest first.

    The measure is the distance of two embeddings over the usual one: the root mean square over all pairs of classes
    and of a neutral text, without which two classes would be their own measure. What all embeddings share, and it is
    most of a CLIP's, cancels in a distance. A list of breeds is close together as a whole, and raises nothing; two
    breeds that are far closer than the others do.

    Args:
        classes_CD: float [C, D], rows of length 1.
        neutral_D: float [D], of length 1.
        close: Share of the usual distance below which a pair is close.

    Returns:
        Pairs with ``first < second``. Cost: C x C x D products, a block of rows at a time.
    """
    texts = np.concatenate([classes_CD, neutral_D[None]]).astype(np.float64)
    count = len(texts)
    usual = 2 * count / (count - 1) * (1 - float(np.sum(texts.mean(axis=0) ** 2)))  # mean square over all pairs
    if usual < 1e-12:
        return []  # all texts are one: nothing is closer than the rest
    found: list[ClosePair] = []
    rows = max(1, BLOCK // count)
    for start in range(0, len(classes_CD), rows):
        squares = 2 - 2 * texts[start : start + rows] @ texts[:-1].T
        for i, second in np.argwhere(squares < close**2 * usual).tolist():
            if start + i < second:
                share = math.sqrt(max(squares[i, second], 0.0) / usual)
                found.append(ClosePair(start + i, second, share))
    return sorted(found, key=lambda pair: pair.share)
