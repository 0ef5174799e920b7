"""Intervals of shares and of paired changes against published numbers, brute force, and what they promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykd.algo.statistics import (
    Z95,
    exact_interval,
    exact_low,
    is_noise,
    paired_change,
    sign_flip,
    student_t,
    tango,
    wilson,
)


def answers(won: int, lost: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models' hits with these counts, in a mixed order."""
    before = np.array([False] * won + [True] * lost + [True] * both + [False] * neither)
    now = np.array([True] * won + [False] * lost + [True] * both + [False] * neither)
    order = np.random.default_rng(0).permutation(len(before))
    return before[order], now[order]


def test_wilson_is_where_the_score_test_stops_to_refuse():
    for right, count in [(0, 10), (1, 10), (7, 10), (10, 10), (320, 400)]:
        low, high = wilson(right / count, count)
        for end in (low, high):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(right / count - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / count))
        assert 0 <= low <= right / count <= high <= 1
    assert wilson(0.0, 0) == (0.0, 1.0)


def choose(of: int, count: int) -> int:
    return math.comb(of, count) if 0 <= count <= of else 0


def test_the_ends_of_the_exact_interval_are_shares_that_make_what_was_seen_just_too_rare():
    for right, count in [(0, 10), (1, 10), (7, 10), (10, 10), (59, 60)]:
        low, high = exact_interval(right, count)
        for share, outcomes in [(low, range(right, count + 1)), (high, range(right + 1))]:
            if 0 < share < 1:
                chance = sum(math.comb(count, j) * share**j * (1 - share) ** (count - j) for j in outcomes)
                assert chance == pytest.approx(0.025)
        assert 0 <= low <= right / count <= high <= 1
    assert exact_interval(0, 10)[0] == 0
    assert exact_interval(10, 10)[1] == 1
    assert exact_interval(0, 0) == (0.0, 1.0)
    assert exact_low(59, 59) == pytest.approx(0.05 ** (1 / 59))


@pytest.mark.parametrize(("pool", "count"), [(12, 5), (12, 12), (30, 18), (9, 1)])
def test_of_a_finite_pool_it_holds_exactly_the_numbers_that_do_not_make_it_too_rare(pool, count):
    for right in range(count + 1):
        kept = []
        for in_pool in range(pool + 1):
            ways = [choose(in_pool, j) * choose(pool - in_pool, count - j) for j in range(count + 1)]
            tails = sum(ways[right:]), sum(ways[: right + 1])
            if all(tail > 0.025 * math.comb(pool, count) for tail in tails):
                kept.append(in_pool / pool)
        assert exact_interval(right, count, pool) == pytest.approx((min(kept), max(kept)))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 20, 99])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 0.999])
def test_the_exact_interval_holds_the_truth_at_least_as_often_as_it_says(count, share):
    """Every outcome with its exact probability."""
    covered = 0.0
    for right in range(count + 1):
        low, high = exact_interval(right, count)
        covered += math.comb(count, right) * share**right * (1 - share) ** (count - right) * (low <= share <= high)
    assert covered >= 0.95


def test_an_endless_pool_is_the_limit_of_large_ones():
    assert exact_interval(30, 40, 10**7) == pytest.approx(exact_interval(30, 40), abs=1e-6)
    narrower, wider = exact_interval(30, 40, 60), exact_interval(30, 40)
    assert wider[0] < narrower[0] < narrower[1] < wider[1]


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 50, 2000])
def test_students_t_is_the_one_of_tables(freedom):
    from scipy.stats import t

    assert student_t(freedom) == pytest.approx(t.ppf(0.975, freedom), abs=1e-5)


def test_the_paired_interval_is_the_published_one():
    """Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2014, table VII: 1 and 7 of 21 pairs differ."""
    change = paired_change(*answers(won=1, lost=7, both=1, neither=12))
    assert (change["low"], change["high"]) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    assert change["gain"] == pytest.approx(-6 / 21)
    assert (change["won"], change["lost"], change["num_test"]) == (1, 7, 21)


def test_with_no_image_that_differs_the_interval_has_a_closed_form():
    for count in (1, 50, 4000):
        end = Z95**2 / (count + Z95**2)
        assert tango(0, 0, count) == (pytest.approx(-end), pytest.approx(end))


def test_it_says_noise_exactly_where_mcnemars_test_does():
    for count in (4, 13, 40):
        for won, lost in itertools.product(range(count + 1), repeat=2):
            if won + lost <= count:
                change = paired_change(*answers(won, lost, count - won - lost, 0))
                refused = (won - lost) ** 2 > Z95**2 * (won + lost)
                assert is_noise(change) is not refused, (won, lost, count)
                assert -1 <= change["low"] <= change["gain"] <= change["high"] <= 1


def test_its_ends_are_where_the_likelihood_by_brute_force_puts_them():
    """The score statistic, with the share of lost images found on a fine grid instead of by its formula."""
    grid = np.linspace(0, 1, 200_001)

    def statistic(won, lost, count, gain):
        both = np.stack([grid + gain, grid, 1 - gain - 2 * grid])
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.array([[won], [lost], [count - won - lost]]) * np.log(both)
        loglik = np.where((both > 0).all(axis=0), terms.sum(axis=0), -np.inf)
        share = grid[loglik.argmax()]
        return (won - lost - count * gain) / math.sqrt(count * (2 * share + gain - gain**2))

    for won, lost, count in [(3, 1, 10), (12, 5, 60), (2, 9, 15)]:
        low, high = tango(won, lost, count)
        assert statistic(won, lost, count, low) == pytest.approx(Z95, abs=2e-3)
        assert statistic(won, lost, count, high) == pytest.approx(-Z95, abs=2e-3)


def test_swapping_the_two_models_mirrors_the_interval():
    for won, lost, count in [(3, 1, 10), (30, 12, 400), (0, 5, 9)]:
        low, high = tango(won, lost, count)
        assert tango(lost, won, count) == (pytest.approx(-high), pytest.approx(-low))


@pytest.mark.parametrize(("count", "p_won", "p_lost"), [(20, 0.2, 0.1), (30, 0.1, 0.1), (30, 0.3, 0.05)])
def test_it_holds_the_truth_about_as_often_as_it_says_even_of_few_images(count, p_won, p_lost):
    """Every outcome of a small test set, each with its exact probability."""
    covered = 0.0
    for won in range(count + 1):
        for lost in range(count + 1 - won):
            ways = math.comb(count, won) * math.comb(count - won, lost)
            chance = ways * p_won**won * p_lost**lost * (1 - p_won - p_lost) ** (count - won - lost)
            low, high = tango(won, lost, count)
            covered += chance * (low <= p_won - p_lost <= high)
    assert 0.93 < covered < 0.98


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=7))
def test_sign_flips_are_counted_one_by_one(differences):
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    expected = np.mean([total >= abs(sum(differences)) for total in sums])
    assert sign_flip(np.array(differences, float) / 10) == pytest.approx(expected)


def test_six_seeds_are_the_fewest_that_can_show_anything():
    assert sign_flip(np.full(5, 0.1)) > 0.05 > sign_flip(np.full(6, 0.1)) == 2 / 64


def test_many_seeds_are_tested_by_drawn_signs_as_few_are_by_all():
    differences = np.random.default_rng(0).normal(0.3, 1, 20)
    assert sign_flip(np.append(differences, 0.0)) == pytest.approx(
        sign_flip(differences), abs=0.005
    )  # 21, all the same
    assert sign_flip(np.append(differences, 0.0)) == sign_flip(np.append(differences, 0.0))
    assert sign_flip(np.full(50, 0.1)) < 1e-4
