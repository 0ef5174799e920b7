"""The engine against plain loops in float64: the same picks and the same bits, however the work is cut."""

import math
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo import keyed
from raykd.algo.selection import distances, kcenter, shard, small_pools
from raykd.algo.selection.distances import Euclidean, Gradients, first_bounds, peak_bounds
from raykd.algo.selection.kcenter import farthest_first, sample_by_distance
from raykd.algo.selection.reference import (
    plain_farthest_first,
    plain_kmeans_plus_plus,
    plain_race,
    running_minimum,
)
from raykd.algo.selection.rows import Outline, Rows, outline
from raykd.algo.selection.shard import LocalShards

SIMPLEX, POINTS, UNIT = Euclidean("probs", peaked=True), Euclidean("features"), Euclidean("features", unit_length=True)
CUTS = {
    (kcenter, "SMALL_PRODUCTS"): st.sampled_from([0, 2**28]),
    (small_pools, "MOST_TIED"): st.sampled_from([1, 2, 64]),
    (small_pools, "MOST_ON_TRUST"): st.sampled_from([1, 5, 256]),
    (small_pools, "WINDOW_SHARE"): st.sampled_from([0, 1 / 8, 1]),
    (kcenter, "CANDIDATES_PER_PICK"): st.sampled_from([0, 1, 4]),
    (kcenter, "FEWEST_CANDIDATES"): st.sampled_from([0, 1000]),
    (kcenter, "SPARE"): st.sampled_from([1, 3, 16]),
    (kcenter, "WINDOW"): st.sampled_from([1, 2, 5, 512]),
    (shard, "FEWEST_REFRESHED"): st.sampled_from([1, 3, 64]),
    (shard, "SHORTLIST"): st.sampled_from([1, 2, 8]),
    (shard, "GATHER_VALUES"): st.sampled_from([1, 64, 2**22]),
    (distances, "BATCH_VALUES"): st.sampled_from([1, 64, 2**24]),
    (distances, "CACHED_VALUES"): st.sampled_from([1, 64, 2**20]),
    (distances, "BATCH_CENTERS"): st.sampled_from([1, 3, 8192]),
    (distances, "MANY_PAIRS"): st.sampled_from([0, 8]),
    (distances, "PROBE"): st.sampled_from([2, 64]),
    (distances, "PROBE_PRODUCTS"): st.sampled_from([0, 2**26]),
    (distances, "FEW_CENTERS"): st.sampled_from([1, 32]),
    (distances, "PEAK_STEPS"): st.sampled_from([1, 3, 64]),
    (distances, "EXACT_VALUES"): st.sampled_from([1, 64, 2**16]),
}
A_CUT = st.fixed_dictionaries(CUTS)


@contextmanager
def cut(how):
    """Work in other blocks, windows and rounds for a while."""
    before = {place: getattr(*place) for place in how}
    try:
        for (module, name), value in how.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def pairs(picked):
    return list(zip(picked.ids, picked.distances.tolist(), strict=True))


@st.composite
def hard_rows(draw):
    """Rows that are equal, or nearly, or differ by the order of their values, or are one-hot, or spread out."""
    width, num_rows, num_labeled = draw(st.integers(1, 9)), draw(st.integers(1, 30)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["spread", "peaked", "one_hot", "equal", "few", "permuted", "nearly_equal"]))
    num = num_rows + num_labeled
    rows = rng.dirichlet(np.full(width, {"peaked": 0.1, "spread": 3.0}.get(kind, 0.5)), num)
    if kind == "one_hot":
        rows = np.eye(width)[rng.integers(0, width, num)]
    elif kind == "equal":
        rows[:] = rows[0]
    elif kind == "few":
        rows = rows[rng.integers(0, min(3, num), num)]
    elif kind == "permuted":
        rows = rng.permuted(np.tile(rows[0], (num, 1)), axis=1)
    elif kind == "nearly_equal":
        rows = rows[0] + rng.integers(-2, 3, (num, width)) * 2.0**-23 * (rows[0] > 0.01)
    if draw(st.booleans()):
        rows[-num_labeled:] = rows[rng.integers(0, num_rows, num_labeled)]  # centers that are rows
    ids = [f"{number}" for number in rng.permutation(num_rows)]
    return ids, rows[:num_rows].astype(np.float32), rows[num_rows:].astype(np.float32)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(rows=hard_rows(), budget=st.integers(1, 30), num_shards=st.sampled_from([1, 2, 3, 7, 16]), how=A_CUT)
