"""Forecasts of curves that are known, as often right as they say; and none where nothing can be said."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo.errors import UserError
from raykd.algo.forecast import (
    Forecast,
    fall_by_chance,
    forecast,
    price_per_point,
    rising,
    sampling_noise,
    score_forecasts,
)

LABELS = np.arange(1, 9) * 20


def pow4(labels):
    return 0.92 - 6.0 * (labels + 15.0) ** -0.8


def mmf4(labels):
    return (0.3 * 50 + 0.9 * labels**1.1) / (50 + labels**1.1)


def of_images(num_images, count, accuracy=0.7):
    """The noise of rounds that are each measured on images of their own."""
    return np.diag(np.full(count, accuracy * (1 - accuracy) / num_images))


# ---------------------------------------------------------------- what is known


@pytest.mark.parametrize("curve", [pow4, mmf4])
@pytest.mark.parametrize("count", [4, 5, 8])
def test_curves_of_these_kinds_without_noise_are_continued(curve, count):
    labels, then = LABELS[:count], int(LABELS[count - 1] + 20)
    found = forecast(labels, curve(labels), np.eye(count) * 1e-8, then, 0)
    assert found["reason"] is None
    assert found["labels"] == then
    assert found["accuracy"] == pytest.approx(curve(then), abs=3e-3)
    assert found["gain"] == pytest.approx(curve(then) - curve(labels[-1]), abs=3e-3)
    two_ahead = forecast(labels, curve(labels), np.eye(count) * 1e-8, then + 20, 0)
    assert two_ahead["accuracy"] == pytest.approx(curve(then + 20), abs=6e-3)


def test_what_is_measured_next_is_within_as_often_as_it_says_and_so_is_the_gain():
    """40 campaigns of 6 rounds on 400 images; a third of what a student gets right is its own luck."""
    rng = np.random.default_rng(0)
    labels = np.append(LABELS[:6], 140)
    inside = gained = 0
    for campaign in range(40):
        luck = np.where(rng.random((7, 400)) < 0.3, rng.random((7, 400)), rng.random(400))
        right = luck < pow4(labels)[:, None]
        found = forecast(labels[:6], right[:6].mean(axis=1), sampling_noise(right[:6]), 140, campaign)
        if found["reason"] is None:
            inside += found["low"] <= right[6].mean() <= found["high"]
            gained += found["gain_low"] <= pow4(140) - pow4(120) <= found["gain_high"]
        else:
            inside, gained = inside + 1, gained + 1  # it says nothing, and so nothing wrong
    assert inside >= 36
    assert gained >= 36


def test_a_flat_curve_goes_on_flat():
    found = forecast(LABELS[:6], np.full(6, 0.6), of_images(2000, 6, 0.6), 140, 0)
    assert found["reason"] is None
    assert found["accuracy"] == pytest.approx(0.6, abs=1e-6)
    assert found["gain"] == pytest.approx(0, abs=1e-6)
    assert found["gain_high"] < 0.02


def test_rounds_that_share_their_images_are_told_apart_better():
    accuracies = pow4(LABELS[:6])
    alone = of_images(300, 6)
    shared = alone + 0.8 * (alone[0, 0] - alone) * (1 - np.eye(6))
    apart, together = (forecast(LABELS[:6], accuracies, noise, 140, 0) for noise in (alone, shared))
    assert together["high"] - together["low"] < 0.8 * (apart["high"] - apart["low"])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0.05, 0.95), min_size=4, max_size=7), st.integers(0, 1000))
def test_whatever_comes_a_forecast_is_a_share_within_its_interval_and_the_same_for_the_same_key(accuracies, key):
    count = len(accuracies)
    given_ = LABELS[:count], np.array(accuracies), of_images(50, count), int(LABELS[count - 1] + 20), key
    found = forecast(*given_)
    assert found == forecast(*given_)
    if found["reason"] is None:
        assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
        assert 0 <= found["gain_low"] <= found["gain"] <= found["gain_high"]
        assert found["high"] - found["low"] <= 1 - accuracies[-1]
    else:
        assert all(value is None for name, value in found.items() if name not in ("labels", "reason"))


def test_a_steep_curve_is_not_continued_above_one():
    found = forecast(LABELS[:5], 1 - 0.8 * (20 / LABELS[:5]) ** 1.5, np.eye(5) * 1e-5, 140, 0)
    assert found["reason"] is None
    assert 0.93 < found["accuracy"] <= found["high"] <= 1


# ---------------------------------------------------------------- no forecast


@pytest.mark.parametrize(
    ("accuracies", "num_images", "ahead", "reason"),
    [
        ([0.5], 10**4, 20, "4 measured rounds are needed, and there are 1"),
        ([0.5, 0.6, 0.65], 10**4, 20, "4 measured rounds are needed, and there are 3"),
        ([0.5, 0.6, 0.65, 0.7], 10**4, 41, "121 labels are more than two rounds ahead"),
        ([0.9, 0.98, 1.0, 1.0], 10**4, 20, "nothing is left to gain"),
        ([1.0, 1.0, 1.0, 1.0], 10**4, 20, "nothing is left to gain"),
        ([0.8, 0.75, 0.7, 0.65], 400, 20, "accuracy has fallen by more than chance"),
        ([0.5, 0.7, 0.8, 0.6], 400, 20, "accuracy has fallen by more than chance"),
        ([0.9, 0.92, 0.94, 0.95], 100, 20, "points is wider than the 5.0 that are left to gain"),
    ],
)
def test_where_nothing_can_be_said_the_reason_is(accuracies, num_images, ahead, reason):
    count = len(accuracies)
    found = forecast(LABELS[:count], np.array(accuracies), of_images(num_images, count), int(20 * count + ahead), 0)
    assert reason in found["reason"]
    assert found["accuracy"] is None


def test_a_fall_that_chance_may_have_made_does_not_forbid_a_forecast():
    found = forecast(LABELS[:5], np.array([0.4, 0.5, 0.55, 0.59, 0.57]), of_images(400, 5), 120, 0)
    assert found["reason"] is None


@pytest.mark.parametrize(("labels", "then"), [([20, 40, 40, 60], 80), ([20, 40, 60, 80], 80)])
def test_labels_that_do_not_ascend_are_an_error(labels, then):
    with pytest.raises(UserError, match="each more than the one before"):
        forecast(np.array(labels), np.full(4, 0.5), of_images(100, 4), then, 0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 5)), min_size=1, max_size=9))
def test_the_nearest_rising_curve_is_that_of_pooling_neighbours_that_fall(pairs):
    blocks = []
    for value, weight in pairs:
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v, w, n), (value_, weight_, m) = blocks[-2:]
            blocks[-2:] = [[(v * w + value_ * weight_) / (w + weight_), w + weight_, n + m]]
    want = [value for value, _, count in blocks for _ in range(count)]
    values, weights = np.array(pairs).T
    np.testing.assert_allclose(rising(np.stack([values, values]), weights), [want, want], atol=1e-9)


def test_flat_curves_are_said_to_fall_in_five_percent():
    rng = np.random.default_rng(0)
    noise = of_images(100, 6)
    draws = rng.normal(0, math.sqrt(noise[0, 0]), (400, 6))
    curves = 0.7 + rng.normal(0, math.sqrt(noise[0, 0]), (400, 6))
    rejected = np.mean([fall_by_chance(curve, noise, draws) < 0.05 for curve in curves])
    assert 0.01 < rejected < 0.08
    assert fall_by_chance(np.linspace(0.5, 0.9, 6), noise, draws) == 1


# ---------------------------------------------------------------- noise, books, prices


def test_noise_is_that_of_means_over_the_same_images_and_never_none():
    right = np.random.default_rng(0).random((3, 500)) < np.array([[0.5], [0.7], [0.9]])
    right[1] |= right[0]
    noise = sampling_noise(right)
    np.testing.assert_allclose(noise[0, 1], np.cov(right[0], right[1])[0, 1] / 500)
    np.testing.assert_allclose(noise.diagonal(), [row.var(ddof=1) / 500 for row in right], rtol=0.02)
    sure = sampling_noise(np.ones((2, 50), bool))
    assert (sure.diagonal() > 0).all()


def said(accuracy, low, high, reason=None) -> Forecast:
    return {"labels": 9, "accuracy": accuracy, "low": low, "high": high, "gain": None, "gain_low": None,
            "gain_high": None, "reason": reason}  # fmt: skip


def test_past_forecasts_are_held_against_what_came():
    past = [said(0.7, 0.65, 0.75), said(0.8, 0.78, 0.82), said(None, None, None, "too few"), said(0.9, 0.8, 0.95)]
    found = score_forecasts(past, [0.74, 0.75, 0.1, 0.91])
    assert (found["num"], found["num_inside"]) == (3, 2)
    assert found["mean_error"] == pytest.approx((-0.04 + 0.05 - 0.01) / 3)
    assert found["mean_size"] == pytest.approx(0.1 / 3)
    with pytest.raises(ValueError, match="zip"):
        score_forecasts(past, [0.5])


def test_a_point_costs_what_the_labels_cost_over_what_they_gain():
    ahead = said(0.8, 0.7, 0.9) | {"gain": 0.02, "gain_low": 0.005, "gain_high": 0.04}
    assert price_per_point(ahead, 50, 0.1) == pytest.approx({"cost": 5.0, "per_point": 2.5, "low": 1.25, "high": 10.0})
    nothing = said(None, None, None, "too few")
    assert price_per_point(nothing, 50, 0.1) == {"cost": 5.0, "per_point": None, "low": None, "high": None}
    with pytest.raises(UserError, match="expected one above 0"):
        price_per_point(ahead, 50, 0.0)
