"""The Arrow tables that stages meet in, and the few conversions between them and numpy. Knows no Ray.

Every table is keyed by ``sample_id`` (string), never by row number. Vectors are FixedSizeList columns, which any
Parquet reader knows. C is the number of classes, D a feature width.

========== ==================================================================================================
manifest   sample_id, uri, size_bytes, label (class name or null), split (pool, val, test)
teacher    sample_id, features f16[D], logits f32[C], error (null, or why it could not be read: then NaN)
predict    sample_id, split, ce_logits f32[C], kd_logits f32[C], features f16[D]
picks      sample_id, rank (0-based, in the order picked), distance (NaN where it means nothing)
labels     sample_id, label (class index), outcome: the answers that a round trains on
ledger     sample_id, outcome, label (class name or null), annotator, time, source, round
========== ==================================================================================================
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.errors import UserError

SPLITS = ("pool", "val", "test")

MANIFEST = pa.schema(
    [
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
    ]
)
PICKS = pa.schema([("sample_id", pa.string()), ("rank", pa.int32()), ("distance", pa.float64())])
LABELS = pa.schema([("sample_id", pa.string()), ("label", pa.int32()), ("outcome", pa.string())])
LEDGER = pa.schema(
    [
        ("sample_id", pa.string()),
        ("outcome", pa.string()),
        ("label", pa.string()),
        ("annotator", pa.string()),
        ("time", pa.string()),
        ("source", pa.string()),
        ("round", pa.int32()),
    ]
)


def vectors(rows: np.ndarray, mask: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """A float [n, width] array as a FixedSizeList column; rows where ``mask`` is True become NaN.

    Not null: Arrow before 26 cannot write a FixedSizeList with nulls to Parquet.
    """
    if mask is not None:
        rows = np.where(np.asarray(mask, bool)[:, None], np.array(np.nan, rows.dtype), rows)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def matrix(column: pa.ChunkedArray | pa.Array, name: str = "column") -> np.ndarray:
    """A list column (fixed size or variable) as one [n, width] array; no copy where Arrow allows it.

    Raises:
        ValueError: Rows are null or of different lengths; says which row came first.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # more than one chunk is left only when there are none
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if array.null_count:
        first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{name}: row {first} is null ({array.null_count} in all); expected a vector in every row")
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
    else:
        lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if len(lengths) else 0
        if (bad := np.flatnonzero(lengths != width)).size:
            raise UserError(
                f"{name}: row {bad[0]} has {lengths[bad[0]]} values, row 0 has {width}; expected one length for all"
            )
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), width)


def first_duplicates(ids: pa.ChunkedArray | pa.Array, limit: int = 3) -> list[str]:
    """The first few ids that occur more than once; empty when all differ."""
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    return [value.as_py() for value in repeated.field("values")[:limit]]


def positions(wanted: pa.Array | pa.ChunkedArray | list[str], ids: pa.Array | pa.ChunkedArray, what: str) -> np.ndarray:
    """Where each wanted id stands in ``ids``, int64 [n].

    Raises:
        ValueError: Some are not there; names the first three and ``what`` was searched.
    """
    values = wanted if isinstance(wanted, (pa.Array, pa.ChunkedArray)) else pa.array(wanted, pa.string())
    found = pc.index_in(values, value_set=ids)
    if found.null_count:
        missing = values.filter(pc.is_null(found))
        names = ", ".join(repr(value.as_py()) for value in missing[:3])
        raise UserError(f"{len(missing)} of {len(values)} ids are not in {what}, first: {names}")
    return found.to_numpy(zero_copy_only=False).astype(np.int64)
