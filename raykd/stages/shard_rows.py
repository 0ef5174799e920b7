"""A shard's vectors: which rows of a Parquet table are its own, and reading them into memory or into a mapped file.

Each shard reads only the row groups that its slice overlaps. N pool rows, C classes, D feature width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from raykd.algo.audit import is_aside
from raykd.algo.heads import Mixture, probabilities
from raykd.algo.keyed import hash_ids
from raykd.algo.selection.rows import Rows
from raykd.errors import UserError
from raykd.store.place import Place
from raykd.store.tables import matrix

READ_ROWS = 8192  # rows decoded at a time


@dataclass(frozen=True, kw_only=True)
class PoolSource:
    """Which rows and vectors of Parquet tables are the pool. Small and picklable: it travels, the vectors don't.

    Args:
        uris: Parquet files, or folders of them: the parts of one table, all on one filesystem; local, s3:// or gs://.
        needs: The vectors to read, as a strategy names them: "probs", "features", "vectors".
        probs_from: Where probabilities come from: column ``probs``; or columns of logits, which become probabilities as
            ``raykd.algo.heads`` says. "vectors" are the same numbers, but need not be probabilities.
        mixture: Of two heads' logits.
        only_pool: Rows count only if their ``split`` is "pool" and their ``error`` is null, where there are such
            columns. False: all rows count, whatever columns there are.
        labeled: Ids of rows to be set aside as labeled (see :meth:`RayShards.labeled`).
        excluded: Ids of rows to be left out, such as those that people could not label.
        aside: Rows to be left out by a draw, seed and last draw (:func:`raykd.algo.audit.is_aside`), unless they are
            labeled; None: none.
        precision: "fp16" rounds vectors to half precision, which halves the memory: a probability is then off by at
            most a 2048th of itself, and picks are exact for the rounded vectors.
        memory_gib: A shard whose vectors take more, in GiB, keeps them in a mapped file in the temporary folder of its
            machine (TMPDIR) instead of in memory; None: always in memory.
    """

    uris: tuple[str, ...]
    needs: tuple[str, ...] = ("probs",)
    probs_from: tuple[str, ...] = ("probs",)
    mixture: Mixture = field(default_factory=Mixture)
    only_pool: bool = True
    labeled: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    aside: tuple[int, int] | None = None
    precision: Literal["fp32", "fp16"] = "fp32"
    memory_gib: float | None = None

    def columns_of(self, need: str) -> tuple[str, ...]:
        return ("features",) if need == "features" else self.probs_from

    @property
    def columns(self) -> list[str]:
        """The columns that must be there."""
        return list(dict.fromkeys(["sample_id", *(name for need in self.needs for name in self.columns_of(need))]))


class FileSlice(NamedTuple):
    """Rows of one Parquet file: of these row groups, one after the other, skip some rows and take the next ones."""

    path: str
    row_groups: list[int]
    skip: int
    take: int


def open_pool(source: PoolSource) -> list[pads.Dataset]:
    """All parts of a pool's table.

    Raises:
        UserError: As :func:`open_table`; or they lie on different filesystems.
    """
    first, *others = [Place.of(uri) for uri in source.uris]
    if other := next((place for place in others if place.fs != first.fs), None):
        raise UserError(f"{first} and {other} lie on different filesystems; expected all parts of the pool on one")
    return [open_table(uri, source.columns, "pool table") for uri in source.uris]


def open_table(uri: str, columns: Sequence[str], what: str) -> pads.Dataset:
    """A Parquet table that is known to have these columns.

    Raises:
        UserError: It is not there, not Parquet, or lacks a column; ``what`` names it.
    """
    place = Place.of(uri)
    try:
        if not place.exists():
            raise UserError(f"no {what} at {uri}; expected a Parquet file or a folder of them")
        table = place.parquet()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {what} {uri}: {error}; expected a Parquet file or a folder of them") from None
    for column in columns:
        if column not in table.schema.names:
            raise UserError(f"{what} {uri} has no column {column!r}; it has: {', '.join(table.schema.names)}")
    return table


def plan(parts: Sequence[pads.Dataset], num_shards: int) -> list[list[FileSlice]]:
    """Cut a table into slices of equal length; each names only the row groups that it overlaps. Reads footers only."""
    fragments = [file for part in parts for file in part.get_fragments()]
    files = [(file.path, np.array([group.num_rows for group in file.row_groups])) for file in fragments]
    total = sum(int(rows.sum()) for _, rows in files)
    bounds = [total * number // num_shards for number in range(num_shards + 1)]
    slices: list[list[FileSlice]] = [[] for _ in range(num_shards)]
    file_start = 0
    for path, rows in files:
        ends = file_start + np.cumsum(rows)
        starts = ends - rows
        for pieces, first, last in zip(slices, bounds[:-1], bounds[1:], strict=True):
            groups = np.flatnonzero((starts < last) & (ends > first) & (first < last))
            if len(groups):
                begin = max(first, int(starts[groups[0]]))
                end = min(last, int(ends[groups[-1]]))
                pieces.append(FileSlice(path, groups.tolist(), begin - int(starts[groups[0]]), end - begin))
        file_start += int(rows.sum())
    return slices


def read_slices(source: PoolSource, pieces: Sequence[FileSlice]) -> tuple[Rows, Rows]:
    """The unlabeled and the labeled rows of some pieces. Memory: the vectors, if they may be in memory, and one batch.

    Raises:
        UserError: A vector is missing, not numeric, or of another length than the first; names the row's id.
    """
    place = Place.of(source.uris[0])
    labeled, excluded = frozenset(source.labeled), frozenset(source.excluded)
    most = sum(piece.take for piece in pieces)
    pool, apart = _Growing(source, most), _Growing(source, most)
    for piece in pieces:
        file = pq.ParquetFile(piece.path, filesystem=place.fs, pre_buffer=not place.is_local)
        marks = ("split", "error") if source.only_pool else ()
        wanted = [*source.columns, *(name for name in marks if name in file.schema_arrow.names)]
        begin, end, start = piece.skip, piece.skip + piece.take, 0
        for batch in file.iter_batches(READ_ROWS, row_groups=piece.row_groups, columns=wanted):
            first, last = max(begin - start, 0), min(end - start, len(batch))
            if first < last:
                rows = _rows(source, batch.slice(first, last - first), excluded)
                is_labeled = np.fromiter((name in labeled for name in rows.ids), bool, len(rows))
                if source.aside:
                    kept = is_labeled | ~is_aside(hash_ids(rows.ids), *source.aside)
                    rows, is_labeled = rows.take(kept), is_labeled[kept]
                pool.add(rows.take(~is_labeled) if labeled else rows)
                if is_labeled.any():
                    apart.add(rows.take(is_labeled))
            start += len(batch)
            if start >= end:
                break
    return pool.rows(), apart.rows()


def joined(source: PoolSource, parts: Sequence[Rows]) -> Rows:
    """Rows of several shards as one."""
    rows = _Growing(source, sum(map(len, parts)))
    for part in parts:
        rows.add(part)
    return rows.rows()


class _Growing:
    """Rows as they come, in arrays that are made once: in memory, or, where that is too little, in mapped files.

    A mapped file has no name any more, so it is gone with the process, however that ends.
    """

    def __init__(self, source: PoolSource, most: int) -> None:
        self.source, self.most = source, most
        self.ids: list[np.ndarray] = []
        self.vectors: dict[str, np.ndarray] = {}
        self.first_id = ""

    def add(self, rows: Rows) -> None:
        if not len(rows):
            return
        if not self.ids:
            self.first_id = rows.ids[0]
            self._make(rows)
        start = self.num_rows
        for name in self.source.needs:
            found = getattr(rows, name)
            _refuse_lengths(
                name, np.array([self.first_id, rows.ids[0]]), np.array([self.vectors[name].shape[1], found.shape[1]])
            )
            self.vectors[name][start : start + len(rows)] = found
        self.ids.append(rows.ids)

    @property
    def num_rows(self) -> int:
        return sum(len(ids) for ids in self.ids)

    def rows(self) -> Rows:
        if not self.ids:
            return Rows(np.array([], object), **{name: np.empty((0, 0), np.float32) for name in self.source.needs})
        return Rows(np.concatenate(self.ids), **{name: each[: self.num_rows] for name, each in self.vectors.items()})

    def _make(self, rows: Rows) -> None:
        kinds = {name: (getattr(rows, name).dtype, getattr(rows, name).shape[1]) for name in self.source.needs}
        num_bytes = self.most * sum(kind.itemsize * width for kind, width in kinds.values())
        in_memory = self.source.memory_gib is None or num_bytes <= self.source.memory_gib * 2**30
        for name, (kind, width) in kinds.items():
            shape = (self.most, width)
            if in_memory:
                self.vectors[name] = np.empty(shape, kind)
            else:
                with tempfile.TemporaryFile() as file:
                    self.vectors[name] = np.memmap(file, kind, "w+", shape=shape)


def _rows(source: PoolSource, batch: pa.RecordBatch, excluded: frozenset[str]) -> Rows:
    names = batch.schema.names if source.only_pool else ()
    if "split" in names:
        batch = batch.filter(pc.equal(batch["split"].cast(pa.string()), "pool"))
    if "error" in names:
        batch = batch.filter(pc.is_null(batch["error"]))
    ids = ids_of(batch["sample_id"])
    if excluded:
        keep = np.fromiter((name not in excluded for name in ids), bool, len(ids))
        batch, ids = batch.filter(pa.array(keep)), ids[keep]
    columns = {name: vectors_of(batch[name], name, ids) for name in source.columns if name != "sample_id"}
    made = {}
    for need in source.needs:
        vectors = columns["features"] if need == "features" else _probabilities(source, columns)
        made[need] = vectors if source.precision == "fp32" else vectors.astype(np.float16)
    return Rows(ids, **made)


def _probabilities(source: PoolSource, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    if source.probs_from == ("probs",):
        return columns["probs"]
    return probabilities({name: columns[name] for name in source.probs_from}, source.mixture)


def ids_of(column: pa.Array) -> np.ndarray:
    if column.null_count:
        raise UserError(f"sample_id is null in {column.null_count} rows; expected an id in every row")
    return np.array(column.cast(pa.string()).to_pylist(), object)


def vectors_of(column: pa.Array, name: str, ids: np.ndarray) -> np.ndarray:
    """A list column as [n, width]; what is wrong with it is said by id."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UserError(f"column {name!r} is of type {kind}; expected a list of numbers in every row")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{name} of {ids[row]!r} is null; expected a vector in every row")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    _refuse_lengths(name, ids, lengths)
    return matrix(column, name)


def _refuse_lengths(name: str, ids: np.ndarray, lengths: np.ndarray) -> None:
    if (other := np.flatnonzero(lengths != lengths[:1])).size:
        raise UserError(
            f"{name} of {ids[other[0]]!r} has {lengths[other[0]]} values, that of {ids[0]!r} has {lengths[0]}; "
            "expected one length for all rows"
        )
