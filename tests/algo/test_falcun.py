"""FALCUN against its plain loop and against the paper's own arithmetic; its law, and the sums behind it."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo import keyed
from raykd.algo.selection.falcun import ContrastRace, joined_sums, sums_by_exponent
from raykd.algo.selection.followers import Followers, Step
from raykd.algo.selection.reference import plain_falcun
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import pick

KINDS = ["peaked", "flat", "one_hot", "few", "equal", "one_class", "half", "two_classes"]


def rows_of(kind, num_rows=24, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(
        np.full(2 if kind == "two_classes" else num_classes, 3.0 if kind == "flat" else 0.2), num_rows
    )
    if kind == "one_hot":
        probs = np.eye(num_classes)[rng.integers(0, num_classes, num_rows)]
    elif kind in ("few", "equal"):
        probs = probs[rng.integers(0, 3 if kind == "few" else 1, num_rows)]
    elif kind == "one_class":
        probs = np.ones((num_rows, 1))
    ids = [f"{number}" for number in rng.permutation(num_rows)]
    return Rows(ids, probs.astype(np.float16 if kind == "half" else np.float32))


def picked(rows, budget, num_shards=1, gamma=10.0, seed=0):
    return pick("falcun", LocalShards.split(rows, num_shards), None, budget, seed, options={"gamma": gamma})


@examples(60)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    num_shards=st.sampled_from([1, 2, 7]),
    budget=st.integers(1, 24),
    gamma=st.sampled_from([0, 0.5, 1.0, 10.0, 60.0]),
)
def test_it_is_the_plain_loop_over_any_shards(kind, seed, num_shards, budget, gamma):
    rows = rows_of(kind, seed=seed)
    hashes = keyed.hash_ids(rows.ids)
    expected = plain_falcun(
        rows.ids, rows.probs, budget, gamma, lambda number: keyed.uniform(hashes, 3, 0, "falcun", number)
    )
    got = picked(rows.take(np.random.default_rng(seed).permutation(24)), budget, num_shards, gamma, seed=3)
    assert got.ids == [name for name, _ in expected]
    np.testing.assert_allclose(got.draw_probabilities, [share for _, share in expected], rtol=1e-7)
    assert np.isnan(got.distances).all()


@pytest.mark.parametrize("kind", ["peaked", "flat", "few"])
def test_its_probabilities_are_those_of_the_paper_which_stretches_distances_again_and_again(kind):
    rows = rows_of(kind, 40)
    got = picked(rows, 20, 3, gamma=2.0)
    p = rows.probs.astype(np.float64)
    ranked = np.sort(p, axis=1)
    unsure = 1 - (ranked[:, -1] - ranked[:, -2])
    distance, gone, at = unsure.copy(), [], {name: row for row, name in enumerate(rows.ids)}
    for number, name in enumerate(got.ids):
        if number:
            distance = np.minimum(distance, np.abs(p - p[gone[-1]]).sum(axis=1))
            distance -= distance.min()
            distance /= distance.max() or 1
        relevance = (unsure + distance) ** 2.0
        relevance[gone] = 0
        assert got.draw_probabilities[number] == pytest.approx(relevance[at[name]] / relevance.sum(), rel=1e-6)
        gone.append(at[name])


@pytest.mark.slow
def test_rows_are_drawn_as_often_as_it_says():
    """The second of two picks among six rows, over 1,500 seeds (fixed, so no flakes)."""
    rows = rows_of("flat", 6, seed=2)
    shards, counts, expected = LocalShards.split(rows, 2), np.zeros((6, 6)), np.zeros((6, 6))
    at = {name: row for row, name in enumerate(rows.ids)}
    for seed in range(1500):
        got = pick("falcun", shards, None, 2, seed, options={"gamma": 3.0})
        place = tuple(at[name] for name in got.ids)
        counts[place] += 1
        expected[place] = got.draw_probabilities.prod()
    assert expected.sum() == pytest.approx(1, abs=0.01)
    seen = expected > 0
    chi_square = ((counts[seen] - 1500 * expected[seen]) ** 2 / (1500 * expected[seen])).sum()
    assert chi_square < seen.sum() + 4 * math.sqrt(2 * seen.sum())


def test_rows_without_weight_come_last_each_as_likely_as_another():
    rows = rows_of("one_hot", 20)
    got = picked(rows, 20, 3)
    np.testing.assert_allclose(got.draw_probabilities, 1 / np.arange(20, 0, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_measured_would_not_have_changed(kind):
    """Gaps, kept by measuring few rows, are those of measuring all, to the last bit."""
    rows = rows_of(kind, 200)
    shard = Shard(rows)
    race, p = ContrastRace(shard, 1.0, (0,)), rows.probs.astype(np.float64)
    gaps, scale = race.gap_N.copy(), 1.0
    for row in range(0, 200, 20):
        q = rows.probs[row].astype(np.float32)
        race.add(Step(rows.ids[row], q, scale))
        gaps = np.minimum(gaps, scale * np.abs(p - q).sum(axis=1))
        assert np.array_equal(race.gap_N, gaps)
        scale = race.widest() or scale


@given(st.lists(st.lists(st.floats(0, 2**100), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_sum_by_exponents_is_the_same_in_any_parts_and_near_the_truth(parts):
    whole = joined_sums([sums_by_exponent(np.array(part)) for part in parts])
    flat = [number for part in parts for number in part]
    assert whole == joined_sums([sums_by_exponent(np.array(flat[::-1]))])
    assert abs(whole - sum(map(Fraction, flat))) <= sum(map(Fraction, flat)) / 2**26


def test_a_shard_that_lost_its_state_is_told_all_again():
    rows = rows_of("peaked", 30)

    class Forgetful(LocalShards):
        calls = 0

        def map(self, question, *args):
            self.calls += 1
            if self.calls % 3 == 0:
                self.shards[self.calls % 2] = Shard(self.shards[self.calls % 2].rows)
            super().map(question, *args)  # and each question comes twice
            return super().map(question, *args)

    shards = Forgetful(LocalShards.split(rows, 2).shards)
    assert pick("falcun", shards, None, 12, 0).ids == picked(rows, 12).ids


def test_an_old_question_that_comes_late_does_no_harm():
    shards = LocalShards.split(rows_of("peaked", 30), 1)
    race = Followers(shards, lambda shard: ContrastRace(shard, 2.0, (0,)))
    asked = []
    original = shards.map
    shards.map = lambda question, *args: asked.append((question, args)) or original(question, *args)
    for number in range(4):
        (ring,) = race.ask(ContrastRace.first, 1.0, number)
        race.steps.append(Step(ring.id, ring.probs_C))
    (latest,) = race.ask(ContrastRace.first, 1.0, 4)
    for question, args in (asked[0], asked[2], asked[1]):
        original(question, *args)
    (again,) = race.ask(ContrastRace.first, 1.0, 4)
    assert again[:2] == latest[:2]
