"""Gaussian discriminant analysis as a few-shot teacher, with an exact leave-one-out.

N labeled images, V augmented views of each, C classes, D feature width, n images of a block, r columns of a downdate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raykd.algo.few_shot.honest import Learned, text_only
from raykd.algo.few_shot.scorer import linear
from raykd.algo.few_shot.support import Moments, Support, gaps_without, mean_gap, text_backed, text_share

BLOCK = 2**24  # numbers that a leave-one-out holds at a time
NO_SCATTER = 1e-9  # of all labels together: what rounding leaves when those of each class are all the same
TEXT_WORTH = (0.1, 10.0)  # how many labeled images the text of a class is worth: at least, and at most


def gda(support: Support) -> Iterator[Learned]:
    """Gaussian discriminant analysis: each class a Gaussian around the mean of its images, all of one covariance.

    ``learned = x'w_c + b_c``, ``w_c = P mu_c``, ``b_c = -mu_c'P mu_c / 2``, ``P = D (S + tr(S) / (NV - 1) I)^-1`` with
    S the scatter of all views around the mean of their class (Wang et al., ICLR 2024, arXiv 2402.04087).

    Departures, for lopsided labels. A mean counts the text of its class, moved by the gap, as so many images as it is
    worth: the noise of an image over that of a text, both measured on the labels (:func:`text_worth`). ``b_c`` gets
    back what the noise of a mean takes from it, ``noise / 2 (n_c + worth)``: else a class would lose for having few
    labels. Strength and temperature come from leave-one-out, not from a validation set.

    Cost: (V + 3) N D C products; memory: :data:`BLOCK` numbers beside N x C.
    """
    texts_CD, num_views = support.texts.directions_CD, support.seen_NVD[..., 0].size
    sums = support.sums
    scales_D, axes_DD = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(sums.scatter_DD)))
    scales_D = np.maximum(scales_D, 0.0)
    precision_D = 1 / (scales_D + ridge_of(scales_D.sum(), num_views))
    noise = float((precision_D * scales_D).sum()) / max(num_views - sums.num_seen, 1)
    worth = text_worth(sums, texts_CD, axes_DD, precision_D, noise)
    means_CD = text_backed(sums, texts_CD, worth) @ axes_DD
    precise_CD = means_CD * precision_D
    bias_C = 0.5 * (noise / (sums.counts_C + worth) - (precise_CD * means_CD).sum(axis=1))
    width = len(axes_DD)
    held_out_NC = np.concatenate([part.scores(means_CD, worth) for part in _left_out(support, sums, scales_D, axes_DD)])
    yield text_only(support)._replace(
        learned=linear(width * precise_CD @ axes_DD.T, width * bias_C),
        learned_NC=width * held_out_NC,
        again=lambda others: next(gda(others)),
        chosen={"text_worth": worth},
    )


def text_worth(
    sums: Moments, texts_CD: np.ndarray, axes_DD: np.ndarray, precision_D: np.ndarray, noise: float
) -> float:
    """How many labeled images the text of a class is worth, within :data:`TEXT_WORTH`; 1 where labels do not say.

    The expected squared distance of an image from the mean of its class, over that of a moved text.
    """
    some_C = sums.counts_C > 0
    if noise <= 0 or sums.num_seen < 2:
        return 1.0
    gap_D = mean_gap(sums.means_CD, sums.counts_C, texts_CD)
    off_CD = (sums.means_CD - texts_CD - gap_D)[some_C] @ axes_DD
    of_texts = float((off_CD**2 @ precision_D).sum()) / (sums.num_seen - 1) - noise * (1 / sums.counts_C[some_C]).mean()
    least, most = TEXT_WORTH
    return float(np.clip(noise / max(of_texts, noise / most), least, most))


@dataclass(frozen=True)
class _LeftOut:
    """A block of n labeled images, each with what all the others make of GDA: rank-r downdates of the whole.

    Vectors are in the axes of the whole scatter S, where it is diagonal. Without an image, ``A = (S - UU' + ridge
    I)^-1`` is ``B + B U T U'B`` with ``B = (S + ridge I)^-1`` and ``T = (I - U'BU)^-1`` (Woodbury).

    Args:
        inverse_ND: The diagonal of B.
        vectors_NRD: The image itself, the change of the gap, and the columns of U, float64 [n, 2 + r, D].
        middles_Nrr: T.
        means_ND: Of the other images of its class.
        texts_ND: The text of its class, moved by the gap.
        noise_N: Of an image around the mean of its class.
        counts_C: Labeled images of each class, this one among them.
        labels_N: The class of each.
    """

    inverse_ND: np.ndarray
    vectors_NRD: np.ndarray
    middles_Nrr: np.ndarray
    means_ND: np.ndarray
    texts_ND: np.ndarray
    noise_N: np.ndarray
    counts_C: np.ndarray
    labels_N: np.ndarray

    def scores(self, means_CD: np.ndarray, worth: float) -> np.ndarray:
        """GDA's ``x'w_c + b_c`` over D of each image, float64 [n, C], by all the others.

        Args:
            means_CD: Of all images, in the axes, the texts counted as ``worth`` images.
        """
        inverse_ND, middles, labels_N = self.inverse_ND, self.middles_Nrr, self.labels_N
        weighted_NRD = self.vectors_NRD * inverse_ND[:, None]
        others_N = self.counts_C[labels_N] - 1
        own_N1 = text_share(others_N, worth)[:, None]
        own_ND = (1 - own_N1) * self.means_ND + own_N1 * self.texts_ND
        to_means_NRC = flat_product(weighted_NRD, means_CD.T)
        to_own_NR1 = batch_product(weighted_NRD, own_ND[:, :, None])
        to_each_NRR = batch_product(weighted_NRD, self.vectors_NRD.transpose(0, 2, 1))
        pair = to_each_NRR[:, 2:, :2]  # U'B of the image and of the change of the gap

        def products(with_columns: np.ndarray, plain: np.ndarray) -> np.ndarray:
            """p'Aq of the pair with each q, from U'Bq [n, r, q] and p'Bq [n, 2, q]."""
            return plain + batch_product(batch_product(pair.transpose(0, 2, 1), middles), with_columns)

        def squares(with_columns: np.ndarray, plain: np.ndarray) -> np.ndarray:
            """q'Aq of each q, from U'Bq [n, r, q] and q'Bq [n, q]."""
            return plain + np.einsum("nrq,nrq->nq", with_columns, batch_product(middles, with_columns))

        pair_to_means_N2C = products(to_means_NRC[:, 2:], to_means_NRC[:, :2])
        pair_to_pair_N22 = products(pair, to_each_NRR[:, :2, :2])
        share_C = text_share(self.counts_C, worth)
        scores_NC = pair_to_means_N2C[:, 0] + share_C * pair_to_pair_N22[:, 0, 1, None]
        norms_NC = squares(to_means_NRC[:, 2:], inverse_ND @ (means_CD**2).T)
        norms_NC += 2 * share_C * pair_to_means_N2C[:, 1] + share_C**2 * pair_to_pair_N22[:, 1, 1, None]
        norms_NC -= self.noise_N[:, None] / (self.counts_C + worth)
        rows = np.arange(len(labels_N))
        scores_NC[rows, labels_N] = products(to_own_NR1[:, 2:], to_own_NR1[:, :2])[:, 0, 0]
        own_norms_N = squares(to_own_NR1[:, 2:], (own_ND**2 * inverse_ND).sum(axis=1)[:, None])[:, 0]
        norms_NC[rows, labels_N] = own_norms_N - self.noise_N / (others_N + worth)
        return scores_NC - 0.5 * norms_NC


