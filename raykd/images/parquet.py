"""``format: parquet``: images inside Parquet files, or a Parquet list of where they are; as pandas, Arrow and Hugging
Face ``datasets`` write them. Of the files only the columns of ids and labels are read; 10^6 rows take 0.4 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raykd.errors import UserError, one_line
from raykd.images.columns import Columns, names_of_numbers, plain_type
from raykd.images.decoding import instead
from raykd.images.manifest import Say, endings, few, manifest_rows, other_format
from raykd.images.stored import PARQUET_SUFFIXES
from raykd.images.walk import files_below
from raykd.store.place import Place

if TYPE_CHECKING:
    from raykd.config import Source


def list_parquet(source: Source, place: Place, split: str, say: Say) -> tuple[pa.Table, list[str] | None]:
    """Rows of Parquet files, and the classes that they name. The bytes stay there, the uri says in which row."""
    if source.image_column and re.search("[/#]", source.image_column):
        raise UserError(f"{split}.image_column: {source.image_column!r} holds / or #; rename the column")
    tables: list[pa.Table] = []
    named: dict[str, list[str] | None] = {}  # of each file
    for name, file in parquet_files(source, place, split, say):
        columns = read_columns(source, split, file, say)
        tables.append(rows_of_parquet(columns, name))
        label = None if source.label_values else source.label_column
        named[name] = names_of_numbers(columns.table.schema, label) if label else None
    first, classes = next(iter(named.items()))
    if other := next((name for name, names in named.items() if names != classes), None):
        raise UserError(
            f"{split}: {first} and {other} in {source.path} name the numbers in {source.label_column!r} differently "
            f"({few(classes or [])} and {few(named[other] or [])}); give label_values, which count instead"
        )
    rows = pa.concat_tables(tables)
    if not rows.num_rows:
        several = f"{len(named):,} Parquet files" if len(named) > 1 else "Parquet file"
        raise UserError(f"{split}: no row in the {several} of {source.path}, such as {first!r}")
    if classes:
        pairs = ", ".join(f"{number} = {name}" for number, name in enumerate(classes[:5]))
        say(split, f"labels: {pairs}{', ...' if len(classes) > 5 else ''}, as the file itself says (ClassLabel)")
    return rows, classes


def parquet_files(source: Source, place: Place, split: str, say: Say) -> Iterator[tuple[str, Place]]:
    """Name and place of each Parquet file, sorted."""
    if place.is_dir():
        files = files_below(place, split, say)
        found = [name for name in files.names if name.lower().endswith(PARQUET_SUFFIXES)]
        names = [name for name in found if not is_passed_over(name)]
        passed_over = (
            f"{len(found) - len(names):,} Parquet files in {source.path} are passed over, as Spark and Arrow do, for a "
            f"name or folder that begins with _, such as {next(filter(is_passed_over, found), '')!r}"
        )
        if not names:
            what = passed_over if found else f"it holds {endings(files.names) or 'no file'}"
            raise UserError(
                f"{split}: no Parquet file ({', '.join(PARQUET_SUFFIXES)}) in {source.path}: {what}"
                + ("" if found else other_format(files.names))
            )
        if len(names) < len(found):
            say(split, passed_over)
        yield from ((name, place / name) for name in names)
    elif place.name.lower().endswith(PARQUET_SUFFIXES):
        yield place.name, place
    else:
        raise UserError(
            f"{split}: {source.path} is no Parquet file by its name; expected {', '.join(PARQUET_SUFFIXES)}"
            f"{other_format([place.name])}"
        )


def is_passed_over(name: str) -> bool:
    """Whether readers of data sets pass over a file, by its path: what Spark has not finished, logs of Delta.

    Example:
        >>> [is_passed_over(name) for name in ("_temporary/0/a.parquet", "_year=2024/a.parquet", "a_b.parquet")]
        [True, False, False]
    """
    return any(part.startswith("_") and "=" not in part for part in name.split("/"))


def read_columns(source: Source, split: str, file: Place, say: Say) -> Columns:
    """The columns of a file that the source names, but for the images themselves."""
    splits = source.split_column if split == "pool" else None
    wanted = [source.id_column, source.label_column, splits, source.uri_column]
    columns = list(dict.fromkeys(column for column in wanted if column))
    try:
        with pq.ParquetFile(file.path, filesystem=file.fs) as parquet:
            check_columns(source, split, file, columns, parquet.schema_arrow)
            table = parquet.read(columns=columns)
            if not columns:  # then it would have no rows either
                table = pa.table({"": pa.nulls(parquet.metadata.num_rows)})
    except (pa.ArrowInvalid, OSError) as error:
        raise not_parquet(error, split, file) from error
    return Columns(table, source, split, file, say)


def not_parquet(error: Exception, split: str, file: Place) -> UserError:
    """Why a file cannot be read as Parquet: what it is instead, where that can be told."""
    try:
        with file.fs.open_input_file(file.path) as stream:
            start = stream.read(1024)
    except OSError:
        start = b"\x9c"
    what = one_line(error) if start.startswith(b"PAR1") else instead(start) or one_line(error)
    return UserError(f"{split}: {file} cannot be read as Parquet: {what}")


def rows_of_parquet(columns: Columns, name: str) -> pa.Table:
    """MANIFEST of one file, which is called ``name`` in ids."""
    source, split, file, count = columns.source, columns.split, columns.file, columns.table.num_rows
    row_texts = pc.utf8_lpad(pc.cast(pa.array(np.arange(count)), pa.string()), 9, padding="0")
    if source.uri_column:
        given, uris = columns.uris(source.uri_column)
        times = None
    else:
        given = pc.binary_join_element_wise(name, row_texts, "/")
        uris = pc.binary_join_element_wise(f"{file.uri}#{source.image_column}", row_texts, "/")
        times = pa.repeat(pa.scalar(changed_at(file), pa.int64()), count)
    ids = columns.filled(source.id_column, "its own id") if source.id_column else given
    return manifest_rows(split, ids, uris, None, times, columns.labels(), columns.splits())


def changed_at(file: Place) -> int | None:
    """When a file was last changed, nanoseconds; None where that is not known."""
    time: int | None = file.fs.get_file_info(file.path).mtime_ns
    return time


def check_columns(source: Source, split: str, file: Place, columns: list[str], schema: pa.Schema) -> None:
    """Whether the columns are there, and images and URIs are what they are said to be. Raises UserError."""
    needed = [*columns, *([source.image_column] if source.image_column else [])]
    if missing := [name for name in needed if name not in schema.names]:
        hint = "; id_column: null makes ids of file and row" if missing == [source.id_column] else ""
        raise UserError(
            f"{split}: {file} has no column {', '.join(map(repr, missing))}; it has {', '.join(schema.names)} (see "
            f"id_column, image_column, label_column, ... of the source{hint})"
        )
    if repeated := [name for name in needed if schema.names.count(name) > 1]:
        raise UserError(f"{split}: {file} has {repeated[0]!r} more than once among its columns; rename one")
    if source.image_column:
        check_image_column(source.image_column, schema.field(source.image_column).type, split, file)
    if source.uri_column and not is_text(plain_type(schema.field(source.uri_column).type)):
        raise UserError(
            f"{split}.uri_column: {source.uri_column!r} of {file} is {schema.field(source.uri_column).type}; expected "
            "paths or URIs as text (bytes belong to image_column)"
        )


def check_image_column(column: str, given: pa.DataType, split: str, file: Place) -> None:
    """Whether a column can hold encoded images. Raises UserError."""
    kind = plain_type(given)
    if is_text(kind):
        raise UserError(
            f"{split}.image_column: {column!r} of {file} holds text; for paths or URIs give it as uri_column, and "
            "image_column: null"
        )
    if not is_bytes(bytes_of(kind)):
        numbers = pa.types.is_nested(kind) and not pa.types.is_struct(kind)
        raise UserError(
            f"{split}.image_column: {column!r} of {file} is {given}; expected encoded images, binary or "
            "struct<bytes: binary, path: string>"
            + (": lists of numbers are pixels, or bytes that were not written as such" if numbers else "")
        )


def bytes_of(kind: pa.DataType) -> pa.DataType:
    """The type of the bytes in a column of images: Hugging Face's are a struct of bytes, or of a path alone."""
    if pa.types.is_struct(kind):
        return next((plain_type(field.type) for field in kind if field.name == "bytes"), kind)
    return kind


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
            types.is_fixed_size_binary,
            types.is_null,
        )
    )
