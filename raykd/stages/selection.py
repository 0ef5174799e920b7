"""Selection over Ray: each shard is an actor that reads its own rows from Parquet and answers small questions.

The picking itself is :func:`raykd.algo.strategies.pick`; here are only the actors and the reading. No vector of the
pool passes through the driver, except those of picks. An actor that dies is started anew by Ray, reads its rows again
and is told the centers again: the picks are the same.

N pool rows, C classes, D feature width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray
import ray.exceptions

from raykd.algo.kcenter import Picks
from raykd.algo.shard import Rows, Shard
from raykd.algo.strategies import check_budget, check_labels, known_strategy, pick
from raykd.storage import Place
from raykd.tables import PICKS, matrix

PROBS_COLUMNS = {"probs": ["probs"], "logits": ["logits"], "heads": ["ce_logits", "kd_logits"]}
READ_ROWS = 8192  # rows decoded at a time
SHARED_BYTES = 2**20  # larger arguments go to the object store once, not once for each shard
WARN_EVERY_S = 60.0

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- what to read


@dataclass(frozen=True, kw_only=True)
class PoolSource:
    """Which rows and vectors of a Parquet table are the pool. Small and picklable: it travels, the vectors don't.

    Rows count when their ``split`` is "pool" (if there is such a column) and their ``error`` is null (likewise).

    Args:
        uri: Parquet file, or folder of them; local, s3:// or gs://.
        needs: The vectors to read, as a strategy names them: "probs", "features".
        probs_from: Where probabilities come from: column ``probs``; softmax of column ``logits`` (a teacher's); or the
            mixture of columns ``ce_logits`` and ``kd_logits`` (a student's).
        ce_weight: Share of the CE head in the mixture, 0 to 1.
        temperature: Divides the KD logits, > 0.
        labeled: Ids of rows to be set aside as labeled (see :meth:`RayShards.labeled`).
        excluded: Ids of rows to be left out, such as those that people could not label.
    """

    uri: str
    needs: tuple[str, ...] = ("probs",)
    probs_from: Literal["probs", "logits", "heads"] = "probs"
    ce_weight: float = 0.5
    temperature: float = 1.0
    labeled: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def columns_of(self, need: str) -> list[str]:
        return PROBS_COLUMNS[self.probs_from] if need == "probs" else [need]

    @property
    def columns(self) -> list[str]:
        """The columns that must be there."""
        return ["sample_id", *(name for need in self.needs for name in self.columns_of(need))]


class Piece(NamedTuple):
    """Rows of one Parquet file: of these row groups, one after the other, skip some rows and take the next ones."""

    path: str
    row_groups: list[int]
    skip: int
    take: int


def open_table(uri: str, columns: Sequence[str], what: str) -> pads.Dataset:
    """A Parquet table that is known to have these columns.

    Raises:
        ValueError: It is not there, not Parquet, or lacks a column; ``what`` names it.
    """
    place = Place.of(uri)
    try:
        if not place.exists():
            raise ValueError(f"no {what} at {uri}; expected a Parquet file or a folder of them")
        table = place.parquet()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {what} {uri}: {error}; expected a Parquet file or a folder of them") from None
    for column in columns:
        if column not in table.schema.names:
            raise ValueError(f"{what} {uri} has no column {column!r}; it has: {', '.join(table.schema.names)}")
    return table


def plan(table: pads.Dataset, num_shards: int) -> list[list[Piece]]:
    """Cut a table into slices of equal length; each names only the row groups that it overlaps. Reads footers only."""
    files = [(file.path, np.array([group.num_rows for group in file.row_groups])) for file in table.get_fragments()]
    total = sum(int(rows.sum()) for _, rows in files)
    bounds = [total * number // num_shards for number in range(num_shards + 1)]
    slices: list[list[Piece]] = [[] for _ in range(num_shards)]
    file_start = 0
    for path, rows in files:
        ends = file_start + np.cumsum(rows)
        starts = ends - rows
        for pieces, first, last in zip(slices, bounds[:-1], bounds[1:], strict=True):
            groups = np.flatnonzero((starts < last) & (ends > first) & (first < last))
            if len(groups):
                begin = max(first, int(starts[groups[0]]))
                end = min(last, int(ends[groups[-1]]))
                pieces.append(Piece(path, groups.tolist(), begin - int(starts[groups[0]]), end - begin))
        file_start += int(rows.sum())
    return slices


def read(source: PoolSource, pieces: Sequence[Piece]) -> tuple[Rows, Rows]:
    """The unlabeled and the labeled rows of some pieces. Memory: twice the vectors, and one batch.

    Raises:
        ValueError: A vector is missing, not numeric, or of another length than the first; names the row's id.
    """
    place = Place.of(source.uri)
    labeled, excluded = frozenset(source.labeled), frozenset(source.excluded)
    parts: list[Rows] = []
    for piece in pieces:
        file = pq.ParquetFile(piece.path, filesystem=place.fs, pre_buffer=not place.is_local)
        wanted = [*source.columns, *(name for name in ("split", "error") if name in file.schema_arrow.names)]
        begin, end, start = piece.skip, piece.skip + piece.take, 0
        for batch in file.iter_batches(READ_ROWS, row_groups=piece.row_groups, columns=wanted):
            first, last = max(begin - start, 0), min(end - start, len(batch))
            if first < last:
                parts.append(_rows(source, batch.slice(first, last - first), excluded))
            start += len(batch)
            if start >= end:
                break
    rows = _concat(parts, source.needs)
    is_labeled = np.fromiter((name in labeled for name in rows.ids), bool, len(rows))
    return rows.take(~is_labeled), rows.take(is_labeled)


def _rows(source: PoolSource, batch: pa.RecordBatch, excluded: frozenset[str]) -> Rows:
    names = batch.schema.names
    if "split" in names:
        batch = batch.filter(pc.equal(batch["split"].cast(pa.string()), "pool"))
    if "error" in names:
        batch = batch.filter(pc.is_null(batch["error"]))
    ids = _ids(batch["sample_id"])
    if excluded:
        keep = np.fromiter((name not in excluded for name in ids), bool, len(ids))
        batch, ids = batch.filter(pa.array(keep)), ids[keep]
    vectors = {}
    for need in source.needs:
        found = [_vectors(batch[name], name, ids) for name in source.columns_of(need)]
        vectors[need] = _probabilities(source, found) if need == "probs" else found[0]
    return Rows(ids, **vectors)


def _probabilities(source: PoolSource, found: list[np.ndarray]) -> np.ndarray:
    if source.probs_from == "probs":
        return found[0]
    from raykd.algo.mixture import mixture, softmax  # here, as it loads torch, which plain probabilities don't need

    if source.probs_from == "logits":
        return softmax(found[0])
    return mixture(found[0], found[1], source.ce_weight, source.temperature)


def _ids(column: pa.Array) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"sample_id is null in {column.null_count} rows; expected an id in every row")
    return np.array(column.cast(pa.string()).to_pylist(), object)


def _vectors(column: pa.Array, name: str, ids: np.ndarray) -> np.ndarray:
    """A list column as [n, width]; what is wrong with it is said by id."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise ValueError(f"column {name!r} is of type {kind}; expected a list of numbers in every row")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{name} of {ids[row]!r} is null; expected a vector in every row")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    _refuse_lengths(name, ids, lengths)
    return matrix(column, name)


def _refuse_lengths(name: str, ids: np.ndarray, lengths: np.ndarray) -> None:
    if (other := np.flatnonzero(lengths != lengths[:1])).size:
        raise ValueError(
            f"{name} of {ids[other[0]]!r} has {lengths[other[0]]} values, that of {ids[0]!r} has {lengths[0]}; "
            "expected one length for all rows"
        )


def _concat(parts: Sequence[Rows], needs: Sequence[str]) -> Rows:
    parts = [part for part in parts if len(part)]
    if not parts:
        return Rows(np.array([], object), **{name: np.empty((0, 0), np.float32) for name in needs})
    vectors = {}
    for name in needs:
        found = [getattr(part, name) for part in parts]
        _refuse_lengths(name, np.array([part.ids[0] for part in parts]), np.array([each.shape[1] for each in found]))
        vectors[name] = np.concatenate(found)
    return Rows(np.concatenate([part.ids for part in parts]), **vectors)


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
    """The actors, as :class:`raykd.algo.shard.Shards`; made by :func:`open_shards`."""

    def __init__(self, source: PoolSource, actors: list[Any]) -> None:
        self.source, self.actors = source, actors

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
        rows = _concat(_get([actor.labeled.remote() for actor in self.actors]), self.source.needs)
        at = {name: row for row, name in enumerate(rows.ids)}
        if missing := [name for name in self.source.labeled if name not in at]:
            first = ", ".join(map(repr, missing[:3]))
            raise ValueError(f"{len(missing)} labeled ids are not in the pool of {self.source.uri}, first: {first}")
        rows = rows.take(np.array([at[name] for name in self.source.labeled], np.int64))
        if labels is not None:
            rows.labels = np.array([labels[name] for name in rows.ids], np.int64)
        return rows


@contextmanager
def open_shards(source: PoolSource, num_shards: int, num_cpus: float | None = None) -> Iterator[RayShards]:
    """Start the shards, and end them with the block.

    Args:
        source: What they read.
        num_shards: How many, at least 1; more than there are rows is allowed.
        num_cpus: CPUs that each asks Ray for; None: 1, or less if the cluster's CPUs are not enough for that.

    Raises:
        ValueError: The table is missing or unreadable, or lacks a column; before any actor is started.
    """
    if num_shards < 1:
        raise ValueError(f"shards is {num_shards}; expected at least 1")
    slices = plan(open_table(source.uri, source.columns, "pool table"), num_shards)
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if num_cpus is None:
        num_cpus = min(1.0, math.floor(1000 * cpus / num_shards) / 1000) if cpus else 1.0
    actor_class: Any = ray.remote(
        num_cpus=num_cpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
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


def check_request(pool: str, labeled: str | None, strategy: str, budget: int) -> tuple[PoolSource, Rows]:
    """What can be checked without Ray and without reading the pool: for clear errors in the first second.

    Returns:
        The pool's source, and the labeled rows.

    Raises:
        ValueError: Unknown strategy, budget below 1 or above the table's rows, a missing file or column, labels out of
            range, labeled vectors of different lengths.
    """
    source = PoolSource(uri=Place.of(pool).uri, needs=known_strategy(strategy).needs)
    check_budget(budget, open_table(source.uri, source.columns, "pool table").count_rows())
    if labeled is None:
        return source, Rows.none()
    place = Place.of(labeled)
    label = ["label"] if known_strategy(strategy).needs_labels else []
    table = open_table(place.uri, [*source.columns, *label], "labeled table")
    label = [name for name in ("label",) if name in table.schema.names]
    batch = table.to_table(columns=[*source.columns, *label]).combine_chunks()
    ids = _ids(batch["sample_id"].combine_chunks())
    rows = Rows(ids, **{name: _vectors(batch[name].combine_chunks(), name, ids) for name in source.needs})
    if label and len(rows):
        if (column := batch["label"]).null_count or not pa.types.is_integer(column.type):
            raise ValueError(
                f"column 'label' of {place.uri} is of type {column.type} with {column.null_count} nulls; "
                "expected a class index (an integer) in every row"
            )
        rows.labels = column.to_numpy().astype(np.int64)
        check_labels(rows, np.iinfo(np.int64).max if rows.probs is None else rows.probs.shape[1])
    return source, rows


def pick_from_tables(
    pool: str,
    labeled: str | None,
    strategy: str,
    budget: int,
    num_shards: int,
    seed: int,
    round: int = 0,
    num_cpus: float | None = None,
) -> pa.Table:
    """Selection for those who already have probabilities: two Parquet tables in, picks out. Needs a running Ray.

    Args:
        pool: Table of the unlabeled rows: ``sample_id``, ``probs`` (list of C numbers), ``features`` (list of D) where
            the strategy needs them.
        labeled: The same of the labeled rows, with ``label`` (class index); None: nothing is labeled.
        strategy: A name in ``raykd.algo.strategies.STRATEGIES``.
        budget: How many to pick.
        num_shards: Ray actors that hold the pool. The picks do not depend on it.
        seed: Keys the random draws, with the round.
        round: Counts from 0.
        num_cpus: CPUs of each shard; see :func:`open_shards`.

    Returns:
        ``raykd.tables.PICKS``: sample_id, rank, distance; in pick order.

    Raises:
        ValueError: As :func:`check_request`, :func:`read` and :func:`raykd.algo.strategies.pick` say.
    """
    source, labeled_rows = check_request(pool, labeled, strategy, budget)
    with open_shards(source, num_shards, num_cpus) as shards:
        return picks_table(pick(strategy, shards, labeled_rows, budget, seed, round))


def picks_table(picks: Picks) -> pa.Table:
    """Picks as a table of schema ``raykd.tables.PICKS``."""
    ranks = np.arange(len(picks.ids), dtype=np.int32)
    return pa.table([pa.array(picks.ids, pa.string()), ranks, picks.distances], schema=PICKS)
