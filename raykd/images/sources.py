"""SHIM."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.config import Source
from raykd.errors import UserError
from raykd.images.reading import SUFFIXES
from raykd.store.place import Place
from raykd.store.tables import MANIFEST

SPLIT_NAMES = {"pool": "pool", "train": "pool", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Listing:
    rows: Any
    found_classes: Any
    mapping: Any


@dataclass
class Grown:
    new: Any
    gone: Any
    changed: Any


class C:
    def __init__(s, say, classes):
        s.say = say
        s.config = type("x", (), {"classes": classes})


def list_source(source, split, classes, say):
    rows, found = list_source_(C(say, classes), source, split)
    return Listing(rows, found, {})


def grown(before, now):
    new = now.filter(pc.invert(pc.is_in(now["sample_id"], value_set=before["sample_id"])))
    gone = before.filter(pc.invert(pc.is_in(before["sample_id"], value_set=now["sample_id"])))
    return Grown(new, gone, now.slice(0, 0))


def draw_splits(rows: pa.Table, draws_N: np.ndarray, test_share: float, val_share: float) -> pa.Table:
    """Set aside random shares of the labeled pool rows as test and val."""
    if not test_share and not val_share:
        return rows
    split = np.array(rows["split"].to_pylist(), dtype=object)
    labeled = np.flatnonzero((split == "pool") & rows["label"].is_valid().to_numpy(zero_copy_only=False))
    if not labeled.size:
        raise UserError("test_share and val_share need a pool with labels; give test: and val: sources instead")
    order = labeled[np.argsort(draws_N[labeled], kind="stable")]
    num_test, num_val = round(test_share * len(order)), round(val_share * len(order))
    split[order[:num_test]] = "test"
    split[order[num_test : num_test + num_val]] = "val"
    return rows.set_column(rows.schema.get_field_index("split"), "split", pa.array(split.tolist(), pa.string()))


def list_source_(campaign, source: Source, split: str) -> tuple[pa.Table, list[str] | None]:
    """The rows of one source, labels as class names; and the class names it suggests."""
    place = Place.of(source.path)
    if not place.exists():
        raise UserError(f"{split}: nothing at {source.path!r} ({place}); give the folder or Parquet file of the images")
    reader = {"images": list_images, "class_folders": list_images, "parquet": list_parquet, "coop_split": list_coop}
    rows = reader[source.format](campaign, source, place, split)
    values = sorted(set(rows["label"].drop_null().to_pylist()))
    if source.label_values is None:
        return rows, values or None
    names = campaign.config.classes
    known = values if source.label_values == "sorted" else source.label_values
    if names is None:
        raise UserError(f"{split}.label_values is given, so classes must be too: the names in the same order")
    names = class_names(names, None)
    if len(known) != len(names):
        raise UserError(
            f"{split}.label_values has {len(known)} values, classes has {len(names)} names; expected as many"
        )
    if missing := set(values) - set(known):
        raise UserError(f"{split}: labels {sorted(missing)[:5]} are not in label_values")
    mapped = pc.take(pa.array(names), pc.index_in(rows["label"], value_set=pa.array(known)))
    return rows.set_column(rows.schema.get_field_index("label"), "label", mapped), None


def list_images(campaign, source: Source, place: Place, split: str) -> pa.Table:
    """Image files of a folder at any depth; with class_folders, the first folder is the label."""
    if not place.is_dir():
        raise UserError(f"{split}: {source.path!r} is a file; format {source.format} expects a folder")
    root = place.path.rstrip("/") + "/"
    infos = [(info, info.path.removeprefix(root)) for info in place.files(recursive=True)]
    infos = [(info, name) for info, name in infos if not any(part.startswith(".") for part in name.split("/"))]
    images = [(info, name) for info, name in infos if name.lower().endswith(SUFFIXES)]
    if ignored := [name for _, name in infos if not name.lower().endswith(SUFFIXES)]:
        campaign.say(split, f"{len(ignored)} files in {source.path} are not images, such as {ignored[0]!r}; left out")
    labels: list[str | None] = [None] * len(images)
    if source.format == "class_folders":
        if loose := [name for _, name in images if "/" not in name]:
            raise UserError(
                f"{split}: {len(loose)} images, such as {loose[0]!r}, lie in no class folder of {source.path}"
            )
        labels = [name.split("/")[0] for _, name in images]
    return pa.table(
        {
            "sample_id": [name if split == "pool" else f"{split}/{name}" for _, name in images],
            "uri": [place.sibling(info.path).uri for info, _ in images],
            "size_bytes": [info.size for info, _ in images],
            "label": labels,
            "split": [split] * len(images),
        },
        schema=MANIFEST,
    )


def list_parquet(campaign, source: Source, place: Place, split: str) -> pa.Table:
    """Rows of Parquet files; the bytes stay there, the uri says in which row."""
    dataset = place.parquet()
    wanted = [source.id_column, source.label_column, source.split_column, source.uri_column]
    columns = [name for name in wanted if name]
    if missing := {*columns, *([source.image_column] if source.image_column else [])} - set(dataset.schema.names):
        raise UserError(
            f"{split}: {source.path} has no column {', '.join(map(repr, sorted(missing)))}; it has "
            f"{', '.join(dataset.schema.names)} (see id_column, image_column, label_column, ... of the source)"
        )
    parts = []
    for file in dataset.files:
        table = place.sibling(file).parquet().to_table(columns=columns)
        count = table.num_rows
        if source.uri_column:
            base = place.sibling(file.rsplit("/", 1)[0])
            uris = [absolute(uri, base) for uri in table[source.uri_column].to_pylist()]
        else:
            uris = [f"{place.sibling(file).uri}#{source.image_column}/{row:09d}" for row in range(count)]
        ids = table[source.id_column]
        if ids.null_count:
            raise UserError(f"{split}: {ids.null_count} of {count} rows of {file} have no {source.id_column}")
        ids = pc.cast(ids, pa.string())
        parts.append(
            pa.table(
                {
                    "sample_id": ids if split == "pool" else pc.binary_join_element_wise(split, ids, "/"),
                    "uri": pa.array(uris, pa.string()),
                    "size_bytes": pa.nulls(count, pa.int64()),
                    "label": pc.cast(table[source.label_column], pa.string())
                    if source.label_column
                    else pa.nulls(count, pa.string()),
                    "split": split_column(table[source.split_column], source)
                    if source.split_column and split == "pool"
                    else pa.array([split] * count, pa.string()),
                },
                schema=MANIFEST,
            )
        )
    return pa.concat_tables(parts)


def absolute(uri: str, base: Place) -> str:
    return uri if "://" in uri or uri.startswith("/") else (base / uri).uri


def split_column(column: pa.ChunkedArray, source: Source) -> pa.Array:
    values = column.to_pylist()
    if unknown := {value for value in values if value not in SPLIT_NAMES}:
        raise UserError(
            f"column {source.split_column!r} holds {sorted(map(str, unknown))[:5]}; expected {list(SPLIT_NAMES)}"
        )
    return pa.array([SPLIT_NAMES[value] for value in values], pa.string())


def list_coop(campaign, source: Source, place: Place, split: str) -> pa.Table:
    """A CoOp-style split file: ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    assert source.split_file is not None
    file = Place.of(source.split_file)
    if not file.exists():
        raise UserError(f"{split}.split_file: nothing at {source.split_file!r}")
    lists = file.read_json()
    if not isinstance(lists, dict) or not {"train", "val", "test"} <= set(lists):
        raise UserError(f"{split}.split_file: {source.split_file!r} has not the lists train, val and test")
    rows = [(path, name, SPLIT_NAMES[part]) for part in ("train", "val", "test") for path, _, name in lists[part]]
    return pa.table(
        {
            "sample_id": [path for path, _, _ in rows],
            "uri": [(place / path).uri for path, _, _ in rows],
            "size_bytes": pa.nulls(len(rows), pa.int64()),
            "label": [name for _, name, _ in rows],
            "split": [part for _, _, part in rows],
        },
        schema=MANIFEST,
    )


# ---------------------------------------------------------------- classes and checks


def class_names(given: list[str] | str | None, found: list[str] | None) -> list[str]:
    """The class list: given, from a text file, or what the labels suggest.

    Raises:
        ValueError: There is none, it has fewer than two names, or names repeat.
    """
    if isinstance(given, str):
        place = Place.of(given)
        if not place.exists():
            raise UserError(f"classes: no file {given!r}; give a text file with one class a line, or a list")
        given = [line.strip() for line in place.read_bytes().decode("utf-8-sig").splitlines() if line.strip()]
    names = given if given is not None else found
    if names is None:
        raise UserError("classes: not given, and the pool has no labels to take them from; give a list or a text file")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"classes: {', '.join(map(repr, repeated[:5]))} is there more than once")
    if len(names) < 2:
        raise UserError(f"classes: {names}; expected at least two")
    return list(names)


def check_labels(table: pa.Table, classes: list[str]) -> None:
    unknown = sorted(set(table["label"].drop_null().unique().to_pylist()) - set(classes))
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; classes begin with {', '.join(map(repr, classes[:5]))}"
        raise UserError(
            f"{len(unknown)} labels in the data are not in classes, such as {unknown[0]!r}{hint} (label_values maps "
            "the data's own values to class names)"
        )
