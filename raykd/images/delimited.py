"""Rows of a CSV or TSV file as spreadsheets and scripts write them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from raykd.errors import UserError
from raykd.images.decoding import instead
from raykd.store.place import Place

Line = tuple[int, dict[str, Any]]  # its number in the file, and its cells by column
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def read_text(place: Place) -> str:
    """A file of UTF-8, with or without BOM. Raises UserError that names it, when it is something else."""
    if place.is_dir():
        raise UserError(f"{place} is a folder; expected a file")
    data = place.read_bytes()
    what = instead(data[:1024]) or ""
    if "pointer" in what or "zero bytes" in what or ("HTML" in what and data.lstrip().startswith(b"<")):
        raise UserError(f"{place} cannot be read: {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = ", perhaps UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"; {what}" if what else ""
        raise UserError(
            f"{place} is not UTF-8 (byte {error.start}){hint}; save it as UTF-8 ('CSV UTF-8' in Excel)"
        ) from error


class ListLines:
    """The lines of a table: their number, and themselves, read anew each time, so that none need be kept."""

    def __init__(self, read: Callable[[], Iterator[Line]], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Line]:
        return self._read()


def read_delimited(place: Place, known: Collection[str]) -> tuple[list[str], ListLines]:
    """The column names of a table, and its lines; empty ones are passed over, cells that are not there are empty.

    The delimiter is comma, semicolon or tab: that which finds the most of the ``known`` names in the header, then the
    most columns. Any line ends, quoted cells, also over several lines. All lines are checked here.

    Raises:
        UserError: No header, a column twice, a line with more cells than columns, or no CSV; names file and line.
    """
    text = read_text(place)
    if not text.strip():
        raise UserError(f"{place} is empty; expected a header line with the names of the columns, and a line a row")
    first = next(lines_of(text.lstrip("\r\n")))
    found = {mark: next(csv.reader([first], delimiter=mark), []) for mark in ",;\t"}
    names = {name.lower() for name in known}
    mark = max(found, key=lambda mark: (len({cell.strip().lower() for cell in found[mark]} & names), len(found[mark])))
    header: list[str] = []
    count = sum(1 for _ in delimited(text, mark, place, header))
    return header, ListLines(lambda: delimited(text, mark, place, []), count)


def delimited(text: str, mark: str, place: Place, header: list[str]) -> Iterator[Line]:
    """Its lines; the column names go into ``header``, which is empty."""
    reader = csv.reader(lines_of(text), delimiter=mark, strict=True, skipinitialspace=mark != "\t")
    number = 1
    try:
        for cells in reader:
            if "".join(cells).strip():
                if not header:
                    header += [cell.strip() for cell in cells]
                    if repeated := [name for name in header if name and header.count(name) > 1]:
                        raise UserError(f"{place} has {repeated[0]!r} more than once in its header; rename one")
                elif len(cells) > len(header) and "".join(cells[len(header) :]).strip():
                    raise UserError(
                        f"{place}, line {number}: {len(cells)} cells under a header of {len(header)}; put quotes "
                        f"around a cell that holds {mark!r}"
                    )
                else:
                    cells += [""] * (len(header) - len(cells))
                    yield number, dict(zip(header, cells, strict=False))
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{place}, line {number}: the row that begins here is not CSV ({error}); is a quote missing or never "
            "closed?"
        ) from error


def lines_of(text: str) -> Iterator[str]:
    """The lines with their ends, as ``io.StringIO(text, newline="")`` gives them, which takes four bytes a letter."""
    return (match[0] for match in LINE.finditer(text))
