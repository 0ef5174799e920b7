"""A cap on near-duplicates: against its definition, for every strategy."""

import numpy as np
import pytest

from raykd.algo.selection import kcenter
from raykd.algo.selection.distances import Euclidean, within
from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import STRATEGIES, pick

NUM_SCENES, NUM_FRAMES = 12, 8


def frames(seed=0):
    """A pool of videos: scenes of frames that are nearly the same, some of them in every bit."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(NUM_SCENES), NUM_FRAMES)
    features = rng.normal(size=(NUM_SCENES, 6))[scene] + 0.01 * rng.normal(size=(len(scene), 6))
    probs = rng.dirichlet(np.full(4, 0.5), len(scene))
    features[::NUM_FRAMES] = features[1::NUM_FRAMES]
    probs[::NUM_FRAMES] = probs[1::NUM_FRAMES]
    ids = [f"{number}" for number in rng.permutation(len(scene))]
    rows = Rows(ids, probs, features, rng.integers(0, 4, len(scene)), features)
    return rows, dict(zip(ids, scene.tolist(), strict=True))


def cosines(rows, ids, column):
    at = {name: row for row, name in enumerate(rows.ids)}
    x = getattr(rows, column)[[at[name] for name in ids]].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gathered", "by_rounds"])
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_scene_has_more_picks_than_the_cap_whatever_the_strategy_and_shards(name, limit, how, monkeypatch):
    if how == "by_rounds":  # as large pools, not gathered in the driver
        monkeypatch.setattr(kcenter, "SMALL_PRODUCTS", 0)
    pool, scene = frames()
    labeled = frames(1)[0].take(np.arange(5))
    labeled.ids = np.array([f"l{number}" for number in range(5)], object)
    cap = Cap(limit=limit, cosine=0.99)
    budget = NUM_SCENES * limit
    one, other = (pick(name, LocalShards.split(pool, num), labeled, budget, 0, cap=cap) for num in (1, 5))
    assert one.ids == other.ids
    assert len(set(one.ids)) == budget
    assert np.bincount([scene[name] for name in one.ids]).max() == limit
    near = np.tril(cosines(pool, one.ids, "features") >= 0.99, -1).sum(axis=1)
    assert near.max() == limit - 1


def test_without_near_duplicates_the_cap_changes_nothing():
    pool, _ = frames()
    shards = LocalShards.split(pool, 3)
    assert pick("entropy", shards, None, 20, 0, cap=Cap(limit=20)).ids == pick("entropy", shards, None, 20, 0).ids


@pytest.mark.parametrize("column", ["features", "probs"])
def test_equal_means_equal_in_every_bit(column):
    pool, _ = frames()
    picks = pick(
        "random", LocalShards.split(pool, 3), None, NUM_SCENES * (NUM_FRAMES - 1), 0, cap=Cap(limit=1, column=column)
    )
    at = {name: row for row, name in enumerate(pool.ids)}
    vectors = getattr(pool, column)[[at[name] for name in picks.ids]]
    assert len(np.unique(vectors, axis=0)) == len(picks.ids)


def test_simple_strategies_just_pass_over_what_is_too_much():
    pool, _ = frames()
    order = pick("margin", LocalShards.split(pool, 1), None, len(pool), 0).ids
    near, kept = cosines(pool, order, "features") >= 0.99, []
    for row in range(len(order)):
        if near[row, kept].sum() < 2:
            kept.append(row)
    got = pick("margin", LocalShards.split(pool, 3), None, 15, 0, cap=Cap(limit=2, cosine=0.99))
    assert got.ids == [order[row] for row in kept[:15]]


def test_too_few_different_rows_are_refused_with_their_number():
    pool, _ = frames()
    with pytest.raises(ValueError, match="budget 13 cannot be met with at most 1 picks of near-duplicates"):
        pick("random", LocalShards.split(pool, 2), None, 13, 0, cap=Cap(limit=1, cosine=0.99))
    with pytest.raises(ValueError, match="needs features; there are no features in the pool"):
        pick("random", LocalShards.split(Rows(pool.ids), 2), None, 3, 0, cap=Cap(limit=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": 0}, "at most 0 picks"),
        ({"limit": 1, "cosine": 0.0}, "from cosine 0.0 on; expected above 0, to 1"),
        ({"limit": 1, "cosine": 1.5}, "from cosine 1.5"),
        ({"limit": 1, "column": "logits"}, "by 'logits'; expected 'features', 'probs' or 'vectors'"),
    ],
)
def test_an_impossible_cap_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Cap(**given)


def test_within_is_exact_at_the_border():
    x = np.random.default_rng(0).normal(size=(60, 30)).astype(np.float32)
    space = Euclidean("features")
    exact = ((x[:, None].astype(np.float64) - x) ** 2).sum(axis=2)
    for border in (0.0, exact[3, 5], np.nextafter(exact[3, 5], 0), exact[7, 9]):
        assert np.array_equal(within(space, x, x, border), exact <= border)
