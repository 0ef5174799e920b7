"""More picks in classes with few labels: ``class_balanced``, and ``balance`` on top of any strategy.

``balance`` is as PCB (Bang et al., CVPR 2024): a strategy proposes more rows than are wanted, and each pick is one of
these that is predicted as the class with the fewest labels so far, earlier picks of the round counted as what they are
predicted as. PCB takes any of that class; here it is the one that the strategy had first, and of several classes with
equally few labels the one whose row the strategy had first. The plain loop is
:func:`raykd.algo.selection.reference.plain_balance`.

N rows, C classes, B budget.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from raykd.algo.selection import scores
from raykd.algo.selection.answers import Key, class_counts, lowest, merged, without_distances
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Shard, Shards

PROPOSED = 4  # times the budget


def balanced(pick: Callable[[Shards, int], Picked], shards: Shards, labeled: Rows, budget: int) -> Picked:
    """Picks by a strategy, with the classes of labels and picks together as even as its proposals allow.

    Args:
        pick: The strategy, from shards and budget to picks. Asked for :data:`PROPOSED` times the budget, or all rows:
            classes that none of these is predicted as get nothing.
        shards: The pool, with probabilities.
        labeled: Labeled rows with class indices.
        budget: B, at most the rows left.

    Returns:
        Picks without distances, as the strategy's own are those of other picks before them. Cost: the strategy's, for
        4 B picks; and B * C.
    """
    proposed = pick(shards, min(PROPOSED * budget, sum(shards.map(Shard.num_included))))
    class_of = {name: number for part in shards.map(Shard.classes_of, proposed.ids) for name, number in part.items()}
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for place, name in enumerate(proposed.ids):
        waiting[class_of[name]].append(place)
    labels = np.zeros(0, np.int64) if labeled.labels is None else np.asarray(labeled.labels, np.int64)
    count = dict(enumerate(np.bincount(labels, minlength=max(waiting) + 1).tolist()))
    ids = []
    for _ in range(budget):
        poorest = min(waiting, key=lambda number: (count[number], waiting[number][0]))
        ids.append(proposed.ids[waiting[poorest].popleft()])
        count[poorest] += 1
        if not waiting[poorest]:
            del waiting[poorest]
    return without_distances(ids)


def class_balanced(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """More picks in predicted classes with few labels, as PCoreSet's code has it (PAPERS.md 4).

    Every class that is predicted for some pool row weighs total / (labels + 1), normalised; it gets floor(B * weight)
    picks, leftovers go one each to the heaviest classes (ties: smaller class). Inside a class picks are random, by
    keyed draws; what classes with too few rows leave open is filled by random rows. In the order heaviest class first,
    fillers last. Weights are exact fractions, so quotas do not hang on rounding.
    """
    available_C = class_counts(shards)
    labels = np.zeros(0, np.int64) if labeled.labels is None else np.asarray(labeled.labels, np.int64)
    labels_C = np.bincount(labels, minlength=len(available_C))
    quotas = class_quotas(np.flatnonzero(available_C).tolist(), labels_C.tolist(), budget)
    answers = shards.map(Shard.lowest_in_classes, quotas, scores.keyed_draw, *key, "class_balanced")
    ids: list[str] = []
    for number, quota in quotas.items():
        ids += merged([answer[number] for answer in answers if number in answer], quota)
    if len(ids) < budget:
        taken = set(ids)
        others = lowest(shards, scores.keyed_draw, budget, *key, "class_balanced", "filler")
        ids += [name for name in others if name not in taken][: budget - len(ids)]
    return without_distances(ids)


def class_quotas(predicted: list[int], labels_C: list[int], budget: int) -> dict[int, int]:
    """How many picks each predicted class gets, heaviest class first; sums to ``budget``.

    Example:
        >>> class_quotas([0, 1, 3], [3, 0, 0, 1], budget=10)
        {1: 6, 3: 3, 0: 1}
    """
    weights = {number: Fraction(1, labels_C[number] + 1) for number in predicted}
    heaviest_first = sorted(predicted, key=lambda number: (-weights[number], number))
    whole = sum(weights.values())
    quotas = {number: int(budget * weights[number] / whole) for number in heaviest_first}
    for number in heaviest_first[: budget - sum(quotas.values())]:
        quotas[number] += 1
    return {number: quota for number, quota in quotas.items() if quota}
