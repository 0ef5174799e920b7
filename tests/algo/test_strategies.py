"""One contract for all strategies; k-center, BADGE and class_balanced against plain loops."""

import copy
import math
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.algo import keyed
from raykd.algo.selection import distances, kcenter
from raykd.algo.selection.balance import class_quotas
from raykd.algo.selection.distances import EXACT_VALUES, Euclidean, Gradients, residuals, unit
from raykd.algo.selection.kcenter import coverage_radius
from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.reference import plain_farthest_first
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import STRATEGIES, pick

NAMES = sorted(STRATEGIES)
WITH_DISTANCE = ("badge", "coreset", "farthest", "pcoreset", "spread")
DRAWN = ("badge", "class_balanced", "falcun", "random", "typiclust")


def make_rows(num_rows, num_classes=5, width=4, seed=0, prefix="p"):
    """Peaked probabilities, some rows repeated, some one-hot; ids in no order, of different lengths."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, 0.2), num_rows).astype(np.float32)
    features = rng.normal(size=(num_rows, width)).astype(np.float32)
    same = rng.random(num_rows) < 0.2
    probs[same], features[same] = probs[0], features[0]
    hot = rng.random(num_rows) < 0.2
    probs[hot] = np.eye(num_classes, dtype=np.float32)[rng.integers(0, num_classes, hot.sum())]
    ids = [f"{prefix}{number}" for number in rng.permutation(num_rows)]
    return Rows(ids, probs, features, rng.integers(0, num_classes, num_rows), 100 * features)


def picked(name, pool, labeled, budget, num_shards=1, seed=0, number=0):
    return pick(name, LocalShards.split(pool, num_shards), labeled, budget, seed, number)


def same(one, other):
    return one.ids == other.ids and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("distances", "draw_probabilities")
    )


@pytest.fixture(params=["gathered", "by_rounds"])
def how(request, monkeypatch):
    """Small pools are gathered in the driver; or not, as large ones."""
    if request.param == "by_rounds":
        monkeypatch.setattr(kcenter, "SMALL_PRODUCTS", 0)


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize("cold", [False, True], ids=["labeled", "cold"])
@pytest.mark.parametrize("budget", [1, 13, 60])
@pytest.mark.parametrize("name", NAMES)
def test_picks_are_different_pool_ids_and_do_not_depend_on_shards_or_order(name, budget, cold, how):
    pool, labeled = make_rows(60), None if cold else make_rows(7, seed=1, prefix="l")
    expected = picked(name, pool, labeled, budget)
    assert len(expected.ids) == len(set(expected.ids)) == budget
    assert set(expected.ids) <= set(pool.ids)
    assert expected.distances.dtype == expected.draw_probabilities.dtype == np.float64
    assert np.isnan(expected.draw_probabilities).all() == (name not in ("falcun", "random"))
    assert np.isnan(expected.distances).all() == (
        name not in WITH_DISTANCE or (budget == 1 and (cold or name == "badge"))
    )
    for num_shards in (7, 90):
        order = np.random.default_rng(num_shards).permutation(60)
        turned = None if labeled is None else labeled.take(np.arange(7)[::-1])
        assert same(picked(name, pool.take(order), turned, budget, num_shards), expected)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_written_to(name):
    pool, labeled = make_rows(40), make_rows(7, seed=1, prefix="l")
    pool = pool.take(np.argsort(pool.ids))  # sorted rows are kept without a copy
    before = pickle.dumps((pool, labeled))
    parts = [
        getattr(rows, name) for rows in (pool, labeled) for name in ("ids", "probs", "features", "vectors", "labels")
    ]
    for vectors in parts:
        vectors.flags.writeable = False
    pick(name, LocalShards([Shard(pool)]), labeled, 20, 0)
    assert pickle.dumps((pool, labeled)) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_round_is_keyed_by_seed_and_round(name):
    pool, labeled = make_rows(60), make_rows(7, seed=1, prefix="l")
    shards = LocalShards.split(pool, 3)
    again = [pick(name, shards, labeled, 10, 5, 2) for _ in range(2)]  # on the same shards, one after the other
    assert same(*again)
    others = [pick(name, shards, labeled, 10, *key).ids for key in ((6, 2), (5, 3))]
    if name in DRAWN:
        assert all(ids != again[0].ids for ids in others)
    else:
        assert all(ids == again[0].ids for ids in others)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), num_rows=st.integers(1, 12), num_shards=st.integers(1, 5))
def test_contract_holds_for_coarse_rows_full_of_ties(data, name, num_rows, num_shards):
    """Rows from four prototypes, so that nearly everything is a tie; short ids that sort unlike numbers."""
    prototypes = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]], np.float32)
    which = np.array(data.draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows)))
    ids = data.draw(
        st.lists(st.text("ab19é", min_size=1, max_size=3), min_size=num_rows, max_size=num_rows, unique=True)
    )
    num_labeled = data.draw(st.integers(0, 3))
    labeled = Rows(
        [f"labeled-{number}" for number in range(num_labeled)],
        prototypes[:num_labeled],
        prototypes[:num_labeled],
        np.arange(num_labeled),
        prototypes[:num_labeled],
    )
    pool = Rows(ids, prototypes[which], prototypes[which], vectors=prototypes[which])
    budget = data.draw(st.integers(1, num_rows))
    expected = picked(name, pool, labeled, budget)
    assert len(set(expected.ids)) == budget
    assert set(expected.ids) <= set(ids)
    order = np.array(data.draw(st.permutations(range(num_rows))))
    assert same(picked(name, pool.take(order), labeled, budget, num_shards), expected)
    if name in ("pcoreset", "coreset", "farthest"):
        vectors = [unit(rows.features) if name == "coreset" else rows.probs for rows in (pool, labeled)]
        plain = from_first(pool.ids, *vectors, budget, expected.ids[0])
        assert expected.ids == [name for name, _ in plain]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget is 0; expected at least 1"),
        (-1, "budget is -1"),
        (21, "budget 21 is larger than the pool.* 20 rows"),
    ],
)
def test_an_impossible_budget_is_refused(name, budget, message):
    with pytest.raises(ValueError, match=message):
        picked(name, make_rows(20), make_rows(3, seed=1, prefix="l"), budget, 3)


def test_an_unknown_strategy_is_refused_with_the_nearest_or_all():
    with pytest.raises(ValueError, match=r"unknown strategy 'pcorset'; did you mean 'pcoreset'\?"):
        picked("pcorset", make_rows(20), None, 5)
    with pytest.raises(ValueError, match=r"unknown strategy 'x'; known: badge, class_balanced, .*random"):
        picked("x", make_rows(20), None, 5)


@pytest.mark.parametrize("name", ["coreset", "badge"])
def test_missing_features_are_refused(name):
    pool, labeled = make_rows(20), make_rows(3, seed=1, prefix="l")
    without = Rows(pool.ids, pool.probs)
    with pytest.raises(ValueError, match=f"'{name}' needs .*features; there are no features in the pool"):
        picked(name, without, None, 5, 2)
    with pytest.raises(ValueError, match="there are no features in the labeled rows"):
        picked(name, pool, Rows(labeled.ids, labeled.probs), 5, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (-0.5, "negative value -0.5"), (2.0, "sum to 2")],
)
@pytest.mark.parametrize("where", ["pool", "labeled"])
def test_rows_that_are_no_probabilities_are_refused_with_the_first_ids(value, message, where):
    rows = {"pool": make_rows(20), "labeled": make_rows(5, seed=1, prefix="l")}
    probs = rows[where].probs
    probs[2:5] = 0
    probs[2:5, 0] = value
    if value < 0:
        probs[2:5, 1] = 1 - value
    ids = sorted(rows[where].ids[2:5].tolist())
    with pytest.raises(ValueError, match=f"3 vectors in .*{where}.*first: '{ids[0]}': probs .*{message}"):
        picked("pcoreset", rows["pool"], rows["labeled"], 5, 3)


def test_probabilities_may_be_off_by_a_thousandth():
    pool = make_rows(20)
    pool.probs *= 1 + 0.0009
    assert len(picked("entropy", pool, None, 5).ids) == 5


def test_features_must_be_finite():
    pool = make_rows(20)
    pool.features[3, 1] = np.nan
    with pytest.raises(
        ValueError, match=f"1 vectors in the pool cannot be used, first: '{pool.ids[3]}': features hold NaN"
    ):
        picked("coreset", pool, None, 5, 2)


def test_ids_must_be_different_everywhere():
    pool, labeled = make_rows(20), make_rows(5, seed=1, prefix="l")
    twice = Rows([*pool.ids[:19], pool.ids[0]], pool.probs)
    with pytest.raises(ValueError, match=f"1 ids occur more than once in the pool, first: '{pool.ids[0]}'"):
        picked("random", twice, None, 5, 4)
    with pytest.raises(ValueError, match="1 ids occur more than once in the pool"):
        picked("random", twice, None, 5, 1)
    both = Rows([*labeled.ids[:4], pool.ids[7]], labeled.probs)
    with pytest.raises(
        ValueError, match=f"1 ids are both in the pool and among the labeled rows, first: '{pool.ids[7]}'"
    ):
        picked("pcoreset", pool, both, 5, 4)
    with pytest.raises(ValueError, match=f"1 ids occur more than once among the labeled rows, first: '{pool.ids[7]}'"):
        picked("pcoreset", pool, Rows([pool.ids[7]] * 2, labeled.probs[:2]), 5, 4)
    with pytest.raises(ValueError, match="1 ids occur more than once among the labeled rows, first: 'elsewhere'"):
        picked("pcoreset", pool, Rows(["elsewhere"] * 2, labeled.probs[:2]), 5, 4)


def test_ids_whose_hashes_collide_are_told_apart(monkeypatch, how):
    monkeypatch.setattr(keyed, "hash_ids", lambda ids: np.array([len(name) for name in ids], np.uint64))
    pool, labeled = make_rows(40), make_rows(5, seed=1, prefix="l")
    shard = Shard(pool)
    order = np.random.default_rng(0).permutation(40)
    assert shard.positions([*pool.ids[order[:20]], "p7x", "x"]).tolist() == order[:20].tolist()
    found = picked("pcoreset", pool, labeled, 40, 3)
    expected = plain_farthest_first(pool.ids, pool.probs, labeled.probs, 40)
    assert found.ids == [name for name, _ in expected]
    with pytest.raises(ValueError, match=f"1 ids occur more than once in the pool, first: '{pool.ids[3]}'"):
        picked("pcoreset", pool.take(np.array([*range(40), 3])), labeled, 1)


def test_widths_must_agree():
    with pytest.raises(ValueError, match=r"probs differ in length \(the pool: 5; the labeled rows: 6\)"):
        picked("pcoreset", make_rows(20), make_rows(5, num_classes=6, seed=1, prefix="l"), 5)
    with pytest.raises(ValueError, match=r"features differ in length \(the pool: 4; the labeled rows: 3\)"):
        picked("coreset", make_rows(20), make_rows(5, width=3, seed=1, prefix="l"), 5)


def test_class_balanced_needs_labels_in_range():
    pool, labeled = make_rows(20), make_rows(5, seed=1, prefix="l")
    with pytest.raises(ValueError, match="the labeled rows have no labels"):
        picked("class_balanced", pool, Rows(labeled.ids, labeled.probs), 5)
    labeled.labels[2] = 5
    with pytest.raises(ValueError, match=f"1 labels are out of range, first: '{labeled.ids[2]}' has 5.*indices 0 to 4"):
        picked("class_balanced", pool, labeled, 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("entropy", {"gamma": 2}, "strategy 'entropy' does not look at gamma; leave it out, or choose falcun$"),
        ("falcun", {"delta_": 2}, "strategy 'falcun' does not look at delta_; leave it out$"),
        ("falcun", {"gamma": -1}, r"gamma is -1; expected 0 \(uniform draws\) to 100"),
        ("falcun", {"gamma": math.nan}, "gamma is nan"),
        ("probcover", {"delta": 0}, "delta is 0; expected above 0, to 2"),
        ("uherding", {"kernel_width": 3}, "kernel_width is 3; expected above 0, to 2"),
        ("uherding", {"candidates": 0}, "candidates is 0; expected at least 1"),
        ("spread", {"score": "size"}, "score is 'size'; expected entropy, margin, random"),
        ("spread", {"apart": 2.5}, "apart is 2.5; expected 0 .* to 2"),
        ("spread", {"column": "pixels"}, "column is 'pixels'; expected 'features' or 'probs'"),
    ],
)
def test_an_option_that_means_nothing_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        pick(name, LocalShards.split(make_rows(20), 2), None, 5, 0, options=options)


def test_a_column_is_needed_only_where_it_is_looked_at():
    pool = make_rows(20)
    without = LocalShards.split(Rows(pool.ids, pool.probs), 2)
    assert len(pick("spread", without, None, 5, 0, options={"column": "probs"}).ids) == 5
    with pytest.raises(ValueError, match="strategy 'spread' needs features"):
        pick("spread", without, None, 5, 0)


# ---------------------------------------------------------------- k-center


def from_first(ids, rows, centers, budget, first):
    """Greedy k-center by its definition; with no center, from a first pick that has no distance."""
    if len(centers):
        return plain_farthest_first(ids, rows, centers, budget)
    at = list(ids).index(first)
    rest = np.delete(np.arange(len(ids)), at)
    return [(first, math.nan), *plain_farthest_first(np.array(ids)[rest], rows[rest], rows[[at]], budget - 1)]


CASES = {
    "peaked": lambda rng: rng.dirichlet(np.full(6, 0.1), 50),
    "flat": lambda rng: rng.dirichlet(np.full(6, 5.0), 50),
    "duplicates": lambda rng: rng.dirichlet(np.full(6, 0.3), 5)[rng.integers(0, 5, 50)],
    "all_equal": lambda rng: np.full((50, 6), 1 / 6),
    "one_hot": lambda rng: np.eye(6)[rng.integers(0, 6, 50)],
    "two_classes": lambda rng: rng.dirichlet(np.ones(2), 50),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_labeled", [0, 1, 8])
@pytest.mark.parametrize("budget", [1, 20, 50])
def test_pcoreset_is_the_brute_force(case, num_labeled, budget):
    rng = np.random.default_rng(3)
    probs = CASES[case](rng).astype(np.float32)
    centers = probs[rng.integers(0, 50, num_labeled)]  # rows equal to centers
    pool = Rows([f"{number}" for number in rng.permutation(50)], probs)
    labeled = Rows([f"l{number}" for number in range(num_labeled)], centers)
    got = picked("pcoreset", pool, labeled, budget, 3)
    peaked = ((probs.astype(np.float64) - 1 / probs.shape[1]) ** 2).sum(axis=1)
    first = min(pool.ids[peaked == peaked.max()])
    ids, distances = zip(*from_first(pool.ids, probs, centers, budget, first), strict=True)
    assert got.ids == list(ids)
    np.testing.assert_array_equal(got.distances, distances)
    told = got.distances[np.isnan(got.distances).sum() :]
    assert (np.diff(told) <= 0).all()
    assert (told <= math.sqrt(2)).all()
    assert np.isnan(got.distances).sum() == (num_labeled == 0)


def test_coreset_is_the_brute_force_on_unit_vectors_and_orders_as_cosine():
    pool, labeled = make_rows(50, width=3), make_rows(4, width=3, seed=1, prefix="l")
    pool.features *= np.random.default_rng(0).uniform(0.1, 10, (50, 1)).astype(np.float32)  # lengths don't matter
    got = picked("coreset", pool, labeled, 25, 3)
    expected = plain_farthest_first(pool.ids, unit(pool.features), unit(labeled.features), 25)
    assert list(zip(got.ids, got.distances.tolist(), strict=True)) == expected
    normed = pool.features / np.linalg.norm(pool.features, axis=1, keepdims=True)
    centers = labeled.features / np.linalg.norm(labeled.features, axis=1, keepdims=True)
    far = (1 - (normed @ centers.T).max(axis=1)).argmax()
    assert got.ids[0] == pool.ids[far]
    assert got.distances[0] ** 2 / 2 == pytest.approx(1 - (normed[far] @ centers.T).max(), rel=1e-5)


def test_rows_of_zeros_have_no_direction_and_stay_zero():
    assert np.array_equal(unit(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))
    np.testing.assert_allclose(np.linalg.norm(unit(np.full((1, 3), 1e-30, np.float32)), axis=1), 1, rtol=1e-6)


def test_ids_are_compared_as_strings():
    pool = Rows(["9", "10", "é", "z"], np.full((4, 2), 0.5))
    assert picked("pcoreset", pool, Rows(["l"], [[0.5, 0.5]]), 4, 2).ids == ["10", "9", "z", "é"]
    assert picked("entropy", pool, None, 4, 3).ids == ["10", "9", "z", "é"]
    assert picked("margin", pool, None, 2, 3).ids == ["10", "9"]


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 127, 128, 129, 1000, EXACT_VALUES + 1])
def test_a_distance_has_the_same_bits_wherever_its_row_lies(width):
    rng = np.random.default_rng(width)
    num_rows = max(5, min(3000, 4 * EXACT_VALUES // width))
    rows = rng.dirichlet(np.full(width, 0.3), num_rows).astype(np.float32)
    center = rng.dirichlet(np.full(width, 0.3), 1).astype(np.float32)
    space, zeros = Euclidean("probs"), np.zeros(num_rows, np.int64)
    whole = distances.exact_pairs(space, rows, np.arange(num_rows), center, zeros)
    np.testing.assert_allclose(whole, ((rows.astype(np.float64) - center) ** 2).sum(axis=1), rtol=1e-13, atol=1e-300)
    for row in rng.integers(0, num_rows, 20):
        assert space.exact(rows[row : row + 1].copy(), center)[0] == whole[row]
        assert space.exact(center, rows[row : row + 1])[0] == whole[row]
    for offset in (1, 3):  # unaligned, other block boundaries
        moved = distances.exact_pairs(space, rows[offset:], np.arange(num_rows - offset), center, zeros[offset:])
        assert np.array_equal(moved, whole[offset:])


class Forgetful(LocalShards):
    """Shards that lose everything they know now and then, and are asked twice."""

    def __init__(self, rows, num_shards):
        super().__init__(LocalShards.split(rows, num_shards).shards)
        self.calls = 0

    def map(self, question, *args):
        self.calls += 1
        if self.calls % 3 == 0:
            lost = self.calls % len(self.shards)
            self.shards[lost] = Shard(self.shards[lost].rows)
        if self.calls % 4 == 0:
            super().map(question, *args)
        return super().map(question, *args)


@pytest.mark.parametrize("name", NAMES)
def test_lost_shards_and_repeated_questions_change_nothing(name, how):
    pool, labeled = make_rows(60), make_rows(7, seed=1, prefix="l")
    assert same(pick(name, Forgetful(pool, 4), labeled, 30, 0), picked(name, pool, labeled, 30))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_questions_and_answers_travel(name, how):
    """As to actors and back: nothing that is asked or answered is more than plain data and names of functions."""

    class Travelling(LocalShards):
        def map(self, question, *args):
            return pickle.loads(pickle.dumps(super().map(*pickle.loads(pickle.dumps((question, *args))))))

    pool, labeled = make_rows(60), make_rows(7, seed=1, prefix="l")
    shards = Travelling(LocalShards.split(pool, 4).shards)
    for more in ({}, {"cap": Cap(limit=20)}, {"balance": name != "class_balanced"}):
        expected = pick(name, LocalShards.split(pool, 1), labeled, 15, 0, **more)
        assert same(pick(name, shards, labeled, 15, 0, **more), expected)


@pytest.mark.parametrize("name", ["pcoreset", "badge"])
def test_an_old_question_asked_again_does_no_harm(name, monkeypatch):
    """Ray may run a retried call late: a shard that knows more than it is told keeps what it knows."""
    monkeypatch.setattr(kcenter, "SMALL_PRODUCTS", 0)
    monkeypatch.setattr(kcenter, "CANDIDATES_PER_PICK", 0)
    monkeypatch.setattr(kcenter, "FEWEST_CANDIDATES", 0)
    monkeypatch.setattr(kcenter, "SPARE", 1)
    pool, labeled = make_rows(60), make_rows(3, seed=1, prefix="l")
    asked = []

    class Recorder(LocalShards):
        def map(self, question, *args):
            if question is Shard.propose:
                asked.append(copy.deepcopy(args))
            return super().map(question, *args)

    shards = Recorder([Shard(pool)])
    pick(name, shards, labeled, 30, 0)
    assert len(asked) > 3
    (shard,) = shards.shards
    latest = shard.propose(*asked[-1])
    for args in (asked[0], asked[2], asked[1]):
        shard.propose(*args)
    again = shard.propose(*asked[-1])
    assert (again.num_known, again.candidates.rest) == (latest.num_known, latest.candidates.rest)
    for name in ("ids", "vectors_NW", "state_NS"):
        np.testing.assert_array_equal(getattr(again.candidates, name), getattr(latest.candidates, name))


def test_coverage_radius_is_the_worst_nearest_distance():
    pool, labeled = make_rows(200, num_classes=20), make_rows(9, num_classes=20, seed=1, prefix="l")
    true = np.linalg.norm(pool.probs[:, None].astype(np.float64) - labeled.probs, axis=2).min(axis=1).max()
    for num_shards in (1, 3, 300):
        assert coverage_radius(LocalShards.split(pool, num_shards), labeled) == pytest.approx(true, abs=1e-6)
    assert coverage_radius(LocalShards.split(labeled, 2), labeled) == 0.0
    assert math.isnan(coverage_radius(LocalShards.split(pool, 2), Rows.none()))
    assert math.isnan(coverage_radius(LocalShards.split(pool.take(np.arange(0)), 2), labeled))


def test_coverage_radius_is_the_distance_of_the_next_pick():
    pool, labeled = make_rows(60), make_rows(7, seed=1, prefix="l")
    distance = picked("pcoreset", pool, labeled, 1).distances[0]
    assert coverage_radius(LocalShards.split(pool, 2), labeled) == distance


# ---------------------------------------------------------------- entropy, margin, random


def test_entropy_and_margin_follow_their_formulas():
    pool = make_rows(60)
    entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in pool.probs.astype(float)]
    margins = [sorted(row)[-1] - sorted(row)[-2] for row in pool.probs.astype(float)]
    at = {name: row for row, name in enumerate(pool.ids)}
    by_entropy = [entropies[at[name]] for name in picked("entropy", pool, None, 60, 3).ids]
    by_margin = [margins[at[name]] for name in picked("margin", pool, None, 60, 3).ids]
    np.testing.assert_allclose(by_entropy, sorted(entropies, reverse=True), atol=1e-12)
    np.testing.assert_allclose(by_margin, sorted(margins), atol=1e-12)


def test_random_says_with_which_probability_each_row_was_drawn():
    got = picked("random", make_rows(20), None, 4, 3)
    assert got.draw_probabilities.tolist() == [1 / 20, 1 / 19, 1 / 18, 1 / 17]


def test_where_a_cap_or_a_balance_decides_too_no_draw_has_a_known_probability():
    pool, labeled = make_rows(20), make_rows(3, seed=1, prefix="l")
    shards = LocalShards.split(pool, 3)
    for more in ({"cap": Cap(limit=20)}, {"balance": True}):
        assert np.isnan(pick("random", shards, labeled, 4, 0, **more).draw_probabilities).all()


def test_random_picks_every_row_equally_often():
    pool = Rows([f"r{number}" for number in range(10)])
    shards = LocalShards.split(pool, 3)
    counts = dict.fromkeys(pool.ids, 0)
    for seed in range(1000):
        for name in pick("random", shards, None, 3, seed).ids:
            counts[name] += 1
    assert all(abs(count - 300) < 4.5 * math.sqrt(300 * 0.7) for count in counts.values())


# ---------------------------------------------------------------- badge


def explicit_embedding(rows):
    """(onehot(argmax p) - p) ⊗ z, written out, float64 [N, C * D]."""
    out = []
    for probs, features in zip(rows.probs.astype(np.float64), rows.features.astype(np.float64), strict=True):
        gradient = -probs
        gradient[probs.argmax()] += 1
        out.append(np.outer(gradient, features).ravel())
    return np.array(out)


def test_factored_distances_are_those_of_the_explicit_embedding():
    rows = make_rows(30, num_classes=7, width=5)
    embedding = explicit_embedding(rows)
    space = Gradients(7)
    vectors = space.vectors(rows, slice(None))
    for center in range(30):
        sq = space.exact(vectors, vectors[center : center + 1])
        np.testing.assert_allclose(sq, ((embedding - embedding[center]) ** 2).sum(axis=1), atol=1e-12)
        equal = (embedding == embedding[center]).all(axis=1) & (rows.features == rows.features[center]).all(axis=1)
        assert (sq[equal] == 0).all()
        assert (sq >= 0).all()


def test_a_gradient_is_the_guess_less_the_probabilities():
    assert residuals(np.array([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], np.float32)).tolist() == [
        [-0.25, 0.5, -0.25],
        [0.5, -0.5, 0.0],
    ]


def test_badge_distances_are_to_the_nearest_earlier_pick():
    pool = make_rows(40)
    got = picked("badge", pool, None, 20, 3)
    embedding = explicit_embedding(pool)
    at = [pool.ids.tolist().index(name) for name in got.ids]
    expected = [min(np.linalg.norm(embedding[at[t]] - embedding[at[s]]) for s in range(t)) for t in range(1, 20)]
    assert math.isnan(got.distances[0])
    np.testing.assert_allclose(got.distances[1:], expected, atol=1e-7)


@pytest.mark.slow
def test_badge_draws_in_proportion_to_squared_distance():
    """First uniform, then D²: the joint law of two picks among five rows, over 3,000 seeds (fixed, so no flakes)."""
    rng = np.random.default_rng(5)
    pool = Rows(list("abcde"), rng.dirichlet(np.ones(3), 5), rng.normal(size=(5, 2)))
    embedding = explicit_embedding(pool)
    sq = ((embedding[:, None] - embedding) ** 2).sum(axis=2)
    law = sq / sq.sum(axis=1, keepdims=True) / 5
    shards, num_seeds = LocalShards.split(pool, 1), 3000
    counts = np.zeros((5, 5))
    for seed in range(num_seeds):
        first, second = pick("badge", shards, None, 2, seed).ids
        counts["abcde".index(first), "abcde".index(second)] += 1
    off = ~np.eye(5, dtype=bool)
    expected = num_seeds * law[off]
    chi_square = ((counts[off] - expected) ** 2 / expected).sum()
    assert chi_square < 19 + 4 * math.sqrt(2 * 19)


def test_badge_takes_rows_at_distance_zero_last():
    rng = np.random.default_rng(0)
    probs, features = rng.dirichlet(np.ones(3), 3), rng.normal(size=(3, 2))
    which = np.array([0, 1, 2] + [0] * 5)
    pool = Rows(list("abcdefgh"), probs[which], features[which])
    for seed in range(20):
        got = picked("badge", pool, None, 8, 3, seed)
        kinds = [which["abcdefgh".index(name)] for name in got.ids]
        assert set(kinds[:3]) == {0, 1, 2}
        assert (got.distances[3:] == 0).all()
        draws = keyed.uniform(keyed.hash_ids(got.ids[3:]), seed, 0, "badge")
        assert (np.diff(draws) > 0).all()


# ---------------------------------------------------------------- class_balanced


def plain_quotas(predicted, counts, budget):
    weights = {number: sum(counts) / (counts[number] + 1) if sum(counts) else 1.0 for number in predicted}
    whole = sum(weights.values())
    quotas = {number: math.floor(budget * weights[number] / whole + 1e-9) for number in predicted}
    order = sorted(predicted, key=lambda number: (-weights[number], number))
    leftover = budget - sum(quotas.values())
    for number in order[:leftover]:
        quotas[number] += 1
    return {number: quota for number, quota in quotas.items() if quota}


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=12), budget=st.integers(1, 60), data=st.data())
def test_quotas_are_those_of_the_plain_loop(counts, budget, data):
    predicted = sorted(data.draw(st.sets(st.sampled_from(range(len(counts))), min_size=1)))
    quotas = class_quotas(predicted, counts, budget)
    assert quotas == plain_quotas(predicted, counts, budget)
    assert sum(quotas.values()) == budget


def test_class_balanced_is_the_plain_loop():
    pool, labeled = make_rows(80), make_rows(9, seed=1, prefix="l")
    labeled.labels[:] = [0, 0, 0, 0, 0, 1, 1, 2, 2]
    predicted = pool.probs.argmax(axis=1)
    counts = np.bincount(labeled.labels, minlength=5).tolist()
    for budget in (1, 7, 40, 80):
        quotas = plain_quotas(sorted(set(predicted.tolist())), counts, budget)
        draws = dict(zip(pool.ids, keyed.bits(keyed.hash_ids(pool.ids), 4, 1, "class_balanced").tolist(), strict=True))
        filler = keyed.bits(keyed.hash_ids(pool.ids), 4, 1, "class_balanced", "filler").tolist()
        ids = []
        for number in sorted(quotas, key=lambda number: (counts[number], number)):
            ids += sorted(pool.ids[predicted == number], key=draws.get)[: quotas[number]]
        for name in [name for _, name in sorted(zip(filler, pool.ids, strict=True))]:
            if len(ids) < budget and name not in ids:
                ids.append(name)
        assert picked("class_balanced", pool, labeled, budget, 3, seed=4, number=1).ids == ids


def test_class_balanced_gives_nothing_to_classes_that_nobody_is_predicted_as():
    pool = Rows(list("abcd"), np.eye(3)[[0, 0, 1, 1]])
    labeled = Rows(["l"], np.eye(3)[:1], labels=[0])
    assert set(picked("class_balanced", pool, labeled, 2, 2).ids) & set("cd")
    assert len(picked("class_balanced", pool, labeled, 4, 2).ids) == 4


# ---------------------------------------------------------------- vectors of any kind


def test_vectors_of_any_kind_need_not_be_probabilities():
    pool, labeled = make_rows(50), make_rows(4, seed=1, prefix="l")
    got = picked("farthest", pool, labeled, 20, 3)
    assert list(zip(got.ids, got.distances.tolist(), strict=True)) == plain_farthest_first(
        pool.ids, pool.vectors, labeled.vectors, 20
    )
    cold = picked("farthest", pool, None, 20, 3)
    assert math.isnan(cold.distances[0])
    assert cold.ids == [name for name, _ in from_first(pool.ids, pool.vectors, [], 20, cold.ids[0])]


@pytest.mark.parametrize(("value", "message"), [(np.inf, "hold NaN or infinity"), (1e30, "have length 1e\\+30")])
def test_vectors_of_any_kind_must_be_finite_and_not_too_long(value, message):
    pool = make_rows(20)
    pool.vectors[3, 1] = value
    with pytest.raises(ValueError, match=f"'{pool.ids[3]}': vectors {message}.*no longer than 1e\\+18$"):
        picked("farthest", pool, None, 5, 2)


# ---------------------------------------------------------------- threads


@pytest.mark.slow
def test_faiss_waits_without_spinning_unless_told_otherwise_and_nobody_else_is_told():
    code = "import os, raykd.algo.selection.rows; print(os.environ.get('OMP_WAIT_POLICY'))"
    found = {}
    for policy in (None, "active"):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({} if policy is None else {"OMP_WAIT_POLICY": policy})
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert ended.stdout == f"{policy}\n"
        found[policy] = re.search("GOMP_SPINCOUNT = '([^']*)'", ended.stderr)
    if found[None] is None:
        pytest.skip("FAISS's OpenMP is not GNU's, which says how long it spins")
    assert found[None][1] == "0"
    assert found["active"][1] != "0"
