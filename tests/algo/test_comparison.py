"""What is said of arms over seeds: by closed forms, published tables, brute force, and as often as it promises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykd.algo.comparison import aubc, bands, joint_sign_flips, labels_to_reach, verdict
from raykd.algo.errors import UserError
from raykd.algo.rankings import defeats, mean_ranks, penalty_matrix, studentized_range
from raykd.algo.statistics import sign_flip

# ---------------------------------------------------------------- the verdict


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5))
def test_fewer_than_six_seeds_never_tell(differences):
    assert verdict(np.array(differences)) == "too few seeds to tell"


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=8))
def test_the_verdict_is_what_the_sign_flips_show_and_turns_around_with_the_arms(differences):
    said = verdict(np.array(differences))
    assert (said == "no difference shown") == (sign_flip(np.array(differences)) > 0.05)
    turned = {"better": "worse", "worse": "better", "no difference shown": "no difference shown"}
    assert verdict(-np.array(differences)) == turned[said]


def test_the_verdict_takes_a_p_value_that_others_have_raised():
    ahead = np.linspace(0.01, 0.08, 8)
    assert verdict(ahead) == "better"
    assert verdict(ahead, p_value=0.2) == "no difference shown"
    assert verdict(ahead[:5], p_value=0.001) == "too few seeds to tell"


def test_a_seed_that_is_missing_is_refused():
    with pytest.raises(UserError, match="expected a number of each seed"):
        verdict(np.array([0.1, np.nan] * 4))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_joint_flips_of_one_comparison_are_its_own_sign_flips(differences):
    differences = np.round(np.array(differences), 3)
    assert joint_sign_flips(differences[None])[0] == pytest.approx(sign_flip(differences))


def test_joint_flips_step_down_by_brute_force():
    """Every choice of signs, every t statistic, and of each comparison the largest among those no clearer than it."""
    differences = np.random.default_rng(4).normal([[0.9], [0.5], [0.0], [-0.6]], 0.7, (4, 7))

    def t_of(rows):
        return np.abs(rows.mean(axis=1)) / rows.std(axis=1, ddof=1)

    seen = t_of(differences)
    order = np.argsort(-seen)
    flipped = np.array([t_of(differences * signs) for signs in itertools.product([1, -1], repeat=7)])
    expected, least = np.empty(4), 0.0
    for rank, arm in enumerate(order):
        least = max(least, np.mean(flipped[:, order[rank:]].max(axis=1) >= seen[arm] - 1e-9))
        expected[arm] = least
    assert joint_sign_flips(differences) == pytest.approx(expected)
    assert (joint_sign_flips(differences) >= [sign_flip(row) - 1e-12 for row in differences]).all()


def test_eight_seeds_show_a_clear_difference_however_many_arms_there_are():
    rng = np.random.default_rng(0)
    differences = np.concatenate([rng.normal(0.05, 0.01, (1, 8)), rng.normal(0, 0.01, (40, 8))])
    assert joint_sign_flips(differences)[0] == pytest.approx(2 / 2**8)


def test_of_arms_that_are_all_the_same_one_is_called_different_in_five_percent_of_simulations():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(400, 1, 8))
    differences = rng.normal(size=(400, 12, 8)) - base  # all against the same arm, so they hang together
    wrong = np.mean([joint_sign_flips(each).min() <= 0.05 for each in differences])
    assert wrong <= 0.08


def test_a_seed_that_an_arm_lacks_counts_in_the_others():
    differences = np.array([[0.1, 0.2, 0.1, 0.2, 0.1, 0.3, np.nan, np.nan], [np.nan] * 8])
    assert joint_sign_flips(differences).tolist() == [pytest.approx(2 / 2**6), 1.0]


# ---------------------------------------------------------------- curves


def test_the_area_under_a_straight_line_is_its_middle_and_labels_have_no_unit():
    labels = np.array([10, 30, 35, 110])
    line = 0.4 + 0.002 * labels
    assert aubc(labels, line) == pytest.approx((line[0] + line[-1]) / 2)
    assert aubc(labels * 7 + 3, line) == pytest.approx(aubc(labels, line))
    both = aubc(labels, np.stack([line, np.full(4, 0.3)]))
    np.testing.assert_allclose(both, [(line[0] + line[-1]) / 2, 0.3])


def test_the_area_is_that_of_trapezoids():
    assert aubc(np.array([0, 1, 4]), np.array([0.0, 1.0, 0.4])) == pytest.approx((0.5 + 3 * 0.7) / 4)


@pytest.mark.parametrize("labels", [[10], [10, 10], [20, 10]])
def test_labels_that_do_not_ascend_are_refused(labels):
    with pytest.raises(UserError, match="each more than the one before"):
        aubc(np.array(labels), np.full(len(labels), 0.5))


@pytest.mark.parametrize("count", [5, 8])
def test_bands_hold_the_truth_as_often_as_they_say(count):
    rng = np.random.default_rng(count)
    at, whole, campaigns = 0.0, 0, 400
    for _ in range(campaigns):
        curves = rng.normal(size=(count, 1)) + rng.normal(size=(count, 6))
        found = bands(curves, 0)
        at += np.mean((found.low_R <= 0) & (found.high_R >= 0)) / campaigns
        whole += np.all((found.all_low_R <= 0) & (found.all_high_R >= 0)) / campaigns
    assert 0.93 < at < 0.975
    assert 0.92 < whole < 0.985


def test_bands_are_those_of_every_choice_of_signs_by_a_plain_loop():
    import itertools

    curves = np.random.default_rng(0).normal(0.5, 0.1, (6, 3))
    away = curves - curves.mean(axis=0)
    far = []
    for signs in itertools.product((1, -1), repeat=6):
        flipped = away * np.array(signs)[:, None]
        far.append(np.abs(flipped.mean(axis=0)) / (flipped.std(axis=0, ddof=1) / math.sqrt(6)))
    error = curves.std(axis=0, ddof=1) / math.sqrt(6)
    found = bands(curves)
    half = np.quantile(far, 0.95, axis=0, method="higher") * error
    whole = np.quantile(np.max(far, axis=1), 0.95, method="higher") * error
    np.testing.assert_allclose(found.high_R - found.mean_R, half)
    np.testing.assert_allclose(found.mean_R - found.low_R, half)
    np.testing.assert_allclose(found.all_high_R - found.mean_R, whole)


def test_bands_of_many_seeds_are_drawn_by_their_key_and_units_do_not_matter():
    curves = np.random.default_rng(1).normal(size=(16, 4))
    first, again, other = bands(curves, 3), bands(curves, 3), bands(curves, 4)
    np.testing.assert_array_equal(first.low_R, again.low_R)
    assert (first.low_R != other.low_R).any()
    np.testing.assert_allclose(bands(100 * curves + 7, 3).high_R, 100 * first.high_R + 7)


def test_a_curve_that_is_the_same_with_every_seed_has_no_width_and_few_seeds_have_no_band():
    same = bands(np.tile([0.5, 0.7], (6, 1)))
    np.testing.assert_allclose(same.all_low_R, [0.5, 0.7])
    np.testing.assert_allclose(same.high_R, [0.5, 0.7])
    few = bands(np.random.default_rng(0).normal(size=(4, 2)))
    assert np.isfinite(few.mean_R).all()
    assert np.isnan([few.low_R, few.high_R, few.all_low_R, few.all_high_R]).all()
    with pytest.raises(UserError, match="every round of every seed"):
        bands(np.array([[0.5, np.nan]] * 6))


def test_labels_to_reach_are_read_off_between_rounds_and_seeds_that_never_do_count_as_more():
    labels = np.array([10, 20, 40])
    curves = np.array([[0.1, 0.5, 0.7], [0.6, 0.6, 0.6], [0.1, 0.2, 0.3], [0.4, 0.6, 0.2]])
    assert labels_to_reach(labels, curves[:1], 0.6)["labels"] == pytest.approx(30)
    assert labels_to_reach(labels, curves[1:2], 0.6)["labels"] == 10
    assert labels_to_reach(labels, curves[3:], 0.5)["labels"] == pytest.approx(15)  # the first time counts
    found = labels_to_reach(labels, curves, 0.6)
    assert (found["num_reached"], found["num_seeds"], found["low"]) == (3, 4, None)
    assert found["labels"] == pytest.approx(25)  # between 20 and 30; the one that never does is the largest
    assert labels_to_reach(labels, curves, 0.9)["labels"] is None


def test_the_interval_of_labels_to_reach_holds_the_median_and_is_open_where_seeds_never_get_there():
    labels = np.array([0, 100])
    curves = np.array([[0.0, 0.5 / need] for need in (0.51, 0.55, 0.6, 0.7, 0.8, 0.9)])  # reach 0.5 at 51 ... 90
    found = labels_to_reach(labels, curves, 0.5)
    assert (found["low"], found["labels"], found["high"]) == tuple(pytest.approx(x) for x in (51, 65, 90))
    curves[-1, 1] = 0.4
    assert labels_to_reach(labels, curves, 0.5)["high"] is None
    assert labels_to_reach(labels, curves, 0.5)["labels"] == pytest.approx(65)


def test_the_median_is_within_its_interval_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        curves = np.stack([np.zeros(8), 1 / rng.exponential(size=8)], axis=1)  # reach 1 at an exponential number
        found = labels_to_reach(np.array([0, 1]), np.minimum(curves, 1e6), 1.0)
        low, high = (math.inf if end is None else end for end in (found["low"], found["high"]))
        inside += low <= math.log(2) <= high
    assert inside / 400 > 0.95


# ---------------------------------------------------------------- many arms


def arms(*offsets):
    """Accuracies of arms [A, 8, 3], each so far above the same noise."""
    noise = np.random.default_rng(0).uniform(0, 0.01, (len(offsets), 8, 3))
    return 0.5 + np.array(offsets)[:, None, None] + noise


def test_rows_beat_columns_and_the_arm_that_nobody_beats_ranks_first():
    matrix = penalty_matrix(arms(0.0, 0.2, 0.1))
    np.testing.assert_allclose(matrix, [[0, 0, 0], [1, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(defeats(matrix), [1, 0, 0.5])


def test_a_win_is_counted_by_the_rounds_that_show_it():
    accuracies = arms(0.0, 0.0)
    accuracies[0, :, 1] += 0.2
    accuracies[1, :, 2] += 0.2
    matrix = penalty_matrix(accuracies)
    for i, j in ((0, 1), (1, 0)):
        wins = [verdict(accuracies[i, :, r] - accuracies[j, :, r]) == "better" for r in range(3)]
        assert matrix[i, j] == pytest.approx(np.mean(wins))
        assert matrix[i, j] > 0


def test_five_seeds_penalise_nobody():
    assert not penalty_matrix(arms(0.0, 0.5)[:, :5]).any()


def test_the_studentized_range_is_the_published_one():
    """Demšar 2006, table 5, 5 %: divided by the root of 2."""
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    got = [studentized_range(count) / math.sqrt(2) for count in range(2, 11)]
    np.testing.assert_allclose(got, table, atol=1.1e-3)


def test_ranks_and_friedmans_test_are_scipys_and_the_critical_difference_demsars():
    from scipy.stats import friedmanchisquare, rankdata

    scores = np.random.default_rng(0).integers(0, 6, (14, 4)) + np.array([0, 1, 0, 1])  # with ties
    found = mean_ranks(scores, 0)
    np.testing.assert_allclose(found.mean_A, rankdata(-scores, axis=1).mean(axis=0))
    assert found.critical == pytest.approx(1.25, abs=0.01)  # 4 arms on 14 data sets, Demšar 2006, section 3.2.4
    assert found.p_value == pytest.approx(friedmanchisquare(*scores.T).pvalue, abs=0.01)


def test_ranks_do_not_depend_on_the_scale_and_find_arms_that_differ():
    scores = np.random.default_rng(0).uniform(0, 0.01, (12, 3)) + np.array([0.0, 0.5, 0.5])
    found = mean_ranks(scores, 0)
    np.testing.assert_array_equal(found.mean_A, mean_ranks(np.exp(5 * scores), 0).mean_A)
    assert found.mean_A[0] == 3
    assert found.p_value < 0.001
    assert [set(bar) for bar in found.together] == [{1, 2}]


def test_arms_that_do_not_differ_stand_together():
    level = mean_ranks(np.full((3, 4), 0.5), 0)
    np.testing.assert_allclose(level.mean_A, 2.5)
    assert level.p_value == 1
    assert level.together == [(0, 1, 2, 3)]
    with pytest.raises(UserError, match="every arm on every data set"):
        mean_ranks(np.array([[0.5, np.nan]]), 0)
