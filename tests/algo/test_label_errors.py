"""Slips are found where labels are less probable than a teacher's own doubts explain, and nowhere else."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from raykd.algo.calibration import DEVIATIONS, honest_weights
from raykd.algo.few_shot.support import Support, Texts
from raykd.algo.heads import softmax
from raykd.algo.label_errors import MOST, Slips, best_share, find_slips, lowest_loss, slips_among


def teachers_labels(seed, num, num_classes=6, share=0.0, temperature=1.0):
    """Logits of a teacher that is sure of some images and not of others; labels drawn from them, a share blindly."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(size=(num, num_classes)) * rng.uniform(0.5, 8, (num, 1))
    probs_NC = softmax(logits_NC / temperature)
    labels_N = np.array([rng.choice(num_classes, p=p) for p in probs_NC])
    wrong_N = rng.random(num) < share
    labels_N[wrong_N] = rng.integers(0, num_classes, int(wrong_N.sum()))
    return logits_NC, labels_N, wrong_N


def loss_of(logits_NC, labels_N, temperature, share):
    """-log likelihood and prior, label by label."""
    total = 0.5 * (np.log(temperature) / DEVIATIONS[0]) ** 2
    for row, label in zip(logits_NC, labels_N, strict=True):
        powers = np.exp(row / temperature - (row / temperature).max())
        total -= np.log((1 - share) * powers[label] / powers.sum() + share / len(row))
    return total


@pytest.mark.parametrize(("share", "temperature"), [(0.1, 1.0), (0.2, 2.0), (0.1, 0.5)])
def test_many_labels_tell_the_share_of_slips_and_the_temperature(share, temperature):
    logits_NC, labels_N, _ = teachers_labels(0, 4000, share=share, temperature=temperature)
    found = find_slips(logits_NC, labels_N)
    assert found.share == pytest.approx(share, abs=0.025)
    np.testing.assert_allclose(found.probs_NC, softmax(logits_NC / temperature), atol=0.05)


@pytest.mark.slow
def test_no_share_and_temperature_of_a_grid_are_likelier():
    logits_NC, labels_N, _ = teachers_labels(1, 250, share=0.25, temperature=1.5)
    found = find_slips(logits_NC, labels_N)
    assert found.share > 0
    logs_NC = np.log(found.probs_NC)  # the temperature, from one row
    temperature = (logits_NC[0, 0] - logits_NC[0, 1]) / (logs_NC[0, 0] - logs_NC[0, 1])
    best = loss_of(logits_NC, labels_N, temperature, found.share)
    grid = [(t, s) for t in np.exp(np.linspace(-1.5, 1.5, 16)) for s in np.linspace(0, MOST, 26)]
    assert best <= min(loss_of(logits_NC, labels_N, t, s) for t, s in grid) + 1e-3


def test_of_a_teachers_own_labels_none_is_suspected():
    """However often it is wrong: twenty sets of labels, at 95 %."""
    alarms = [
        find_slips(*teachers_labels(seed, 200, temperature=temperature)[:2]).suspects_N.any()
        for seed in range(10)
        for temperature in (0.7, 3.0)
    ]
    assert sum(alarms) <= 2


def test_what_is_said_to_be_suspected_by_chance_is_what_is():
    said, right, hits, wrong = 0.0, 0, 0, 0
    for seed in range(10):
        logits_NC, labels_N, blind_N = teachers_labels(100 + seed, 1000, share=0.1)
        found = find_slips(logits_NC, labels_N)
        said += found.by_chance
        right += int((found.suspects_N & ~blind_N).sum())
        hits, wrong = hits + int((found.suspects_N & blind_N).sum()), wrong + int(blind_N.sum())
    assert right == pytest.approx(0.9 * said, rel=0.25)
    assert hits > 4 * right
    assert hits > 0.4 * wrong  # the others are where the teacher is not sure either


def test_the_numbers_of_each_label_are_those_of_a_plain_loop():
    logits_NC, labels_N, _ = teachers_labels(2, 50)
    found = Slips(labels_N, softmax(logits_NC), 0.12)
    for n, label in enumerate(labels_N):
        others = {c: p for c, p in enumerate(found.probs_NC[n]) if c != label}
        best = max(others, key=others.get)
        assert found.suggested_N[n] == best
        assert found.margins_N[n] == found.probs_NC[n, label] - others[best]
        blind, seen = 0.12 / 6, 0.88 * found.probs_NC[n, label]
        assert found.slip_N[n] == pytest.approx(blind / (blind + seen))
        assert found.suspects_N[n] == (blind > seen)
    assert sorted(found.order_N) == list(range(50))
    assert (np.diff(found.slip_N[found.order_N]) <= 0).all()
    assert (found.margins_N[found.suspects_N] < 0).all()


