"""Logits to probabilities against plain loops, whatever the number of heads."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo.errors import UserError
from raykd.algo.heads import HEADS, Mixture, probabilities, softmax


def dual(ce, kd):
    return {"ce_logits": ce, "kd_logits": kd}


def mixed(ce, kd, ce_weight, temperature):
    return probabilities(dual(ce, kd), Mixture(ce_weight, temperature))


def loop_softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [x / math.fsum(powers) for x in powers]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 7), st.floats(0, 1), st.floats(0.2, 6), st.integers(0, 2**20))
def test_mixture_equals_a_plain_loop_and_rows_sum_to_one(rows, num_classes, weight, temperature, seed):
    rng = np.random.default_rng(seed)
    ce, kd = rng.normal(0, 4, (2, rows, num_classes)).astype(np.float32)
    got = mixed(ce, kd, weight, temperature)
    assert got.dtype == np.float32
    assert got.min() >= 0
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)
    for n in range(rows):
        a, b = loop_softmax(ce[n].tolist()), loop_softmax([x / temperature for x in kd[n].tolist()])
        want = [weight * x + (1 - weight) * y for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(got[n], want, rtol=1e-6, atol=1e-9)


def test_temperature_divides_the_kd_logits_alone():
    rng = np.random.default_rng(0)
    ce, kd = rng.normal(0, 2, (2, 3, 4))
    np.testing.assert_array_equal(mixed(ce, kd, 1.0, 0.5), mixed(ce, kd * 9, 1.0, 4.0))  # CE head only
    np.testing.assert_array_equal(mixed(ce, kd, 0.5, 2.0), mixed(ce, kd / 2, 0.5, 1.0))
    sharp, flat = mixed(ce, kd, 0.0, 0.5).max(axis=1), mixed(ce, kd, 0.0, 4.0).max(axis=1)
    assert (sharp > flat).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(2, 130), st.randoms(use_true_random=False))
def test_bits_of_a_rows_mixture_do_not_depend_on_its_neighbours(rows, num_classes, random):
    rng = np.random.default_rng(random.randrange(2**32))
    ce, kd = rng.normal(0, 8, (2, rows, num_classes)).astype(np.float32)
    whole = mixed(ce, kd, 0.35, 1.25)
    order = rng.permutation(rows)
    cut = random.randrange(rows + 1)
    parts = [mixed(ce[order[part]], kd[order[part]], 0.35, 1.25) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])
    np.testing.assert_array_equal(mixed(ce[-1:], kd[-1:], 0.35, 1.25), whole[-1:])
    transposed = mixed(np.asfortranarray(ce), np.asfortranarray(kd), 0.35, 1.25)
    np.testing.assert_array_equal(transposed, whole)


def test_mixture_survives_huge_logits_and_no_rows():
    np.testing.assert_array_equal(mixed(np.array([[1e4, -1e4]]), np.array([[-1e4, 1e4]]), 0.25, 1.0), [[0.25, 0.75]])
    assert mixed(np.empty((0, 5)), np.empty((0, 5)), 0.5, 1.0).shape == (0, 5)


def test_softmax_of_half_precision_logits_is_computed_in_double():
    logits = np.array([[1.0, 2.5, -3.0]], np.float16)
    assert softmax(logits).dtype == np.float64
    np.testing.assert_allclose(softmax(logits)[0], loop_softmax([1.0, 2.5, -3.0]), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["ce_logits", "kd_logits", "logits"]), st.integers(0, 6), st.integers(2, 7), st.integers(0, 2**20)
)
def test_one_column_alone_gives_its_softmax_whatever_the_mixture(column, rows, num_classes, seed):
    logits = np.random.default_rng(seed).normal(0, 4, (rows, num_classes)).astype(np.float32)
    got = probabilities({column: logits}, Mixture(0.1, 3.0))
    assert got.dtype == np.float32
    assert got.shape == (rows, num_classes)
    for n in range(rows):
        np.testing.assert_allclose(got[n], loop_softmax(logits[n].tolist()), rtol=1e-6, atol=1e-9)


def test_the_default_mixture_is_half_of_each_head_at_temperature_one():
    ce, kd = np.random.default_rng(0).normal(0, 2, (2, 5, 4))
    np.testing.assert_array_equal(probabilities(dual(ce, kd)), mixed(ce, kd, 0.5, 1.0))
    expected = (softmax(ce) + softmax(kd)) / 2
    np.testing.assert_allclose(probabilities(dual(ce, kd)), expected, rtol=1e-6)


def test_logits_of_one_kind_of_head_are_never_taken_for_another():
    logits = np.zeros((1, 2))
    for columns in (("ce_logits", "logits"), ("ce_logits", "kd_logits", "logits"), ()):
        with pytest.raises(AssertionError, match="expected one, or"):
            probabilities(dict.fromkeys(columns, logits))


@pytest.mark.parametrize(
    "values", [(-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.5, 0.0), (0.5, math.inf), (0.5, math.nan)]
)
def test_a_mixture_out_of_range_is_refused_with_its_number(values):
    with pytest.raises(UserError, match=r"(ce_weight|temperature) .*; expected"):
        Mixture(*values)


def test_every_kind_of_student_writes_columns_that_make_probabilities():
    for columns in HEADS.values():
        assert probabilities({name: np.zeros((3, 4)) for name in columns}).shape == (3, 4)


@pytest.mark.parametrize("calibration", [0.5, 1.0, 3.0])
def test_a_calibration_raises_the_mixed_probabilities_to_a_power_and_ranks_alike(calibration):
    rng = np.random.default_rng(0)
    ce, kd = rng.normal(0, 4, (50, 6)), rng.normal(0, 4, (50, 6))
    plain = mixed(ce, kd, 0.3, 0.8)
    got = probabilities(dual(ce, kd), Mixture(0.3, 0.8, calibration))
    powers = plain.astype(np.float64) ** (1 / calibration)
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(got.argsort(axis=1), plain.argsort(axis=1))
    one_head = probabilities({"logits": ce}, Mixture(calibration=calibration))
    np.testing.assert_allclose(one_head, probabilities({"logits": ce / calibration}), rtol=1e-5)


def test_a_calibration_keeps_what_is_surely_not_at_zero():
    got = probabilities({"logits": np.array([[0.0, -2000.0, 0.0]])}, Mixture(calibration=4.0))
    assert got.tolist() == [[0.5, 0.0, 0.5]]
    assert Mixture(0.3, 2.0, 4.0).uncalibrated == Mixture(0.3, 2.0)
