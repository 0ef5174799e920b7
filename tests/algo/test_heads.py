"""The grid over mixtures: its points, its hits, and when a gain counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo.heads import grid, hits, is_real_gain, mixture

PAPERS = {(round(0.05 * i, 2), t) for i in range(21) for t in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)}


def test_grid_is_the_papers_147_points_with_the_default_first():
    points = grid((0.5, 1.0))
    assert points.shape == (147, 2)
    assert {tuple(point) for point in points.tolist()} == PAPERS
    assert tuple(points[0]) == (0.5, 1.0)


def test_grid_takes_a_default_that_is_not_among_the_papers():
    points = grid((0.33, 0.9))
    assert points.shape == (148, 2)
    assert {tuple(point) for point in points.tolist()} == PAPERS | {(0.33, 0.9)}
    assert tuple(points[0]) == (0.33, 0.9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1).map(lambda share: round(share, 6)), st.floats(0.1, 8))
def test_grid_goes_away_from_the_default(ce_weight, temperature):
    points = grid((ce_weight, temperature))
    assert tuple(points[0]) == (ce_weight, temperature)
    far = np.abs(points[:, 0] - ce_weight) + np.abs(np.log(points[:, 1] / temperature))
    assert (np.diff(far) > -1e-8).all()
    assert len(np.unique(points, axis=0)) == len(points)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 30), st.integers(2, 6))
def test_hits_are_those_of_the_mixtures_own_arg_max(seed, rows, num_classes):
    rng = np.random.default_rng(seed)
    ce, kd = rng.normal(0, 2, (2, rows, num_classes)).astype(np.float32)
    labels = rng.integers(num_classes, size=rows)
    points = grid((0.5, 1.0))[rng.permutation(147)[:20]]
    got = hits(ce, kd, labels, points)
    assert got.shape == (20, rows)
    assert got.dtype == bool
    for g, (ce_weight, temperature) in enumerate(points):
        probs = mixture(ce, kd, ce_weight, temperature)
        clear = np.abs(np.sort(probs, axis=1)[:, -1] - np.sort(probs, axis=1)[:, -2]) > 1e-6  # not a tie in float32
        np.testing.assert_array_equal(got[g][clear], (probs.argmax(axis=1) == labels)[clear])


def test_hits_do_not_change_their_inputs_and_end_points_are_the_heads_alone():
    rng = np.random.default_rng(0)
    ce, kd = rng.normal(0, 2, (2, 50, 5)).astype(np.float32)
    labels = rng.integers(5, size=50)
    before = ce.copy(), kd.copy()
    got = hits(ce, kd, labels, np.array([(1.0, 0.5), (1.0, 4.0), (0.0, 0.5), (0.0, 4.0)]))
    np.testing.assert_array_equal(ce, before[0])
    np.testing.assert_array_equal(kd, before[1])
    for g in (0, 1):
        np.testing.assert_array_equal(got[g], ce.argmax(axis=1) == labels)
    for g in (2, 3):
        np.testing.assert_array_equal(got[g], kd.argmax(axis=1) == labels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_a_gain_is_real_when_its_paired_mean_exceeds_one_standard_error(pairs):
    best, default = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    gains = [int(b) - int(d) for b, d in pairs]
    mean = sum(gains) / len(gains)
    variance = sum((g - mean) ** 2 for g in gains) / (len(gains) - 1)
    error = (variance / len(gains)) ** 0.5
    real, words = is_real_gain(best, default)
    if abs(mean - error) > 1e-9:
        assert real == (mean > error)
    assert words == f"{mean:+.3f} ± {error:.3f}"


@pytest.mark.parametrize("num_images", [2, 3, 7, 10, 49, 100, 150, 333, 1000])
def test_one_more_image_right_is_never_a_gain_however_many_there_are(num_images):
    """Its mean is its standard error, exactly: 1 / N. In floating point the two differ in the last bit, either way."""
    default = np.zeros(num_images, bool)
    assert is_real_gain(np.arange(num_images) == 0, default)[0] is False


@pytest.mark.parametrize(
    ("gained", "lost", "same", "real"),
    [
        (0, 0, 100, False),
        (1, 0, 99, False),
        (2, 0, 98, True),
        (10, 9, 81, False),
        (20, 5, 75, True),
        (5, 20, 75, False),
    ],
)
def test_luck_does_not_count_and_a_clear_gain_does(gained, lost, same, real):
    best = np.array([True] * gained + [False] * lost + [True] * same)
    default = np.array([False] * gained + [True] * lost + [True] * same)
    assert is_real_gain(best, default)[0] is real


def test_the_default_against_itself_and_a_single_image_are_no_gain():
    right = np.array([True, False, True])
    assert is_real_gain(right, right)[0] is False
    assert is_real_gain(np.array([True]), np.array([False]))[0] is False
