"""An upper bound: of many candidate batches the one whose student turns out best. What no strategy can know.

It looks at the test images' labels, as a bound does: the curve says what the best of these batches would have brought,
not what anybody can reach; of few test images a part of it is luck in choosing. Greedy round by round, so another
order of batches may still be better. As the greedy oracles of CDALBench (NeurIPS 2024, datasets and benchmarks) and
BoSS do, batches come from strategies on random parts of the pool: here each of :data:`CANDIDATES` on the whole pool
first, then each again on halves of it that are drawn by key.

Cost: a training a candidate and round, so ``candidates`` times what another arm costs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raykd.algo.keyed import uniform
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import pick
from raykd.config import Config
from raykd.simulation.cell import After, picked_rows, run_round, teacher_rows
from raykd.simulation.oracles import Oracle
from raykd.simulation.problem import Problem

CANDIDATES = ("pcoreset", "badge", "margin", "random", "coreset", "entropy", "class_balanced", "falcun")
COLD = ("pcoreset", "coreset", "margin", "random", "entropy", "falcun")  # where nothing is labeled yet
HALF = 0.5


def run_greedy(
    problem: Problem, config: Config, oracle: Oracle, num_rounds: int, candidates: int, first: After | None = None,
    told: Callable[[After], None] = lambda _: None,
) -> list[After]:  # fmt: skip
    """As :func:`raykd.simulation.cell.run_cell`, each batch the best of so many; of equals the first that was tried.

    Where the start is drawn the first round is that of any other arm.
    """
    rounds = [] if first is None else [first]
    while len(rounds) < num_rounds:
        before, number = rounds[-1] if rounds else None, len(rounds)
        best: After | None = None
        for rows in batches(problem, config, number, candidates, before):
            after = run_round(problem, config, oracle, number, rows, before)
            if best is None or after.row["accuracy"] > best.row["accuracy"]:
                best = after
        assert best is not None
        rounds.append(best)
        told(best)
    return rounds


def batches(problem: Problem, config: Config, number: int, candidates: int, before: After | None) -> list[np.ndarray]:
    """The candidates of a round, rows of the problem, int64 [B] each; such as hold the same images are there once."""
    if before is None and config.labels.start == "one_per_class":
        return [picked_rows(problem, config, number, before)]
    shards, labeled = teacher_rows(problem, config) if before is None else before.space
    names = CANDIDATES if before else COLD
    (shard,) = shards.shards
    budget = min(config.selection.budget or len(problem.classes), len(shard))
    found: dict[frozenset[str], list[str]] = {}
    for tried in range(candidates):
        some: Rows = shard.rows
        if tried >= len(names):
            draws_N = uniform(shard.hashes_N, config.seed, number, "greedy oracle", tried)
            some = some.take(np.argsort(draws_N)[: max(budget, round(HALF * len(shard)))])
        picks = pick(names[tried % len(names)], LocalShards.split(some, 1), labeled, budget, config.seed, number).ids
        found.setdefault(frozenset(picks), picks)
    return [problem.rows_of(picks) for picks in found.values()]
