"""``rule: table``: a teacher that is a Parquet table of anybody's probabilities or logits by ``sample_id``. No Ray.

One vector column, ``logits`` or ``probs`` (lists of numbers); or a numeric column a class, as people write what
``predict_proba`` gives. Columns of classes are matched by name where there are names: those of the columns, the key
``classes`` of the Parquet metadata (a JSON list), or what ``jobs/score.py`` notes beside its tables; else the vectors
are in the campaign's order.

n rows of a batch, M classes as the table has them, C classes of the campaign (M > C where several became one).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raykd.errors import StorageError, UserError, did_you_mean, why
from raykd.images.columns import plain_type
from raykd.images.manifest import Say, endings, few
from raykd.images.parquet import is_passed_over, is_text, not_parquet
from raykd.images.stored import PARQUET_SUFFIXES
from raykd.images.walk import files_below
from raykd.store.place import Place
from raykd.store.stage_folder import MARKER, read_done
from raykd.store.tables import first_duplicates, matrix

READ_ROWS = 4096
BUFFER_BYTES = 2**26  # of all columns together; without, Arrow holds the whole of a row group
SUM_TOLERANCE = 5e-3  # a float16 is off by a 2,048th of itself, a bfloat16 by a 256th
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""What a probability of 0 becomes, 1.2e-38: its logarithm is -87.3. About the smallest that float32 holds in full, so a
softmax still gives the table back; 0 itself would become -inf, and a divergence 0 * inf. Softened by a temperature of 2
it is below 1e-18."""

CLASSES_KEY = b"classes"
OPTION = "teacher.table"
WRITTEN_AS = "a Parquet file with sample_id and probs or logits (DataFrame.to_parquet writes one), or a folder of them"


class Layout(NamedTuple):
    """Where in a file the opinion is, and which of its M columns belong to which of the C classes."""

    kind: Literal["probs", "logits"]
    columns: tuple[str, ...]  # one of vectors, or M of numbers
    is_vector: bool
    ids_are: Literal["text", "whole numbers"]
    order_M: np.ndarray  # the table's columns, by class
    starts_C: np.ndarray  # where in that order each class begins

    def column(self, m: int) -> str:
        return f"{self.kind}[{m}]" if self.is_vector else f"column {self.columns[m]!r}"


class TableFile(NamedTuple):
    name: str  # relative to the folder
    place: Place
    num_rows: int
    layout: Layout


