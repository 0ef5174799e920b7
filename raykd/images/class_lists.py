"""Class lists: given, from a file, or what folders and labels suggest; with what the teacher is asked of each class.

====================== ==============================================================================================
``.txt``               a name a line; if all are like ``n01440764 tench, Tinca tinca``: id and texts
``.json``, ``.yaml``   what :func:`raykd.algo.prompts.classes_of` takes: names, or names with texts
``.csv``, ``.tsv``     a header line with ``name`` (or class, class_name, label) and, if you like, ``texts`` and
                       ``descriptions``, several of them with ``|`` between; without a comma, semicolon or tab: as .txt
====================== ==============================================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from functools import partial
from typing import Any

from raykd.algo.prompts import ClassTexts, check_apart, classes_of
from raykd.errors import UserError, did_you_mean
from raykd.images.delimited import read_delimited, read_text
from raykd.images.manifest import few
from raykd.images.walk import is_utf8
from raykd.store.place import Place

NAME_COLUMNS = ("name", "class", "class_name", "classname", "label")  # in any case
TEXT_COLUMNS = {"texts": "texts", "synonyms": "texts", "descriptions": "descriptions", "prompts": "descriptions"}
SYNSET = re.compile(r"(n\d{8})[\s,]+(\S.*)")
NUMBERED = re.compile(r"(\d+)\s*[\s,;:.)]\s*(\S.*)")
EXPECTED = "a .txt file with one class a line, or names in .json, .yaml, .csv or .tsv"


def class_list(given: Any, found: list[str] | None) -> dict[str, ClassTexts]:
    """The classes in order, with their texts.

    Args:
        given: Names, with or without texts, or the path of a file with them; None: ``found`` counts.
        found: The names that the pool's folders or labels suggest.

    Raises:
        UserError: There is no class list, the file is something else, there are fewer than two classes, or two cannot
            be told apart by what the teacher is asked of them.
    """
    if isinstance(given, str):
        classes = class_file(given)
    elif given is None and found is None:
        raise UserError("classes: not given, and the pool has no labels to take them from; give a list or a text file")
    else:
        classes = named(found if given is None else given)
    if len(classes) < 2:
        raise UserError(f"classes: {list(classes)}; expected at least two")
    try:
        check_apart(classes)
    except UserError as error:
        raise UserError(f"classes: {error}") from None
    return classes


def named(data: Any, path: str = "") -> dict[str, ClassTexts]:
    try:
        return classes_of(data)
    except UserError as error:
        raise UserError(f"classes: {path and f'{path!r}: '}{error}") from None


def class_file(path: str) -> dict[str, ClassTexts]:
    """The classes in a file, by its ending."""
    place = Place.of(path)
    if not place.exists() or place.is_dir():
        what = f"{path!r} is a folder" if place.exists() else f"no file {path!r}"
        raise UserError(f"classes: {what}; give a list, or {EXPECTED}")
    ending = os.path.splitext(place.name)[1].lower()
    try:
        text = read_text(place)
        if ending in (".yaml", ".yml"):
            from raykd.config import read_yaml  # and with it pydantic, which processes that read images do without

            return named(read_yaml(text, path), path)
        if ending == ".json" or text.lstrip().startswith(("[", "{")):
            try:
                data = json.loads(text, object_pairs_hook=partial(_no_key_twice, path))
            except json.JSONDecodeError as error:
                if ending == ".json":
                    raise UserError(f"{path!r} is not JSON ({error}); expected {EXPECTED}") from error
            else:
                if not is_utf8(json.dumps(data, ensure_ascii=False)):
                    raise UserError(f"{path!r} holds a letter that is not whole (\\ud800 to \\udfff); write it out")
                return named(data, path)
        if ending in (".csv", ".tsv") and any(mark in text for mark in ",;\t"):
            return classes_of_table(place)
        return classes_of_lines(text, path)
    except UserError as error:
        raise UserError(f"classes: {str(error).removeprefix('classes: ')}") from error.__cause__


def _no_key_twice(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise UserError(f"{path!r}: {few(repeated)} is there more than once")
    return dict(pairs)


def classes_of_lines(text: str, path: str) -> dict[str, ClassTexts]:
    """Names a line; what is left of a pasted list (commas at the ends, quotes around all, bullets) does not count."""
    lines = [line.strip().rstrip(",;").strip() for line in re.split(r"\r\n|\r|\n", text)]
    lines = [line for line in lines if line]
    for bullet in ("- ", "* ", "\N{BULLET} "):
        if all(line.startswith(bullet) for line in lines):
            lines = [line.removeprefix(bullet).strip() for line in lines]
    if lines and lines[0].startswith("#") and not all(line.startswith("#") for line in lines):
        raise UserError(f"{path!r} begins with {lines[0]!r:.60}: every line is a name, so comments must go")
    for quote in "\"'":
        if lines and all(len(line) > 2 and line[0] == line[-1] == quote for line in lines):
            lines = [line[1:-1] for line in lines]
    if lines and lines[0].lower() in NAME_COLUMNS and path.lower().endswith((".csv", ".tsv")):
        lines = lines[1:]
    if synsets := matched(SYNSET, lines):
        return named([{name: re.split(r"\s*,\s*", texts)} for name, texts in synsets], path)
    numbers = matched(NUMBERED, lines) or []
    if len(numbers) > 1 and [int(number) for number, _ in numbers] in (
        list(range(len(numbers))),
        list(range(1, len(numbers) + 1)),
    ):
        raise UserError(
            f"{path!r} numbers its lines, such as {lines[0]!r}; give the names alone, as in {numbers[0][1]!r} (if the "
            "numbers belong to the names, give them as a JSON list)"
        )
    if tabs := [line for line in lines if "\t" in line]:
        raise UserError(f"{path!r} has tabs in its lines, such as {tabs[0]!r}; expected names alone, or a .tsv file")
    return named(lines, path)


def matched(pattern: re.Pattern[str], lines: list[str]) -> list[tuple[str, str]] | None:
    """The two groups of each line; None when some line is no match."""
    found = [pattern.fullmatch(line) for line in lines]
    return [(match[1], match[2]) for match in found if match] if lines and all(found) else None


def classes_of_table(place: Place) -> dict[str, ClassTexts]:
    header, lines = read_delimited(place, [*NAME_COLUMNS, *TEXT_COLUMNS])
    names = [column for column in header if column.lower() in NAME_COLUMNS]
    if len(names) != 1:
        raise UserError(
            f"{place} has {few(names) if names else 'no column name'} among its columns ({', '.join(header)}); "
            "expected a header line with one column name, and texts and descriptions if you like"
        )
    columns = {column: TEXT_COLUMNS[column.lower()] for column in header if column.lower() in TEXT_COLUMNS}
    if len(set(columns.values())) < len(columns):
        raise UserError(f"{place} has {few(list(columns))}; expected one column texts and one descriptions")
    entries: list[dict[str, Any]] = []
    for number, cells in lines:
        if not cells[names[0]].strip():
            raise UserError(f"{place}, line {number}: no name; {did_you_mean('name', names)}")
        texts = {kind: [part for part in cells[column].split("|") if part.strip()] for column, kind in columns.items()}
        entries.append({"name": cells[names[0]], **{kind: parts for kind, parts in texts.items() if parts}})
    return named(entries, str(place))
