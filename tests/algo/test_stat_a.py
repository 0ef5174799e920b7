"""StatA against a plain loop written from its formulas; its sums are exact, and absent classes come to no harm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo.few_shot import stat_a
from raykd.algo.few_shot.honest import held_out
from raykd.algo.few_shot.kernels import proker
from raykd.algo.few_shot.scorer import linear
from raykd.algo.few_shot.stat_a import exact_logits, on_grid, pool_moments, start, update
from raykd.algo.few_shot.support import Support, Texts, directions
from raykd.algo.heads import softmax


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def world(seed, num_classes=10, width=128, per_class=60, off=2.0, noise=1.5, scale=30.0):
    """Gaussian classes, each beside its own text, in a cone: features, labels, texts, and a zero-shot teacher."""
    rng = np.random.default_rng(seed)
    texts_CD = unit(rng.normal(size=(num_classes, width)) / np.sqrt(width) + unit(rng.normal(size=width)))
    gap_D = unit(rng.normal(size=width))
    centers_CD = texts_CD + gap_D + off * rng.normal(size=(num_classes, width)) / np.sqrt(width)
    labels_N = np.repeat(np.arange(num_classes), per_class)
    features_ND = unit(centers_CD[labels_N] + noise * rng.normal(size=(len(labels_N), width)) / np.sqrt(width))
    return features_ND, labels_N, texts_CD, linear(scale * texts_CD)


def run(teacher, texts_CD, features_ND, labeled=None, iterations=stat_a.ITERATIONS, shards=1, **numbers):
    state = start(teacher, texts_CD, labeled, **numbers)
    for _ in range(iterations):
        first, *others = (pool_moments(part, state.scorer) for part in np.array_split(features_ND, shards))
        state = update(state, sum(others, first))
    return state


def right(scorer, features_ND, labels_N):
    return np.mean(scorer.logits(features_ND).argmax(axis=1) == labels_N)


# ---------------------------------------------------------------- the formulas


def plain(features_ND, teacher_logits_NC, texts_CD, labeled, iterations, alpha, gamma, trust):
    """EM as the formulas have it, an image and a class at a time; the logits of all images after the last step."""
    count, num_classes = teacher_logits_NC.shape
    log_p0_NC = teacher_logits_NC - np.log(np.exp(teacher_logits_NC).sum(axis=1, keepdims=True))
    z_NC = np.exp(log_p0_NC)
    images, shares, weights = list(features_ND), list(z_NC), [1.0] * count
    if labeled is not None:
        num_labels = len(labeled.labels_N)
        images += list(labeled.features_ND)
        weights += [max(1.0, 50 * gamma * count / num_labels)] * num_labels
    anchors, first_scatter = None, None
    for _ in range(iterations):
        shares = list(z_NC)
        if labeled is not None:
            shares += [np.eye(num_classes)[label] for label in labeled.labels_N]
        total = sum(weights)
        if anchors is None:
            gap = sum(w * (x - share @ texts_CD) for w, x, share in zip(weights, images, shares, strict=True)) / total
            anchors = texts_CD + gap
            first_scatter = sum(
                w * share[c] * (x - anchors[c]) ** 2
                for w, x, share in zip(weights, images, shares, strict=True)
                for c in range(num_classes)
            )
            first_scatter = first_scatter / total
        means = []
        for c in range(num_classes):
            n_c = sum(share[c] for share in shares)
            beta = n_c / (alpha + n_c)
            mean = sum(w * share[c] * x for w, x, share in zip(weights, images, shares, strict=True))
            mean = mean / sum(w * share[c] for w, share in zip(weights, shares, strict=True))
            means.append(beta * mean + (1 - beta) * anchors[c])
        scatter = sum(
            w * share[c] * (x - means[c]) ** 2
            for w, x, share in zip(weights, images, shares, strict=True)
            for c in range(num_classes)
        ) + alpha * sum(first_scatter + (anchors[c] - means[c]) ** 2 for c in range(num_classes))
        scatter = scatter / (total + alpha * num_classes)
        scatter = np.maximum(scatter, 0.01 * scatter.mean())
        far_NC = np.array([[((x - mean) ** 2 / scatter).sum() for mean in means] for x in features_ND])
        logits_NC = trust * log_p0_NC + (1 / 50) * (-1 / 2 * far_NC)
        z_NC = softmax(logits_NC)
    return logits_NC


def centered(logits_NC):
    return logits_NC - logits_NC.mean(axis=1, keepdims=True)


@given(
    seed=st.integers(0, 2**32),
    num_classes=st.integers(2, 5),
    num_labels=st.integers(0, 4),
    alpha=st.sampled_from([0.3, 1.0, 20.0]),
    gamma=st.sampled_from([0.0, 0.002, 0.2]),
    trust=st.sampled_from([1.0, 0.5]),
    iterations=st.integers(1, 4),
)
@examples(40)
def test_it_is_the_plain_loop_of_the_formulas(seed, num_classes, num_labels, alpha, gamma, trust, iterations):
    given_ND, labels_N, texts_CD, teacher = world(seed, num_classes, width=7, per_class=6)
    features_ND = directions(given_ND, "row")
    some = np.random.default_rng(seed).permutation(len(labels_N))[:num_labels]
    labeled = Support(given_ND[some], labels_N[some], Texts(texts_CD, 1.0)) if num_labels else None
    numbers = {"alpha": alpha, "gamma": gamma, "trust": trust}
    expected_NC = plain(
        features_ND, exact_logits(teacher, features_ND), texts_CD, labeled, iterations=iterations, **numbers
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stat_a, "on_grid", lambda probs_NC: probs_NC)
        patch.setattr(stat_a, "SQUARES_GRID", 2.0**50)
        patch.setattr(stat_a, "Z_GRID", 2.0**50)  # less than a step of a class is in all images together
        scorer = run(teacher, texts_CD, given_ND, labeled, iterations, **numbers).scorer
    found_NC, step = exact_logits(scorer, features_ND), np.linalg.norm(scorer.weights_CD, axis=1).max() / 2**34
    np.testing.assert_allclose(centered(found_NC), centered(expected_NC), rtol=1e-6, atol=1e-6 + 7 * step)
    on_the_grid = run(teacher, texts_CD, given_ND, labeled, iterations, **numbers).scorer
    np.testing.assert_allclose(softmax(exact_logits(on_the_grid, features_ND)), softmax(expected_NC), atol=0.01)


def test_what_comes_out_is_the_teacher_and_a_linear_scorer():
    features_ND, labels_N, texts_CD, _ = world(0)
    support = Support(features_ND[::20], labels_N[::20], Texts(texts_CD, 30.0))
    teacher = next(proker(support)).texts
    state = run(teacher, texts_CD, features_ND, support, trust=0.5, iterations=2)
    assert state.scorer.keys_MD is teacher.keys_MD
    np.testing.assert_array_equal(state.scorer.values_MC, 0.5 * teacher.values_MC)
    assert not np.allclose(state.scorer.weights_CD, 0.5 * teacher.weights_CD)
    rows_ND = directions(features_ND, "row")
    np.testing.assert_allclose(exact_logits(teacher, rows_ND), teacher.logits(rows_ND), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(exact_logits(state.scorer, rows_ND), state.scorer.logits(rows_ND), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- sums that are exact


@given(
    seed=st.integers(0, 2**32),
    num_classes=st.integers(1, 6),
    width=st.sampled_from([1, 3, 16, 65]),
    per_class=st.integers(1, 20),
    shards=st.sampled_from([2, 7]),
    block=st.sampled_from([1, 64, 1000]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    scale=st.sampled_from([0.01, 30.0, 1e4]),
)
@examples(60)
def test_the_bits_do_not_depend_on_shards_or_blocks_or_the_order_of_rows(
    seed, num_classes, width, per_class, shards, block, dtype, scale
):
    features_ND, _, texts_CD, teacher = world(seed, num_classes, width, per_class, scale=scale)
    features_ND = (3 * features_ND).astype(dtype)
    whole = run(teacher, texts_CD, features_ND, iterations=3).scorer
    order = np.random.default_rng(seed).permutation(len(features_ND))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stat_a, "BLOCK", block)
        cut = run(teacher, texts_CD, features_ND[order], iterations=3, shards=shards).scorer
    assert cut.weights_CD.tobytes() == whole.weights_CD.tobytes()
    assert cut.bias_C.tobytes() == whole.bias_C.tobytes()


def test_sums_are_those_of_whole_numbers():
    features_ND, _, _, teacher = world(3, num_classes=5, width=9, per_class=200)
    rows_ND = directions(features_ND, "row")
    shares_NC = on_grid(softmax(exact_logits(teacher, rows_ND)))
    found = pool_moments(features_ND, teacher)
    assert [math.fsum(column) for column in shares_NC.T] == found.counts_C.tolist()
    for c in range(5):
        assert [math.fsum(column) for column in (shares_NC[:, c, None] * rows_ND).T] == found.sums_CD[c].tolist()
    squares_D = [sum(round(float(x) ** 2 * 2**28) for x in column) / 2**28 for column in rows_ND.T]
    assert squares_D == found.squares_D.tolist()
    assert found.counts_C.sum() == len(features_ND)


def test_33_million_images_of_the_largest_numbers_there_are_add_up_exactly():
    largest = 2**25  # images
    assert stat_a.SQUARES_GRID * largest <= 2**53
    one = pool_moments(np.array([[1.0, 2.0**-14]]), linear(np.array([[1.0, 0.0]])))
    many = one.times(float(largest - 1))
    smallest = 1 / stat_a.SQUARES_GRID
    assert one.squares_D[1] == smallest
    for each, more in ((many.counts_C, 1.0), (many.sums_CD, 2.0**-14), (many.squares_D, smallest)):
        for part in each.ravel():
            assert (part + more) - part == more


@given(seed=st.integers(0, 2**32), num_classes=st.integers(1, 3000), sharp=st.sampled_from([0.0, 1.0, 30.0, 1e6]))
@examples(60)
def test_shares_on_the_grid_sum_to_one_and_no_run_of_classes_is_off_by_more_than_a_step(seed, num_classes, sharp):
    probs_NC = softmax(sharp * np.random.default_rng(seed).normal(size=(5, num_classes)))
    shares_NC = on_grid(probs_NC)
    steps_NC = shares_NC * stat_a.Z_GRID
    assert (shares_NC >= 0).all()
    assert (steps_NC == np.round(steps_NC)).all()
    assert (shares_NC.sum(axis=1) == 1).all()
    assert not shares_NC[probs_NC == 0].any()
    off_NC = np.cumsum(np.pad(shares_NC - probs_NC, ((0, 0), (1, 0))), axis=1)
    assert (np.ptp(off_NC, axis=1) <= 1 / stat_a.Z_GRID + 1e-12).all()


@given(seed=st.integers(0, 2**32), num_rows=st.integers(1, 40), length=st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e7]))
@examples(60)
def test_the_logits_of_an_image_are_the_same_bits_alone_and_among_others(seed, num_rows, length):
    rng = np.random.default_rng(seed)
    scorer = linear(length * rng.normal(size=(13, 70)), rng.normal(size=13))
    rows_ND = directions(rng.normal(size=(num_rows, 70)), "row")
    together_NC = exact_logits(scorer, rows_ND)
    alone_NC = np.concatenate([exact_logits(scorer, row_D[None]) for row_D in rows_ND])
    assert together_NC.tobytes() == alone_NC.tobytes()
    expected_NC = rows_ND @ scorer.weights_CD.T + scorer.bias_C
    np.testing.assert_allclose(together_NC, expected_NC, rtol=1e-9, atol=1e-9 * max(length, 1))


# ---------------------------------------------------------------- what it is good for


def test_it_is_better_than_zero_shot_where_classes_lie_beside_their_texts():
    for seed in range(4):
        features_ND, labels_N, texts_CD, teacher = world(seed)
        pool, test = slice(0, None, 2), slice(1, None, 2)
        scorer = run(teacher, texts_CD, features_ND[pool]).scorer
        before, after = (
            held_out(each.logits(features_ND[test]), labels_N[test], np.ones(len(labels_N[test])))
            for each in (teacher, scorer)
        )
        assert after["accuracy"] > before["accuracy"] + 0.05
        assert after["log_loss"] < before["log_loss"] - 0.1


def test_classes_that_the_pool_has_no_images_of_come_to_no_harm_and_do_where_nothing_holds_them():
    before, held, loose = [], [], []
    for seed in range(6):
        features_ND, labels_N, texts_CD, teacher = world(seed, per_class=100)
        in_pool = labels_N % 2 == 0
        pool_ND = features_ND[in_pool][::2]
        absent, present = np.flatnonzero(~in_pool), np.flatnonzero(in_pool)[1::2]
        for outcome, scorer in (
            (before, teacher),
            (held, run(teacher, texts_CD, pool_ND).scorer),
            (loose, run(teacher, texts_CD, pool_ND, alpha=0.0).scorer),
        ):
            outcome.append([right(scorer, features_ND[rows], labels_N[rows]) for rows in (absent, present)])
    before, held, loose = (np.mean(outcome, axis=0) for outcome in (before, held, loose))
    assert held[0] > before[0] - 0.01
    assert held[1] > before[1]
    assert loose[0] < min(before[0], held[0]) - 0.02


def test_a_class_without_images_stays_where_its_text_is():
    features_ND, labels_N, texts_CD, _ = world(1, num_classes=4)
    pool_ND = features_ND[labels_N < 3]
    sure = linear(1e5 * texts_CD, np.where(np.arange(4) < 3, 0.0, -1e6))  # of 0 or 1, and never in class 3
    state = run(sure, texts_CD, pool_ND, iterations=3)
    rows_ND = directions(pool_ND, "row")
    gap_D = rows_ND.mean(axis=0) - texts_CD[sure.logits(pool_ND).argmax(axis=1)].mean(axis=0)
    np.testing.assert_allclose(state.anchors_CD, texts_CD + gap_D, atol=1e-9)
    gaussian = state.scorer.plus(sure.times(-1.0))
    # w = mu / S and b = -mu'w / 2 per class: with S from class 0, whose mean is the images', class 3's mean follows
    won_0 = sure.logits(pool_ND).argmax(axis=1) == 0
    share = won_0.sum() / (won_0.sum() + stat_a.ALPHA)
    mean_0_D = share * rows_ND[won_0].mean(axis=0) + (1 - share) * state.anchors_CD[0]
    np.testing.assert_allclose(
        gaussian.weights_CD[3] / gaussian.weights_CD[0] * mean_0_D, state.anchors_CD[3], rtol=1e-5
    )


def test_labels_that_contradict_the_teacher_win_over_it():
    features_ND, labels_N, texts_CD, teacher = world(2)
    wrong = (labels_N + 1) % 10
    rows = np.arange(0, len(labels_N), 4)
    pool_ND = np.delete(features_ND, rows, axis=0)
    labeled = Support(features_ND[rows], wrong[rows], Texts(texts_CD, 30.0))
    agree = [
        right(run(teacher, texts_CD, pool_ND, labeled, trust=0.1, gamma=gamma).scorer, features_ND, wrong)
        for gamma in (0.0, 0.002, 0.2)
    ]
    assert agree == sorted(agree)
    assert agree[0] < 0.5 < agree[2]


# ---------------------------------------------------------------- the edges


def is_finite(scorer, width):
    rows_ND = np.random.default_rng(0).normal(size=(20, width))
    return np.isfinite(scorer.logits(rows_ND)).all() and np.isfinite(exact_logits(scorer, unit(rows_ND))).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_pool_without_images_leaves_the_teacher_as_it_is(alpha):
    _, _, texts_CD, teacher = world(0)
    nothing_ND = np.empty((0, 128), np.float16)
    assert run(teacher, texts_CD, nothing_ND, alpha=alpha).scorer is teacher


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.002])
def test_a_pool_without_images_learns_from_labels(alpha, gamma):
    features_ND, labels_N, texts_CD, teacher = world(0)
    support = Support(features_ND[::3], labels_N[::3], Texts(texts_CD, 30.0))
    scorer = run(teacher, texts_CD, features_ND[:0], support, alpha=alpha, gamma=gamma).scorer
    assert is_finite(scorer, 128)
    assert right(scorer, features_ND, labels_N) > right(teacher, features_ND, labels_N)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 30.0, 1e7])  # p0 of 0 and 1 only
def test_one_image_is_a_pool(alpha, scale):
    features_ND, _, texts_CD, _ = world(0)
    assert is_finite(run(linear(scale * texts_CD), texts_CD, features_ND[:1], alpha=alpha).scorer, 128)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_p0_of_zero_and_one_is_no_trouble(alpha):
    features_ND, labels_N, texts_CD, _ = world(0)
    sure = linear(1e7 * texts_CD)
    assert set(np.unique(softmax(exact_logits(sure, directions(features_ND, "row"))))) == {0.0, 1.0}
    scorer = run(sure, texts_CD, features_ND, alpha=alpha).scorer
    assert is_finite(scorer, 128)
    assert right(scorer, features_ND, labels_N) == right(sure, features_ND, labels_N)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_dimensions_and_images_that_are_all_the_same_are_no_trouble(alpha):
    features_ND, labels_N, texts_CD, _ = world(0)
    features_ND = np.concatenate([features_ND, np.full((len(features_ND), 1), 0.5), np.zeros((len(features_ND), 3))], 1)
    texts_CD = unit(np.concatenate([texts_CD, np.zeros((10, 4))], axis=1))
    teacher = linear(30 * texts_CD)
    scorer = run(teacher, texts_CD, features_ND, alpha=alpha).scorer
    assert is_finite(scorer, 132)
    assert right(scorer, features_ND, labels_N) > right(teacher, features_ND, labels_N)
    assert is_finite(run(teacher, texts_CD, np.repeat(features_ND[:1], 50, axis=0), alpha=alpha).scorer, 132)


def test_rows_without_a_direction_are_left_out():
    features_ND, _, _, teacher = world(0)
    holes_ND = features_ND.copy()
    holes_ND[3], holes_ND[7], holes_ND[9, 0] = np.nan, 0.0, np.inf
    found, expected = pool_moments(holes_ND, teacher), pool_moments(np.delete(features_ND, [3, 7, 9], 0), teacher)
    assert found.counts_C.sum() == len(features_ND) - 3
    for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(one, other)