@dataclass(frozen=True)
class TeacherTable:
    """A table that is known to fit a campaign's classes. Small and picklable: the numbers stay in their files.

    Args:
        place: As it was given.
        files: Those that have rows, by name.
        identity: Names the content, as plain data: size in bytes and time of the last change (ns) of every file.
    """

    place: Place
    files: tuple[TableFile, ...]
    identity: dict[str, list[int | None]]

    @classmethod
    def open(
        cls, path: str, classes: Sequence[str], renamed: Mapping[str, str], say: Say = lambda topic, line: None
    ) -> TeacherTable:
        """Look at a table: reads schemas, metadata and the first rows. The other rows are checked as they are read.

        Args:
            path: A Parquet file, or a folder of them; local, s3:// or gs://.
            classes: C names.
            renamed: What old names of classes are now; of several that became one probabilities add.
            say: Told what is left out.

        Raises:
            UserError: It is not there, no Parquet, or empty; it has no ids, no opinion, or one of other classes; its
                files differ; the first rows are no probabilities, or no logits.
            StorageError: The storage does not answer.
        """
        place = Place.of(path)
        named, noted = list_table(place, say)
        files: list[TableFile] = []
        for name, file in named:
            with reading_table(file), pq.ParquetFile(file.path, filesystem=file.fs) as parquet:
                if not parquet.metadata.num_rows:  # as Spark leaves them; nothing may be known of its columns
                    continue
                layout = layout_of(file, parquet.schema_arrow, noted, classes, renamed)
                files.append(TableFile(name, file, parquet.metadata.num_rows, layout))
            refuse_others(files[0], files[-1])
        if not files:
            raise UserError(f"{OPTION}: {place} has no rows; expected one for each image, with sample_id and probs")
        marker = [(MARKER, folder_of(place) / MARKER)] if noted is not None else []
        table = cls(place, tuple(files), identity_of([*named, *marker]))
        for _, found, values_nM in _batches(table.files[0]):
            refuse_misnamed(table.files[0], found, values_nM)
            break
        return table

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    def ids(self) -> pa.ChunkedArray:
        """All ids, as text, in the order of :meth:`logits`; one pass over that column.

        Raises:
            UserError: An id is null, or there twice.
        """
        chunks: list[pa.Array] = []
        for file in self.files:
            with reading_table(file.place), _opened(file, 1) as parquet:
                start = 0
                for batch in parquet.iter_batches(2**16, columns=["sample_id"]):
                    chunks.append(_ids(batch, file, start))
                    start += len(batch)
        ids = pa.chunked_array(chunks, pa.string())
        if repeated := first_duplicates(ids, 1):
            rows = np.flatnonzero(pc.equal(ids, repeated[0]).to_numpy())
            raise UserError(
                f"{OPTION}: sample_id {repeated[0]!r} is in {len(rows)} rows of {self.place}: {self._where(rows[0])} "
                f"and {self._where(rows[1])}; expected one row an image. Keep one of them "
                "(DataFrame.drop_duplicates('sample_id')), or average them"
            )
        return ids

    def logits(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Ids and logits, a few thousand rows at a time.

        Probabilities become their logarithms, so that a softmax gives them back; a 0 becomes
        :data:`LEAST_PROBABILITY`. Sums that are 1 but for rounding are left to the softmax, which makes them 1.
        Memory: one batch, whatever the size of row groups. Cost: one pass over the files.

        Yields:
            Ids as text [n], and float32 [n, C] in the order of the campaign's classes, all finite.

        Raises:
            UserError: A row is null or of another length; it holds NaN or infinity; it is no probabilities.
        """
        for file in self.files:
            for ids, _, values_nM in _batches(file):
                yield ids, as_logits(values_nM, file.layout)

    def _where(self, row: int) -> str:
        for file in self.files:
            if row < file.num_rows:
                return f"row {row} of {file.name}"
            row -= file.num_rows
        raise AssertionError(row)


def missing_ids(ids: pa.ChunkedArray, wanted: pa.ChunkedArray, table: Place) -> pa.ChunkedArray:
    """The wanted ids that a table lacks, in their order.

    Args:
        ids: The table's.
        wanted: The pool's.
        table: As errors name it.

    Raises:
        UserError: It lacks them all: most likely its ids are of another kind.

    Example:
        >>> a, b = (pa.chunked_array([ids]) for ids in (["a.jpg", "b.jpg"], ["b.jpg", "c.jpg"]))
        >>> missing_ids(a, b, Place.of("opinion.parquet")).to_pylist()
        ['c.jpg']
    """
    there = pc.is_in(wanted, value_set=ids)
    if len(wanted) and not pc.any(there).as_py():
        raise UserError(
            f"{OPTION}: none of {len(wanted):,} images has a row in {table}: its ids are such as "
            f"{few(ids[:2].to_pylist())}, those of the pool {few(wanted[:2].to_pylist())}; expected the pool's ids "
            "in sample_id, letter by letter. Rewrite the table's, or give the pool's source an id_column"
        )
    return wanted.filter(pc.invert(there))


# ---------------------------------------------------------------- which files


def list_table(place: Place, say: Say) -> tuple[list[tuple[str, Place]], list[str] | None]:
    """Name and place of each Parquet file, sorted; and the classes that jobs/score.py has noted beside them."""
    try:
        if not place.exists():
            raise UserError(f"{OPTION}: nothing at {place}; expected {WRITTEN_AS}. Correct the path")
        is_folder = place.is_dir()
        done = read_done(folder_of(place))
    except OSError as error:
        raise StorageError(f"{OPTION}: cannot reach {place}: {why(error)}") from error
    noted = done.facts.get("classes") if done else None
    if not is_folder:
        return [(place.name, place)], noted
    folder = done.place if done else place
    found = files_below(folder, OPTION, say).names
    parquet = [name for name in found if name.lower().endswith(PARQUET_SUFFIXES)]
    names = [name for name in parquet if not is_passed_over(name)]
    if passed_over := len(parquet) - len(names):
        say(OPTION, f"{passed_over:,} Parquet files in {place} are passed over: a name or folder begins with _")
    if not names:
        raise UserError(
            f"{OPTION}: no Parquet file ({', '.join(PARQUET_SUFFIXES)}) in {place}: it holds "
            f"{endings(found) or 'no file'}; expected {WRITTEN_AS}"
        )
    return [(name, folder / name) for name in names], noted


def folder_of(place: Place) -> Place:
    """The folder where a marker would be: this one, or that of this file."""
    return place if place.is_dir() else place.sibling(place.path.rpartition("/")[0] or "/")


def identity_of(files: Sequence[tuple[str, Place]]) -> dict[str, list[int | None]]:
    infos = files[0][1].fs.get_file_info([file.path for _, file in files])
    return {name: [info.size, info.mtime_ns] for (name, _), info in zip(files, infos, strict=True)}


@contextmanager
def reading_table(file: Place) -> Iterator[None]:
    """Says of a file that Arrow cannot read what it is instead."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{not_parquet(error, OPTION, file)}; expected {WRITTEN_AS}") from error


