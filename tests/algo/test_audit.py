"""Audited accuracy holds what its interval promises, whatever was picked; at every look; from uneven draws too."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo import audit
from raykd.algo.audit import (
    at_least,
    audit_order,
    audited_accuracy,
    chooses,
    control_variate,
    is_aside,
    last_draw,
    places_of_audits,
)
from raykd.algo.errors import UserError
from raykd.algo.keyed import hash_ids
from raykd.algo.statistics import exact_interval, exact_low, student_t, wilson

CAMPAIGNS = 1000


def students(rng, accuracy, correlation, shape, sharpened):
    """How sure students are and whether they are right, [S, M]; not sharpened they are calibrated."""
    spread = 1 / correlation**2 - 1
    sure = rng.beta(accuracy * spread, (1 - accuracy) * spread, shape)
    right = rng.random(shape) < sure
    return (sure**3 / (sure**3 + (1 - sure) ** 3) if sharpened else sure), right


def coverage(rng, accuracy, count, correlation, sharpened=False, set_aside=600):
    """How often the interval holds, and how often it was the control variate's."""
    sure, right = students(rng, accuracy, correlation, (CAMPAIGNS, set_aside), sharpened)
    found = [audited_accuracy(r[:count], s[:count], s) for r, s in zip(right, sure, strict=True)]
    return (np.mean([f["low"] <= accuracy <= f["high"] for f in found]),
            np.mean([f["how"] == "control variate" for f in found]))  # fmt: skip


QUICK = {"exact_interval": cache(exact_interval), "exact_low": cache(exact_low)}  # the same few counts, many times


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, function in QUICK.items():
        monkeypatch.setattr(audit, name, function)


# ---------------------------------------------------------------- coverage


@pytest.mark.slow
@pytest.mark.parametrize(("correlation", "sharpened"), [(0.2, False), (0.5, True), (0.8, False), (0.8, True)])
@pytest.mark.parametrize(("accuracy", "count"), [(0.6, 100), (0.6, 200), (0.8, 200), (0.6, 400), (0.9, 400)])
def test_the_interval_by_control_variate_covers_in_93_to_97_percent(accuracy, count, correlation, sharpened):
    rng = np.random.default_rng([count, int(100 * accuracy), int(10 * correlation), sharpened])
    covered, varied = coverage(rng, accuracy, count, correlation, sharpened)
    assert 0.93 <= covered <= 0.97
    assert varied > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.2, 0.8])
@pytest.mark.parametrize(
    ("accuracy", "count"), [(0.6, 20), (0.9, 20), (0.8, 50), (0.97, 50), (0.9, 100), (0.97, 200), (0.97, 400)]
)
def test_where_few_are_wrong_or_audited_it_covers_at_least_as_often(accuracy, count, correlation):
    """Now the exact interval, which may hold too often, now the other, as the sample has it."""
    rng = np.random.default_rng([count, int(100 * accuracy), int(10 * correlation)])
    covered, varied = coverage(rng, accuracy, count, correlation)
    assert covered >= 0.93
    assert varied == 0 if count < 100 else varied < 1


def test_of_a_pool_that_is_not_large_it_covers_its_own_accuracy_and_is_narrower():
    """300 of 600 audited, 400 set aside: the accuracy is that of these 600, another in each campaign."""
    rng = np.random.default_rng(0)
    sure, right = students(rng, 0.7, 0.5, (CAMPAIGNS, 600), sharpened=False)
    for exact in (False, True):
        inside, width, endless = 0, 0.0, 0.0
        for r, s in zip(right, sure, strict=True):
            says = (None, None) if exact else (s[:300], s[:400])
            found, of_endless = audited_accuracy(r[:300], *says, num_pool=600), audited_accuracy(r[:300], *says)
            inside += found["low"] <= r.mean() <= found["high"]
            width += found["high"] - found["low"]
            endless += of_endless["high"] - of_endless["low"]
        assert 0.93 <= inside / CAMPAIGNS <= (0.99 if exact else 0.97)
        assert width < 0.8 * endless


