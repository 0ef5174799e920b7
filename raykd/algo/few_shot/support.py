"""Labeled images and class texts, as a few-shot teacher sees them; and sums over them that are exact.

N labeled images, V augmented views of each, C classes, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from raykd.algo.errors import UserError

CLASS_FOLDS = 4  # in which classes are left out
MANY = 1024  # labels, from which on one of these folds has to do

GRID = 2.0**16  # directions are whole multiples of 1/GRID: finer than float16 for all but the smallest features


@dataclass(frozen=True)
class Texts:
    """What a teacher says of the classes without any label.

    Args:
        directions_CD: float [C, D], rows of length 1.
        scale: The model's own ``exp(logit_scale)``.
        lengths_C: float [C], of the text embeddings before they were brought to length 1; only CLAP looks at them.
    """

    directions_CD: np.ndarray
    scale: float
    lengths_C: np.ndarray | None = None


@dataclass(frozen=True)
class Support:
    """Labeled images, as a few-shot teacher sees them. What is computed of them is kept: not to be written into.

    Args:
        features_ND: float [N, D], of the images as they are; any length but 0.
        labels_N: int [N], class indices.
        texts: Of the classes.
        views_NVD: float [N, V, D], of augmented views, any length but 0; None: the images are their only views.

    Raises:
        UserError: There are no labels, one is no class, widths differ, or a row has no direction.
    """

    features_ND: np.ndarray
    labels_N: np.ndarray
    texts: Texts
    views_NVD: np.ndarray | None = None

    def __post_init__(self) -> None:
        count, width = self.features_ND.shape
        num_classes, text_width = self.texts.directions_CD.shape
        if not count:
            raise UserError("a few-shot teacher learns from labels, and there are none; expected at least one")
        if width != text_width:
            raise UserError(f"features of width {width}, texts of width {text_width}; expected those of one model")
        if (odd := self.labels_N[(self.labels_N < 0) | (self.labels_N >= num_classes)]).size:
            raise UserError(f"label {odd[0]} is no class; expected 0 to {num_classes - 1}")
        object.__setattr__(self, "features_ND", directions(self.features_ND, "the features of labeled image"))
        if self.views_NVD is not None:
            object.__setattr__(self, "views_NVD", directions(self.views_NVD, "the views of labeled image"))

    @property
    def seen_NVD(self) -> np.ndarray:
        """What is learned from, float64 [N, V, D]."""
        return self.features_ND[:, None] if self.views_NVD is None else self.views_NVD

    @property
    def num_classes(self) -> int:
        return len(self.texts.directions_CD)

    @cached_property
    def counts_C(self) -> np.ndarray:
        """Labels of each class."""
        return np.bincount(self.labels_N, minlength=self.num_classes)

    @property
    def shares_C(self) -> tuple[np.ndarray, np.ndarray]:
        """What the labels of a class say of how good a teacher is, float64 [C] each: left out one by one, or all.

        Classes weigh the same, as those that have many labels are not therefore the frequent ones. A class whose labels
        are left out one by one says how classes with labels fare; with a single one it cannot. A class that is left out
        whole says how classes fare that have none, so all of these together weigh as much as those do, and, as a single
        label is not much more, half as much as those that have one. With one label of each class nothing says anything:
        the class that is left out is then the only one without, and that gives it away. Nor do labels of one class, or
        of two among more, as too few are then left to tell a class without labels from.
        """
        counts_C = self.counts_C
        many, alone, empty = (int(some.sum()) for some in (counts_C > 1, counts_C == 1, counts_C == 0))
        if many + alone < (3 if empty else 2):
            return np.zeros(len(counts_C)), np.zeros(len(counts_C))
        weak = empty + (alone / 2 if many else 0)
        return (counts_C > 1).astype(float), np.where(counts_C > 0, min(weak / (many + alone), 3.0), 0.0)

    def without_classes(self) -> list[tuple[np.ndarray, Support]]:
        """Labels of some classes, int [n], and all the others: every class is left out once, of many labels only some.

        There must be two classes with labels.
        """
        seen = np.flatnonzero(self.counts_C > 0)
        folds = min(CLASS_FOLDS, len(seen))
        found = []
        for fold in range(folds if len(self.labels_N) <= MANY else 1):
            out_N = np.isin(self.labels_N, seen[fold::folds])
            found.append((np.flatnonzero(out_N), self.some(np.flatnonzero(~out_N))))
        return found

    @cached_property
    def text_logits_NC(self) -> np.ndarray:
        """Zero-shot, of the labeled images, float64."""
        return self.texts.scale * self.features_ND @ self.texts.directions_CD.T

    @cached_property
    def one_hot_NC(self) -> np.ndarray:
        one_hot_NC: np.ndarray = np.eye(self.num_classes)[self.labels_N]
        return one_hot_NC

    @cached_property
    def sums(self) -> Moments:
        """Of the views that are learned from. Cost: that of :func:`moments`, once."""
        return moments(self.seen_NVD, self.labels_N, self.num_classes)

    def of_classes(self, classes: np.ndarray) -> Support:
        """Of a part of the classes, at least two of them, int [c]: their labels and texts alone."""
        texts = self.texts
        lengths = None if texts.lengths_C is None else texts.lengths_C[classes]
        texts = replace(texts, directions_CD=texts.directions_CD[classes], lengths_C=lengths)
        rows = np.flatnonzero(np.isin(self.labels_N, classes))
        some = self.some(rows)
        return replace(some, labels_N=np.searchsorted(classes, some.labels_N), texts=texts)

    def some(self, rows: np.ndarray) -> Support:
        """Of a part of the images."""
        views = None if self.views_NVD is None else self.views_NVD[rows]
        return replace(self, features_ND=self.features_ND[rows], labels_N=self.labels_N[rows], views_NVD=views)


def directions(features: np.ndarray, what: str) -> np.ndarray:
    """Rows of length 1, float64, rounded to a grid on which sums of their products are exact (:class:`Moments`).

    Raises:
        UserError: A row is zero or not finite; ``what`` says of what.
    """
    features = np.asarray(features, np.float64)
    lengths = np.sqrt((features * features).sum(axis=-1, keepdims=True))
    if (bad := np.argwhere(~(np.isfinite(lengths) & (lengths > 0)))).size:
        raise UserError(
            f"{what} {bad[0][0]} have length {lengths[tuple(bad[0])]:g}; expected a direction. The image shows the "
            "teacher nothing: answer it with cannot_label"
        )
    found: np.ndarray = np.round(features / lengths * GRID) / GRID
    return found


# ---------------------------------------------------------------- sums that are exact


@dataclass(frozen=True)
class Moments:
    """All that GDA wants to know of labeled views: sums, so those of several shards add up, to the same bits.

    Directions are multiples of 2^-16, their products of 2^-32: in float64 every sum of up to 2^21 of them is exact,
    whatever the order.

    Args:
        counts_C: int64 [C], images.
        sums_CD: float64 [C, D], of the mean view of each image, times ``views``.
        squares_DD: float64 [D, D], of the products of all views with themselves.
        views: V.
    """

    counts_C: np.ndarray
    sums_CD: np.ndarray
    squares_DD: np.ndarray
    views: int

    def __add__(self, other: Moments) -> Moments:
        assert self.views == other.views
        counts, sums = self.counts_C + other.counts_C, self.sums_CD + other.sums_CD
        return Moments(counts, sums, self.squares_DD + other.squares_DD, self.views)

    @property
    def num_seen(self) -> int:
        """Classes that have labels."""
        return int((self.counts_C > 0).sum())

    @property
    def means_CD(self) -> np.ndarray:
        """Of the views of each class; zeros where there are none."""
        means_CD: np.ndarray = self.sums_CD / np.maximum(self.counts_C * self.views, 1)[:, None]
        return means_CD

    @property
    def scatter_DD(self) -> np.ndarray:
        """Of all views around the mean of their class, summed."""
        scatter_DD: np.ndarray = self.squares_DD - self.sums_CD.T @ self.means_CD
        return scatter_DD


def moments(seen_NVD: np.ndarray, labels_N: np.ndarray, num_classes: int) -> Moments:
    """Of labeled views, directions on the grid. Cost: N V D D products.

    Args:
        seen_NVD: float64 [N, V, D], from :func:`directions`.
        labels_N: int [N].
        num_classes: C.
    """
    views, width = seen_NVD.shape[1:]
    rows = seen_NVD.reshape(-1, width)
    sums_CD = np.zeros((num_classes, width))
    np.add.at(sums_CD, labels_N, seen_NVD.sum(axis=1))
    return Moments(np.bincount(labels_N, minlength=num_classes), sums_CD, rows.T @ rows, views)


# ---------------------------------------------------------------- classes without labels


def mean_gap(means_CD: np.ndarray, counts_C: np.ndarray, texts_CD: np.ndarray) -> np.ndarray:
    """From texts to images, float64 [D]: the mean over the classes that have labels."""
    some_C = counts_C > 0
    gap_D: np.ndarray = (means_CD[some_C] - texts_CD[some_C]).mean(axis=0)
    return gap_D


def gaps_without(support: Support, sums: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The gap, and the mean of an image's class, when that image is left out: float64 [N, D] each.

    A class that has no other image has no mean then: zeros.
    """
    counts_C, means_CD, texts_CD = sums.counts_C, sums.means_CD, support.texts.directions_CD
    labels_N, own_ND = support.labels_N, support.seen_NVD.mean(axis=1)
    others_N = counts_C[labels_N] - 1
    means_ND = (counts_C[labels_N, None] * means_CD[labels_N] - own_ND) / np.maximum(others_N, 1)[:, None]
    means_ND[others_N == 0] = 0.0
    gap_D, alone_N = mean_gap(means_CD, counts_C, texts_CD), others_N == 0
    moved_ND = gap_D + (means_ND - means_CD[labels_N]) / sums.num_seen
    left_ND = sums.num_seen * gap_D - (means_CD - texts_CD)[labels_N[alone_N]]
    moved_ND[alone_N] = left_ND / max(sums.num_seen - 1, 1)  # no class left: no gap, as left is 0
    return moved_ND, means_ND


def text_backed(sums: Moments, texts_CD: np.ndarray, worth: float) -> np.ndarray:
    """Class means float64 [C, D], in which the text of a class, moved by the gap, counts as ``worth`` images."""
    gap_D = mean_gap(sums.means_CD, sums.counts_C, texts_CD)
    share_C1 = text_share(sums.counts_C, worth)[:, None]
    means_CD: np.ndarray = (1 - share_C1) * sums.means_CD + share_C1 * (texts_CD + gap_D)
    return means_CD


def text_share(counts: np.ndarray, worth: float) -> np.ndarray:
    """What a text that counts as ``worth`` images is of a mean: all of it where there are no images."""
    return np.where(counts > 0, worth / np.maximum(counts + worth, 1e-300), 1.0)