# ---------------------------------------------------------------- which columns


def layout_of(
    file: Place, schema: pa.Schema, noted: list[str] | None, classes: Sequence[str], renamed: Mapping[str, str]
) -> Layout:
    """Where the opinion is. Raises UserError: there is none, no ids, or it is of other classes."""
    ids_are = kind_of_ids(file, schema)
    vector: Literal["probs", "logits"] | None = (
        "logits" if "logits" in schema.names else "probs" if "probs" in schema.names else None
    )
    if vector is None:
        columns = class_columns(file, schema, classes, renamed)
        return Layout("probs", columns, False, ids_are, *order_by_class(columns, classes, renamed))
    refuse_repeated(file, schema, [vector])
    kind = schema.field(vector).type
    if not (is_list(kind) and is_number(kind.value_type)):
        raise UserError(f"{OPTION}: column {vector!r} of {file} is {kind}; expected a list of numbers in every row")
    found = classes_in_metadata(file, schema)
    names = noted if found is None else found
    if names is not None:
        check_same_classes(file, names, classes, renamed)
    layout = Layout(
        vector, (vector,), True, ids_are, *order_by_class(classes if names is None else names, classes, renamed)
    )
    if pa.types.is_fixed_size_list(kind) and kind.list_size != len(layout.order_M):
        raise other_width(f"{OPTION}: {vector} of {file}", kind.list_size, len(layout.order_M))
    return layout


def kind_of_ids(file: Place, schema: pa.Schema) -> Literal["text", "whole numbers"]:
    if "sample_id" not in schema.names:
        near = did_you_mean("sample_id", schema.names)
        raise UserError(
            f"{OPTION}: {file} has no column 'sample_id'; it has {few(schema.names, 12)}"
            f"{f' ({near})' if near.endswith('?') else ''}. Call the column that holds the pool's ids sample_id"
        )
    refuse_repeated(file, schema, ["sample_id"])
    kind = plain_type(schema.field("sample_id").type)
    if not (is_text(kind) or pa.types.is_integer(kind)):
        raise UserError(f"{OPTION}: sample_id of {file} is {kind}; expected text or whole numbers. Cast it to text")
    return "text" if is_text(kind) else "whole numbers"


def class_columns(
    file: Place, schema: pa.Schema, classes: Sequence[str], renamed: Mapping[str, str]
) -> tuple[str, ...]:
    """The columns that are called as classes are, or were."""
    known = set(classes)
    columns = [name for name in schema.names if renamed.get(name, name) in known]
    if not columns:
        raise UserError(
            f"{OPTION}: {file} has no column probs or logits, and none that is called as a class "
            f"({few(classes)}); it has {few(schema.names, 12)}. Expected one list of {len(classes)} numbers a row, or "
            "a column of probabilities for each class"
        )
    refuse_repeated(file, schema, columns)
    if other := next((name for name in columns if not is_number(schema.field(name).type)), None):
        raise UserError(
            f"{OPTION}: column {other!r} of {file} is {schema.field(other).type}; expected the class's probability, a "
            "number, in every row"
        )
    covered = {renamed.get(name, name) for name in columns}
    if missing := [name for name in classes if name not in covered]:
        others = [field.name for field in schema if is_number(field.type) and field.name not in columns]
        hint = f" ({did_you_mean(missing[0], others)})" if others else ""
        raise UserError(
            f"{OPTION}: {file} has a column for {len(covered)} of {len(classes)} classes, but none for "
            f"{few(missing)}{hint}. Add {'it' if len(missing) == 1 else 'them'}, or say in labels.renamed what an old "
            "name is now"
        )
    return tuple(columns)


def classes_in_metadata(file: Place, schema: pa.Schema) -> list[str] | None:
    """What the key ``classes`` of the schema's metadata says. Raises UserError: that is no list of names."""
    text = (schema.metadata or {}).get(CLASSES_KEY)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{OPTION}: the metadata of {file} has classes {text[:60]!r}; expected a JSON list of names, one for each "
            'number of a row: ["cat", "dog"]'
        )
    return names


