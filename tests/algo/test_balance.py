"""Balance on top of any strategy, against its plain loop."""

import numpy as np
import pytest

from raykd.algo.selection import balance
from raykd.algo.selection.reference import plain_balance
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import STRATEGIES, pick

NAMES = sorted(set(STRATEGIES) - {"class_balanced"})


def make_rows(num_rows, seed, prefix="p"):
    """Probabilities that lean to the first of five classes; the last is never predicted."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1.0, 0.3, 0.3, 0.1, 1e-3], num_rows).astype(np.float32)
    probs[rng.random(num_rows) < 0.1] = probs[0]
    ids = [f"{prefix}{number}" for number in rng.permutation(num_rows)]
    features = rng.normal(size=(num_rows, 4))
    return Rows(ids, probs, features, np.minimum(rng.integers(0, 9, num_rows), 4), features)


@pytest.mark.slow
@pytest.mark.parametrize("cold", [False, True], ids=["labeled", "cold"])
@pytest.mark.parametrize("budget", [1, 12, 60])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_plain_loop_over_what_the_strategy_proposes_for_any_shards(name, budget, cold):
    pool, labeled = make_rows(60, 0), None if cold else make_rows(8, 1, "l")
    proposed = pick(name, LocalShards.split(pool, 1), labeled, min(60, balance.PROPOSED * budget), 0).ids
    class_of = dict(zip(pool.ids, pool.probs.argmax(axis=1).tolist(), strict=True))
    counts = [0] * 5 if cold else np.bincount(labeled.labels, minlength=5).tolist()
    expected = plain_balance([(row, class_of[row]) for row in proposed], counts, budget)
    for num_shards in (1, 2, 7):
        shards = LocalShards.split(pool.take(np.random.default_rng(num_shards).permutation(60)), num_shards)
        got = pick(name, shards, labeled, budget, 0, balance=True)
        assert got.ids == expected
        assert np.isnan(got.distances).all()
        assert np.isnan(got.draw_probabilities).all()


def test_classes_become_more_even_than_without():
    pool, labeled = make_rows(400, 0), make_rows(8, 1, "l")
    class_of = dict(zip(pool.ids, pool.probs.argmax(axis=1).tolist(), strict=True))
    spans = []
    for balanced in (False, True):
        got = pick("random", LocalShards.split(pool, 2), labeled, 40, 0, balance=balanced)
        counts = np.bincount([*labeled.labels, *(class_of[name] for name in got.ids)], minlength=5)[:4]
        spans.append(counts.max() - counts.min())
    assert spans[1] < spans[0]


def test_it_needs_probabilities_of_the_pool_and_labels():
    pool, labeled = make_rows(20, 0), make_rows(3, 1, "l")
    with pytest.raises(ValueError, match="strategy 'coreset' needs probs; there are no probs in the pool"):
        pick("coreset", LocalShards.split(Rows(pool.ids, features=pool.features), 2), None, 5, 0, balance=True)
    without = Rows(labeled.ids, labeled.probs, labeled.features)
    with pytest.raises(ValueError, match="the labeled rows have no labels"):
        pick("coreset", LocalShards.split(pool, 2), without, 5, 0, balance=True)
    labeled.labels[0] = 7
    with pytest.raises(ValueError, match="1 labels are out of range"):
        pick("coreset", LocalShards.split(pool, 2), labeled, 5, 0, balance=True)


def test_what_is_balanced_by_itself_needs_no_balance():
    with pytest.raises(ValueError, match="balance has no use with strategy 'class_balanced'"):
        pick("class_balanced", LocalShards.split(make_rows(20, 0), 2), None, 5, 0, balance=True)
