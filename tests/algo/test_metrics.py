"""Accuracy, recall and calibration against plain loops."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo.metrics import accuracy, calibration_error, macro_accuracy, recall, scores


def simplex(seed, rows, num_classes, sharpness=2.0):
    rng = np.random.default_rng(seed)
    powers = np.exp(rng.normal(0, sharpness, (rows, num_classes)))
    return powers / powers.sum(axis=1, keepdims=True), rng.integers(num_classes, size=rows)


def loop_ece(probs, labels, num_bins):
    """Guo et al. 2017, Eq. 3: bins ((m-1)/M, m/M], over rows of the top class."""
    bins = [[] for _ in range(num_bins)]
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        top = max(row)
        for m in range(num_bins):
            if (m == 0 or top > m / num_bins) and top <= (m + 1) / num_bins:
                bins[m].append((top, row.index(top) == label))
                break
        else:
            bins[-1].append((top, row.index(top) == label))
    error = 0.0
    for members in filter(None, bins):
        confidence = math.fsum(c for c, _ in members) / len(members)
        right = sum(r for _, r in members) / len(members)
        error += len(members) / len(labels) * abs(confidence - right)
    return error


@examples(40)
@given(st.integers(0, 2**20), st.integers(1, 60), st.integers(2, 8), st.integers(1, 20))
def test_calibration_error_equals_a_plain_loop(seed, rows, num_classes, num_bins):
    probs, labels = simplex(seed, rows, num_classes)
    assert calibration_error(probs, labels, num_bins) == pytest.approx(loop_ece(probs, labels, num_bins), abs=1e-12)


def test_calibration_error_puts_a_confidence_on_a_bins_edge_into_the_lower_bin():
    """0.5 belongs to (0.4, 0.5] of ten bins: alone there it is 0.5 off; with 0.51 in one bin the two would cancel."""
    probs = np.array([[0.5, 0.5], [0.51, 0.49]])
    labels = np.array([0, 1])  # 0.5 right, 0.51 wrong
    assert calibration_error(probs, labels, 10) == pytest.approx((0.5 + 0.51) / 2)
    assert calibration_error(np.array([[0.52, 0.48], [0.51, 0.49]]), labels, 10) == pytest.approx((0.48 - 0.51) / -2)


@pytest.mark.parametrize("num_bins", [1, 2, 4, 8, 16])
def test_calibration_error_agrees_with_the_loop_on_every_edge(num_bins):
    top = np.arange(num_bins // 2, num_bins + 1) / num_bins  # exact in binary
    probs = np.stack([top, 1 - top], axis=1)
    labels = np.arange(len(top)) % 2
    assert calibration_error(probs, labels, num_bins) == pytest.approx(loop_ece(probs, labels, num_bins), abs=1e-12)


def test_calibration_error_is_zero_when_sure_and_right_and_one_when_sure_and_wrong():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert calibration_error(sure, np.array([0, 1, 2, 0])) == 0
    assert calibration_error(sure, np.array([1, 2, 0, 1])) == 1


def test_calibration_error_takes_float32_mixtures_just_above_one():
    probs = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0.0]], np.float32)
    assert calibration_error(probs, np.array([0])) == pytest.approx(0, abs=1e-6)


@examples(40)
@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(2, 8))
def test_recall_and_macro_accuracy_equal_a_plain_loop(seed, rows, num_classes):
    probs, labels = simplex(seed, rows, num_classes)
    want = []
    for c in range(num_classes):
        members = [n for n in range(rows) if labels[n] == c]
        hits = sum(int(np.argmax(probs[n])) == c for n in members)
        want.append(hits / len(members) if members else math.nan)
    np.testing.assert_array_equal(recall(probs, labels), want)
    present = [value for value in want if not math.isnan(value)]
    assert macro_accuracy(probs, labels) == pytest.approx(sum(present) / len(present))
    assert accuracy(probs, labels) == pytest.approx(
        np.mean([int(np.argmax(p)) == y for p, y in zip(probs, labels, strict=True)])
    )


def test_recall_is_nan_for_a_class_without_rows_and_zero_for_one_never_right():
    probs = np.eye(4)[[0, 0, 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = recall(probs, np.array([0, 1, 3]))
    np.testing.assert_array_equal(got, [1.0, 0.0, np.nan, 1.0])
    assert macro_accuracy(probs, np.array([0, 1, 3])) == pytest.approx(2 / 3)


def test_macro_accuracy_weighs_classes_and_not_rows():
    probs = np.eye(2)[[0] * 9 + [0]]
    labels = np.array([0] * 9 + [1])
    assert accuracy(probs, labels) == pytest.approx(0.9)
    assert macro_accuracy(probs, labels) == pytest.approx(0.5)


def test_ties_count_for_the_first_class():
    probs = np.full((2, 3), 1 / 3)
    assert accuracy(probs, np.array([0, 1])) == 0.5


def test_scores_are_all_of_these_in_plain_numbers_and_none_of_no_rows():
    probs, labels = simplex(0, 30, 3)
    labels = labels % 2  # no row of class 2
    got = scores(probs, labels)
    assert got["accuracy"] == accuracy(probs, labels)
    assert got["macro_accuracy"] == macro_accuracy(probs, labels)
    assert got["ece"] == calibration_error(probs, labels)
    assert got["recall_C"] == [*recall(probs, labels)[:2].tolist(), None]
    assert got == json.loads(json.dumps(got))
    assert got["num_images"] == 30
    assert set(scores(probs[:0], labels[:0]).values()) == {0, None}
