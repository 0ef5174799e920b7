"""Shards that follow a selection pick by pick, where every pick may change every row.

Such a selection keeps numbers for each row on the shards: the state, begun once and told of each pick. A question
carries the picks that shards may not have heard of. A shard that lost its state says how much it knows and is told the
rest again, from the beginning if need be; one that is asked twice, or late, skips what it knows. Cost: a round trip for
a question, and one more after a loss.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from raykd.algo.selection.shard import Shard, Shards


class Step(NamedTuple):
    """A pick: its id, its vector, and a number that was known to all when it was picked."""

    id: str
    vector_W: np.ndarray
    scale: float = 1.0


class FollowerState:
    """What a shard keeps of a selection; its subclasses are made of a shard and say what a pick changes."""

    num_known = 0

    def add(self, step: Step) -> None:
        raise NotImplementedError


class News(NamedTuple):
    """Picks number ``start``, ``start + 1``, ... of a selection; and how to begin, for shards that have not begun."""

    run: str
    begin: Callable[[Shard], FollowerState] | None
    start: int
    steps: list[Step]


def answered(shard: Shard, news: News, question: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """How many picks the shard knows of, -1: it has not begun; and, if of all, the question's answer by its state."""
    state = shard.remembered(news.run)
    if state is None:
        if news.begin is None:
            return -1, None
        state = shard.remember(news.run, news.begin(shard))
    if news.start > state.num_known:
        return state.num_known, None
    for step in news.steps[state.num_known - news.start :]:
        state.add(step)
        state.num_known += 1
    return state.num_known, question(state, *args)


class Followers:
    """A selection on the driver's side.

    Args:
        shards: The pool.
        begin: Makes a shard's :class:`FollowerState`; it travels, with all that it holds.
    """

    def __init__(self, shards: Shards, begin: Callable[[Shard], FollowerState]) -> None:
        self.shards, self.begin, self.run = shards, begin, uuid.uuid4().hex
        self.steps: list[Step] = []
        self.num_known = -1

    def ask(self, question: Callable[..., Any], *args: Any) -> list[Any]:
        """A question to each shard's state, such as ``MyState.first``, which changes nothing; one answer of each."""
        while True:
            start = max(self.num_known, 0)
            news = News(self.run, self.begin if self.num_known < 0 else None, start, self.steps[start:])
            answers = self.shards.map(answered, news, question, *args)
            self.num_known = min(known for known, _ in answers)
            if self.num_known == len(self.steps):
                return [answer for _, answer in answers]
