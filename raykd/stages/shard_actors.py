"""Selection over Ray: each shard is an actor that reads its own rows from Parquet and answers small questions.

The picking itself is :func:`raykd.algo.selection.strategies.pick`; here are only the actors and the reading. No
vector of the pool passes through the driver, except those of picks. An actor that dies is started anew by Ray, reads
its rows again and is told the centers again: the picks are the same.

N pool rows, C classes, D feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Concatenate

import numpy as np
import ray
import ray.exceptions

from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Params, Reply, Shard
from raykd.errors import UserError
from raykd.stages.resources import Bundles, Patience, cpus_that_fit, nodes_now
from raykd.stages.shard_rows import FileSlice, PoolSource, joined, open_pool, plan, read_slices

SHARED_BYTES = 2**20  # larger arguments go to the object store once, not once for each shard

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the actors


class ShardActor:
    """Holds a :class:`Shard`; reads it from storage when first asked, and so again after a restart."""

    def __init__(self, source: PoolSource, pieces: list[FileSlice]) -> None:
        self.source, self.pieces = source, pieces

    @cached_property
    def _parts(self) -> tuple[Shard, Rows]:
        pool, labeled = read_slices(self.source, self.pieces)
        return Shard(pool), labeled

    def ask(self, question: Callable[..., Reply], *args: Any, **kwargs: Any) -> Reply:
        return question(self._parts[0], *args, **kwargs)

    def labeled(self) -> Rows:
        return self._parts[1]


class RayShards:
    """The actors, as :class:`raykd.algo.selection.shard.Shards`; made by :func:`open_shards`."""

    def __init__(self, source: PoolSource, actors: list[Any], asked: Bundles, stall_s: float) -> None:
        self.source, self.actors, self.asked, self.stall_s = source, actors, asked, stall_s

    @property
    def num_shards(self) -> int:
        return len(self.actors)

    def map(
        self, question: Callable[Concatenate[Shard, Params], Reply], /, *args: Params.args, **kwargs: Params.kwargs
    ) -> list[Reply]:
        """Ask every shard; a lost one is rebuilt and asked again.

        Raises:
            UserError: A shard's rows cannot be read (see :func:`raykd.stages.shard_rows.read_slices`), or a lost shard
                finds no room for ``stall_s``.
        """
        shared = [ray.put(arg) if _num_bytes(arg) > SHARED_BYTES else arg for arg in args]
        with actors_words(ValueError):
            return self.answers([actor.ask.remote(question, *shared, **kwargs) for actor in self.actors])

    def answers(self, calls: list[Any], *, each_is_short: bool = False) -> list[Any]:
        """Of all shards, waited for with a word, and not for ever when some have no place to be."""
        how = " (shards, or num_cpus of each: the picks are the same for any number)"
        patience = Patience(
            self.asked, self.stall_s, log.warning, who="selection", how=how, each_is_short=each_is_short
        )
        return patience.answers(calls, "shards")

    def sizes(self) -> list[int]:
        """How many rows each shard has, without those that are labeled."""
        return self.map(Shard.__len__)

    @cached_property
    def _labeled(self) -> Rows:
        with actors_words(ValueError):
            return joined(self.source, self.answers([actor.labeled.remote() for actor in self.actors]))

    def labeled(self, labels: Mapping[str, int] | None = None) -> Rows:
        """The rows that the source names as labeled, in its order, with their vectors. Fetched once.

        Args:
            labels: Class index by id, if the rows are to carry labels.

        Raises:
            UserError: Some are not in the table (or not in its pool).
        """
        rows = self._labeled
        at = {name: row for row, name in enumerate(rows.ids)}
        if missing := [name for name in self.source.labeled if name not in at]:
            first = ", ".join(map(repr, missing[:3]))
            raise UserError(
                f"{len(missing)} labeled ids are not in the pool of {', '.join(self.source.uris)}, first: {first}"
            )
        rows = rows.take(np.array([at[name] for name in self.source.labeled], np.int64))
        return rows if labels is None else replace(rows, labels=np.array([labels[name] for name in rows.ids], np.int64))


@contextmanager
def open_shards(
    source: PoolSource, num_shards: int, num_cpus: float | None = None, num_gpus: float = 0, stall_s: float = 1800
) -> Iterator[RayShards]:
    """Start the shards, and end them with the block. In it any number of selections may follow each other.

    Args:
        source: What they read.
        num_shards: How many, at least 1; more than there are rows is allowed.
        num_cpus: CPUs that each asks Ray for; None: 1, or as many as all find on the nodes that are there.
        num_gpus: GPUs that each asks Ray for, fractions allowed. With one, distances are computed on it.
        stall_s: How long a shard may wait for room, at the start or when it was lost.

    Raises:
        UserError: A table is missing or unreadable, or lacks a column; before any actor is started. Or there is no
            room for them.
    """
    if num_shards < 1:
        raise UserError(f"shards is {num_shards}; expected at least 1")
    slices = plan(open_pool(source), num_shards)
    if num_cpus is None:
        num_cpus = cpus_that_fit(nodes_now(), num_shards, num_gpus)
    actor_class: Any = ray.remote(
        num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    )(ShardActor)
    actors = [actor_class.remote(source, pieces) for pieces in slices]
    shards = RayShards(source, actors, Bundles(num_shards, num_cpus, num_gpus), stall_s)
    try:
        shards.answers([actor.__ray_ready__.remote() for actor in actors], each_is_short=True)
        shards.sizes()  # so that all have read their rows
        yield shards
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def actors_words(kind: type[Exception]) -> Iterator[None]:
    """Raise an actor's error of this kind, the reader's, without Ray's traceback around it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, kind):
            raise error.cause from None
        raise


def _num_bytes(value: Any) -> int:
    parts = value if isinstance(value, tuple) else (value,)
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))
