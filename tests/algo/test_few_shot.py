"""Few-shot teachers against plain loops written from their formulas, and against refits without each image.

N labeled images, V views of each, C classes, D feature width.
"""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import PROFILE, examples

from raykd.algo.calibration import DEVIATIONS, USUAL, honest_weights, log_losses
from raykd.algo.errors import UserError
from raykd.algo.few_shot import gda as gda_module
from raykd.algo.few_shot import kernels, rules, scorer
from raykd.algo.few_shot import support as support_module
from raykd.algo.few_shot.gda import gda, text_worth
from raykd.algo.few_shot.honest import evidence_of, fitted, held_out, text_only
from raykd.algo.few_shot.kernels import cache, proker, tip
from raykd.algo.few_shot.rules import RULES, fit_rule
from raykd.algo.few_shot.scorer import Scorer, linear
from raykd.algo.few_shot.stat_a import exact_logits
from raykd.algo.few_shot.support import (
    GRID,
    Moments,
    Support,
    Texts,
    directions,
    gaps_without,
    mean_gap,
    moments,
    text_backed,
    text_share,
)
from raykd.algo.few_shot.trained import PUBLISHED_CLAP, clap
from raykd.algo.heads import softmax

ALL = [*RULES, "auto"]
SCALE = 10.0
CLAP = (
    PUBLISHED_CLAP if PROFILE == "ci" else replace(PUBLISHED_CLAP, epochs=60)
)  # test_few_shot_trained.py has its training


def refit(rule, support):
    return fit_rule(rule, support, CLAP)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@st.composite