@pytest.mark.parametrize("space", [SIMPLEX, POINTS], ids=["peaked", "points"])
def test_farthest_first_is_the_plain_loop_to_the_last_bit(space, rows, budget, num_shards, how):
    ids, x, centers = rows
    budget = min(budget, len(ids))
    expected = plain_farthest_first(ids, x, centers, budget)
    assert running_minimum(ids, x, centers, budget) == expected
    order = np.random.default_rng(num_shards).permutation(len(ids))
    pool = Rows(np.array(ids, object)[order], x[order], x[order])
    with cut(how):
        got = farthest_first(LocalShards.split(pool, num_shards), space, centers, budget)
    assert pairs(got) == expected


def test_float32_ties_are_told_apart_in_float64():
    """Distances that float32 products cannot tell apart, at a width where their error is larger than the difference."""
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.full(500, 0.5)).astype(np.float32)
    x = np.tile(base, (200, 1))
    x[np.arange(200), rng.integers(0, 500, 200)] += rng.integers(1, 50, 200).astype(np.float32) * np.float32(2**-20)
    centers = np.tile(np.roll(base, 1), (40, 1))
    centers[np.arange(40), rng.integers(0, 500, 40)] += rng.integers(1, 50, 40).astype(np.float32) * np.float32(2**-20)
    ids = [f"{number:03d}" for number in range(200)]
    approx, error = POINTS.approximate(x, centers)
    exact = ((x[:, None].astype(np.float64) - centers) ** 2).sum(axis=2)
    assert (np.abs(approx - exact).max(axis=1) <= error).all()
    assert len(np.unique(approx)) < len(np.unique(exact)) / 2
    got = farthest_first(LocalShards.split(Rows(ids, features=x), 3), POINTS, centers, 60)
    assert pairs(got) == plain_farthest_first(ids, x, centers, 60)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(rows=hard_rows(), num_shards=st.sampled_from([1, 2, 3, 7, 16]), seed=st.integers(0, 9), how=A_CUT)
@pytest.mark.parametrize("kind", ["points", "gradients"])
def test_draws_by_distance_are_those_of_the_plain_race(kind, rows, num_shards, seed, how):
    ids, x, _ = rows
    pool = Rows(ids, x, np.roll(x, 1, axis=0))
    space = POINTS if kind == "points" else Gradients(x.shape[1])
    vectors = space.vectors(pool, slice(None))
    budget = len(ids) - 1
    draws = keyed.uniform(keyed.hash_ids(ids), seed, "draw")
    expected = plain_race(ids, vectors, ids[0], budget, draws, lambda x, y: space.exact(x, y[None]))
    with cut(how):
        got = sample_by_distance(LocalShards.split(pool, num_shards), space, vectors[:1], budget, ids[:1], seed, "draw")
    assert pairs(got) == expected


def test_the_race_has_the_law_of_kmeans_plus_plus():
    """The order of three draws among four rows, 4,000 of each (fixed seeds, so no flakes)."""
    x, ids, rng = np.array([[0.0], [1.0], [2.5], [3.0], [6.0]]), list("abcde"), np.random.default_rng(1)
    counts = [Counter(), Counter()]
    for _ in range(4000):
        counts[0][tuple(name for name, _ in plain_kmeans_plus_plus(ids, x, "a", 3, rng))] += 1
        counts[1][tuple(name for name, _ in plain_race(ids, x, "a", 3, 1 - rng.random(5)))] += 1
    orders = sorted({*counts[0], *counts[1]})
    drawn, raced = (np.array([count[order] for order in orders]) for count in counts)
    chi_square = ((drawn - raced) ** 2 / (drawn + raced)).sum()
    assert chi_square < len(orders) + 4 * math.sqrt(2 * len(orders))
    assert len(orders) > 15


# ---------------------------------------------------------------- bounds


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 5, 100, 3000])
@pytest.mark.parametrize("kind", ["probs", "points", "large", "tiny", "gradients"])
def test_no_fast_distance_is_off_by_more_than_it_says(kind, width):
    rng = np.random.default_rng(width)
    probs = rng.dirichlet(np.full(width, 0.2), 60).astype(np.float32)
    scale = {"large": 1e6, "tiny": 1e-14}.get(kind, 1.0)
    features = (scale * rng.normal(size=(60, width))).astype(np.float32)
    features[30:] = features[:30] * (1 + 1e-6)  # cancellation
    space = {"probs": SIMPLEX, "gradients": Gradients(width)}.get(kind, POINTS)
    x = space.vectors(Rows([f"{number}" for number in range(60)], probs, features), slice(None))
    for precision in (np.float32, np.float64):
        approx, error = space.approximate(x, x, precision)
        i, j = np.divmod(np.arange(3600), 60)
        exact = space.exact(x[i], x[j]).reshape(60, 60)
        assert (np.abs(approx - exact) <= error[:, None]).all()


