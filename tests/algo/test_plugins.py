"""Strategies of other packages: by entry point, sharded for free, and held to the contract."""

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from raykd.algo.selection import strategies
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import Strategy, lowest, names, pick, without_distances


def peak(shard):
    return shard.rows.probs.max(axis=1)


def least_confident(shards, labeled, budget, key):
    return without_distances(lowest(shards, peak, budget))


by_function = Strategy(least_confident, needs=("probs",))


class ByClass:
    needs = ("probs",)
    needs_labels = False

    def pick(self, shards, labeled, budget, key):
        return least_confident(shards, labeled, budget, key)


class Short(ByClass):
    def pick(self, shards, labeled, budget, key):
        return Picked(["a"] * budget, np.zeros(budget))


class Broken(ByClass):
    def __init__(self):
        raise RuntimeError("no licence")


@pytest.fixture
def installed(monkeypatch):
    points = [
        EntryPoint(name, f"{__name__}:{value}", strategies.PLUG_INS)
        for name, value in {
            "confident": "by_function",
            "class": "ByClass",
            "short": "Short",
            "broken": "Broken",
        }.items()
    ]
    points += [EntryPoint("twice", f"{package}:x", strategies.PLUG_INS) for package in ("one", "other")]
    points += [EntryPoint("gone", "no_such_package:x", strategies.PLUG_INS)]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(
        strategies, "entry_points", lambda group, name=None: [each for each in points if name in (None, each.name)]
    )


@pytest.mark.parametrize("name", ["confident", "class"])
def test_another_packages_strategy_is_sharded_and_checked(installed, name):
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype(np.float32)
    pool = Rows([f"{number:02d}" for number in range(50)], probs)
    expected = pool.ids[np.argsort(probs.max(axis=1))[:12]].tolist()
    for num_shards in (1, 2, 7):
        assert pick(name, LocalShards.split(pool, num_shards), None, 12, 0).ids == expected
    assert name in names()
    pool.probs[3] = np.nan
    with pytest.raises(ValueError, match="'03': probs hold NaN"):
        pick(name, LocalShards.split(pool, 2), None, 12, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "strategy 'short' picked 3 ids, 1 different, with 3 distances; expected 3 of each"),
        ("broken", r"strategy 'broken' \(.*:Broken\) cannot be loaded: RuntimeError\('no licence'\)"),
        ("gone", "strategy 'gone' .* cannot be loaded: ModuleNotFoundError"),
        ("twice", "strategy 'twice' is in several packages: one:x, other:x"),
        ("nobody", "unknown strategy 'nobody'; known: badge, broken, class, .*confident"),
    ],
)
def test_a_plug_in_that_does_not_work_is_named(installed, name, message):
    pool = Rows(list("abcd"), np.full((4, 2), 0.5))
    with pytest.raises(ValueError, match=message):
        pick(name, LocalShards.split(pool, 2), None, 3, 0)
