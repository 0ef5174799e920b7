"""Greedy coverage, ProbCover's and UHerding's, against the plain loop; and the arithmetic that makes sums exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo import keyed
from raykd.algo.selection import cover
from raykd.algo.selection.cover import Ball, Gaussian, pure_radius, smallest_distance
from raykd.algo.selection.distances import Euclidean, unit
from raykd.algo.selection.reference import plain_cover, squared_distances
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import pick
from raykd.algo.selection.whole_numbers import ONE, to_whole, whole_squares

FEATURES = Euclidean("features", unit_length=True)
KINDS = ["scattered", "scenes", "few", "equal", "one_class", "sure", "half"]


def make_rows(kind, num_rows, seed, prefix="p"):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(4, 0.5), num_rows)
    features = rng.normal(size=(num_rows, 3))
    if kind == "scenes":  # near ties and exact duplicates
        features = rng.normal(size=(4, 3))[rng.integers(0, 4, num_rows)] + 1e-4 * rng.integers(0, 3, (num_rows, 3))
    elif kind == "few":
        features = np.eye(3)[rng.integers(0, 3, num_rows)]
    elif kind == "equal":
        probs[:], features[:] = probs[:1], features[:1]
    elif kind == "one_class":
        probs = np.tile([0.7, 0.1, 0.1, 0.1], (num_rows, 1))
    elif kind == "sure":
        probs = np.eye(4)[rng.integers(0, 4, num_rows)]
    ids = [f"{prefix}{number}" for number in rng.permutation(num_rows)]
    precision = np.float16 if kind == "half" else np.float32
    return Rows(ids, probs.astype(precision), features.astype(precision))


def vectors(rows, column="features"):
    return to_whole(rows.probs.astype(np.float32) if column == "probs" else unit(rows.features))


def shuffled(rows, num_shards, seed):
    return LocalShards.split(rows.take(np.random.default_rng(seed).permutation(len(rows))), num_shards)


A_CASE = {
    "kind": st.sampled_from(KINDS),
    "seed": st.integers(0, 1000),
    "num_labeled": st.sampled_from([0, 1, 4]),
    "num_shards": st.sampled_from([1, 2, 7]),
    "budget": st.integers(1, 24),
    "column": st.sampled_from(["features", "probs"]),
    "candidates": st.sampled_from([None, 1, 12]),
    "block": st.sampled_from([1, 2**20]),
}


def engine_and_candidates(name, pool, labeled, num_shards, budget, seed, block, options):
    hashes = keyed.hash_ids(pool.ids)
    count = max(budget, options.get("candidates") or 24)
    drawn = np.argsort(keyed.bits(hashes, 3, 0, "candidates"), kind="stable")[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cover, "BLOCK_VALUES", block)
        patch.setattr(cover, "REFRESHED", 1 if block == 1 else 8)
        patch.setattr(cover, "ASKED", 5 if block == 1 else 512)
        got = pick(name, shuffled(pool, num_shards, seed), labeled, budget, 3, options=options)
    return got, set(pool.ids[drawn])


@examples(60)
@given(**A_CASE, delta=st.sampled_from([1e-4, 0.3, 1.0, 2.0]))
def test_probcover_is_the_plain_loop_over_any_shards(
    kind, seed, num_labeled, num_shards, budget, column, candidates, block, delta
):
    pool, labeled = make_rows(kind, 24, seed), make_rows(kind, num_labeled, seed + 1, "l")
    options = {"delta": delta, "column": column} | ({"candidates": candidates} if candidates else {})
    got, drawn = engine_and_candidates("probcover", pool, labeled, num_shards, budget, seed, block, options)
    x, base = vectors(pool, column), vectors(labeled, column)
    assert got.ids == plain_cover(pool.ids, x, base, np.ones(24), Ball((delta * ONE) ** 2).values, budget, drawn)


@examples(60)
@given(**A_CASE, width=st.sampled_from([None, 1e-3, 0.3, 2.0]))
def test_uherding_is_the_plain_loop_over_any_shards(
    kind, seed, num_labeled, num_shards, budget, column, candidates, block, width
):
    pool, labeled = make_rows(kind, 24, seed), make_rows(kind, num_labeled, seed + 1, "l")
    given = {"kernel_width": width, "candidates": candidates}
    options = {"column": column} | {name: value for name, value in given.items() if value}
    got, drawn = engine_and_candidates("uherding", pool, labeled, num_shards, budget, seed, block, options)
    p = np.sort(pool.probs.astype(np.float64), axis=1)
    x, base = vectors(pool, column), vectors(labeled, column)
    apart = [np.sqrt(sq) / ONE for row in base for sq in squared_distances(base, row) if sq > 0]
    kernel = Gaussian(width or min(apart, default=1.0)).values
    assert got.ids == plain_cover(pool.ids, x, base, 1 - (p[:, -1] - p[:, -2]), kernel, budget, drawn)


def test_uherding_is_the_papers_formula_without_rounding():
    pool, labeled = make_rows("scattered", 60, 0), make_rows("scattered", 4, 1, "l")
    got = pick("uherding", LocalShards.split(pool, 3), labeled, 10, 0, options={"kernel_width": 0.5})
    x, base = unit(pool.features).astype(np.float64), unit(labeled.features).astype(np.float64)
    p = np.sort(pool.probs.astype(np.float64), axis=1)
    similarity = np.exp(-((np.linalg.norm(x[:, None] - x, axis=2) / 0.5) ** 2))
    best = np.exp(-((np.linalg.norm(x[:, None] - base, axis=2) / 0.5) ** 2)).max(axis=1)
    ids = []
    for _ in range(10):
        gains = ((1 - (p[:, -1] - p[:, -2])) * np.maximum(similarity - best, 0)).mean(axis=1)
        row = int(gains.argmax())
        ids.append(pool.ids[row])
        best = np.maximum(best, similarity[row])
    assert got.ids == ids


@pytest.mark.parametrize("kind", KINDS)
def test_delta_is_the_largest_at_which_95_percent_of_the_balls_are_pure(kind):
    pool = make_rows(kind, 60, 3)
    x, top = vectors(pool), pool.probs.argmax(axis=1)
    sq = np.array([squared_distances(x, row) for row in x])
    for num_shards in (1, 2, 7):
        radius = pure_radius(shuffled(pool, num_shards, 0), FEATURES, sorted(pool.ids))

        def pure_share(radius):
            return np.mean([(top[row <= radius] == top[number]).all() for number, row in enumerate(sq)])

        if len(set(top)) == 1:
            assert radius == np.inf
        elif radius:
            assert pure_share(radius) >= 0.95 > pure_share(radius + 1)
        else:
            assert pure_share(0) < 0.95 or pure_share(1) < 0.95


def test_balls_cover_many_rows_first():
    rng = np.random.default_rng(0)
    sizes = {"a": 30, "b": 20, "c": 10}
    centers = dict(zip(sizes, np.eye(3), strict=True))
    ids = [f"{name}{number:02d}" for name, size in sizes.items() for number in range(size)]
    features = np.array([centers[name[0]] + 0.01 * rng.normal(size=3) for name in ids])
    probs = np.array([np.eye(3)["abc".index(name[0])] for name in ids])
    pool = Rows(ids, probs, features)
    for options in ({"delta": 0.5}, {}):
        got = pick("probcover", LocalShards.split(pool, 2), None, 3, 0, options=options)
        assert [name[0] for name in got.ids] == ["a", "b", "c"]
    labeled = Rows(["l"], probs[:1], features[:1])
    got = pick("probcover", LocalShards.split(pool, 2), labeled, 2, 0, options={"delta": 0.5})
    assert [name[0] for name in got.ids] == ["b", "c"]


def test_lazy_greedy_works_few_gains_out_again():
    pool = make_rows("scattered", 600, 0)
    got = pick("uherding", LocalShards.split(pool, 3), None, 30, 0, options={"kernel_width": 0.3})
    assert got.refreshed < 600 * 30 / 4


@pytest.mark.parametrize("name", ["probcover", "uherding"])
def test_shards_that_lose_what_they_know_change_nothing(name):
    pool, labeled = make_rows("scattered", 40, 0), make_rows("scattered", 3, 1, "l")

    class Forgetful(LocalShards):
        calls = 0

        def map(self, question, *args):
            self.calls += 1
            if self.calls % 3 == 0:
                self.shards[self.calls % 2] = Shard(self.shards[self.calls % 2].rows)
            super().map(question, *args)
            return super().map(question, *args)

    shards = Forgetful(LocalShards.split(pool, 2).shards)
    assert pick(name, shards, labeled, 15, 0).ids == pick(name, LocalShards.split(pool, 1), labeled, 15, 0).ids


# ---------------------------------------------------------------- whole numbers


@pytest.mark.parametrize("width", [1, 7, 512, 3000])
def test_whole_squares_are_exact_in_any_block(width):
    x = to_whole(unit(np.random.default_rng(width).normal(size=(40, width)).astype(np.float32)))
    x[1] = -x[0]  # as far as vectors can be
    sq = whole_squares(x, x)
    exact = [[sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in x.astype(int).tolist()[:4]]
             for one in x.astype(int).tolist()[:4]]  # fmt: skip
    assert sq[:4, :4].astype(int).tolist() == exact
    for part in (slice(3, 4), slice(1, 18), slice(20, 40)):
        assert np.array_equal(whole_squares(x[part], x[::-1]), sq[part, ::-1])


def test_the_smallest_distance_is_of_rows_that_differ():
    x = unit(np.array([[1, 0], [1, 0], [0, 1], [1, 0.1]], np.float32))
    assert smallest_distance(x) == pytest.approx(np.linalg.norm(x[3] - x[0]), rel=1e-6)
    assert smallest_distance(x[:2]) == smallest_distance(x[:0]) == 1
