"""``format: coop_split``: images split by a JSON file, as CoOp and the papers' code have it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa

from raykd.errors import UserError
from raykd.images.delimited import read_text
from raykd.images.manifest import SPLIT_NAMES, few, manifest_rows
from raykd.images.stored import beside
from raykd.images.walk import is_utf8
from raykd.store.place import Place

if TYPE_CHECKING:
    from raykd.config import Source

COOP_LISTS = ("train", "val", "test")


def list_coop(source: Source, place: Place, split: str) -> pa.Table:
    """A CoOp-style split file: ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    assert source.split_file is not None
    file = Place.of(source.split_file)
    if not file.exists():
        raise UserError(f"{split}.split_file: nothing at {source.split_file!r}")
    try:
        lists = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{split}.split_file: {source.split_file!r} is not JSON ({error})") from error
    if not isinstance(lists, dict):
        raise UserError(f"{split}.split_file: {source.split_file!r} is no object with the lists {few(COOP_LISTS)}")
    if wrong := [part for part in COOP_LISTS if not isinstance(lists.get(part), list)]:
        what = "is not there" if wrong[0] not in lists else f"is {lists[wrong[0]]!r:.80}"
        raise UserError(
            f"{split}.split_file: {wrong[0]!r} {what} in {source.split_file!r}; expected a list of [path, label, class "
            f"name] each for {few(COOP_LISTS)}"
        )
    rows = []
    for part in COOP_LISTS:
        for i, entry in enumerate(lists[part]):
            match entry:
                case [str(path), _, str(name)] if path and name and is_utf8(path + name):
                    rows.append((path, name, SPLIT_NAMES[part]))
                case _:
                    raise UserError(
                        f"{split}.split_file: entry {i} of {part!r} in {source.split_file!r} is {entry!r:.80}; "
                        "expected [path, label, class name]"
                    )
    if not rows:
        raise UserError(f"{split}.split_file: no row in {source.split_file!r}: its lists are empty")
    paths = [path for path, _, _ in rows]
    uris = [beside(place / "file", path).uri for path in paths]
    labels, parts = [name for _, name, _ in rows], [part for _, _, part in rows]
    return manifest_rows(split, paths, uris, labels=labels, splits=parts)