def check_same_classes(file: Place, names: Sequence[str], classes: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Whether a table's names are the campaign's, in any order. Raises UserError that says which are not."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{OPTION}: the names beside {file} have {repeated[0]!r} twice; expected each class once")
    now = [renamed.get(name, name) for name in names]
    missing = [name for name in classes if name not in set(now)]
    unknown = [name for name, is_now in zip(names, now, strict=True) if is_now not in set(classes)]
    if not missing and not unknown:
        return
    parts = [f"it lacks {few(missing)}"] if missing else []
    parts += [f"{few(unknown)} {'is none' if len(unknown) == 1 else 'are none'} here"] if unknown else []
    hint = f" ({did_you_mean(unknown[0], missing or classes)})" if unknown else ""
    raise UserError(
        f"{OPTION}: {file} is of {len(names)} other classes than the campaign's {len(classes)}: {'; '.join(parts)}"
        f"{hint}. Expected the same names in any order: say in labels.renamed what an old name is now, or make the "
        "table anew for these classes"
    )


def order_by_class(
    names: Sequence[str], classes: Sequence[str], renamed: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The places of M names by class, and where in that order each of the C classes begins; each has one at least."""
    place = {name: c for c, name in enumerate(classes)}
    class_M = np.array([place[renamed.get(name, name)] for name in names])
    order_M = np.argsort(class_M, kind="stable")
    return order_M, np.searchsorted(class_M[order_M], np.arange(len(classes)))


def other_width(what: str, given: int, expected: int) -> UserError:
    return UserError(
        f"{what} has {given} numbers; expected {expected}: one for each name that stands beside the table "
        "(metadata classes, a JSON list), or, where none do, for each class of the campaign in its order. Put the "
        "table's own names there, and into labels.renamed what old ones are now; or make the table anew"
    )


def refuse_repeated(file: Place, schema: pa.Schema, columns: Sequence[str]) -> None:
    if repeated := [name for name in columns if schema.names.count(name) > 1]:
        raise UserError(f"{OPTION}: {file} has {repeated[0]!r} more than once among its columns; rename one")


def refuse_others(first: TableFile, other: TableFile) -> None:
    """Files of one table are of one kind."""
    for ours, theirs in zip(_kinds(first), _kinds(other), strict=True):
        if ours != theirs:
            raise UserError(
                f"{OPTION}: {other.place} has {theirs}, {first.name} has {ours}; expected the same of all files of a "
                "table. Move those away that are not part of it"
            )


def _kinds(file: TableFile) -> tuple[str, str]:
    layout = file.layout
    return (
        f"{layout.ids_are} as sample_id",
        f"a column {layout.kind}" if layout.is_vector else "a column for each class",
    )


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


# ---------------------------------------------------------------- rows


def _opened(file: TableFile, num_columns: int) -> pq.ParquetFile:
    buffer_bytes = max(2**16, BUFFER_BYTES // num_columns)
    return pq.ParquetFile(file.place.path, filesystem=file.place.fs, buffer_size=buffer_bytes, pre_buffer=False)


def _batches(file: TableFile) -> Iterator[tuple[pa.Array, TableRows, np.ndarray]]:
    """Ids, where they are, and float64 [n, M] of a file's rows: checked probabilities, or logits."""
    columns = ["sample_id", *file.layout.columns]
    start = 0
    with reading_table(file.place), _opened(file, len(columns)) as parquet:
        for batch in parquet.iter_batches(READ_ROWS, columns=columns):
            ids = _ids(batch, file, start)
            rows = TableRows(file, start, ids)
            values_nM = rows.vectors(batch) if file.layout.is_vector else rows.side_by_side(batch)
            rows.check(values_nM)
            yield ids, rows, values_nM
            start += len(batch)


def _ids(batch: pa.RecordBatch, file: TableFile, start: int) -> pa.Array:
    column = batch["sample_id"]
    ids = column.cast(plain_type(column.type)).cast(pa.string())
    if ids.null_count:
        row = start + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(
            f"{OPTION}: sample_id is null in row {row} of {file.place}; expected an id in every row. Drop such rows"
        )
    return ids


class TableRows(NamedTuple):
    """Some rows of a file, which are named when they are refused."""

    file: TableFile
    start: int
    ids: pa.Array

    def named(self, n: int) -> str:
        return f"{OPTION}: row {self.start + n} of {self.file.place} (sample_id {self.ids[n].as_py()!r})"

    def vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        """The list column, float64 [n, M]."""
        name, column = self.file.layout.kind, batch[self.file.layout.kind]
        if column.null_count:
            is_null_n = column.is_null().to_numpy(zero_copy_only=False)
            raise UserError(
                f"{self.named(int(is_null_n.argmax()))} has no {name} (null); expected them in every row. Drop rows "
                "without an opinion"
            )
        lengths_n = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        expected = len(self.file.layout.order_M)
        if (others := np.flatnonzero(lengths_n != expected)).size:
            raise other_width(f"{self.named(int(others[0]))}: {name}", int(lengths_n[others[0]]), expected)
        return matrix(column, name).astype(np.float64)

    def side_by_side(self, batch: pa.RecordBatch) -> np.ndarray:
        """The columns of the classes, float64 [n, M]; null becomes NaN."""
        columns = self.file.layout.columns
        values_nM = np.empty((len(batch), len(columns)))
        for m, name in enumerate(columns):
            values_nM[:, m] = batch[name].to_numpy(zero_copy_only=False)
        return values_nM

    def check(self, values_nM: np.ndarray) -> None:
        """Refuse what are no probabilities, or no logits, by UserError."""
        layout = self.file.layout
        self._refuse_values(
            ~(np.abs(values_nM) <= np.finfo(np.float32).max), values_nM,
            "expected a finite number. Drop rows without an opinion"
            + ("" if layout.kind == "probs" else "; for a class that is ruled out, -100 will do"),
        )  # fmt: skip
        if layout.kind == "logits":
            return
        self._refuse_values(values_nM < 0, values_nM, f"expected a probability, 0 to 1.{self._if_logits()}")
        sums_n = values_nM.sum(axis=1)
        bad_n: np.ndarray = ~(np.abs(sums_n - 1) <= SUM_TOLERANCE)
        if bad_n.any():
            found = float(sums_n[bad_n][0])
            percent = abs(found / 100 - 1) <= SUM_TOLERANCE
            then = " These are percent: divide them by 100" if percent else self._if_logits()
            raise UserError(
                f"{self.named(int(bad_n.argmax()))} has probabilities that sum to {found:.6g}; expected 1, give or "
                f"take {SUM_TOLERANCE}.{then}"
            )

    def _refuse_values(self, bad_nM: np.ndarray, values_nM: np.ndarray, expected: str) -> None:
        if bad_nM.any():
            n, m = map(int, np.argwhere(bad_nM)[0])
            value = values_nM[n, m]
            given = "NaN or null" if np.isnan(value) else f"{value:.6g}"
            raise UserError(f"{self.named(n)} has {given} in {self.file.layout.column(m)}; {expected}")

    def _if_logits(self) -> str:
        if self.file.layout.is_vector:
            return " If these are logits, or logarithms, name the column logits"
        return (
            " If the table has columns of more classes than the campaign, say in labels.renamed what those are now, or "
            "divide by the sum; if these are logits, put them into one column logits, a list in every row"
        )


def refuse_misnamed(file: TableFile, rows: TableRows, values_nM: np.ndarray) -> None:
    """Probabilities that are called logits would be smoothed to almost nothing, unseen; percents be all or nothing."""
    if file.layout.kind != "logits" or (values_nM < 0).any():
        return
    for whole, words, advice in ((1, "probabilities", ""), (100, "percents", " and divide by 100")):
        if np.median(np.abs(values_nM.sum(axis=1) / whole - 1)) <= 0.05 and (values_nM <= 1.01 * whole).all():
            raise UserError(
                f"{OPTION}: the column logits of {file.place} holds {words}, as in the row of {rows.ids[0].as_py()!r}: "
                f"none is below 0, and rows sum to about {whole}. Name the column probs{advice}"
            )


def as_logits(values_nM: np.ndarray, layout: Layout) -> np.ndarray:
    """Checked values of the table's classes as logits of the campaign's, float32 [n, C]."""
    ordered_nM = values_nM[:, layout.order_M]
    if layout.kind == "logits":
        return np.logaddexp.reduceat(ordered_nM, layout.starts_C, axis=1).astype(np.float32)
    probs_nC = np.add.reduceat(ordered_nM, layout.starts_C, axis=1)
    return np.log(np.maximum(probs_nC, LEAST_PROBABILITY)).astype(np.float32)
