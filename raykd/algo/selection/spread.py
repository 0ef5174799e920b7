"""The most uncertain rows that are at least so far apart: one pass in the order of a score.

The rule is that of a greedy independent set, as GIST has it (Fahrbach et al. 2025) for one distance: go through the
rows by rising score, and take a row if no labeled row and none taken is closer than ``apart``. GIST sweeps distances to
trade diversity against utility; here the distance is given, and only where no row is left that is so far away from all
others half of it has to do, and half of that, for :data:`HALVINGS` times; then any row. The plain loop is
:func:`raykd.algo.selection.reference.plain_spread`.

N rows, K rows that others keep away from (labeled or taken), M candidates, B budget, W the width of the vectors.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from raykd.algo.errors import UserError
from raykd.algo.selection import scores
from raykd.algo.selection.answers import Key, labeled_vectors, space_of
from raykd.algo.selection.distances import Space, within
from raykd.algo.selection.kcenter import Picked, SelectionRound
from raykd.algo.selection.priorities import Farthest
from raykd.algo.selection.rows import Rows, blocks
from raykd.algo.selection.shard import Order, Score, Shard, Shards

HALVINGS = 10
MOST_CANDIDATES = 4096  # all of their distances are known at once
CANDIDATES_PER_PICK = 2
SPARE = 16  # rows asked of each shard beyond its share
FEWEST_MEASURED = 1024  # at a time
FIRST: Order = (-np.inf, "")


class Ahead(NamedTuple):
    """A shard's next rows that keep their distance, in order; and the order of the one after them, if there is one."""

    orders: list[Order]
    vectors_MW: np.ndarray
    rest: Order | None
    measured: int  # rows that were looked at


SCORES: dict[str, Score] = {
    "entropy": scores.negative_entropy,
    "margin": scores.lead_of_first_class,
    "random": scores.keyed_draw,
}


def spread_out(
    shards: Shards,
    labeled: Rows,
    budget: int,
    key: Key,
    score: str = "margin",
    apart: float = 0.2,
    column: str = "features",
) -> Picked:
    """The rows that a score has first, none closer to a labeled row or to another pick than ``apart``; ties by id.

    Args:
        shards: The pool, with probabilities and, unless ``column`` says otherwise, features.
        labeled: L labeled rows, likewise; there may be none.
        budget: B, at most the rows left.
        key: Of the draws, where the score is random.
        score: entropy, margin or random, as the strategies of these names.
        apart: Euclidean distance over features of length 1 (sqrt(2 - 2 cos): 0.2 is a cosine of 0.98), or over
            probabilities: 0 to 2.
        column: "features" or "probs".

    Returns:
        Picks; ``distances`` are to the nearest labeled row or earlier pick: where one is below ``apart``, the pool had
        no other row that was far enough.

    Cost: the score once; rows looked at * (L + B) * W float32 products, where those looked at are the picks and what
    lies too close to them: at worst N, for each halving. Memory: 16 bytes a row.

    Raises:
        UserError: A score or a distance that is none.
    """
    if score not in SCORES:
        raise UserError(f"score is {score!r}; expected {', '.join(SCORES)}")
    if not 0 <= apart <= 2:
        raise UserError(f"apart is {apart}; expected 0 (as near as they come) to 2, the farthest that vectors can be")
    space, draw_key = space_of(column), (*key, "spread") if score == "random" else ()
    base_KW = labeled_vectors(shards, space, labeled)
    ids: list[str] = []
    taken: list[np.ndarray] = []
    history: list[SelectionRound] = []
    levels = [apart / 2**halving for halving in range(HALVINGS + 1)] if apart else []
    for level in [*levels, 0.0]:
        sq = float(np.nextafter(level * level, -1.0))  # no more than this is closer than the level
        after = FIRST
        while len(ids) < budget:
            count = min(CANDIDATES_PER_PICK * (budget - len(ids)), MOST_CANDIDATES) // shards.num_shards + SPARE
            away_KW = np.concatenate([base_KW, *taken])
            answers = shards.map(next_apart, space, SCORES[score], draw_key, after, away_KW, sq, ids, count)
            orders = [order for answer in answers for order in answer.orders]
            if not orders:
                break
            x_MW = np.concatenate([answer.vectors_MW for answer in answers if answer.orders])
            limit = min((answer.rest for answer in answers if answer.rest is not None), default=None)
            close_MM, open_M = within(space, x_MW, x_MW, sq), np.ones(len(orders), bool)
            before = len(ids)
            for row in sorted(range(len(orders)), key=orders.__getitem__):
                if len(ids) == budget or (limit is not None and orders[row] > limit):
                    break
                after = orders[row]
                if open_M[row]:
                    ids.append(orders[row][1])
                    taken.append(x_MW[row : row + 1])
                    open_M &= ~close_MM[row]
            history.append(SelectionRound(len(orders), sum(answer.measured for answer in answers), len(ids) - before))
            if limit is None:
                break
    return Picked(ids, distances_at_their_turn(space, np.concatenate(taken), base_KW), tuple(history))