def test_where_no_share_is_looked_for_there_is_none():
    logits_NC, labels_N, _ = teachers_labels(3, 300, share=0.3)
    assert find_slips(logits_NC, labels_N).suspects_N.any()
    none = find_slips(logits_NC, labels_N, most=0.0)
    assert (none.share, none.by_chance, none.suspects_N.any()) == (0.0, 0.0, False)


def test_the_inputs_stay_as_they_were_and_extremes_are_no_trouble():
    logits_NC, labels_N = np.array([[2000.0, 0.0, -9.0]] * 40), np.array([0] * 38 + [1, 2])
    before = logits_NC.copy(), labels_N.copy()
    with np.errstate(all="raise", under="ignore"):
        found = find_slips(logits_NC, labels_N)
    assert np.isfinite([found.share, found.by_chance, *found.slip_N, *found.margins_N]).all()
    assert np.array_equal(logits_NC, before[0])
    assert np.array_equal(labels_N, before[1])


@pytest.mark.parametrize("seed", range(5))
def test_the_best_share_is_that_of_a_grid(seed):
    given_N = np.random.default_rng(seed).uniform(0, 1, 30) ** 3
    shares = np.linspace(0, MOST, 2001)
    likelihoods = [np.log((1 - share) * given_N + share / 5).sum() for share in shares]
    assert best_share(given_N, 1 / 5) == pytest.approx(shares[int(np.argmax(likelihoods))], abs=5e-4)


@pytest.mark.parametrize("where", [-2.999, -0.3, 0.0, 1.7, 5.0])
def test_the_lowest_point_is_found_to_a_thousandth_within_bounds(where):
    assert lowest_loss(lambda moved: (moved - where) ** 2) == pytest.approx(min(where, 3.0), abs=1e-3)


# ---------------------------------------------------------------- with a few-shot teacher


def digits(seed, per_class, wrong):
    """Real digits: pixels, the mean of twenty others of its class for a text; the first labels are changed."""
    images_ND, labels_N = load_digits(return_X_y=True)
    images_ND = images_ND - images_ND.mean(axis=0)
    images_ND /= np.linalg.norm(images_ND, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(labels_N == c)) for c in range(10)]
    texts_CD = np.stack([images_ND[rows[:20]].mean(axis=0) for rows in order])
    texts_CD /= np.linalg.norm(texts_CD, axis=1, keepdims=True)
    held_out = np.concatenate([rows[:20] for rows in order])
    cosines_NC = images_ND[held_out] @ texts_CD.T
    scale = 10 * honest_weights([10 * cosines_NC], labels_N[held_out], np.ones(200))[0]
    mine = rng.permutation(np.concatenate([rows[20 : 20 + per_class] for rows in order]))
    given_N = labels_N[mine].copy()
    given_N[:wrong] = (given_N[:wrong] + rng.integers(1, 10, wrong)) % 10
    return Support(images_ND[mine], given_N, Texts(texts_CD, scale))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_among_real_digits_wrong_labels_are_found_and_of_right_ones_none_is_suspected(seed, monkeypatch):
    from raykd.algo import label_errors

    assert not slips_among(digits(seed, 20, 0)).suspects_N.any()
    for few in (label_errors.FEW, 0):  # ProKeR, then GDA
        monkeypatch.setattr(label_errors, "FEW", few)
        found = slips_among(digits(seed, 20, 20))
        assert set(found.order_N[:5]) <= set(range(20))
        assert found.suspects_N[:20].sum() >= 14
        assert found.suspects_N[20:].sum() <= 3
        assert found.by_chance < 5


def test_one_label_of_each_class_or_one_in_all_says_nothing_of_slips():
    one_each = digits(0, 1, 3)
    assert slips_among(one_each).share == 0
    lone = slips_among(one_each.some(np.array([0])))
    assert (lone.share, len(lone.order_N)) == (0, 1)