@settings(max_examples=100, deadline=None)
@given(rows=hard_rows(), how=A_CUT)
def test_first_bounds_are_no_less_than_the_distance(rows, how):
    ids, x, centers = rows
    pool = Rows(ids, x, x)
    nearest = ((x[:, None].astype(np.float64) - centers) ** 2).sum(axis=2).min(axis=1)
    with cut(how):
        for bounds in (
            first_bounds(SIMPLEX, pool, outline(x), centers),
            first_bounds(POINTS, pool, None, centers),
            peak_bounds(outline(x), centers),
        ):
            assert (bounds >= nearest).all()


def test_peak_bounds_are_near_the_truth_where_rows_are_peaked():
    rng = np.random.default_rng(0)
    x, centers = (rng.dirichlet(np.full(50, 0.02), num).astype(np.float32) for num in (2000, 500))
    nearest = ((x[:, None] - centers) ** 2).sum(axis=2).min(axis=1)
    bounds = peak_bounds(outline(x), centers)
    assert np.median(bounds - nearest) < 0.05
    worst = np.argsort(nearest)[-100:]
    assert np.isin(worst, np.argsort(bounds)[-400:]).all()


def test_an_outline_is_what_the_rows_say():
    x = np.random.default_rng(0).dirichlet(np.full(7, 0.3), 1000).astype(np.float32)
    x[3] = 0
    x[4:7, 2] = [np.nan, np.inf, -1]
    suspect = np.ones(len(x), bool)
    top, peak, sq = outline(x, suspect)
    good = np.setdiff1d(np.arange(1000), [3, 4, 5, 6])
    assert np.flatnonzero(suspect).tolist() == [3, 4, 5, 6]
    assert np.array_equal(top[good], x[good].argmax(axis=1))
    assert np.array_equal(peak[good], x[good].max(axis=1))
    np.testing.assert_allclose(sq[good], (x[good].astype(np.float64) ** 2).sum(axis=1), rtol=1e-6)
    assert isinstance(outline(x.astype(np.float16)), Outline)


# ---------------------------------------------------------------- what it costs


def peaked(num_rows, num_classes, seed):
    """As a classifier's: logits of a sure class and of one that it is confused with, and noise."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_rows, num_classes))
    for mean, deviation in ((8, 3), (4, 2)):
        logits[np.arange(num_rows), rng.integers(0, num_classes, num_rows)] += rng.normal(mean, deviation, num_rows)
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def test_few_rows_are_refreshed_and_few_questions_asked():
    pool = Rows([f"{number:06d}" for number in range(50_000)], peaked(50_000, 30, 0))
    got = farthest_first(LocalShards.split(pool, 4), SIMPLEX, peaked(1000, 30, 1), 200)
    assert got.rounds <= 5
    assert got.refreshed < 0.2 * len(pool)


def test_half_precision_rows_are_rounded_and_then_exact():
    x, centers = peaked(300, 6, 0), peaked(20, 6, 1)
    rounded = x.astype(np.float16)
    pool = Rows([f"{number:06d}" for number in range(300)], rounded)
    assert pool.probs.dtype == np.float16
    got = farthest_first(LocalShards.split(pool, 3), SIMPLEX, centers, 50)
    assert pairs(got) == plain_farthest_first(pool.ids, rounded.astype(np.float32), centers, 50)
    exact = [distance for _, distance in plain_farthest_first(pool.ids, x, centers, 50)]
    np.testing.assert_allclose(got.distances, exact, atol=2**-10)  # what the rounding costs


def test_mapped_rows_are_not_copied_and_give_the_same_picks(tmp_path):
    x, centers = peaked(2000, 10, 0), peaked(50, 10, 1)
    np.save(tmp_path / "rows.npy", x)
    ids, mapped = [f"{number:06d}" for number in range(2000)], np.load(tmp_path / "rows.npy", mmap_mode="r")
    pools = Rows(ids, mapped), Rows(ids, x)
    assert np.shares_memory(pools[0].probs, mapped)
    one, other = (farthest_first(LocalShards([shard.Shard(rows)]), SIMPLEX, centers, 100) for rows in pools)
    assert pairs(one) == pairs(other)