def next_apart(
    shard: Shard,
    space: Space,
    score: Score,
    key: tuple[int | str, ...],
    after: Order,
    away_KW: np.ndarray,
    sq: float,
    taken: list[str],
    count: int,
) -> Ahead:
    """The next ``count`` rows by score that are farther than ``sq``, squared, from all of ``away_KW``."""
    score_N, rows = shard.remembered((score, key)) or shard.remember((score, key), _in_order(shard, score, key))
    names, open_N = shard.rows.ids, np.zeros(len(shard), bool)
    open_N[shard.included()] = True
    open_N[shard.positions(taken)] = False
    start = bisect_right(range(len(rows)), after, key=lambda place: (score_N[rows[place]], names[rows[place]]))
    ahead = rows[start:][open_N[rows[start:]]]
    found, measured = np.empty(0, np.int64), 0
    for part in blocks(len(ahead), 1, max(count, FEWEST_MEASURED)):
        some = ahead[part]
        if sq >= 0 and len(away_KW):
            some = some[~within(space, space.vectors(shard.rows, some), away_KW, sq).any(axis=1)]
        found, measured = np.concatenate([found, some]), part.stop
        if len(found) > count:
            break
    orders = [(score_N[row].item(), names[row]) for row in found[: count + 1]]
    return Ahead(
        orders[:count],
        space.vectors(shard.rows, found[:count]),
        orders[count] if len(orders) > count else None,
        measured,
    )


def _in_order(shard: Shard, score: Score, key: tuple[int | str, ...]) -> tuple[np.ndarray, np.ndarray]:
    score_N = score(shard, *key)
    return score_N, np.lexsort((shard.rank_N, score_N))


def distances_at_their_turn(space: Space, x_BW: np.ndarray, base_KW: np.ndarray) -> np.ndarray:
    """Of each row the distance to the nearest of ``base_KW`` and the rows before it, float64 [B]; NaN: there is none.

    Cost: B * (K + B) * W float32 products, and some exact ones.
    """
    sq_B, priority = np.full(len(x_BW), np.inf), Farthest()
    for part in blocks(len(x_BW), 1, 256):
        earlier_KW, state_NS = np.concatenate([base_KW, x_BW[: part.start]]), sq_B[part, None]
        if len(earlier_KW):
            priority.add_centers(space, x_BW[part], state_NS, earlier_KW, np.zeros(len(earlier_KW)))
        for row in range(1, len(state_NS)):
            x_NW = x_BW[part.start : part.start + row]
            state_NS[row, 0] = min(state_NS[row, 0], space.exact(x_NW, x_BW[None, part.start + row]).min())
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(sq_B), np.nan, np.sqrt(sq_B))
