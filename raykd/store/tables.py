"""The Arrow tables that stages meet in, and the few conversions between them and numpy. Knows no Ray.

Every table is keyed by ``sample_id`` (string), never by row number. Vectors are FixedSizeList columns, which any
Parquet reader knows; in a schema a vector is a list, of whatever width. C is the number of classes, D a feature width.
A table is checked against its schema when it is written (:func:`checked`).

========== ==================================================================================================
MANIFEST   sample_id, uri, size_bytes, mtime_ns, label (class name or null), split (pool, val, test)
ENCODED    sample_id, error (null, or why it could not be read: then NaN), features f16[D]: the teacher's
VIEWS      sample_id, error, crops i32[5k] (of k views of a labeled image each: left, top, right, bottom, 1 if flipped;
           in pixels of the image as it was decoded and turned upright; zeros where it could not be read),
           features f16[kD]: the teacher's, view after view
QUARANTINE sample_id, uri, reason
TEACHER    sample_id, split, error, features f16[D] (as encoded: a cold start may pick by them), logits f32[C]
OPINION    sample_id, split, error, logits f32[C]: a teacher that is a table from elsewhere
REFITTED   sample_id, split, error, logits f16[C] (the largest of a row is 0): a teacher that has learned from labels
SCORES     sample_id, uri, label (null: none), features f16[D], probs f32[C]: what jobs/score.py gives
PICKS      sample_id, rank (0-based, in the order picked), distance (NaN where it means nothing), probability (with
           which it was drawn at its turn, among all that were left; null where nothing was drawn)
ASKED      sample_id, rank, distance, probability, role (train; audit: to measure by): what a campaign's round asks for
CARDS      sample_id, rank, distance, uri, thumbnail (JPEG or PNG), teacher, student (the likeliest classes)
MEASURED   sample_id, split (test, or pool: set aside to be audited), prediction (class name), confidence: what a
           round's student says of the images that measure students
CONFUSION  label, prediction (class names), count: of the test images, right ones too; none that is 0
MISTAKES   sample_id, uri, label, prediction, confidence (its probability), teacher, student (the likeliest classes),
           thumbnail (of the first ones): the test images that a student has wrong, those first that it is sure of
DOUBTFUL   sample_id, uri, given, suggested (class names), slip (how probable it is that the label is one), margin (of
           the label's probability over the suggested class's), teacher (the likeliest classes by one that has not seen
           the label), student, thumbnail (of the first ones): training labels that are not the teacher's first choice
LABELS     sample_id, label (class name), outcome, role: the answers of a round
PREDICTED  sample_id, split, error, features f16[D], and the student's columns of logits f32[C]
LEDGER     sample_id, outcome, label (class name or null), annotator, time, source, round, role (train, audit),
           probability (with which the image was drawn, where it was drawn at random)
PROBLEM    sample_id, split, label (class name), features f16[D] (what a frozen student is given), logits f32[C] (the
           teacher's, before any label): what a simulation stands on
RESULTS    set, arm, seed, round, labels (answers bought so far, those that name no class too), spent (their price),
           accuracy, ce_head, kd_head, teacher, macro_accuracy, log_loss, ece (on test), ce_weight, temperature,
           coverage_radius, seconds (of the round): of a round of a simulation's cell; NaN where there is none
========== ==================================================================================================

What jobs/predict.py gives hangs on what it is asked for: :func:`classified`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.keyed import hash_ids
from raykd.errors import UserError

SPLITS = ("pool", "val", "test")
NO_IDS = pa.chunked_array([pa.array([], pa.string())])
GROUP_ROWS = 8192  # of a row group of wide vectors: as many are read at a time
RUN_ROWS = 65_536  # of a table that are Python objects at a time
ROLES = ("train", "audit")  # what a label is for: to learn from, or to measure and choose by

_VECTOR_F16, _VECTOR_F32 = pa.list_(pa.float16()), pa.list_(pa.float32())
_GUESSES = pa.list_(pa.struct([("label", pa.string()), ("p", pa.float32())]))
_ID, _SPLIT, _ERROR = ("sample_id", pa.string()), ("split", pa.string()), ("error", pa.string())

_FILE = (("uri", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64()))
MANIFEST = pa.schema([_ID, *_FILE, ("label", pa.string()), _SPLIT])
ENCODED = pa.schema([_ID, _ERROR, ("features", _VECTOR_F16)])
VIEWS = pa.schema([_ID, _ERROR, ("crops", pa.list_(pa.int32())), ("features", _VECTOR_F16)])
QUARANTINE = pa.schema([_ID, ("uri", pa.string()), ("reason", pa.string())])
TEACHER = pa.schema([_ID, _SPLIT, _ERROR, ("features", _VECTOR_F16), ("logits", _VECTOR_F32)])
OPINION = pa.schema([_ID, _SPLIT, _ERROR, ("logits", _VECTOR_F32)])
REFITTED = pa.schema([_ID, _SPLIT, _ERROR, ("logits", _VECTOR_F16)])
SCORES = pa.schema(
    [_ID, ("uri", pa.string()), ("label", pa.string()), ("features", _VECTOR_F16), ("probs", _VECTOR_F32)]
)
_RANK, _PROBABILITY = (("rank", pa.int32()), ("distance", pa.float64())), ("probability", pa.float64())
PICKS = pa.schema([_ID, *_RANK, _PROBABILITY])
ASKED = pa.schema([*PICKS, ("role", pa.string())])
_OPINIONS = (("teacher", _GUESSES), ("student", _GUESSES))
CARDS = pa.schema([_ID, *_RANK, ("uri", pa.string()), ("thumbnail", pa.binary()), *_OPINIONS])
MEASURED = pa.schema([_ID, _SPLIT, ("prediction", pa.string()), ("confidence", pa.float32())])
CONFUSION = pa.schema([("label", pa.string()), ("prediction", pa.string()), ("count", pa.int64())])
_SHOWN = (*_OPINIONS, ("thumbnail", pa.binary()))
_MISTAKE = (("uri", pa.string()), ("label", pa.string()), ("prediction", pa.string()), ("confidence", pa.float32()))
MISTAKES = pa.schema([_ID, *_MISTAKE, *_SHOWN])
_DOUBT = (("given", pa.string()), ("suggested", pa.string()), ("slip", pa.float64()), ("margin", pa.float64()))
DOUBTFUL = pa.schema([_ID, ("uri", pa.string()), *_DOUBT, *_SHOWN])
LABELS = pa.schema([_ID, ("label", pa.string()), ("outcome", pa.string()), ("role", pa.string())])
PREDICTED = pa.schema([_ID, _SPLIT, _ERROR, ("features", _VECTOR_F16)])
LEDGER = pa.schema(
    [
        ("sample_id", pa.string()),
        ("outcome", pa.string()),
        ("label", pa.string()),
        ("annotator", pa.string()),
        ("time", pa.string()),
        ("source", pa.string()),
        ("round", pa.int32()),
        ("role", pa.string()),
        _PROBABILITY,
    ]
)
PROBLEM = pa.schema([_ID, _SPLIT, ("label", pa.string()), ("features", _VECTOR_F16), ("logits", _VECTOR_F32)])
_MEASURED = (
    *("accuracy", "ce_head", "kd_head", "teacher", "macro_accuracy", "log_loss", "ece"),
    *("ce_weight", "temperature", "coverage_radius", "seconds"),
)
RESULTS = pa.schema(
    [
        ("set", pa.string()),
        ("arm", pa.string()),
        ("seed", pa.int32()),
        ("round", pa.int32()),
        ("labels", pa.int64()),
        ("spent", pa.float64()),
        *((name, pa.float64()) for name in _MEASURED),
    ]
)


def count_splits(rows: pa.Table) -> dict[str, int]:
    """How many rows each split has."""
    return {split: int(pc.sum(pc.equal(rows["split"], split)).as_py() or 0) for split in SPLITS}


def too_much_of_a_split(missing: pa.Table, rows: pa.Table, most: float) -> tuple[str, int, int] | None:
    """The first split of which more than this share is missing: its name, how many are, and of how many."""
    gone, counts = count_splits(missing), count_splits(rows)
    return next(((split, gone[split], counts[split]) for split in SPLITS if gone[split] > most * counts[split]), None)


def predicted(columns: Sequence[str]) -> pa.Schema:
    """PREDICTED with these columns of logits."""
    return pa.schema([*PREDICTED, *((name, _VECTOR_F32) for name in columns)])


def classified(top: int | None, features: bool, *, part: bool = False) -> pa.Schema:
    """What jobs/predict.py gives: prediction is the likeliest class, confidence its probability.

    A part has error instead of uri and label.

    Args:
        top: How many of the likeliest classes there are; None: the probabilities of all.
        features: Whether these are there.
        part: In parts.
    """
    columns = [("error", pa.string())] if part else [("uri", pa.string()), ("label", pa.string())]
    columns += [("prediction", pa.string()), ("confidence", pa.float32())]
    columns += [("probs", _VECTOR_F32)] if top is None else [("top", _GUESSES)] if top else []
    return pa.schema([_ID, *columns, *([("features", _VECTOR_F16)] if features else [])])


def checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same table; an AssertionError when its columns are not the schema's, in order (vectors of any width fit)."""
    found = [(field.name, _without_width(field.type)) for field in table.schema]
    assert found == [(field.name, field.type) for field in schema], f"{table.schema} is not {schema}"
    return table


def _without_width(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind


def vectors(rows: np.ndarray, mask: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """A [n, width] array of numbers as a FixedSizeList column; rows where ``mask`` is True become NaN.

    Not null: Arrow before 26 cannot write a FixedSizeList with nulls to Parquet.
    """
    if mask is not None and np.any(mask):
        rows = rows.copy()
        rows[np.asarray(mask, bool)] = np.nan
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


def hash_column(ids: pa.ChunkedArray | pa.Array, rows: int = RUN_ROWS) -> np.ndarray:
    """:func:`raykd.algo.keyed.hash_ids` of a column, uint64 [N]; never all of it as Python strings: 8 bytes a row."""
    hashes_N = np.empty(len(ids), np.uint64)
    for start in range(0, len(ids), rows):
        hashes_N[start : start + rows] = hash_ids(ids.slice(start, rows).to_pylist())
    return hashes_N


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