def _left_out(support: Support, sums: Moments, scales_D: np.ndarray, axes_DD: np.ndarray) -> Iterator[_LeftOut]:
    """Every labeled image left out, in blocks."""
    (count, views, width), texts_CD = support.seen_NVD.shape, support.texts.directions_CD
    gap_D = mean_gap(sums.means_CD, sums.counts_C, texts_CD)
    gaps_ND, means_ND = gaps_without(support, sums)
    rank = 1 if views == 1 else views + 1
    step = max(1, BLOCK // ((rank + 2) * max(width, support.num_classes)))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        labels_N, seen_NVD = support.labels_N[rows], support.seen_NVD[rows]
        counts_N, own_ND = sums.counts_C[labels_N], seen_NVD.mean(axis=1)
        # a class loses with an image the scatter of its views, and their distance from the mean of the class
        pull_N = np.sqrt(np.where(counts_N > 1, counts_N * views / np.maximum(counts_N - 1, 1), 0.0))
        columns = [pull_N[:, None, None] * (own_ND - sums.means_CD[labels_N])[:, None]]
        if views > 1:
            columns.append(seen_NVD - own_ND[:, None])
        image_and_gap = [support.features_ND[rows][:, None], (gaps_ND[rows] - gap_D)[:, None]]
        vectors_NRD = flat_product(np.concatenate([*image_and_gap, *columns], axis=1), axes_DD)
        columns_NrD = vectors_NRD[:, 2:]
        ridges_N = ridge_of(scales_D.sum() - (columns_NrD**2).sum(axis=(1, 2)), (count - 1) * views)
        inverse_ND = 1 / (scales_D + ridges_N[:, None])
        weighted_NrD = columns_NrD * inverse_ND[:, None]
        inner_Nrr = batch_product(weighted_NrD, columns_NrD.transpose(0, 2, 1))
        middles_Nrr = np.linalg.inv(np.eye(rank) - inner_Nrr)
        squares_Nrr = batch_product(weighted_NrD, weighted_NrD.transpose(0, 2, 1))
        traces_N = inverse_ND.sum(axis=1) + (middles_Nrr * squares_Nrr).sum(axis=(1, 2))
        num_others = (count - 1) * views - (sums.num_seen - (counts_N == 1))
        yield _LeftOut(
            inverse_ND,
            vectors_NRD,
            middles_Nrr,
            means_ND[rows] @ axes_DD,
            (texts_CD[labels_N] + gaps_ND[rows]) @ axes_DD,
            np.maximum(width - ridges_N * traces_N, 0.0) / np.maximum(num_others, 1),  # tr(A (S - UU'))
            sums.counts_C,
            labels_N,
        )


def ridge_of(trace: np.ndarray | float, num_views: int) -> np.ndarray:
    """GDA's ridge: the trace of the covariance; 1 where labels have no scatter at all (one view of one of each)."""
    trace = np.asarray(trace, np.float64)
    return np.where(trace > NO_SCATTER, trace / max(num_views - 1, 1), 1.0)


def flat_product(first_NRD: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of all rows with one matrix, as one product: numpy would make N of it."""
    count, rows, width = first_NRD.shape
    product: np.ndarray = first_NRD.reshape(-1, width) @ second
    return product.reshape(count, rows, -1)


def batch_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of N matrices with N others; numpy's own is slow where they are small."""
    product: np.ndarray = torch.bmm(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    return product