@pytest.mark.slow
def test_images_that_people_can_give_no_class_are_left_out_of_the_accuracy_without_bias():
    """A third of what the student is unsure of has no class; how sure it was of these is known all the same."""
    rng = np.random.default_rng(0)
    sure, right = students(rng, 0.7, 0.6, (CAMPAIGNS, 500), sharpened=False)
    known = (sure > 0.6) | (rng.random(sure.shape) > 1 / 3)
    truth = right[known].mean()
    found = [audited_accuracy(r[:200], s[:200], s, known_A=k[:200]) for r, s, k in zip(right, sure, known, strict=True)]
    assert {f["how"] for f in found} == {"control variate"}
    assert 0.93 <= np.mean([f["low"] <= truth <= f["high"] for f in found]) <= 0.97
    assert np.mean([f["accuracy"] for f in found]) == pytest.approx(truth, abs=0.005)


# ---------------------------------------------------------------- whole campaigns


def test_a_campaign_that_picks_the_hardest_images_is_measured_without_bias_if_its_audit_was_set_aside():
    """And not if each round audits what the rounds before have left: that is an easier pool.

    600 images, 6 rounds that train on the 40 hardest left and audit 20 more; the student gets better each round.
    """
    rng = np.random.default_rng(0)
    num_pool, rounds, picked_a_round, audited_a_round, set_aside = 600, 6, 40, 20, 200
    hard = rng.random((CAMPAIGNS, num_pool))  # set aside are the first: the order of the pool is random
    luck = rng.random((CAMPAIGNS, num_pool))  # an image's own, for all students
    free = np.ones((2, CAMPAIGNS, num_pool), bool)  # of both designs: neither audited nor trained on
    free[0, :, :set_aside] = False
    late = np.zeros((CAMPAIGNS, num_pool), bool)  # audited from what was left
    rows = np.arange(CAMPAIGNS)[:, None]
    for _ in range(rounds):
        for left in free:
            picks = np.where(left, hard, -1).argsort(axis=1)[:, -picked_a_round:]
            left[rows, picks] = False
        drawn = np.where(free[1], rng.random(hard.shape), -1).argsort(axis=1)[:, -audited_a_round:]
        free[1, rows, drawn] = False
        late[rows, drawn] = True
    sure = np.clip(1.15 - 0.8 * hard, 0.02, 0.98)
    right = luck < sure  # of a student that was not trained on the image
    truth = right.mean(axis=1)
    count = rounds * audited_a_round
    aside = [audited_accuracy(r[:count], s[:count], s[:set_aside], num_pool)
             for r, s in zip(right, sure, strict=True)]  # fmt: skip
    errors = np.array([found["accuracy"] for found in aside]) - truth
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(CAMPAIGNS)
    assert 0.93 <= np.mean([f["low"] <= t <= f["high"] for f, t in zip(aside, truth, strict=True)]) <= 0.97
    from_left = np.array([r[a].mean() for r, a in zip(right, late, strict=True)]) - truth
    assert from_left.mean() > 0.05


def test_the_order_is_the_images_own_for_any_row_order_and_new_images_find_their_places_in_it():
    ids = np.array([f"img{i}" for i in range(300)])
    order = ids[audit_order(hash_ids(ids), seed=3)]
    shuffled = np.random.default_rng(0).permutation(ids)
    np.testing.assert_array_equal(shuffled[audit_order(hash_ids(shuffled), seed=3)], order)
    fewer = ids[audit_order(hash_ids(ids[:200]), seed=3)]
    np.testing.assert_array_equal(order[np.isin(order, ids[:200])], fewer)
    assert list(order[:20]) != list(ids[audit_order(hash_ids(ids), seed=4)][:20])


def test_labels_that_chose_flatter_and_the_side_that_did_not_choose_does_not():
    """The best of 50 students that are all right on 70 %, by 200 audited images."""
    ids = [f"img{i}" for i in range(200)]
    chose = chooses(hash_ids(ids), seed=0)
    assert 80 < chose.sum() < 120
    np.testing.assert_array_equal(chooses(hash_ids(ids[:90]), seed=0), chose[:90])
    assert chooses(hash_ids(ids), 0, share=1.0).all()
    flattered, measured = [], []
    for seed in range(100):
        right = np.random.default_rng(seed).random((50, 200)) < 0.7
        best = right[right[:, chose].sum(axis=1).argmax()]
        flattered.append(audited_accuracy(best[chose])["accuracy"])
        measured.append(audited_accuracy(best[~chose])["accuracy"])
    assert np.mean(flattered) > 0.77
    assert np.mean(measured) == pytest.approx(0.7, abs=0.015)


