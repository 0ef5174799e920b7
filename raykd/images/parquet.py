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
from raykd.images.manifest import Say, endings, few, manifest_rows
from raykd.images.stored import PARQUET_SUFFIXES
from raykd.images.walk import files_below
from raykd.store.place import Place

if TYPE_CHECKING:
    from raykd.config import Source


def list_parquet(source: Source, place: Place, split: str, say: Say) -> tuple[pa.Table, list[str] | None]:
    """Rows of Parquet files, and the classes that they name. The bytes stay there, the uri says in which row."""
    if source.image_column and re.search("[/#]", source.image_column):
        raise UserError(f"{split}.image_column: {source.image_column!r} holds / or #; rename the column")
    tables, named = [], {}
    for name, file in parquet_files(source, place, split, say):
        columns = read_columns(source, split, file, say)
        tables.append(rows_of_parquet(columns, name))
        if source.label_column and not source.label_values:
            named[name] = names_of_numbers(columns.table.schema, source.label_column)
    first, classes = next(iter(named.items()), ("", None))
    if other := next((name for name, names in named.items() if names != classes), None):
        raise UserError(
            f"{split}: {first} and {other} in {source.path} name the numbers in {source.label_column!r} differently "
            f"({few(classes or [])} and {few(named[other] or [])}); give label_values, which count instead"
        )
    if classes:
        pairs = ", ".join(f"{number} = {name}" for number, name in enumerate(classes[:5]))
        say(split, f"labels: {pairs}{', ...' if len(classes) > 5 else ''}, as the file itself says (ClassLabel)")
    return pa.concat_tables(tables), classes


def parquet_files(source: Source, place: Place, split: str, say: Say) -> Iterator[tuple[str, Place]]:
    """Name and place of each Parquet file, sorted."""
    if place.is_dir():
        files = files_below(place, split, say)
        names = [name for name in files.names if name.lower().endswith(PARQUET_SUFFIXES)]
        if not names:
            raise UserError(
                f"{split}: no Parquet file ({', '.join(PARQUET_SUFFIXES)}) in {source.path}: it holds "
                f"{endings(files.names) or 'no file'}"
            )
        yield from ((name, place / name) for name in names)
    elif place.name.lower().endswith(PARQUET_SUFFIXES):
        yield place.name, place
    else:
        raise UserError(
            f"{split}: {source.path} is no Parquet file by its name; expected {', '.join(PARQUET_SUFFIXES)}"
        )


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
        raise UserError(f"{split}: {file} cannot be read as Parquet: {one_line(error)}") from error
    return Columns(table, source, split, file, say)


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
    if pa.types.is_struct(kind):  # Hugging Face: bytes, or the path of a file
        kind = next((plain_type(field.type) for field in kind if field.name == "bytes"), kind)
    if not is_bytes(kind):
        numbers = pa.types.is_nested(kind) and not pa.types.is_struct(kind)
        raise UserError(
            f"{split}.image_column: {column!r} of {file} is {given}; expected encoded images, binary or "
            "struct<bytes: binary, path: string>"
            + (": lists of numbers are pixels, or bytes that were not written as such" if numbers else "")
        )


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
