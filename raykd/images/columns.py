"""Columns of a user's table as columns of the manifest: ids, URIs, labels and splits, whatever type they have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.errors import UserError, one_line
from raykd.images.manifest import SPLIT_NAMES, Say
from raykd.images.stored import SCHEMES, beside, not_read
from raykd.images.walk import is_utf8
from raykd.store.place import Place
from raykd.store.tables import RUN_ROWS

if TYPE_CHECKING:
    from raykd.config import Source


def from_zero(row: int) -> str:
    return f"row {row} (counted from 0)"


@dataclass(frozen=True)
class Columns:
    """The rows of one file.

    Args:
        table: Its columns that the source names, at least.
        source, split, file: Whose they are.
        say: Told what is taken for no label.
        name_of_row: How people find a row of the file.
    """

    table: pa.Table
    source: Source
    split: str
    file: Place
    say: Say
    name_of_row: Callable[[int], str] = from_zero

    def what(self, column: str) -> str:
        return f"{self.split}: column {column!r} of {self.file}"

    def filled(self, column: str, meaning: str) -> pa.ChunkedArray:
        """A column as text, of which every row needs a value, which means that. Raises UserError with the first."""
        found = as_text(self.table[column], self.what(column))
        lacking = pc.fill_null(pc.equal(found, ""), True)
        if num_lacking := pc.sum(lacking).as_py() or 0:
            row = self.name_of_row(pc.index(lacking, True).as_py())
            raise UserError(
                f"{self.split}: {num_lacking} of {len(found)} rows of {self.file} have no {column}, first {row}; every "
                f"image needs {meaning}"
            )
        return found

    def uris(self, column: str) -> tuple[pa.ChunkedArray, pa.Array | pa.ChunkedArray]:
        """Paths or URIs as they stand there, and absolute: paths are relative to the folder of the file."""
        given = self.filled(column, "the path or URI of its file")
        schemes = pc.struct_field(pc.extract_regex(given, r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"), "scheme")
        unread = pc.invert(pc.is_in(pc.utf8_lower(schemes), value_set=pa.array([*SCHEMES, None], pa.string())))
        if len(given) and pc.all(unread).as_py():
            raise UserError(
                f"{self.what(column)} holds URIs such as {given[0].as_py()!r:.80}: {not_read(schemes[0].as_py())}"
            )
        if "://" in self.file.uri:
            return given, each_text(given, lambda uri: beside(self.file, uri).uri)
        stays = pc.or_(pc.starts_with(given, "/"), pc.match_substring(given, "://"))
        folder = self.file.path.rpartition("/")[0]
        return given, pc.if_else(stays, given, pc.binary_join_element_wise(folder, given, "/"))

    def labels(self) -> pa.ChunkedArray | None:
        """Labels as text, or the names that Hugging Face's ``ClassLabel`` gives to its numbers."""
        if (column := self.source.label_column) is None:
            return None
        labels = as_text(self.table[column], self.what(column))
        empty = pc.equal(labels, "")
        if num_empty := pc.sum(empty).as_py():
            self.say(
                self.split, f"{num_empty} of {len(labels)} labels in {self.file} are empty text; taken as no label"
            )
            labels = pc.if_else(empty, pa.scalar(None, pa.string()), labels)
        if names := None if self.source.label_values else names_of_numbers(self.table.schema, column):
            numbers = pa.array([str(number) for number in range(-1, len(names))])  # -1: no label
            index = pc.index_in(labels, value_set=numbers, skip_nulls=True)
            if unknown := labels.filter(pc.and_(labels.is_valid(), pc.is_null(index))).unique().to_pylist():
                raise UserError(
                    f"{self.what(column)} holds {unknown[:5]}; the file names labels 0 to {len(names) - 1} "
                    f"({names[0]!r}, ...)"
                )
            labels = pc.take(pa.array([None, *names], pa.string()), index)
        return labels

    def splits(self) -> pa.Array | None:
        """pool, val or test of each row."""
        if (column := self.source.split_column) is None or self.split != "pool":
            return None
        values = pc.utf8_lower(as_text(self.table[column], self.what(column)))
        if unknown := [value for value in values.unique().to_pylist() if value not in SPLIT_NAMES]:
            shown = ["an empty cell" if value is None else repr(value) for value in unknown[:5]]
            raise UserError(f"{self.what(column)} holds {', '.join(shown)}; expected {', '.join(SPLIT_NAMES)}")
        known, meanings = (pa.array(words, pa.string()) for words in (SPLIT_NAMES.keys(), SPLIT_NAMES.values()))
        return pc.take(meanings, pc.index_in(values, value_set=known))


def names_of_numbers(schema: pa.Schema, column: str) -> list[str] | None:
    """The class names of a column of numbers, as Hugging Face ``datasets`` notes them in a file; None without."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):  # there is no note, or another one
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def as_text(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Any column of single values as strings; ``what`` begins the error.

    What pandas makes of whole numbers with gaps (1.0, NaN) is whole numbers again, and NaN is missing.
    """
    try:
        column = pc.cast(column, plain_type(column.type))
        if pa.types.is_nested(column.type):
            raise UserError(f"{what} is {column.type}; expected a single value a row, such as text or a number")
        if pa.types.is_decimal(column.type):
            text = pc.cast(column, pa.string())
            whole = pc.replace_substring_regex(text, r"\.0+$", "")
            return text if pc.any(pc.match_substring(whole, ".")).as_py() else whole
        if pa.types.is_floating(column.type):
            column = pc.cast(column, pa.float64())
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
            if pc.all(pc.equal(column, pc.round(column))).as_py() is not False:
                column = pc.cast(column, pa.int64())
        return pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{what} is {column.type} and cannot be text: {one_line(error)}") from error


def each_text(column: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """A function of each text of a column without nulls; :data:`RUN_ROWS` of them are Python strings at a time."""
    runs = (column.slice(start, RUN_ROWS).to_pylist() for start in range(0, len(column), RUN_ROWS))
    return pa.chunked_array([pa.array([change(text) for text in run], pa.string()) for run in runs], pa.string())


def plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def value_as_text(value: Any, what: str) -> str | None:
    """A single value of JSON as text; ``what`` begins the error."""
    if value is None or (isinstance(value, str) and is_utf8(value)):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if np.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    half = ", of which a letter is not whole (\\ud800 to \\udfff)" if isinstance(value, str) else ""
    raise UserError(f"{what} is {value!r:.60}{half}; expected text or a number")
