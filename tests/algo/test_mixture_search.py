"""The search over mixtures: its candidates, what each is worth by brute force, and when a gain counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo import metrics, mixture_search
from raykd.algo.errors import UserError
from raykd.algo.heads import Mixture, probabilities, softmax
from raykd.algo.mixture_search import (
    better_mixture,
    gaps,
    given_points,
    grid,
    hits,
    is_better_calibrated,
    is_real_gain,
    is_real_saving,
    losses,
    point_scores,
    random_points,
)

PAPERS = {(round(0.05 * i, 2), t) for i in range(21) for t in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)}


def dual(ce, kd):
    return {"ce_logits": ce, "kd_logits": kd}


def mixed(ce, kd, ce_weight, temperature):
    return probabilities(dual(ce, kd), Mixture(ce_weight, temperature))


def test_grid_is_the_papers_147_points_with_the_default_first():
    points = grid(Mixture())
    assert points.shape == (147, 2)
    assert {tuple(point) for point in points.tolist()} == PAPERS
    assert tuple(points[0]) == (0.5, 1.0)


def test_grid_takes_a_default_that_is_not_among_the_papers():
    points = grid(Mixture(0.33, 0.9))
    assert points.shape == (148, 2)
    assert {tuple(point) for point in points.tolist()} == PAPERS | {(0.33, 0.9)}
    assert tuple(points[0]) == (0.33, 0.9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1).map(lambda share: round(share, 6)), st.floats(0.1, 8))
def test_grid_goes_away_from_the_default(ce_weight, temperature):
    points = grid(Mixture(ce_weight, temperature))
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
    points = grid(Mixture())[rng.permutation(147)[:20]]
    got = hits(dual(ce, kd), labels, points)
    assert got.shape == (20, rows)
    assert got.dtype == bool
    for g, (ce_weight, temperature) in enumerate(points):
        probs = mixed(ce, kd, ce_weight, temperature)
        clear = np.abs(np.sort(probs, axis=1)[:, -1] - np.sort(probs, axis=1)[:, -2]) > 1e-6  # not a tie in float32
        np.testing.assert_array_equal(got[g][clear], (probs.argmax(axis=1) == labels)[clear])


def test_hits_do_not_change_their_inputs_and_end_points_are_the_heads_alone():
    rng = np.random.default_rng(0)
    ce, kd = rng.normal(0, 2, (2, 50, 5)).astype(np.float32)
    labels = rng.integers(5, size=50)
    before = ce.copy(), kd.copy()
    got = hits(dual(ce, kd), labels, np.array([(1.0, 0.5), (1.0, 4.0), (0.0, 0.5), (0.0, 4.0)]))
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


# ---------------------------------------------------------------- candidates of other kinds


def test_random_points_are_their_keys_within_the_papers_range_and_begin_with_the_default():
    points = random_points(Mixture(0.3, 1.1), 2000, 7, "round", 3)
    np.testing.assert_array_equal(points, random_points(Mixture(0.3, 1.1), 2000, 7, "round", 3))
    assert (points[1:] != random_points(Mixture(0.3, 1.1), 2000, 8, "round", 3)[1:]).any()
    assert points.shape == (2001, 2)
    assert tuple(points[0]) == (0.3, 1.1)
    assert points.min(axis=0) == pytest.approx([0, 0.5], abs=0.01)
    assert points.max(axis=0) == pytest.approx([1, 4], abs=0.05)
    evenly = np.log(points[:, 1] / 0.5) / np.log(8)
    assert np.histogram(evenly, 4, (0, 1))[0] == pytest.approx(np.full(4, 500), abs=80)
    assert np.histogram(points[:, 0], 4, (0, 1))[0] == pytest.approx(np.full(4, 500), abs=80)


def test_given_points_are_taken_with_the_default_once_each():
    points = given_points(Mixture(), [(0.9, 2), (0.5, 1), (0.9, 2), (0.4, 1)])
    assert points.tolist() == [[0.5, 1.0], [0.4, 1.0], [0.9, 2.0]]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(0.5, 1.0), (1.2, 1.0)], r"mixture 1: ce_weight 1.2; expected"),
        ([(0.5, 0.0)], r"mixture 0: temperature 0.0; expected"),
        ([(0.5,)], "mixture 0: .*; expected ce_weight and temperature"),
        ([], "no mixture to try"),
    ],
)
def test_a_point_that_is_no_mixture_is_refused_with_its_place(points, said):
    with pytest.raises(UserError, match=said):
        given_points(Mixture(), points)


def test_no_random_points_are_refused():
    with pytest.raises(UserError, match="expected at least 1"):
        random_points(Mixture(), 0, 1)


# ---------------------------------------------------------------- objectives

OBJECTIVES = ("accuracy", "log_loss", "calibration")


def students(seed=0, count=400, num_classes=5, shift=1.5):
    """Two heads that know something; logits by column, labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    ce, kd = rng.normal(0, 1, (2, count, num_classes))
    ce[np.arange(count), labels] += shift
    kd[np.arange(count), labels] += shift
    return {"ce_logits": ce, "kd_logits": kd}, labels


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scores_are_the_metrics_of_the_mixed_probabilities(objective):
    logits, labels = students()
    points = grid(Mixture(0.31, 0.8))
    got = point_scores(logits, labels, points, objective)
    for score, (weight, temperature) in zip(got, points, strict=True):
        probs = weight * softmax(logits["ce_logits"]) + (1 - weight) * softmax(logits["kd_logits"] / temperature)
        want = {"accuracy": lambda p: metrics.accuracy(p, labels) * 400,
                "log_loss": lambda p: -metrics.log_loss(p, labels),
                "calibration": lambda p: -metrics.calibration_error(p, labels)}[objective](probs)  # fmt: skip
        assert score == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scores_do_not_depend_on_the_other_points_nor_on_how_many_images_are_mixed_at_once(objective, monkeypatch):
    logits, labels = students(count=90)
    points = grid(Mixture())
    whole = point_scores(logits, labels, points, objective)
    parts = [point_scores(logits, labels, part, objective) for part in np.array_split(points, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    monkeypatch.setattr(mixture_search, "NUMBERS_AT_ONCE", 35)
    np.testing.assert_array_equal(point_scores(logits, labels, points, objective), whole)


def test_a_label_of_no_probability_costs_what_the_metric_says():
    logits = {"ce_logits": np.array([[0.0, -2000.0]]), "kd_logits": np.array([[0.0, -2000.0]])}
    loss = losses(logits, np.array([1]), np.array([(0.5, 1.0)]))[0, 0]
    assert loss == metrics.log_loss(probabilities(logits), np.array([1]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_better_mixture_is_the_best_point_where_the_default_is_far_behind(objective):
    logits, labels = students()
    logits["ce_logits"] = np.random.default_rng(1).normal(0, 6, logits["ce_logits"].shape)  # sure of nothing true
    points, default = grid(Mixture(0.9, 1.0)), Mixture(0.9, 1.0)
    scores = point_scores(logits, labels, points, objective)
    found, real, words = better_mixture(logits, labels, default, points, scores, objective)
    assert real
    assert (found.ce_weight, found.temperature) == tuple(points[scores.argmax()])
    gain = scores.max() - scores[0]
    assert words.startswith(f"{gain / 400 if objective == 'accuracy' else gain:+.3f} ± ")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_default_stays_where_nothing_is_better_and_where_one_image_is_all_there_is(objective):
    logits, labels = students(count=6)
    for rows, points in ((slice(None), given_points(Mixture(), [(0.5, 1.0)])), (slice(1), grid(Mixture()))):
        few = {name: of[rows] for name, of in logits.items()}
        scores = point_scores(few, labels[rows], points, objective)
        assert better_mixture(few, labels[rows], Mixture(), points, scores, objective)[:2] == (Mixture(), False)


def test_a_saving_is_real_when_its_paired_mean_exceeds_one_standard_error():
    ahead = np.array([0.1, -0.05, 0.2, 0.1, 0.0])
    base = np.arange(5.0)
    real, words = is_real_saving(base - ahead, base)
    assert real
    assert words == f"{ahead.mean():+.3f} ± {ahead.std(ddof=1) / 5**0.5:.3f}"
    uncertain = np.array([1.0, -0.9, 0.2, -0.1, 0.0])
    assert not is_real_saving(base - uncertain, base)[0]
    assert not is_real_saving(base, base)[0]


def test_the_error_of_a_calibration_error_is_the_jackknifes_by_a_plain_loop():
    logits, labels = students(count=80, shift=1.0)
    points = np.array([(0.5, 0.5), (0.5, 4.0)])
    found, bins = gaps(logits, labels, points)
    real, words = is_better_calibrated(found, bins)

    def difference(rows):
        one, other = (
            -point_scores({k: v[rows] for k, v in logits.items()}, labels[rows], points, "calibration")
        ).tolist()
        return other - one

    every = np.arange(80)
    without = np.array([difference(np.delete(every, i)) for i in every])
    error = np.sqrt(79 / 80 * np.sum((without - without.mean()) ** 2))
    assert words == f"{difference(every):+.3f} ± {error:.3f}"
    assert real == (difference(every) > error)


def test_the_jackknife_is_the_spread_of_the_difference_over_samples():
    """Of 300 samples of images the differences of two mixtures' errors spread as one sample says they do."""
    points, count = np.array([(0.5, 0.5), (0.5, 2.0)]), 400
    differences, said = [], []
    for seed in range(300):
        logits, labels = students(seed, count)
        found, bins = gaps(logits, labels, points)
        words = is_better_calibrated(found, bins)[1].split(" ± ")
        differences.append(float(words[0]))
        said.append(float(words[1]))
    assert np.mean(said) == pytest.approx(np.std(differences), rel=0.25)


def test_an_unknown_objective_and_no_labels_are_refused():
    logits, labels = students(count=3)
    with pytest.raises(UserError, match="did you mean 'log_loss'"):
        point_scores(logits, labels, grid(Mixture()), "logloss")
    none = {name: of[:0] for name, of in logits.items()}
    with pytest.raises(UserError, match="no label to measure calibration on"):
        point_scores(none, labels[:0], grid(Mixture()), "calibration")