def supports(draw, with_views=True, most=14):
    """A few labels in a few dimensions: lopsided, of one class, one each, or as they fall."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_classes, width, count = draw(st.integers(2, 5)), draw(st.integers(2, 6)), draw(st.integers(2, most))
    texts_CD = unit(rng.normal(size=(num_classes, width)))
    kind = draw(st.sampled_from(["any", "one class", "lopsided", "one each"]))
    labels_N = rng.integers(0, num_classes, count)
    if kind == "one class":
        labels_N[:] = labels_N[0]
    elif kind == "lopsided":
        labels_N[1:] = labels_N[1]
    elif kind == "one each":
        labels_N = rng.permutation(num_classes)[:count]
    count = len(labels_N)
    features_ND = texts_CD[labels_N] + 0.6 * rng.normal(size=(count, width)) + 0.5
    views = draw(st.sampled_from([0, 0, 1, 2, 3])) if with_views else 0
    views_NVD = features_ND[:, None] + 0.1 * rng.normal(size=(count, views, width)) if views else None
    return Support(features_ND, labels_N, Texts(texts_CD, SCALE), views_NVD)


def without(support, i):
    """The labels but for one; the rows to the bit, which Support would bring to length 1 anew."""
    rest = np.delete(np.arange(len(support.labels_N)), i)
    features_ND, labels_N, seen_NVD = support.features_ND[rest], support.labels_N[rest], support.seen_NVD[rest]
    return SimpleNamespace(
        features_ND=features_ND,
        labels_N=labels_N,
        seen_NVD=seen_NVD,
        texts=support.texts,
        num_classes=support.num_classes,
    )


def plain_means(support):
    """Counts, class means over all views (zeros: no images), and the gap, class by class."""
    texts_CD, counts, means, gaps = support.texts.directions_CD, [], [], []
    for c in range(support.num_classes):
        views = [
            view for seen, label in zip(support.seen_NVD, support.labels_N, strict=True) if label == c for view in seen
        ]
        counts.append(len(views) // support.seen_NVD.shape[1])
        means.append(np.mean(views, axis=0) if views else np.zeros(texts_CD.shape[1]))
        if views:
            gaps.append(means[c] - texts_CD[c])
    return np.array(counts), np.array(means), np.mean(gaps, axis=0)


# ---------------------------------------------------------------- GDA


def plain_gda(support, rows_ND, worth=None):
    """Logits of rows, and what a text is worth, from the formulas; ``worth`` None: what the labels say."""
    texts_CD, width = support.texts.directions_CD, rows_ND.shape[1]
    counts, means, gap = plain_means(support)
    scatter = sum(
        np.outer(view - means[label], view - means[label])
        for seen, label in zip(support.seen_NVD, support.labels_N, strict=True)
        for view in seen
    )
    num_views, trace = support.seen_NVD[..., 0].size, np.trace(scatter)
    precision = np.linalg.inv(scatter + (trace / (num_views - 1) if trace > 1e-9 else 1.0) * np.eye(width))
    noise = np.trace(precision @ scatter) / max(num_views - (counts > 0).sum(), 1)
    if worth is None:
        some = [c for c in range(len(counts)) if counts[c]]
        off = [(means[c] - texts_CD[c] - gap) @ precision @ (means[c] - texts_CD[c] - gap) for c in some]
        if len(some) < 2 or trace <= 1e-9:
            worth = 1.0
        else:
            of_texts = sum(off) / (len(some) - 1) - noise * np.mean([1 / counts[c] for c in some])
            worth = min(max(noise / max(of_texts, noise / 10), 0.1), 10.0)
    logits = np.empty((len(rows_ND), len(counts)))
    for c in range(len(counts)):
        mean = (counts[c] * means[c] + worth * (texts_CD[c] + gap)) / (counts[c] + worth)
        bias = noise / (2 * (counts[c] + worth)) - mean @ precision @ mean / 2
        logits[:, c] = width * (rows_ND @ precision @ mean + bias)
    return logits, worth


@given(supports(), st.integers(0, 2**32))
@examples(150)
def test_gda_is_the_plain_loop_of_its_formula(support, seed):
    rows_ND = unit(np.random.default_rng(seed).normal(size=(8, support.features_ND.shape[1])))
    (offer,) = gda(support)
    expected_NC, worth = plain_gda(support, rows_ND)
    assert offer.chosen["text_worth"] == pytest.approx(worth, rel=1e-6)
    np.testing.assert_allclose(
        offer.learned.logits(rows_ND), expected_NC, rtol=1e-4, atol=1e-4 * abs(expected_NC).max()
    )
    np.testing.assert_array_equal(offer.texts_NC, SCALE * support.features_ND @ support.texts.directions_CD.T)


@given(supports(), st.sampled_from([1, 40, 2**24]))
@examples(150)
def test_gda_leaves_each_image_out_as_a_refit_without_it_would(support, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gda_module, "BLOCK", block)
        (offer,) = gda(support)
    expected_NC = np.concatenate(
        [
            plain_gda(without(support, i), support.features_ND[i : i + 1], offer.chosen["text_worth"])[0]
            for i in range(len(support.labels_N))
        ]
    )
    np.testing.assert_allclose(offer.learned_NC, expected_NC, rtol=1e-6, atol=1e-8 * max(abs(expected_NC).max(), 1))


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(2, 4))
@examples(40)
def test_where_labels_have_no_noise_a_text_is_worth_an_image_whatever_rounding_leaves(seed, num_classes, copies):
    rng = np.random.default_rng(seed)
    texts_CD = unit(rng.normal(size=(num_classes, 7)))
    labels_N = rng.permutation(np.repeat(np.arange(num_classes), copies))
    support = Support((texts_CD + 0.3 * rng.normal(size=texts_CD.shape))[labels_N], labels_N, Texts(texts_CD, SCALE))
    (offer,) = gda(support)
    assert offer.chosen["text_worth"] == 1.0
    expected_NC, _ = plain_gda(support, support.features_ND)
    found_NC = offer.learned.logits(support.features_ND)
    np.testing.assert_allclose(found_NC, expected_NC, rtol=1e-4, atol=1e-4 * abs(expected_NC).max())
    assert np.isfinite(offer.learned_NC).all()


def test_a_text_is_worth_many_images_where_texts_are_sharp_and_few_where_they_are_not():
    rng = np.random.default_rng(0)
    texts_CD = unit(rng.normal(size=(20, 40)))
    labels_N = np.repeat(np.arange(20), 10)

    def worth(off_text, noise):
        centers_CD = texts_CD + off_text * rng.normal(size=texts_CD.shape) / np.sqrt(40)
        features_ND = centers_CD[labels_N] + noise * rng.normal(size=(200, 40)) / np.sqrt(40)
        (offer,) = gda(Support(features_ND, labels_N, Texts(texts_CD, SCALE)))
        return offer.chosen["text_worth"]

    assert worth(0.05, 1.0) > 3 > 1.5 > worth(0.8, 0.8) > 0.5 > worth(1.0, 0.3)


def test_text_worth_stays_in_its_bounds_and_is_one_where_labels_do_not_say():
    texts_CD = np.eye(3)
    sums = moments(directions(np.eye(3)[[0, 0]], "row")[:, None], np.array([0, 0]), 3)
    assert text_worth(sums, texts_CD, np.eye(3), np.ones(3), noise=2.0) == 1.0  # a gap cannot be told from one class
    sums = moments(directions(np.eye(3), "row")[:, None], np.array([0, 1, 2]), 3)
    assert text_worth(sums, texts_CD, np.eye(3), np.ones(3), noise=0.0) == 1.0
    assert text_worth(sums, texts_CD, np.eye(3), np.ones(3), noise=1.0) == gda_module.TEXT_WORTH[1]
    assert text_worth(sums, -9 * texts_CD, np.eye(3), np.ones(3), noise=1e-3) == gda_module.TEXT_WORTH[0]


# ---------------------------------------------------------------- ProKeR and Tip-Adapter


def nearness(x, key, beta, labeled=False):
    """``exp(-beta |x - key|^2)``: of directions on the grid the square itself, as of labeled images; else by cosine."""
    return np.exp(-beta * (((x - key) ** 2).sum() if labeled else 2 - 2 * x @ key))


def plain_proker(features_ND, targets_NC, rows_ND, beta, ridges_N, labeled=False):
    """``k (K + ridges)^-1 targets`` of rows."""
    kernel = np.array([[nearness(x, key, beta, True) for key in features_ND] for x in features_ND])
    near = np.array([[nearness(x, key, beta, labeled) for key in features_ND] for x in rows_ND])
    return near @ np.linalg.solve(kernel + np.diag(ridges_N), targets_NC)


@given(supports(with_views=False), st.integers(0, 2**32))
@examples(60, dev=10)
def test_proker_is_the_plain_loop_of_its_formula_and_leaves_out_as_a_refit_would(support, seed):
    features_ND, labels_N, texts_CD = support.features_ND, support.labels_N, support.texts.directions_CD
    rows_ND = directions(np.random.default_rng(seed).normal(size=(6, features_ND.shape[1])), "row")
    counts_N = np.array([np.sum(labels_N == label) for label in labels_N])
    _, _, gap = plain_means(support)
    empty = [c for c in range(len(texts_CD)) if c not in labels_N]
    stand_ins = [(texts_CD[c] + gap) / np.linalg.norm(texts_CD[c] + gap) for c in empty]
    keys_MD = np.array([*features_ND, *stand_ins])
    crowding_M = np.sqrt(np.append(counts_N, np.ones(len(empty))) / counts_N.mean())
    crowding_N = crowding_M[: len(labels_N)]
    one_hot_MC = np.eye(len(texts_CD))[[*labels_N, *empty]]
    text_NC, one_hot_NC = SCALE * features_ND @ texts_CD.T, np.eye(len(texts_CD))[labels_N]
    offers = list(proker(support))
    assert len(offers) == len(kernels.WIDTHS) * len(kernels.RIDGES)
    assert [offers[0].chosen[name] for name in ("beta", "ridge")] == [
        kernels.widths(kernels.image_distances(features_ND))[0],
        3.0,
    ]
    for offer in offers[seed % 4 :: 4]:
        beta, ridges_N = offer.chosen["beta"], offer.chosen["ridge"] * crowding_N
        texts = SCALE * rows_ND @ texts_CD.T - plain_proker(features_ND, text_NC, rows_ND, beta, ridges_N)
        ridges_M = offer.chosen["ridge"] * crowding_M
        learned = plain_proker(keys_MD, one_hot_MC, rows_ND, beta, ridges_M)
        # in float64, as values are as large as 1 / ridge, and cancel
        np.testing.assert_allclose(exact_logits(offer.texts, rows_ND), texts, atol=1e-6)
        np.testing.assert_allclose(exact_logits(offer.learned, rows_ND), learned, atol=1e-6)
        if not empty:  # the sum with equal weights is f0 + k (K + ridges)^-1 (Y - f0(S))
            together = exact_logits(offer.texts.plus(offer.learned.times(3.0)), rows_ND)
            whole = plain_proker(features_ND, 3 * one_hot_NC - text_NC, rows_ND, beta, ridges_N)
            np.testing.assert_allclose(together, SCALE * rows_ND @ texts_CD.T + whole, atol=1e-6)
        for i in range(len(labels_N)):
            refitted = [
                plain_proker(
                    *(np.delete(of, i, axis=0) for of in (keys, targets)), features_ND[i : i + 1], beta,
                    np.delete(ridges, i), True,
                )[0]
                for keys, targets, ridges in (
                    (features_ND, text_NC, ridges_N), (keys_MD, one_hot_MC, ridges_M)
                )
            ]  # fmt: skip
            np.testing.assert_allclose(offer.texts_NC[i], text_NC[i] - refitted[0], rtol=1e-7, atol=1e-7)
            np.testing.assert_allclose(offer.learned_NC[i], refitted[1], rtol=1e-7, atol=1e-7)


def plain_tip(support, rows_ND, beta, labeled=False):
    """The mean nearness to the labeled images of each class; of a class without any, to its text, moved."""
    _, _, gap = plain_means(support)
    near = np.empty((len(rows_ND), support.num_classes))
    for c, text in enumerate(support.texts.directions_CD):
        images = support.features_ND[support.labels_N == c]
        keys = images if len(images) else [(text + gap) / np.linalg.norm(text + gap)]
        for i, x in enumerate(rows_ND):
            near[i, c] = np.mean([nearness(x, key, beta, labeled and len(images) > 0) for key in keys])
    return near


@given(supports(with_views=False), st.integers(0, 2**32))
@examples(60)
def test_tip_is_the_plain_loop_of_its_formula_and_leaves_out_as_a_refit_would(support, seed):
    features_ND = support.features_ND
    rows_ND = directions(np.random.default_rng(seed).normal(size=(6, features_ND.shape[1])), "row")
    offers = list(tip(support))
    assert len(offers) == len(kernels.WIDTHS)
    for offer in offers:
        beta = offer.chosen["beta"]
        np.testing.assert_allclose(exact_logits(offer.learned, rows_ND), plain_tip(support, rows_ND, beta), rtol=1e-7)
        expected_NC = np.concatenate(
            [plain_tip(without(support, i), features_ND[i : i + 1], beta, True) for i in range(len(features_ND))]
        )
        np.testing.assert_allclose(offer.learned_NC, expected_NC, rtol=1e-7, atol=1e-9)


def test_of_very_many_labels_of_few_classes_a_part_chooses_too(monkeypatch):
    support = cone(np.random.default_rng(1), [40, 30])
    monkeypatch.setattr(kernels, "TUNED_ON", 10)
    (offer,) = proker(support)
    assert offer.learned_NC.shape == (70, 2)
    assert np.isfinite(offer.learned_NC).all()


def test_a_cache_has_a_key_an_image_and_one_a_class_without_images():
    texts_CD = np.eye(4)
    support = Support(
        np.array([[1.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 3, 0]]), np.array([1, 1, 2]), Texts(texts_CD, SCALE)
    )
    keys_MD, values_MC = cache(support)
    assert values_MC.tolist() == [[0, 0.5, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(keys_MD[:3], support.features_ND)
    np.testing.assert_allclose(np.linalg.norm(keys_MD, axis=1), 1, atol=1e-4)


def test_widths_are_over_the_median_distance_of_images_that_differ():
    squares_NN = np.array([[0, 0, 4.0], [0, 0, 2.0], [4.0, 2.0, 0]])
    assert kernels.widths(squares_NN) == [width / 3 for width in kernels.WIDTHS]
    assert kernels.widths(np.zeros((3, 3))) == list(kernels.WIDTHS)


@pytest.mark.parametrize("rule", [proker, tip])
def test_of_many_labels_a_part_chooses_and_all_are_learned_from(rule, monkeypatch):
    support = cone(np.random.default_rng(1), [5, 3, 0, 4, 12, 0, 0])
    some = support.of_classes(np.array([0, 2, 3, 6]))  # every second class of those with labels, and of those without
    best = fitted("", some, rule).chosen
    everything = len(list(rule(support)))
    monkeypatch.setattr(kernels, "TUNED_ON", 10)
    (offer,) = rule(support)
    assert everything > 1
    assert offer.chosen == {name: best[name] for name in offer.chosen}
    assert len(offer.learned.keys_MD) >= 24
    assert offer.learned_NC.shape == (24, 7)


# ---------------------------------------------------------------- sums that are exact


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 40),
    views=st.integers(1, 3),
    shards=st.sampled_from([1, 2, 7]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
@examples(60)
def test_moments_are_exact_and_the_same_bits_for_any_shards_and_order(seed, count, views, shards, dtype):
    rng = np.random.default_rng(seed)
    seen_NVD = directions(
        (rng.normal(size=(count, views, 5)) * 10.0 ** rng.uniform(-3, 0, (1, 1, 5))).astype(dtype), "row"
    )
    labels_N = rng.integers(0, 3, count)
    whole, order = moments(seen_NVD, labels_N, 3), rng.permutation(count)
    first, *others = (moments(seen_NVD[part], labels_N[part], 3) for part in np.array_split(order, shards))
    cut = sum(others, first)
    assert cut.counts_C.tolist() == whole.counts_C.tolist() == [int((labels_N == c).sum()) for c in range(3)]
    for name in ("sums_CD", "squares_DD", "means_CD", "scatter_DD"):
        assert getattr(cut, name).tobytes() == getattr(whole, name).tobytes(), name
    rows = [[Fraction(float(x)) for x in row] for row in seen_NVD.reshape(-1, 5)]
    classes = np.repeat(labels_N, views)
    for d in range(5):
        for c in range(3):
            exact = sum((row[d] for row, label in zip(rows, classes, strict=True) if label == c), Fraction(0))
            assert Fraction(float(whole.sums_CD[c, d])) == exact
        for e in range(5):
            assert Fraction(float(whole.squares_DD[d, e])) == sum(row[d] * row[e] for row in rows)


@given(supports())
@examples(40)
def test_means_and_scatter_and_gap_are_those_of_plain_loops(support):
    counts, means, gap = plain_means(support)
    sums = moments(support.seen_NVD, support.labels_N, support.num_classes)
    assert sums.counts_C.tolist() == counts.tolist() == support.counts_C.tolist()
    assert sums.num_seen == np.sum(counts > 0)
    np.testing.assert_allclose(sums.means_CD, means, atol=1e-12)
    np.testing.assert_allclose(mean_gap(sums.means_CD, sums.counts_C, support.texts.directions_CD), gap, atol=1e-12)
    centered = (support.seen_NVD - means[support.labels_N][:, None]).reshape(-1, means.shape[1])
    np.testing.assert_allclose(sums.scatter_DD, centered.T @ centered, atol=1e-10)
    gaps_ND, means_ND = gaps_without(support, sums)
    for i, label in enumerate(support.labels_N):
        _, means, gap = plain_means(without(support, i))
        np.testing.assert_allclose(gaps_ND[i], gap, atol=1e-10)
        np.testing.assert_allclose(means_ND[i], means[label], atol=1e-10)


def test_without_its_only_label_there_is_no_gap():
    support = Support(np.array([[1.0, 2.0]]), np.array([1]), Texts(np.eye(2), SCALE))
    gaps_ND, means_ND = gaps_without(support, moments(support.seen_NVD, support.labels_N, 2))
    assert gaps_ND.tolist() == means_ND.tolist() == [[0, 0]]


def test_a_text_counts_as_many_images_as_it_is_worth():
    sums = Moments(np.array([3, 0]), np.array([[3.0, 6.0], [0, 0]]), np.zeros((2, 2)), 1)
    texts_CD = np.array([[1.0, 0], [0, 1]])
    found_CD = text_backed(sums, texts_CD, 2.0)  # the gap is 0, 2
    np.testing.assert_allclose(found_CD, [[(3 * 1 + 2 * 1) / 5, (3 * 2 + 2 * 2) / 5], [0, 3]])
    assert text_share(np.array([0, 3]), 0.0).tolist() == [1, 0]
    assert text_share(np.array([0, 3, 1]), 1.0).tolist() == [1, 0.25, 0.5]


@given(st.integers(0, 2**32), st.sampled_from([np.float16, np.float32, np.float64]))
@examples(40)
def test_directions_are_whole_steps_and_near(seed, dtype):
    rows = (np.random.default_rng(seed).normal(size=(4, 3, 9)) * 7).astype(dtype)
    found = directions(rows, "row")
    assert (found * GRID == np.round(found * GRID)).all()
    np.testing.assert_allclose(found, unit(rows.astype(np.float64)), atol=0.5 / GRID + 1e-15)


# ---------------------------------------------------------------- no class is lost


def cone(rng, counts, width=24, spread=0.5, noise=0.5, gap=1.0, off=0.4, scale=SCALE):
    """Labeled images ``unit(text + gap + noise)`` in a cone, so many of each class."""
    texts_CD = unit(spread * unit(rng.normal(size=(len(counts), width))) + unit(rng.normal(size=width)))
    labels_N = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centers_CD = texts_CD + gap * unit(rng.normal(size=width)) + off * spread * unit(rng.normal(size=texts_CD.shape))
    features_ND = centers_CD[labels_N] + noise * unit(rng.normal(size=(len(labels_N), width)))
    return Support(features_ND, labels_N, Texts(texts_CD, scale))


def lost(support, found):
    """Classes that none of their own is predicted as: text, moved text, mean of their images, each of their images."""
    texts_CD = support.texts.directions_CD
    counts, means, gap = plain_means(support)
    classes = []
    for c, text in enumerate(texts_CD):
        own = [text, text + gap, *support.features_ND[support.labels_N == c]] + ([means[c]] if counts[c] else [])
        logits = found.logits(np.array(own))
        assert np.isfinite(logits).all()
        if not (logits.argmax(axis=1) == c).any():
            classes.append(c)
    return classes


def worlds(some_counts):
    return given(
        seed=st.integers(0, 2**32),
        counts=st.lists(st.sampled_from(some_counts), min_size=2, max_size=6).filter(lambda c: 0 < sum(c) < 130),
        noise=st.sampled_from([0.1, 0.3, 0.6]),
        gap=st.sampled_from([0.0, 1.0]),
        scale=st.sampled_from([10.0, 100.0]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["zero_shot", "gda", "tip", "proker", "auto"])
@worlds([0, 0, 1, 1, 2, 5, 60])
@examples(60, dev=8)
def test_no_class_can_no_longer_be_predicted(rule, seed, counts, noise, gap, scale):
    support = cone(np.random.default_rng(seed), counts, noise=noise, gap=gap, scale=scale)
    assert lost(support, fit_rule(rule, support).scorer) == []


@pytest.mark.parametrize(
    ("rule", "counts", "noise", "gap", "seed"),
    [
        ("proker", [60, 0, 0, 60], 0.1, 0.0, 679181532),
        ("proker", [5, 60, 2, 0, 0], 0.6, 1.0, 830757919),
        ("auto", [60, 60, 5, 0, 0], 0.3, 0.0, 248947888),
    ],
)
def test_no_class_without_labels_is_lost_to_proker_between_two_with_many(rule, counts, noise, gap, seed):
    support = cone(np.random.default_rng(seed), counts, noise=noise, gap=gap)
    assert lost(support, fit_rule(rule, support).scorer) == []


# ---------------------------------------------------------------- honest weights


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_many_labels_tell_the_temperature_they_were_drawn_with(temperature):
    rng = np.random.default_rng(0)
    logits_NC = 3 * rng.normal(size=(8000, 5))
    labels_N = np.array([rng.choice(5, p=p) for p in softmax(logits_NC / temperature)])
    (weight,) = honest_weights([logits_NC], labels_N, np.ones(8000))
    assert 1 / weight == pytest.approx(temperature, rel=0.06)


def test_many_labels_tell_both_weights_they_were_drawn_with():
    rng = np.random.default_rng(1)
    terms = [2 * rng.normal(size=(8000, 4)) for _ in range(2)]
    labels_N = np.array([rng.choice(4, p=p) for p in softmax(0.6 * terms[0] + 1.7 * terms[1])])
    np.testing.assert_allclose(honest_weights(terms, labels_N, np.ones(8000)), [0.6, 1.7], rtol=0.08)


@pytest.mark.parametrize("num_terms", [1, 2])
def test_labels_that_say_nothing_leave_the_usual_weights(num_terms):
    terms = [np.random.default_rng(2).normal(size=(30, 4)) for _ in range(num_terms)]
    assert honest_weights(terms, np.zeros(30, np.int64), np.zeros(30)) == pytest.approx(list(USUAL[:num_terms]))


@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(1, 4), st.floats(0.1, 30))
@examples(40)
def test_a_few_labels_move_no_weight_far_from_the_usual_one(seed, num_terms, count, scale):
    rng = np.random.default_rng(seed)
    terms = [scale * rng.normal(size=(count, 3)) for _ in range(num_terms)]
    labels_N, says_N = rng.integers(0, 3, count), np.ones(count)
    found = honest_weights(terms, labels_N, says_N)

    def loss(weights):
        return says_N @ log_losses(sum(w * term for w, term in zip(weights, terms, strict=True)), labels_N)

    # what the prior costs is paid by the labels, and the loss of the usual weights is all that there is to win
    usual = USUAL[:num_terms]
    far = [np.log(w / u) / d for w, u, d in zip(found, usual, DEVIATIONS, strict=False)]
    assert sum(np.square(far)) / 2 <= loss(usual) - loss(found) + 1e-6


def test_a_step_of_the_search_to_infinity_is_taken_back():
    support = cone(np.random.default_rng(9390369), [5, 1, 0, 1, 5, 100, 100], noise=0.6, gap=0.0)
    done = fit_rule("proker", support)
    assert np.isfinite([*done.chosen.values()]).all()
    for offer in proker(support):
        spread = [np.sqrt(np.mean(np.var(term, axis=1))) for term in (offer.texts_NC, offer.learned_NC)]
        terms = [offer.texts_NC, spread[0] / spread[1] * offer.learned_NC]
        weights = honest_weights(terms, support.labels_N, np.ones(len(support.labels_N)))
        assert 1e-3 < min(weights) <= max(weights) < 1e3, offer.chosen


def test_losses_are_those_of_the_softmax_even_where_it_is_zero():
    logits_NC = np.array([[0.0, np.log(3)], [1e4, 0.0], [-1e4, 0.0]])
    np.testing.assert_allclose(log_losses(logits_NC, np.array([1, 1, 1])), [np.log(4 / 3), 1e4, 0])
    found = held_out(logits_NC, np.array([1, 1, 1]), np.ones(3))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["log_loss"] == pytest.approx((np.log(4 / 3) + 1e4) / 3)


def labeled(counts):
    labels_N = np.repeat(np.arange(len(counts)), counts)
    return Support(np.ones((len(labels_N), 2)), labels_N, Texts(unit(np.ones((len(counts), 2))), 1.0))


def shares(counts):
    one_C, all_C = labeled(counts).shares_C
    return one_C.tolist(), all_C.tolist()


def test_one_label_of_each_class_says_nothing():
    assert shares([1, 1, 1]) == ([0, 0, 0], [0, 0, 0])
    assert not evidence_of(labeled([1, 1, 1])).says_M.any()


def test_what_classes_say_one_by_one_and_whole():
    assert shares([4, 4, 4]) == ([1, 1, 1], [0, 0, 0])
    assert shares([4, 9, 2, 0, 0, 0]) == ([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0])  # three without, by three that have
    assert shares([4, 9, 1, 1]) == ([1, 1, 0, 0], [0.25] * 4)  # two with a single label: half as much
    assert shares([1, 1, 1, 0]) == ([0, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0])
    assert shares([2, 2, 2, *[0] * 90])[1][:3] == [3, 3, 3]  # at most


def test_labels_of_one_class_alone_or_of_two_among_more_say_nothing():
    assert shares([0, 4, 0]) == shares([0, 4, 5]) == ([0, 0, 0], [0, 0, 0])
    assert shares([4, 5]) == ([1, 1], [0, 0])
    support = cone(np.random.default_rng(0), [0, 100], noise=0.6, gap=0.0)
    done = fit_rule("proker", support)
    assert (done.chosen["temperature"], done.chosen["strength"]) == pytest.approx((1.0, 0.5))
    assert lost(support, done.scorer) == []
    assert zero_shot_as_it_is(fit_rule("auto", support), support)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=8).filter(any))
@examples(60)
def test_evidence_is_every_label_and_again_each_that_is_left_out_with_its_class(counts):
    support = labeled(counts)
    labels_M, says_M, folds = evidence_of(support)
    count, (one_C, all_C) = len(support.labels_N), support.shares_C
    assert labels_M[:count].tolist() == support.labels_N.tolist()
    rows = [row for rows, _ in folds for row in rows]
    assert labels_M[count:].tolist() == support.labels_N[rows].tolist()
    assert sorted(rows) == (list(range(count)) if all_C.any() else [])
    for rows, left in folds:
        assert not set(support.labels_N[rows]) & set(left.labels_N)
        assert len(rows) + len(left.labels_N) == count
    of_class_C = np.bincount(labels_M[:count], says_M[:count], len(counts))
    of_whole_C = np.bincount(labels_M[count:], says_M[count:], len(counts))
    scale = of_class_C.sum() / one_C.sum() if one_C.any() else of_whole_C.sum() / max(all_C.sum(), 1e-9)
    np.testing.assert_allclose(of_class_C, scale * one_C, atol=1e-9)
    np.testing.assert_allclose(of_whole_C, scale * all_C, atol=1e-9)
    if says_M.any():
        assert says_M.sum() == pytest.approx(says_M.sum() ** 2 / (says_M**2).sum())
        assert says_M.sum() <= len(says_M) + 1e-9


def test_of_many_labels_only_a_part_of_the_classes_is_left_out_and_weighs_for_all(monkeypatch):
    whole = evidence_of(labeled([9, 9, 9, 9, 9, 9, 9, 9, 0, 0]))
    monkeypatch.setattr(support_module, "MANY", 10)
    part = evidence_of(labeled([9, 9, 9, 9, 9, 9, 9, 9, 0, 0]))
    assert [len(each.folds) for each in (whole, part)] == [4, 1]
    shares = [each.says_M[72:].sum() / each.says_M[:72].sum() for each in (whole, part)]
    assert shares == pytest.approx([2 / 8, 2 / 8])


def test_copies_make_no_kernel_too_narrow_for_single_precision():
    """Frames of a fixed camera: nearly one image; logits must be those of the formula, and finite."""
    rng = np.random.default_rng(0)
    base = unit(rng.normal(size=32))
    features = unit(base + 1e-4 * rng.normal(size=(40, 32)))
    support = Support(features[:20], np.arange(20) % 2, Texts(unit(rng.normal(size=(2, 32))), SCALE))
    for rule in ("proker", "tip", "tip_f", "gda", "auto"):
        logits = fit_rule(rule, support).scorer.logits(np.float16(features[20:]))
        assert np.isfinite(logits).all(), rule
        assert abs(logits).max() < 1e4, rule


@pytest.mark.slow
def test_what_says_the_same_of_every_class_is_not_made_large():
    support = Support(np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1]), Texts(np.eye(3)[:2], SCALE))
    for rule in RULES:
        assert abs(fit_rule(rule, support).scorer.logits(np.ones((1, 3)))).max() < 100, rule


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gda", "proker", "auto"])
def test_classes_without_labels_keep_their_images_where_others_have_many(rule):
    """Half of the classes have 30 labels each, the others none: they must not fall far below zero-shot."""
    recalls = []
    for seed in range(4):
        everything = cone(np.random.default_rng(seed), [60] * 8, noise=0.8, off=0.6)
        train, test = halves(everything)
        some = train.some(np.flatnonzero(train.labels_N < 4))
        rest = test.labels_N >= 4
        right = [
            scorer.logits(test.features_ND[rest]).argmax(axis=1) == test.labels_N[rest]
            for scorer in (fit_rule(rule, some).scorer, fit_rule("zero_shot", some).scorer)
        ]
        recalls.append([each.mean() for each in right])
    ours, texts = np.mean(recalls, axis=0)
    assert ours > texts - 0.15


# ---------------------------------------------------------------- a refit


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[4, 3, 2, 9, 2], [4, 1, 0, 9, 2]])
@pytest.mark.parametrize("rule", list(RULES))
def test_a_refit_takes_the_likeliest_offer_and_says_what_it_makes_of_it(rule, counts):
    support = cone(np.random.default_rng(5), counts)
    done = refit(rule, support)
    labels_M, says_M, folds = evidence_of(support)

    def judged(one_NC, name, offer):
        others = (getattr(offer.again(left), name).logits(support.features_ND[rows]) for rows, left in folds)
        return np.concatenate([one_NC, *others])

    losses = []
    for offer in clap(support, CLAP) if rule == "clap" else RULES[rule](support):
        terms, ratio = [judged(offer.texts_NC, "texts", offer)], 1.0
        if offer.learned_NC is not None:
            terms.append(judged(offer.learned_NC, "learned", offer))
            ratio = np.sqrt(np.mean(np.var(offer.texts_NC, axis=1)) / np.mean(np.var(terms[1], axis=1)))
            terms[1] = ratio * terms[1]
        weights = honest_weights(terms, labels_M, says_M)
        logits_MC = sum(w * term for w, term in zip(weights, terms, strict=True))
        losses.append((says_M @ log_losses(logits_MC, labels_M), offer, weights, ratio, logits_MC))
    _, offer, weights, ratio, logits_MC = min(losses, key=lambda each: each[0])
    assert done.chosen["temperature"] == pytest.approx(1 / weights[0])
    assert {name: done.chosen[name] for name in offer.chosen} == offer.chosen
    rows_ND = unit(np.random.default_rng(6).normal(size=(9, 24)))
    expected = weights[0] * offer.texts.logits(rows_ND)
    if offer.learned is not None:
        assert done.chosen["strength"] == pytest.approx(weights[1] / weights[0])
        expected = expected + weights[1] * ratio * offer.learned.logits(rows_ND)
    np.testing.assert_allclose(done.scorer.logits(rows_ND), expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
    assert done.rule == rule
    assert done.after == pytest.approx(held_out(logits_MC, labels_M, says_M))
    assert done.untempered == pytest.approx(held_out(logits_MC / weights[0], labels_M, says_M))
    assert done.untempered["accuracy"] == done.after["accuracy"]
    texts_MC = SCALE * support.features_ND @ support.texts.directions_CD.T
    texts_MC = np.concatenate([texts_MC, *(texts_MC[rows] for rows, _ in folds)])
    assert done.before == pytest.approx(held_out(texts_MC, labels_M, says_M))
    np.testing.assert_allclose(done.losses_M, log_losses(logits_MC, labels_M))
    assert done.choices_N.tolist() == logits_MC[: len(support.labels_N)].argmax(axis=1).tolist()


def zero_shot_as_it_is(done, support):
    np.testing.assert_array_equal(done.scorer.weights_CD, support.texts.scale * support.texts.directions_CD)
    return done.rule == "zero_shot" and done.chosen == {"temperature": 1.0} and not len(done.scorer.keys_MD)


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [3, 2, 0], [1, 1, 1, 0, 0]])
def test_auto_does_not_listen_to_few_labels(counts):
    support = cone(np.random.default_rng(7), counts)
    assert evidence_of(support).says_M.sum() < rules.ENOUGH
    assert zero_shot_as_it_is(fit_rule("auto", support), support)


def halves(support):
    even = np.arange(len(support.labels_N)) % 2 == 0
    return support.some(np.flatnonzero(even)), support.some(np.flatnonzero(~even))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_auto_takes_what_is_plainly_better(seed):
    train, test = halves(cone(np.random.default_rng(seed), [12] * 6, off=2.0))
    done = {rule: fit_rule(rule, train) for rule in {*rules.AUTO, "zero_shot", "auto"}}
    losses = {
        rule: log_losses(each.scorer.logits(test.features_ND), test.labels_N).mean() for rule, each in done.items()
    }
    assert done["auto"].rule == min(rules.AUTO, key=lambda rule: done[rule].says_M @ done[rule].losses_M)
    assert losses["auto"] == losses[done["auto"].rule] < losses["zero_shot"] - 0.2


@pytest.mark.slow
def test_auto_does_no_harm_where_labels_are_drawn_at_random():
    harm = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        train, test = halves(cone(rng, [16] * 5))
        train = Support(train.features_ND, rng.permutation(train.labels_N), train.texts)
        auto, texts, untempered = (
            np.mean([log_losses(each.logits(test.features_ND), np.full(40, c)).mean() for c in range(5)])
            for each in (fit_rule("auto", train).scorer, fit_rule("zero_shot", train).scorer, text_only(train).texts)
        )
        assert auto < untempered
        harm.append(auto - texts)
    assert np.mean(harm) < 0.01


@pytest.mark.slow
def test_auto_stays_with_texts_that_cannot_be_better():
    taken = [
        fit_rule("auto", cone(np.random.default_rng(seed), [3] * 6, off=0.0, gap=0.0, noise=0.9, scale=40.0)).rule
        for seed in range(8)
    ]
    assert taken.count("zero_shot") >= 7


# ---------------------------------------------------------------- scorers


def a_scorer(rng, num_classes=4, width=6, keys=0):
    return Scorer(
        rng.normal(size=(num_classes, width)),
        rng.normal(size=num_classes),
        unit(rng.normal(size=(keys, width))),
        rng.normal(size=(keys, num_classes)),
        1.7,
    )


def plain_logits(of, rows_ND):
    logits = np.empty((len(rows_ND), len(of.bias_C)))
    for i, row in enumerate(rows_ND):
        x = row / np.linalg.norm(row)
        for c in range(len(of.bias_C)):
            near = [
                np.exp(-of.beta * ((x - key) ** 2).sum()) * v[c]
                for key, v in zip(of.keys_MD, of.values_MC, strict=True)
            ]
            logits[i, c] = of.weights_CD[c] @ x + of.bias_C[c] + sum(near)
    return logits


@given(
    st.integers(0, 2**32), st.sampled_from([0, 1, 7]), st.sampled_from([1, 2, 5, 4096]), st.sampled_from([1e-3, 1, 300])
)
@examples(40)
def test_a_scorer_is_the_plain_loop_of_its_formula_in_any_blocks_and_for_any_length(seed, keys, block, length):
    rng = np.random.default_rng(seed)
    found, rows_ND = a_scorer(rng, keys=keys), length * rng.normal(size=(11, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "SCORED_ROWS", block)
        logits_NC = found.logits(rows_ND)
    assert logits_NC.dtype == np.float32
    np.testing.assert_allclose(logits_NC, plain_logits(found, rows_ND), atol=2e-5)


@pytest.mark.parametrize("keys", [(0, 0), (5, 0), (0, 5), (5, 5)])
def test_sums_and_multiples_of_scorers_are_those_of_their_logits(keys):
    rng = np.random.default_rng(8)
    one, other = a_scorer(rng, keys=keys[0]), a_scorer(rng, keys=keys[1])
    if all(keys):
        other = Scorer(other.weights_CD, other.bias_C, one.keys_MD, other.values_MC, one.beta)
    rows_ND = rng.normal(size=(9, 6))
    expected = plain_logits(one, rows_ND) - 2.5 * plain_logits(other, rows_ND)
    np.testing.assert_allclose(one.plus(other.times(-2.5)).logits(rows_ND), expected, atol=5e-5)


def test_kernels_over_other_keys_or_of_another_width_are_not_summed():
    rng = np.random.default_rng(9)
    one = a_scorer(rng, keys=3)
    for other in (
        a_scorer(rng, keys=3),
        Scorer(one.weights_CD, one.bias_C, one.keys_MD, one.values_MC, 2 * one.beta),
    ):
        with pytest.raises(AssertionError):
            one.plus(other)


@pytest.mark.parametrize("keys", [0, 3])
def test_a_row_of_nan_is_nan_and_leaves_its_neighbors_alone(keys):
    rng = np.random.default_rng(10)
    found, rows_ND = a_scorer(rng, keys=keys), rng.normal(size=(6, 6)).astype(np.float16)
    holes_ND = rows_ND.copy()
    holes_ND[2, 3], holes_ND[4] = np.nan, 0
    logits_NC = found.logits(holes_ND)
    assert np.isnan(logits_NC[2]).all()
    np.testing.assert_allclose(np.delete(logits_NC, [2, 4], 0), np.delete(found.logits(rows_ND), [2, 4], 0), atol=1e-5)
    if not keys:
        np.testing.assert_allclose(logits_NC[4], found.bias_C, rtol=1e-6)


def test_no_rows_have_no_logits():
    assert linear(np.ones((3, 2))).logits(np.empty((0, 2))).shape == (0, 3)


# ---------------------------------------------------------------- what is given


@pytest.mark.parametrize(
    ("features", "labels", "views", "says"),
    [
        (np.empty((0, 3)), [], None, "there are none; expected at least one"),
        (np.ones((2, 3)), [0, 7], None, "label 7 is no class; expected 0 to 3"),
        (np.ones((2, 3)), [-1, 0], None, "label -1 is no class; expected 0 to 3"),
        (np.ones((2, 5)), [0, 1], None, "features of width 5, texts of width 3"),
        ([[1, 1, 1], [0, 0, 0]], [0, 1], None, "the features of labeled image 1 have length 0; expected a direction"),
        ([[1, np.nan, 1], [1, 0, 0]], [0, 1], None, "the features of labeled image 0 have length nan.*cannot_label"),
        ([[1, 1, 1], [1, np.inf, 0]], [0, 1], None, "the features of labeled image 1 have length inf"),
        (
            np.ones((2, 3)),
            [0, 1],
            [[[1, 1, 1]] * 2, [[1, 1, 1], [0, 0, 0]]],
            "the views of labeled image 1 have length 0",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_named(features, labels, views, says):
    with pytest.raises(UserError, match=says):
        Support(
            np.array(features, float),
            np.array(labels, int),
            Texts(unit(np.ones((4, 3))), 1.0),
            None if views is None else np.array(views, float),
        )


# ---------------------------------------------------------------- the edges


@pytest.mark.parametrize("rule", ALL)
def test_one_label_in_all_leaves_zero_shot_as_it_is(rule):
    support = cone(np.random.default_rng(0), [0, 1, 0])
    assert zero_shot_as_it_is(refit(rule, support), support)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("counts", [[2, 0], [0, 9, 0], [1, 1], [30, 1], [0, 200, 1, 1]])
def test_lopsided_labels_keep_every_class(rule, counts):
    support = cone(np.random.default_rng(1), counts)
    done = refit(rule, support)
    assert lost(support, done.scorer) == []
    assert np.isfinite([*done.chosen.values(), *(done.before or {}).values(), *(done.after or {}).values()]).all()
    assert 0.05 < done.chosen["temperature"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("counts", [[4, 4], [5, 0], [3, 1, 6, 0]])
def test_images_that_are_all_the_same_in_a_class_are_no_trouble(rule, counts):
    once = cone(np.random.default_rng(2), [min(count, 1) for count in counts])
    order = np.argsort(once.labels_N)
    labels_N = np.repeat(once.labels_N[order], [count for count in counts if count])
    features_ND = np.repeat(once.features_ND[order], [count for count in counts if count], axis=0)
    support = Support(features_ND, labels_N, once.texts)
    done = refit(rule, support)
    assert lost(support, done.scorer) == []
    assert np.isfinite([*done.chosen.values(), *(done.after or {}).values()]).all()


@pytest.mark.parametrize("rule", ALL)
def test_images_that_are_the_same_in_all_classes_are_no_trouble(rule):
    texts_CD = unit(np.random.default_rng(3).normal(size=(3, 8)))
    support = Support(np.ones((12, 8)), np.arange(12) % 3, Texts(texts_CD, SCALE))
    done = refit(rule, support)
    assert np.isfinite(done.scorer.logits(np.concatenate([texts_CD, np.ones((1, 8))]))).all()
    assert np.isfinite([*done.chosen.values(), *(done.after or {}).values()]).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL)
def test_a_refit_leaves_what_it_was_given_as_it_was_and_gives_the_same_again(rule):
    given = cone(np.random.default_rng(4), [5, 2, 9])
    features_ND, labels_N, texts_CD = given.features_ND.copy(), given.labels_N.copy(), given.texts.directions_CD.copy()
    first, again = (refit(rule, Support(features_ND, labels_N, Texts(texts_CD, SCALE))) for _ in range(2))
    assert first.scorer.weights_CD.tobytes() == again.scorer.weights_CD.tobytes()
    assert first.chosen == again.chosen
    np.testing.assert_array_equal(features_ND, given.features_ND)
    np.testing.assert_array_equal(labels_N, given.labels_N)
    np.testing.assert_array_equal(texts_CD, given.texts.directions_CD)
