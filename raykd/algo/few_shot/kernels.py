"""Few-shot teachers that compare an image with each labeled one: ProKeR and Tip-Adapter.

N labeled images, M keys, C classes, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from raykd.algo.few_shot.honest import Learned, Rule, fitted, text_only
from raykd.algo.few_shot.support import Support, gaps_without, text_backed

WIDTHS = (0.5, 0.25, 1.0, 2.0, 4.0)  # beta, over the median squared distance of labeled images; the usual one first
RIDGES = (3.0, 0.3, 1.0)  # lambda of ProKeR; the usual one first. Smaller ones overfit picks, which are unlike the pool
NEAREST = 0.01  # median squared distance, below which images are copies, and a kernel no narrower for them
TUNED_ON = 1024  # labels at most by which width and ridge are chosen


def proker(support: Support) -> Iterator[Learned]:
    """Kernel ridge regression towards the labels, that falls back to the texts away from them.

    ``f = f0 + k (K + lambda I)^-1 (Y - f0(S))``, ``k = exp(-beta |x - x'|^2)`` over the labeled images S, one-hot
    labels Y (ProKeR, Bendou et al., CVPR 2025, arXiv 2501.11175). It is linear in Y and in f0, so it is two terms,
    ``f0 - k (K + lambda I)^-1 f0(S)`` and ``k (K + lambda I)^-1 Y``; their weights, which say what a text's logit is
    worth in labels, are found with the temperature. What a term says of a labeled image that it has not seen is ``y_i -
    [H y]_i / H_ii`` with ``H = (K + lambda I)^-1``: the leave-one-out identity of kernel ridge, exact.

    Departures, for lopsided labels. Lambda of an image grows with the root of the labels of its class, so that many do
    not outvote few. In the second term the moved text stands in for the images of a class without labels, which else no
    image would speak for; leaving an image out leaves these stand-ins as they are.

    Cost: N^3, memory N^2; beta and lambda are chosen by at most :data:`TUNED_ON` labels. Views are not looked at.
    """
    chosen = tuned(support, _ridge_offers)
    yield from _ridge_offers(support, *([value] for value in chosen.values()))


def _ridge_offers(
    support: Support, betas: Sequence[float] | None = None, ridges: Sequence[float] = RIDGES
) -> Iterator[Learned]:
    count, (keys_MD, values_MC) = len(support.labels_N), cache(support)
    one_hot_MC, squares_MM = np.sign(values_MC), image_distances(keys_MD)
    texts = text_only(support).texts
    nothing = texts.times(0.0)
    counts_N = support.counts_C[support.labels_N]
    counts_M = np.append(counts_N, np.ones(len(keys_MD) - count))  # a stand-in is one image
    crowding_M = np.sqrt(counts_M / counts_N.mean())
    for beta in betas or widths(squares_MM[:count, :count]):
        near_MM = np.exp(-beta * squares_MM)
        for ridge in ridges:
            inverse_MM = inverse(near_MM + np.diag(ridge * crowding_M))
            inverse_NN = inverse_MM
            if len(keys_MD) > count:
                inverse_NN = inverse(near_MM[:count, :count] + np.diag(ridge * crowding_M[:count]))
            of_texts_NC, of_labels_MC = inverse_NN @ support.text_logits_NC, inverse_MM @ one_hot_MC
            own_texts_N1, own_labels_N1 = (np.diag(of)[:count, None] for of in (inverse_NN, inverse_MM))
            texts_MC = np.zeros_like(of_labels_MC)
            texts_MC[:count] = -of_texts_NC
            yield Learned(
                replace(texts, keys_MD=keys_MD, values_MC=texts_MC, beta=beta),
                of_texts_NC / own_texts_N1,
                partial(_first, _ridge_offers, betas=[beta], ridges=[ridge]),
                replace(nothing, keys_MD=keys_MD, values_MC=of_labels_MC, beta=beta),
                support.one_hot_NC - of_labels_MC[:count] / own_labels_N1,
                {"beta": beta, "ridge": ridge},
            )


def _first(offers: Callable[..., Iterator[Learned]], support: Support, **chosen: Sequence[float]) -> Learned:
    return next(offers(support, **chosen))


def inverse(matrix_MM: np.ndarray) -> np.ndarray:
    """Of a symmetric positive definite matrix, float64."""
    found: np.ndarray = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(matrix_MM))).numpy()
    return found


def tip(support: Support) -> Iterator[Learned]:
    """Tip-Adapter: the labels of near images, weighed by how near they are (Zhang et al., ECCV 2022, arXiv 2207.09519).

    ``learned_c = mean over images of class c of exp(-beta |x - x'|^2)``, so beta is half of theirs, whose cosines lie
    in ``exp(-beta (1 - cos))`` (PAPERS.md 2.4).

    Departures: the mean, where they have the sum, which is the same for as many labels of each class; with lopsided
    labels a class would win by their number alone. The moved text stands in for a class without labels.

    Cost: N N D products, memory N^2; beta is chosen by at most :data:`TUNED_ON` labels. Views are not looked at.
    """
    yield from _cache_offers(support, *([value] for value in tuned(support, _cache_offers).values()))


def _cache_offers(support: Support, betas: Sequence[float] | None = None) -> Iterator[Learned]:
    squares_NN, counts_C = image_distances(support.features_ND), support.counts_C
    keys_MD, values_MC = cache(support)
    texts = text_only(support)
    others_NC = counts_C - support.one_hot_NC
    gaps_ND, _ = gaps_without(support, support.sums)
    to_texts_NC = squares_to_moved_texts(support.features_ND, support.texts.directions_CD, gaps_ND)
    for beta in betas or widths(squares_NN):
        near_NN = np.exp(-beta * squares_NN)
        np.fill_diagonal(near_NN, 0.0)
        near_NC = near_NN @ support.one_hot_NC / np.maximum(others_NC, 1)
        near_NC = np.where(others_NC > 0, near_NC, np.exp(-beta * to_texts_NC))
        learned = replace(texts.texts.times(0.0), keys_MD=keys_MD, values_MC=values_MC, beta=beta)
        yield texts._replace(
            again=partial(_first, _cache_offers, betas=[beta]),
            learned=learned,
            learned_NC=near_NC,
            chosen={"beta": beta},
        )


def cache(support: Support) -> tuple[np.ndarray, np.ndarray]:
    """Keys float64 [M, D] and values [M, C]: the labeled images, then the moved texts of classes without any."""
    sums = support.sums
    empty_E = np.flatnonzero(sums.counts_C == 0)
    moved_CD = text_backed(sums, support.texts.directions_CD, 0.0)
    moved_ED = moved_CD[empty_E] / np.linalg.norm(moved_CD[empty_E], axis=1, keepdims=True)
    values_NC = support.one_hot_NC / np.maximum(sums.counts_C, 1)
    keys_MD = np.concatenate([support.features_ND, moved_ED])
    return keys_MD, np.concatenate([values_NC, np.eye(support.num_classes)[empty_E]])


def squares_to_moved_texts(features_ND: np.ndarray, texts_CD: np.ndarray, gaps_ND: np.ndarray) -> np.ndarray:
    """Squared distance of each image to each text, moved by that image's own gap and of length 1, float64 [N, C]."""
    products_NC = features_ND @ texts_CD.T + (features_ND * gaps_ND).sum(axis=1, keepdims=True)
    squares_NC = 1 + 2 * gaps_ND @ texts_CD.T + (gaps_ND**2).sum(axis=1, keepdims=True)
    distances_NC: np.ndarray = 2 - 2 * products_NC / np.sqrt(np.maximum(squares_NC, 1e-12))
    return distances_NC


def image_distances(features_ND: np.ndarray) -> np.ndarray:
    """Squared, between directions on the grid, float64 [N, N]: exact, so symmetric, and 0 between the same."""
    products_NN = features_ND @ features_ND.T
    lengths_N = np.diag(products_NN)
    squares_NN: np.ndarray = lengths_N + lengths_N[:, None] - 2 * products_NN
    return squares_NN


def widths(squares_NN: np.ndarray) -> list[float]:
    """Betas to try: :data:`WIDTHS` over the median squared distance of two images."""
    upper = squares_NN[np.triu_indices(len(squares_NN), 1)]
    median = float(np.median(upper[upper > 0])) if (upper > 0).any() else 1.0
    return [width / max(median, NEAREST) for width in WIDTHS]


def tuned(support: Support, offers: Rule) -> Mapping[str, float]:
    """What a part of the labels chose of a rule's offers, where there are too many to try all on all; else nothing.

    A part of the classes, at least two, with all their labels, so that these are as many as they will be; and a part of
    those, where classes are few.
    """
    count, seen_C = len(support.labels_N), support.counts_C > 0
    if count <= TUNED_ON:
        return {}
    step = max(1, min(math.ceil(count / TUNED_ON), int(seen_C.sum()) // 2))
    some = support.of_classes(np.sort([*np.flatnonzero(seen_C)[::step], *np.flatnonzero(~seen_C)[::step]]))
    if (left := len(some.labels_N)) > TUNED_ON:
        some = some.some(np.linspace(0, left - 1, TUNED_ON).astype(np.int64))
    chosen = fitted("", some, offers).chosen
    return {name: value for name, value in chosen.items() if name not in ("temperature", "strength")}
