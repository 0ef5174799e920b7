"""``format: list``: a CSV, TSV or JSONL file that says where images are, and what else is known of them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raykd.errors import UserError, did_you_mean
from raykd.images.columns import Columns, value_as_text
from raykd.images.delimited import Line, ListLines, read_delimited, read_text
from raykd.images.manifest import LIST_SUFFIXES, Say, few, manifest_rows
from raykd.store.place import Place
from raykd.store.tables import RUN_ROWS

if TYPE_CHECKING:
    from raykd.config import Source

URI_NAMES = (  # in any case
    "uri", "url", "path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path", "image_uri",
    "image_url", "img_path",
)  # fmt: skip
JSON_SUFFIXES = (".jsonl", ".ndjson")


def list_list(source: Source, place: Place, split: str, say: Say) -> pa.Table:
    """A row for each line of a list. Nothing of the images is looked at, so neither size nor time is known.

    Raises:
        UserError: It is no list, a column is not there, or a line lacks what it must have.
    """
    if place.is_dir() or not place.name.lower().endswith(LIST_SUFFIXES):
        raise UserError(
            f"{split}: {source.path!r} is no list by its name; expected a file that ends in {', '.join(LIST_SUFFIXES)} "
            "(a Parquet list is format parquet with uri_column)"
        )
    header, lines = read_list(source, place)
    if not lines:
        raise UserError(f"{split}: {place} has no row; expected a line for each image")
    column = source.uri_column or uri_column(header, place, split, say)
    splits = source.split_column if split == "pool" else None
    wanted = list(dict.fromkeys(name for name in (column, source.id_column, source.label_column, splits) if name))
    if missing := [name for name in wanted if name not in header]:
        raise UserError(
            f"{split}: {place} has no column {missing[0]!r}; {did_you_mean(missing[0], header)} (see uri_column, "
            "id_column, label_column, split_column of the source)"
        )
    if source.id_column is None and "sample_id" in header and split == "pool":
        say(split, f"ids are the paths in {place}; its column sample_id is taken by id_column: sample_id")

    def cell(name: str, number: int, cells: dict[str, Any]) -> str | None:
        text = value_as_text(cells.get(name), f"{split}: {name} in line {number} of {place}")
        return text.strip() if text and name in (source.label_column, splits) else text

    numbers: list[np.ndarray] = []
    cells: dict[str, list[pa.Array]] = {name: [] for name in wanted}
    problems: dict[str, UserError] = {}
    every = iter(lines)
    while some := list(itertools.islice(every, RUN_ROWS)):
        numbers.append(np.array([number for number, _ in some], np.int64))
        for name in wanted:
            try:
                cells[name].append(pa.array([cell(name, *line) for line in some], pa.string()))
            except UserError as error:
                problems.setdefault(name, error)
    if first := next((problems[name] for name in wanted if name in problems), None):
        raise first
    number_N = np.concatenate(numbers)
    texts = {name: pa.chunked_array(chunks, pa.string()) for name, chunks in cells.items()}
    columns = Columns(pa.table(texts), source, split, place, say, lambda row: f"line {number_N[row]}")
    given, uris = columns.uris(column)
    ids = columns.filled(source.id_column, "its own id") if source.id_column else given
    return manifest_rows(split, ids, uris, labels=columns.labels(), splits=columns.splits())


def uri_column(header: list[str], place: Place, split: str, say: Say) -> str:
    """The column that says where images are, by its name."""
    found = [name for name in header if name.lower() in URI_NAMES]
    if len(found) != 1:
        what = f"{few(found)} all look like paths" if found else f"no column called {', '.join(URI_NAMES[:5])}, ..."
        raise UserError(
            f"{split}: {place}: {what}; it has {', '.join(header)}. The first line must name the columns, and "
            f"{split}.uri_column the one with the path or URI of each image"
        )
    say(split, f"paths are taken from column {found[0]!r} of {place}")
    return found[0]


def read_list(source: Source, place: Place) -> tuple[list[str], ListLines]:
    """The columns, and the lines with their numbers."""
    if place.name.lower().endswith(JSON_SUFFIXES):
        return read_jsonl(place)
    named = (source.uri_column, source.id_column, source.label_column, source.split_column)
    return read_delimited(place, [*URI_NAMES, *(name for name in named if name)])


def read_jsonl(place: Place) -> tuple[list[str], ListLines]:
    """Keys of all lines, and the lines."""
    text = read_text(place)
    keys: dict[str, None] = {}
    count = 0
    for _, value in objects(text, place):
        keys |= dict.fromkeys(value)
        count += 1
    return list(keys), ListLines(lambda: objects(text, place), count)


def objects(text: str, place: Place) -> Iterator[Line]:
    for number, match in enumerate(re.finditer("[^\n]*(?:\n|$)", text), 1):
        if not (line := match[0].removesuffix("\n")).strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}, line {number}: not JSON ({error}); expected an object a line") from error
        if not isinstance(value, dict):
            raise UserError(f'{place}, line {number}: {line.strip():.60}; expected an object, such as {{"path": ...}}')
        yield number, value