# ---------------------------------------------------------------- the figures themselves


@given(st.integers(0, 2**20), st.integers(1, 300), st.floats(0.02, 0.98), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_accuracy_is_within_its_interval_and_wrong_ones_mirror_right_ones(seed, count, accuracy, finite):
    rng = np.random.default_rng(seed)
    sure = rng.random(count + 50)
    right = rng.random(count) < accuracy
    pool = count + 80 if finite else None
    found = audited_accuracy(right, sure[:count], sure, pool)
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    assert 0 <= found["exact_low"] <= right.mean() <= found["exact_high"] <= 1
    wrong = audited_accuracy(~right, 1 - sure[:count], 1 - sure, pool)
    assert wrong["how"] == found["how"]
    assert wrong["accuracy"] == pytest.approx(1 - found["accuracy"])
    assert (wrong["low"], wrong["high"]) == pytest.approx((1 - found["high"], 1 - found["low"]))


def test_the_control_variate_is_the_regression_estimator_and_its_deviations_those_of_lines_fitted_without_the_image():
    rng = np.random.default_rng(0)
    sure, right = (part[0] for part in students(rng, 0.7, 0.6, (1, 500), sharpened=True))
    x, y = sure[:120], right[:120].astype(float)
    slope, base = np.polyfit(x, y, 1)
    accuracy, variance = control_variate(right[:120], x, sure)
    assert accuracy == pytest.approx(base + slope * sure.mean())
    without = []
    for i in range(120):
        slope, base = np.polyfit(np.delete(x, i), np.delete(y, i), 1)
        without.append(y[i] - base - slope * x[i])
    spread = np.sum(np.square(without)) / 119
    moved = (sure.mean() - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)
    assert variance == pytest.approx(spread * (1 / 120 - 1 / 500 + moved) + y.var(ddof=1) / 500)
    found = audited_accuracy(right[:120], x, sure)
    worth = accuracy * (1 - accuracy) / variance
    assert found["worth"] == pytest.approx(worth)
    assert (found["low"], found["high"]) == pytest.approx(wilson(accuracy, worth, student_t(118)))
    assert (found["exact_low"], found["exact_high"]) == exact_interval(int(y.sum()), 120)


def test_certainty_that_goes_with_being_right_is_worth_labels_and_one_that_says_nothing_is_not():
    rng = np.random.default_rng(0)
    sure, right = students(rng, 0.7, 0.7, (1, 20_000), sharpened=False)
    found = audited_accuracy(right[0, :2000], sure[0, :2000], sure[0])
    assert found["worth"] / 2000 == pytest.approx(1 / (0.51 + 0.49 / 10), rel=0.1)
    constant = audited_accuracy(right[0, :200], np.full(200, 0.7), np.full(400, 0.7))
    assert constant["worth"] == pytest.approx(200, rel=0.03)
    assert constant["accuracy"] == right[0, :200].mean()


def test_the_exact_interval_is_taken_where_nothing_else_is_sure_to_hold():
    sure, rng = np.linspace(0.1, 1, 300), np.random.default_rng(0)
    mixed = rng.random(300) < sure
    for right, says in [
        (mixed[:99], True),  # few
        (np.ones(300, bool), True),  # all right
        (np.zeros(300, bool), True),
        (np.arange(300) >= 14, True),  # fourteen wrong
        (mixed, False),  # nothing said of certainty
    ]:
        found = audited_accuracy(right, *((sure[: len(right)], sure) if says else (None, None)))
        assert found["how"] == "exact"
        assert (found["low"], found["high"]) == exact_interval(int(right.sum()), len(right))
        assert found["accuracy"] == right.mean()
    assert audited_accuracy(np.arange(300) >= 15, sure, sure)["how"] == "control variate"


def test_a_pool_that_is_audited_whole_leaves_no_doubt():
    right = np.arange(150) < 100
    found = audited_accuracy(right, np.linspace(0, 1, 150), np.linspace(0, 1, 150), num_pool=150)
    assert (found["low"], found["high"]) == pytest.approx((found["accuracy"], found["accuracy"]))


def test_an_audit_without_any_class_is_refused():
    with pytest.raises(UserError, match="none of 3 audited images has a class"):
        audited_accuracy(np.zeros(3, bool), known_A=np.zeros(3, bool))


# ---------------------------------------------------------------- at every look


@pytest.mark.slow
@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("way", ["rising", "falling", "jumping"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_bound_is_wrong_at_any_look_of_a_campaign_in_at_most_five_percent(planned, way, shared):
    """Ten students, judged on 15 images more each; their answers hang together by image, or not at all."""
    rng = np.random.default_rng([planned, len(way), shared])
    looks, more, campaigns = 10, 15, 2000
    accuracies = {"rising": np.linspace(0.5, 0.9, looks), "falling": np.linspace(0.9, 0.5, looks),
                  "jumping": np.tile([0.6, 0.85], looks // 2)}[way]  # fmt: skip
    luck = rng.random((campaigns, looks * more))
    ever, careless = np.zeros(campaigns, bool), np.zeros(campaigns, bool)
    for look, accuracy in enumerate(accuracies):
        count = more * (look + 1)
        luck = luck if shared else rng.random(luck.shape)
        num_right = (luck[:, :count] < accuracy).sum(axis=1)
        kinds, which = np.unique(num_right, return_inverse=True)
        bounds = np.array([at_least(int(kind), count, look, looks if planned else None) for kind in kinds])
        alone = np.array([QUICK["exact_low"](int(kind), count) for kind in kinds])
        ever |= bounds[which] > accuracy
        careless |= alone[which] > accuracy
    assert ever.mean() <= 0.05
    assert careless.mean() > 0.08  # each look at 95 % for itself


def test_the_looks_share_the_five_percent():
    spent = [1 / ((k + 1) * (k + 2)) for k in range(1000)]
    assert sum(spent) == pytest.approx(1, abs=2e-3)
    for look in (0, 3):
        assert at_least(40, 50, look) == exact_low(40, 50, alpha=0.05 * spent[look])
        assert at_least(40, 50, look, 10) == exact_low(40, 50, alpha=0.005)
    assert at_least(40, 50, 0, 1) == exact_low(40, 50)
    assert at_least(40, 50, 0, 10, num_pool=60) > at_least(40, 50, 0, 10)
    assert at_least(0, 0, 0) == 0
    with pytest.raises(UserError, match="look 11 of 10"):
        at_least(40, 50, 10, 10)


# ---------------------------------------------------------------- which images, and where among the picks


@given(st.integers(0, 2**20), st.integers(1, 200), st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_set_aside_is_the_beginning_of_the_order_and_one_number_says_it(seed, count, data):
    hashes = hash_ids(f"{seed}-{i}" for i in range(count))
    first = data.draw(st.integers(1, count))
    last = last_draw(hashes, seed, first)
    assert np.flatnonzero(is_aside(hashes, seed, last)).tolist() == sorted(audit_order(hashes, seed)[:first].tolist())


def test_what_comes_later_is_set_aside_in_the_same_share():
    hashes = hash_ids(map(str, range(40_000)))
    last = last_draw(hashes[:2_000], 3, 200)
    assert is_aside(hashes[:2_000], 3, last).sum() == 200
    assert is_aside(hashes[2_000:], 3, last).mean() == pytest.approx(0.1, abs=0.02)  # a tenth of 2,000 is itself a draw


def test_audits_stand_anywhere_among_the_picks():
    found = np.array([places_of_audits(8, 2, seed, 1) for seed in range(2_000)])
    assert (found.sum(axis=1) == 2).all()
    assert found.mean(axis=0) == pytest.approx(np.full(10, 0.2), abs=0.04)
    assert places_of_audits(8, 2, 5, 1).tolist() == found[5].tolist()
    assert places_of_audits(3, 0, 0).tolist() == [False] * 3
