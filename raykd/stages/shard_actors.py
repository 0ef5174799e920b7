"""Selection over Ray: each shard is an actor that reads its own rows from Parquet and answers small questions.

The picking itself is :func:`raykd.algo.selection.strategies.pick`; here are only the actors and the reading. No
vector of the pool passes through the driver, except those of picks. An actor that dies is started anew by Ray, reads
its rows again and is told the centers again: the picks are the same.

N pool rows, C classes, D feature width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.exceptions

from raykd.algo.selection.kcenter import Picks
from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Shard
from raykd.algo.selection.strategies import check_budget, check_labels, known_strategy, needed, pick
from raykd.errors import UserError
from raykd.stages.shard_rows import Piece, PoolSource, ids_of, joined, open_table, plan, read, vectors_of
from raykd.store.place import Place
from raykd.store.tables import PICKS

SHARED_BYTES = 2**20  # larger arguments go to the object store once, not once for each shard
WARN_EVERY_S = 60.0

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the actors


class ShardActor:
    """Holds a :class:`Shard`; reads it from storage when first asked, and so again after a restart."""

    def __init__(self, source: PoolSource, pieces: list[Piece]) -> None:
        self.source, self.pieces = source, pieces

    @cached_property
    def _parts(self) -> tuple[Shard, Rows]:
        pool, labeled = read(self.source, self.pieces)
        return Shard(pool), labeled

    def ask(self, method: str, *args: Any) -> Any:
        return getattr(self._parts[0], method)(*args)

    def labeled(self) -> Rows:
        return self._parts[1]


class RayShards:
    """The actors, as :class:`raykd.algo.selection.shard.Shards`; made by :func:`open_shards`."""

    def __init__(self, source: PoolSource, actors: list[Any]) -> None:
        self.source, self.actors = source, actors

    @property
    def num_shards(self) -> int:
        return len(self.actors)

    def map(self, method: str, *args: Any) -> list[Any]:
        """Ask every shard; a lost one is rebuilt and asked again.

        Raises:
            ValueError: A shard's rows cannot be read (see :func:`read`).
        """
        shared = [ray.put(arg) if _num_bytes(arg) > SHARED_BYTES else arg for arg in args]
        return _get([actor.ask.remote(method, *shared) for actor in self.actors])

    def labeled(self, labels: Mapping[str, int] | None = None) -> Rows:
        """The rows that the source names as labeled, in its order, with their vectors.

        Args:
            labels: Class index by id, if the rows are to carry labels.

        Raises:
            ValueError: Some are not in the table (or not in its pool).
        """
        rows = joined(self.source, _get([actor.labeled.remote() for actor in self.actors]))
        at = {name: row for row, name in enumerate(rows.ids)}
        if missing := [name for name in self.source.labeled if name not in at]:
            first = ", ".join(map(repr, missing[:3]))
            raise UserError(f"{len(missing)} labeled ids are not in the pool of {self.source.uri}, first: {first}")
        rows = rows.take(np.array([at[name] for name in self.source.labeled], np.int64))
        if labels is not None:
            rows.labels = np.array([labels[name] for name in rows.ids], np.int64)
        return rows


@contextmanager
def open_shards(
    source: PoolSource, num_shards: int, num_cpus: float | None = None, num_gpus: float = 0
) -> Iterator[RayShards]:
    """Start the shards, and end them with the block.

    Args:
        source: What they read.
        num_shards: How many, at least 1; more than there are rows is allowed.
        num_cpus: CPUs that each asks Ray for; None: 1, or less if the cluster's CPUs are not enough for that.
        num_gpus: GPUs that each asks Ray for, fractions allowed. With one, distances are computed on it.

    Raises:
        ValueError: The table is missing or unreadable, or lacks a column; before any actor is started.
    """
    if num_shards < 1:
        raise UserError(f"shards is {num_shards}; expected at least 1")
    slices = plan(open_table(source.uri, source.columns, "pool table"), num_shards)
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if num_cpus is None:
        num_cpus = min(1.0, math.floor(1000 * cpus / num_shards) / 1000) if cpus else 1.0
    actor_class: Any = ray.remote(
        num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    )(ShardActor)
    actors = [actor_class.remote(source, pieces) for pieces in slices]
    try:
        waiting = [actor.ask.remote("__len__") for actor in actors]
        while waiting := ray.wait(waiting, num_returns=len(waiting), timeout=WARN_EVERY_S)[1]:
            log.warning(
                "waiting for %d of %d shards: still reading, or short of CPUs (each asks for %g; the cluster has %g)",
                *(len(waiting), num_shards, num_cpus, cpus),
            )
        yield RayShards(source, actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def _get(answers: list[ray.ObjectRef]) -> list[Any]:
    try:
        return ray.get(answers)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None  # the reader's error, without Ray's traceback around it
        raise


def _num_bytes(value: Any) -> int:
    parts = value if isinstance(value, tuple) else (value,)
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


# ---------------------------------------------------------------- selection alone, from two tables


@dataclass(frozen=True, kw_only=True)
class Request:
    """Selection for those who already have probabilities.

    Args:
        pool: Table of the unlabeled rows: ``sample_id``, ``probs`` (list of C numbers), ``features`` (list of D) where
            the strategy needs them.
        labeled: The same of the labeled rows, with ``label`` (class index); None: nothing is labeled.
        strategy: A name among ``raykd.algo.selection.strategies.names()``.
        budget: How many to pick.
        seed: Keys the random draws, with the round.
        round: Counts from 0.
        cap: How many near-duplicates of each other may be picked; None: any number.
        space: "raw": ``probs`` may be any vectors (see ``raykd.algo.selection.strategies.pick``).
        precision: See :class:`raykd.stages.shard_rows.PoolSource`.
        memory_gib: Likewise.
    """

    pool: str
    labeled: str | None = None
    strategy: str = "pcoreset"
    budget: int
    seed: int = 0
    round: int = 0
    cap: Cap | None = None
    space: Literal["probs", "raw"] = "probs"
    precision: Literal["fp32", "fp16"] = "fp32"
    memory_gib: float | None = None


def check_request(request: Request) -> tuple[PoolSource, Rows]:
    """What can be checked without Ray and without reading the pool: for clear errors in the first second.

    Returns:
        The pool's source, and the labeled rows.

    Raises:
        ValueError: Unknown strategy, budget below 1 or above the table's rows, a missing file or column, labels out of
            range, labeled vectors of different lengths.
    """
    source = PoolSource(
        uri=Place.of(request.pool).uri,
        needs=needed(request.strategy, request.cap, request.space),
        precision=request.precision,
        memory_gib=request.memory_gib,
    )
    check_budget(request.budget, open_table(source.uri, source.columns, "pool table").count_rows())
    if request.labeled is None:
        return source, Rows.none()
    strategy = known_strategy(request.strategy, request.space)
    place = Place.of(request.labeled)
    label = ["label"] if strategy.needs_labels else []
    columns = ["sample_id", *strategy.needs]
    table = open_table(place.uri, [*columns, *label], "labeled table")
    label = [name for name in ("label",) if name in table.schema.names]
    batch = table.to_table(columns=[*columns, *label]).combine_chunks()
    ids = ids_of(batch["sample_id"].combine_chunks())
    kind = np.float16 if request.precision == "fp16" else None
    vectors = {name: vectors_of(batch[name].combine_chunks(), name, ids) for name in strategy.needs}
    rows = Rows(ids, **{name: each.astype(kind or each.dtype, copy=False) for name, each in vectors.items()})
    if label and len(rows):
        if (column := batch["label"]).null_count or not pa.types.is_integer(column.type):
            raise UserError(
                f"column 'label' of {place.uri} is of type {column.type} with {column.null_count} nulls; "
                "expected a class index (an integer) in every row"
            )
        rows.labels = column.to_numpy().astype(np.int64)
        check_labels(rows, None if rows.probs is None else rows.probs.shape[1])
    return source, rows


def pick_from_tables(request: Request, num_shards: int, num_cpus: float | None = None, num_gpus: float = 0) -> Picks:
    """Two Parquet tables in, picks out. Needs a running Ray.

    Args:
        request: What from what.
        num_shards: Ray actors that hold the pool. The picks do not depend on it.
        num_cpus: CPUs of each shard; see :func:`open_shards`.
        num_gpus: GPUs of each shard; likewise.

    Raises:
        ValueError: As :func:`check_request`, ``vectors.read`` and :func:`raykd.algo.selection.strategies.pick` say.
    """
    source, labeled = check_request(request)
    with open_shards(source, num_shards, num_cpus, num_gpus) as shards:
        given = (request.strategy, shards, labeled, request.budget, request.seed, request.round)
        return pick(*given, request.cap, request.space)


def picks_table(picks: Picks) -> pa.Table:
    """Picks as a table of schema ``raykd.store.tables.PICKS``."""
    ranks = np.arange(len(picks.ids), dtype=np.int32)
    return pa.table([pa.array(picks.ids, pa.string()), ranks, picks.distances], schema=PICKS)
