"""TypiClust against its plain loop; its k-means, which is the same for any shards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo import keyed
from raykd.algo.selection import typiclust
from raykd.algo.selection.distances import Euclidean, unit
from raykd.algo.selection.reference import plain_race, plain_typiclust
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import pick
from raykd.algo.selection.typiclust import k_means
from raykd.algo.selection.whole_numbers import to_whole

FEATURES = Euclidean("features", unit_length=True)


def make_rows(kind, num_rows, seed, prefix="p"):
    rng = np.random.default_rng(seed)
    probs, features = rng.dirichlet(np.full(4, 0.5), num_rows), rng.normal(size=(num_rows, 3))
    if kind == "scenes":  # clusters; near ties and exact duplicates in them
        features = np.eye(3)[rng.integers(0, 3, num_rows)] + 1e-2 * rng.integers(0, 3, (num_rows, 3))
    elif kind == "few":
        features = np.eye(3)[rng.integers(0, 3, num_rows)]
    elif kind == "equal":
        features[:] = features[:1]
    ids = [f"{prefix}{number}" for number in rng.permutation(num_rows)]
    precision = np.float16 if kind == "half" else np.float32
    return Rows(ids, probs.astype(precision), features.astype(precision))


def vectors(rows, column):
    return rows.probs.astype(np.float32) if column == "probs" else unit(rows.features)


def shuffled(rows, num_shards, seed):
    return LocalShards.split(rows.take(np.random.default_rng(seed).permutation(len(rows))), num_shards)


@examples(60)
@given(
    kind=st.sampled_from(["scattered", "scenes", "few", "equal", "half"]),
    seed=st.integers(0, 1000),
    num_labeled=st.sampled_from([0, 1, 6]),
    num_shards=st.sampled_from([1, 2, 7]),
    budget=st.integers(1, 40),
    most_clusters=st.sampled_from([1, 3, 500]),
    column=st.sampled_from(["features", "probs"]),
    block=st.sampled_from([1, 2**20]),
)
def test_it_is_the_plain_loop_over_any_shards(
    kind, seed, num_labeled, num_shards, budget, most_clusters, column, block
):
    pool, labeled = make_rows(kind, 40, seed), make_rows(kind, num_labeled, seed + 1, "l")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typiclust, "MOST_CLUSTERS", most_clusters)
        patch.setattr(typiclust, "BLOCK_VALUES", block)
        got = pick("typiclust", shuffled(pool, num_shards, seed), labeled, budget, 3, options={"column": column})
    x, base = vectors(pool, column), vectors(labeled, column)
    hashes, num_clusters = keyed.hash_ids(pool.ids), min(num_labeled + budget, most_clusters, 40)
    first = pool.ids[keyed.bits(hashes, 3, 0, "typiclust").argmin()]
    others = plain_race(pool.ids, x, first, num_clusters - 1, keyed.uniform(hashes, 3, 0, "typiclust"))
    at = {name: row for row, name in enumerate(pool.ids)}
    centers = x[[at[name] for name in (first, *(name for name, _ in others))]]
    assert got.ids == plain_typiclust(pool.ids, to_whole(x), to_whole(base), to_whole(centers), budget)


def test_a_cluster_gives_its_middle_and_those_without_labels_come_first():
    rng = np.random.default_rng(0)
    sizes = {"a": 40, "b": 30, "c": 20}
    ids = [f"{name}{number:02d}" for name, size in sizes.items() for number in range(size)]
    middle = np.array([np.eye(3)["abc".index(name[0])] for name in ids])
    pool = Rows(ids, features=middle + 0.05 * rng.normal(size=(90, 3)) * (np.arange(90) % 3)[:, None])
    shards = LocalShards.split(pool, 2)
    for seed in range(3):
        got = pick("typiclust", shards, None, 3, seed).ids
        assert [name[0] for name in got] == ["a", "b", "c"]
        assert all(ids.index(name) % 3 == 0 for name in got)  # those without noise
    labeled = Rows(["l"], features=middle[:1])
    got = pick("typiclust", shards, labeled, 2, 0).ids
    assert [name[0] for name in got] == ["b", "c"]


def test_of_a_large_cluster_only_so_many_rows_are_looked_at_for_any_shards(monkeypatch):
    monkeypatch.setattr(typiclust, "MOST_MEMBERS", 10)
    monkeypatch.setattr(typiclust, "MOST_CLUSTERS", 2)
    pool = make_rows("scattered", 200, 0)
    looked_at = []
    original = typiclust.most_typical
    monkeypatch.setattr(typiclust, "most_typical", lambda x, count: looked_at.append(len(x)) or original(x, count))
    picks = [pick("typiclust", shuffled(pool, num, num), None, 12, 0).ids for num in (1, 2, 7)]
    assert picks[1:] == picks[:1] * 2
    assert set(looked_at) == {12}


def test_k_means_moves_centers_to_the_middle_and_is_the_same_for_any_shards():
    pool = make_rows("scattered", 300, 0)
    found = [k_means(shuffled(pool, num, num), FEATURES, np.zeros((0, 3), np.float32), 8, 1) for num in (1, 2, 7)]
    for centers, sizes in found[1:]:
        assert np.array_equal(centers, found[0][0])
        assert np.array_equal(sizes, found[0][1])
    x, (centers, sizes) = to_whole(unit(pool.features)), found[0]
    nearest = ((x[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(np.bincount(nearest, minlength=8), sizes)
    for cluster in range(8):
        np.testing.assert_allclose(x[nearest == cluster].mean(axis=0), centers[cluster], atol=2**22)


def test_shards_that_lose_what_they_know_change_nothing():
    pool, labeled = make_rows("scenes", 60, 0), make_rows("scenes", 3, 1, "l")

    class Forgetful(LocalShards):
        calls = 0

        def map(self, question, *args):
            self.calls += 1
            self.shards[self.calls % 2] = Shard(self.shards[self.calls % 2].rows)
            super().map(question, *args)
            return super().map(question, *args)

    shards = Forgetful(LocalShards.split(pool, 2).shards)
    expected = pick("typiclust", LocalShards.split(pool, 1), labeled, 15, 0).ids
    assert pick("typiclust", shards, labeled, 15, 0).ids == expected
