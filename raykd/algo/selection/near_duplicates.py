"""A cap on near-duplicates among the picks: of rows that are nearly the same, only so many are worth a label.

B picks, K of them near-duplicates of others, N rows, W the width of the vectors that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate

import numpy as np

from raykd.algo.errors import UserError
from raykd.algo.selection.distances import Euclidean, within
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.shard import Params, Reply, Shard, Shards


@dataclass(frozen=True, kw_only=True)
class Cap:
    """At most so many picks that are near-duplicates of each other.

    Args:
        limit: A row is passed over if this many picks before it are near-duplicates of it; at least 1.
        cosine: Rows are near-duplicates from this cosine of their vectors on, above 0 to 1; None: if their vectors are
            equal in every bit.
        column: The vectors that are compared: "features", "probs" or "vectors".

    Raises:
        ValueError: A value out of range.
    """

    limit: int
    cosine: float | None = None
    column: str = "features"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"at most {self.limit} picks of near-duplicates; expected at least 1")
        if self.cosine is not None and not 0 < self.cosine <= 1:
            raise UserError(f"near-duplicates from cosine {self.cosine} on; expected above 0, to 1")
        if self.column not in ("features", "probs", "vectors"):
            raise UserError(f"near-duplicates by {self.column!r}; expected 'features', 'probs' or 'vectors'")

    @property
    def space(self) -> Euclidean:
        return Euclidean(self.column, unit_length=self.cosine is not None)

    @property
    def sq(self) -> float:
        """The squared distance up to which two vectors are near-duplicates: ``2 - 2 cos`` on unit vectors."""
        return 0.0 if self.cosine is None else 2 - 2 * self.cosine


class ShardsWithout:
    """Shards as if some of their rows were not there."""

    def __init__(self, shards: Shards, ids: list[str]) -> None:
        self.shards, self.ids = shards, ids

    @property
    def num_shards(self) -> int:
        return self.shards.num_shards

    def map(
        self, question: Callable[Concatenate[Shard, Params], Reply], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> list[Reply]:
        return self.shards.map(Shard.excluding, self.ids, question, *args, **kwargs)


def capped(pick: Callable[[Shards, int], Picked], shards: Shards, budget: int, num_rows: int, cap: Cap) -> Picked:
    """Pick until no pick has more than ``cap.limit`` near-duplicates among those before it.

    Where some have, they and all rows that are crowded in the same way are set aside for this selection, which then
    begins anew: so it is the strategy's own pick from the rest of the pool, whatever the strategy is. Cost: a
    selection, and N * K * W, for each time that near-duplicates turn up, which is mostly once or twice.

    Args:
        pick: The strategy, from shards and budget to picks.
        shards: The pool.
        budget: B.
        num_rows: N.
        cap: What is a near-duplicate, and how many may be picked.

    Raises:
        ValueError: Without near-duplicates fewer than ``budget`` rows are left.
    """
    aside: list[str] = []
    while True:
        picked = pick(ShardsWithout(shards, aside) if aside else shards, budget)
        found = {name: x for some in shards.map(Shard.vectors_by_id, cap.space, picked.ids) for name, x in some.items()}
        x_BW = np.array([found[name] for name in picked.ids])
        kept: list[int] = []
        over: list[str] = []
        crowding: set[int] = set()
        same_BB = within(cap.space, x_BW, x_BW, cap.sq)
        for number, name in enumerate(picked.ids):
            near = [other for other in kept if same_BB[number, other]]
            if len(near) < cap.limit:
                kept.append(number)
            else:
                over.append(name)
                crowding.update(near)
        if not over:
            return picked
        crowded = shards.map(Shard.crowded, cap.space, x_BW[sorted(crowding)], cap.sq, cap.limit)
        aside = sorted(
            {*aside, *over, *(name for names in crowded for name in names)} - {picked.ids[row] for row in kept}
        )
        if num_rows - len(aside) < budget:
            raise UserError(
                f"budget {budget} cannot be met with at most {cap.limit} picks of near-duplicates: without them there "
                f"are {num_rows - len(aside)} rows; lower the budget, or allow more of them"
            )
