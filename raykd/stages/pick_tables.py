"""Selection alone, for people who already have probabilities: two Parquet tables in, picks out.

N pool rows, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from raykd.algo.selection.checks import check_budget, check_labels
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.strategies import check_options, needed, needs_labels, pick
from raykd.errors import UserError
from raykd.stages.shard_actors import open_shards
from raykd.stages.shard_rows import PoolSource, ids_of, open_table, vectors_of
from raykd.store.place import Place
from raykd.store.tables import PICKS


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to pick from what.

    Args:
        pool: Table of the unlabeled rows: ``sample_id``, ``probs`` (list of C numbers), ``features`` (list of D) where
            the strategy needs them. All of its rows count; other columns mean nothing.
        labeled: The same of the labeled rows, with ``label`` (class index); None: nothing is labeled.
        strategy: A name among ``raykd.algo.selection.strategies.names()``.
        budget: How many to pick.
        seed: Keys the random draws, with the round's number.
        round_number: Counts from 0.
        cap: How many near-duplicates of each other may be picked; None: any number.
        options: Of the strategy, see :func:`raykd.algo.selection.strategies.pick`.
        balance: Serve the class with the fewest labels first; likewise.
        space: "raw": ``probs`` may be any vectors, for farthest-first over them: pcoreset is then ``farthest``.
        precision: See :class:`raykd.stages.shard_rows.PoolSource`.
        memory_gib: Likewise.
    """

    pool: str
    labeled: str | None = None
    strategy: str = "pcoreset"
    budget: int
    seed: int = 0
    round_number: int = 0
    cap: Cap | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    balance: bool = False
    space: Literal["probs", "raw"] = "probs"
    precision: Literal["fp32", "fp16"] = "fp32"
    memory_gib: float | None = None


class CheckedRequest(NamedTuple):
    """A request of which all is known that can be known without reading the pool."""

    request: Request  # with the strategy that is meant
    source: PoolSource
    labeled: Rows


def check_request(request: Request) -> CheckedRequest:
    """What can be checked without Ray and without reading the pool: for clear errors in the first second.

    Raises:
        UserError: Unknown strategy, or one that has no use for raw vectors, or for an option; budget below 1 or above
            the table's rows; a missing file or column; labels out of range; labeled vectors of different lengths.
    """
    request = _without_spelling(request)
    check_options(request.strategy, request.options, request.balance)
    of_labeled = needed(request.strategy, None, request.options)
    source = PoolSource(
        uris=(Place.of(request.pool).uri,),
        needs=needed(request.strategy, request.cap, request.options, request.balance),
        only_pool=False,
        precision=request.precision,
        memory_gib=request.memory_gib,
    )
    check_budget(request.budget, open_table(source.uris[0], source.columns, "pool table").count_rows())
    if request.labeled is None:
        return CheckedRequest(request, source, Rows.none())
    with_labels = needs_labels(request.strategy, request.balance)
    labeled = read_labeled(request.labeled, replace(source, needs=of_labeled), with_labels)
    if labeled.labels is not None:
        check_labels(labeled, None if labeled.probs is None else labeled.probs.shape[1])
    return CheckedRequest(request, source, labeled)


def _without_spelling(request: Request) -> Request:
    """``space: raw`` as the strategy and the column that it stands for."""
    if request.space == "probs":
        return request
    if request.strategy not in ("pcoreset", "farthest"):
        raise UserError(
            f"strategy {request.strategy!r} with space 'raw'; expected pcoreset, as others need probabilities"
        )
    if request.balance:
        raise UserError("balance with space 'raw'; expected one of them, as raw vectors predict no class")
    cap = request.cap
    if cap is not None and cap.column == "probs":
        cap = replace(cap, column="vectors")
    return replace(request, strategy="farthest", cap=cap)


def read_labeled(uri: str, source: PoolSource, needs_labels: bool) -> Rows:
    """The labeled rows of a table, with the vectors that ``source`` needs, and labels if there is a column ``label``.

    Raises:
        UserError: The table or a column is missing; a vector is none, or of another length; a label is no integer.
    """
    place = Place.of(uri)
    table = open_table(place.uri, [*source.columns, *(["label"] if needs_labels else [])], "labeled table")
    has_labels = "label" in table.schema.names
    batch = table.to_table(columns=[*source.columns, *(["label"] if has_labels else [])]).combine_chunks()
    ids = ids_of(batch["sample_id"].combine_chunks())
    vectors = {}
    for need in source.needs:
        (column,) = source.columns_of(need)
        found = vectors_of(batch[column].combine_chunks(), column, ids)
        vectors[need] = found.astype(np.float16) if source.precision == "fp16" else found
    rows = Rows(ids, **vectors)
    if not has_labels or not len(rows):
        return rows
    column = batch["label"]
    if column.null_count or not pa.types.is_integer(column.type):
        raise UserError(
            f"column 'label' of {place.uri} is of type {column.type} with {column.null_count} nulls; "
            "expected a class index (an integer) in every row"
        )
    return replace(rows, labels=column.to_numpy().astype(np.int64))


def pick_from_tables(
    checked: CheckedRequest, num_shards: int, num_cpus: float | None = None, num_gpus: float = 0, stall_s: float = 1800
) -> Picked:
    """Two Parquet tables in, picks out. Needs a running Ray.

    Args:
        checked: What from what, see :func:`check_request`.
        num_shards: Ray actors that hold the pool. The picks do not depend on it.
        num_cpus: CPUs of each shard; see :func:`raykd.stages.shard_actors.open_shards`.
        num_gpus: GPUs of each shard; likewise.
        stall_s: How long a shard may wait for room.

    Raises:
        UserError: As :func:`raykd.stages.shard_rows.read_slices` and :func:`raykd.algo.selection.strategies.pick` say.
    """
    request, source, labeled = checked
    with open_shards(source, num_shards, num_cpus, num_gpus, stall_s) as shards:
        given = (request.strategy, shards, labeled, request.budget, request.seed, request.round_number)
        return pick(*given, request.cap, request.options, request.balance)


def picks_table(picked: Picked) -> pa.Table:
    """Picks as a table of schema ``raykd.store.tables.PICKS``."""
    ranks = np.arange(len(picked.ids), dtype=np.int32)
    draws = np.full(len(ranks), np.nan) if picked.draw_probabilities is None else picked.draw_probabilities
    probabilities = pa.array(draws, from_pandas=True)  # NaN is null
    return pa.table([pa.array(picked.ids, pa.string()), ranks, picked.distances, probabilities], schema=PICKS)
