"""Uncertain but apart, against the plain loop, in few and in many questions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo.selection import spread
from raykd.algo.selection.distances import unit
from raykd.algo.selection.reference import plain_spread
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import pick


def make_rows(kind, num_rows, seed, prefix="p"):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(4, 0.5), num_rows)
    features = rng.normal(size=(num_rows, 3))
    if kind == "scenes":  # near ties and exact duplicates
        features = rng.normal(size=(4, 3))[rng.integers(0, 4, num_rows)] + 1e-4 * rng.integers(0, 3, (num_rows, 3))
    elif kind == "few":
        which = rng.integers(0, min(3, num_rows + 1), num_rows) % max(1, num_rows)
        probs, features = probs[which], features[which]
    elif kind == "equal":
        probs[:], features[:] = probs[:1], features[:1]
    ids = [f"{prefix}{number}" for number in rng.permutation(num_rows)]
    precision = np.float16 if kind == "half" else np.float32
    return Rows(ids, probs.astype(precision), features.astype(precision))


def scores_of(shard_rows, score):
    return spread.SCORES[score](Shard(shard_rows), *((3, 0, "spread") if score == "random" else ()))


@examples(80)
@given(
    kind=st.sampled_from(["scattered", "scenes", "few", "equal", "half"]),
    seed=st.integers(0, 1000),
    num_labeled=st.sampled_from([0, 1, 4]),
    num_shards=st.sampled_from([1, 2, 7]),
    budget=st.integers(1, 30),
    score=st.sampled_from(["entropy", "margin", "random"]),
    apart=st.sampled_from([0.0, 1e-5, 0.1, 0.5, 1.5, 2.0]),
    column=st.sampled_from(["features", "probs"]),
    most=st.sampled_from([1, 4096]),
)
def test_it_is_the_plain_loop_over_any_shards(kind, seed, num_labeled, num_shards, budget, score, apart, column, most):
    pool, labeled = make_rows(kind, 30, seed), make_rows(kind, num_labeled, seed + 1, "l")
    vectors = [rows.probs.astype(np.float32) if column == "probs" else unit(rows.features) for rows in (pool, labeled)]
    expected = plain_spread(pool.ids, scores_of(pool, score).tolist(), *vectors, budget, apart)
    shards = LocalShards.split(pool.take(np.random.default_rng(seed).permutation(30)), num_shards)
    options = {"score": score, "apart": apart, "column": column}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "MOST_CANDIDATES", most)
        patch.setattr(spread, "SPARE", 1 if most == 1 else 16)
        patch.setattr(spread, "FEWEST_MEASURED", most)
        got = pick("spread", shards, labeled if num_labeled else None, budget, 3, options=options)
    assert got.ids == [name for name, _ in expected]
    np.testing.assert_array_equal(got.distances, [distance for _, distance in expected])


def test_picks_are_apart_while_there_are_such_rows_and_the_distances_say_when_there_were_none():
    pool, labeled = make_rows("scattered", 300, 0), make_rows("scattered", 5, 1, "l")
    got = pick("spread", LocalShards.split(pool, 3), labeled, 150, 0, options={"apart": 0.5})
    near = np.flatnonzero(got.distances < 0.5)
    assert 10 < near[0] < 100
    assert (got.distances[near[0] :] < 0.5).all()
    taken = unit(pool.features)[[pool.ids.tolist().index(name) for name in got.ids[: near[0]]]]
    others = np.linalg.norm(taken[:, None] - np.concatenate([taken, unit(labeled.features)]), axis=2)
    assert np.sort(others, axis=1)[:, 1].min() >= 0.5 - 1e-6
    lead = scores_of(pool, "margin")
    leads = [lead[pool.ids.tolist().index(name)] for name in got.ids[: near[0]]]
    assert leads == sorted(leads)


def test_with_no_distance_it_is_the_score_alone():
    pool = make_rows("few", 30, 0)
    shards = LocalShards.split(pool, 2)
    assert pick("spread", shards, None, 30, 0, options={"apart": 0}).ids == pick("margin", shards, None, 30, 0).ids


def test_few_questions_are_asked():
    pool = make_rows("scattered", 3000, 0)
    got = pick("spread", LocalShards.split(pool, 3), None, 40, 0, options={"apart": 0.05})
    assert got.rounds <= 2
    assert math.isnan(got.distances[0])
