"""What lies in a folder, before anybody has said how to read it: the source that fits, and what its images are like.

A kind of source is an entry of :data:`KINDS`: the endings of its files, and what to try with them. The kind whose files
hold most bytes is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raykd.errors import UserError, one_line
from raykd.images.columns import plain_type
from raykd.images.decoding import SUFFIXES
from raykd.images.manifest import SPLIT_NAMES, endings, few, in_order
from raykd.images.parquet import is_bytes, is_text
from raykd.images.reading import load_many
from raykd.images.sources import Listing, list_source
from raykd.images.stored import PARQUET_SUFFIXES, ImageReader
from raykd.images.walk import files_below
from raykd.store.place import Place
from raykd.store.tables import first_duplicates

LOOKED_AT = 32  # images that are opened
NO_CLASS = re.compile(r"\d{4}[-_.]\d\d.*|\d{3}[A-Z0-9_]{5}|DCIM|images?|photos?|pictures?", re.IGNORECASE)
ID_COLUMNS = ("sample_id", "image_id", "id", "key")  # in the order of likelihood, as all that follow
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "image_bytes")
URI_COLUMNS = ("uri", "url", "path", "file", "image_path", "file_path", "file_name", "filename", "image")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "y")
SPLIT_COLUMN = "split"


@dataclass
class Survey:
    """What was found.

    Args:
        pool: The fields of a config's ``pool``.
        others: Of its ``test`` and ``val``, where the folder has them apart.
        splits: Those that are in the pool's own files.
        num_images: Of the pool.
        classes: Their names, where the data have labels or the names were given.
        labeled: Whether every image of the pool has a label.
        sizes: Width and height of some images, pixels.
        lines: For people: what was found, and what is left out.
    """

    pool: dict[str, Any]
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: frozenset[str] = frozenset()
    num_images: int = 0
    classes: list[str] | None = None
    labeled: bool = False
    sizes: list[tuple[int, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def survey(path: str, classes: list[str] | None = None) -> Survey:
    """Look at a folder, or a single file.

    Args:
        path: Absolute, or a URI.
        classes: The names, where they are known.

    Raises:
        UserError: Nothing is there, nothing of it is read, or it could be read in no way.
    """
    place = Place.of(path)
    if not place.exists():
        raise UserError(f"nothing at {place}; give the folder (or Parquet file) of the images")
    lines: list[str] = []
    names, sizes = [place.name], [1]
    if place.is_dir():
        files = files_below(place, "pool", lambda _, line: lines.append(line))
        names, sizes = files.names, files.sizes
    weights = {
        kind: sum(size + 1 for name, size in zip(names, sizes, strict=True) if name.lower().endswith(suffixes))
        for kind, (suffixes, _) in KINDS.items()
    }
    kind = max(weights, key=weights.__getitem__)
    if not weights[kind]:
        read = "; ".join(f"{kind} ({', '.join(suffixes)})" for kind, (suffixes, _) in KINDS.items())
        raise UserError(f"{place} holds {endings(names) or 'no file'}; looked for are {read}")
    suffixes, look = KINDS[kind]
    found = look(place, [name for name in names if name.lower().endswith(suffixes)], classes)
    lines = [line for line in lines if line not in found.lines]
    return Survey(**{**vars(found), "lines": [*found.lines, *lines]})


def looked_at(found: Survey, listing: Listing) -> Survey:
    """The survey, with what a listing and a few of its images say."""
    rows = listing.rows
    step = max(1, rows.num_rows // LOOKED_AT)
    uris = rows["uri"].to_pylist()[::step][:LOOKED_AT]
    loaded = list(load_many(ImageReader(), uris, lambda image: image.size))
    bad = [(uri, each) for uri, each in zip(uris, loaded, strict=True) if isinstance(each, str)]
    if len(bad) == len(uris):
        raise UserError(f"none of {len(uris)} images looked at can be read, such as {bad[0][0]}: {bad[0][1]}")
    found.num_images = rows.num_rows
    found.sizes = [each for each in loaded if not isinstance(each, str)]
    found.labeled = not rows["label"].null_count
    widths, heights = zip(*found.sizes, strict=True)
    said = f"{rows.num_rows:,} images ({endings(uris_as_names(rows))})"
    said += f", {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels"
    found.lines.insert(
        0, said + (f"; {len(bad)} of {len(uris)} looked at cannot be read, as {bad[0][1]}" if bad else "")
    )
    return found


def uris_as_names(rows: pa.Table) -> list[str]:
    """The uris, without the row of those inside a Parquet file."""
    return [uri.partition("#")[0] for uri in rows["uri"].to_pylist()]


def listed_quietly(pool: dict[str, Any], classes: list[str] | None, lines: list[str]) -> Listing:
    from raykd.config import Source  # here: what reads images needs no pydantic

    return list_source(Source(**pool), "pool", classes, lambda _, line: lines.append(line))


# ---------------------------------------------------------------- folders of images


def look_at_images(place: Place, names: Sequence[str], classes: list[str] | None) -> Survey:
    """A folder of images, of class folders, or of such in train, val and test."""
    if not place.is_dir():
        raise UserError(f"{place} is a single image; give the folder of the images")
    found = Survey({"path": place.uri, "format": "images"}, classes=classes)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if tops and tops <= SPLIT_NAMES.keys() and all("/" in name for name in names):
        return look_at_splits(place, names, classes, tops)
    if are_classes(names, classes):
        found.pool["format"] = "class_folders"
    listing = listed_quietly(found.pool, None, found.lines)
    if listing.found_classes and found.pool["format"] == "class_folders":
        found.classes = classes or listing.found_classes
        found.lines.append(
            f"{len(tops)} folders: {few(in_order(tops))}, taken for the classes of the images in them (else give "
            "--classes)"
        )
    elif tops:
        found.lines.append(f"{len(tops)} folders: {few(in_order(tops))}, not taken for classes")
    return looked_at(found, listing)


def are_classes(names: Sequence[str], classes: list[str] | None) -> bool:
    """Whether the first folders look like classes: all images lie in them, and they are given or of no usual name."""
    tops = {name.partition("/")[0] for name in names}
    if not all("/" in name for name in names) or len(tops) < 2:
        return False
    return tops <= set(classes) if classes else not all(map(NO_CLASS.fullmatch, tops))


def look_at_splits(place: Place, names: Sequence[str], classes: list[str] | None, tops: set[str]) -> Survey:
    """Folders that are called train, val, test: the pool, and what is measured on, where it has labels."""
    by_split = {SPLIT_NAMES[top]: top for top in sorted(tops)}
    top = by_split.pop("pool", None)
    if top is None:
        raise UserError(f"{place} holds {few(in_order(tops))} but no train folder; give the folder to pick from")
    inside = {each: [name.partition("/")[2] for name in names if name.startswith(f"{each}/")] for each in tops}
    found = look_at_images(place / top, inside[top], classes)
    for split, other in by_split.items():
        if are_classes(inside[other], found.classes):
            found.others[split] = {"path": (place / other).uri, "format": "class_folders"}
        else:
            found.lines.append(f"{other}: its folders are no classes, so it cannot be measured on; left out")
    return found


# ---------------------------------------------------------------- Parquet


def look_at_parquet(place: Place, names: Sequence[str], classes: list[str] | None) -> Survey:
    """Columns by their types and usual names; an id only when it is one."""
    first = place / names[0] if place.is_dir() else place
    try:
        schema = pq.read_schema(first.path, filesystem=first.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{first} cannot be read as Parquet: {one_line(error)}") from error
    kinds = {name: plain_type(schema.field(name).type) for name in schema.names}
    images = [name for name, kind in kinds.items() if is_bytes(bytes_of(kind))]
    texts = [name for name, kind in kinds.items() if is_text(kind)]
    image, uri = usual(IMAGE_COLUMNS, images), usual(URI_COLUMNS, texts, only=True)
    if not (image or uri):
        raise UserError(
            f"{first} has no column of encoded images, and none of URIs ({', '.join(URI_COLUMNS)}); it has "
            f"{', '.join(schema.names)}"
        )
    pool: dict[str, Any] = {"path": place.uri, "format": "parquet"}
    pool |= {"image_column": image} if image else {"image_column": None, "uri_column": uri}
    label = usual(LABEL_COLUMNS, schema.names, only=True)
    meaning = hugging_face_names(schema, label) if label else None
    tries: list[dict[str, Any]] = []
    are_names = label is not None and not pa.types.is_integer(kinds[label])
    for labels in label_fields(label, are_names, meaning, classes):
        for split in [SPLIT_COLUMN, None] if SPLIT_COLUMN in texts else [None]:
            for name in [*(name for name in ID_COLUMNS if name in kinds), None]:
                tries.append({**pool, "id_column": name, **labels, **({"split_column": split} if split else {})})
    problem: UserError | None = None
    for fields in tries:
        lines: list[str] = []
        try:
            listing = listed_quietly(fields, classes or meaning, lines)
        except UserError as refused:
            problem = problem or refused
            continue
        names_there = set(listing.rows["label"].drop_null().unique().to_pylist())
        if first_duplicates(listing.rows["sample_id"]) or (classes and not names_there <= set(classes)):
            continue
        found = Survey(fields, lines=lines, classes=classes or meaning or listing.found_classes)
        rows = listing.rows.filter(pc.equal(listing.rows["split"], "pool"))
        used = [f"{name}: {value}" for name, value in fields.items() if name.endswith("_column") and value]
        found.lines.append(f"columns taken: {', '.join(used)}; of {', '.join(schema.names)}")
        if label and "label_column" not in fields:
            found.lines.append(f"the labels in column {label!r} are no class names, so they are not used")
        found.splits = frozenset(listing.rows["split"].unique().to_pylist()) - {"pool"}
        return looked_at(found, Listing(rows))
    raise problem or UserError(f"{place}: ids repeat in every column that could be one ({', '.join(ID_COLUMNS)})")


def label_fields(
    label: str | None, are_names: bool, meaning: list[str] | None, classes: list[str] | None
) -> Iterator[dict[str, Any]]:
    """What to try with a column of labels: what is said of them, then as names, then by order; at last without it."""
    if label:
        if meaning and (classes is None or classes == meaning):
            yield {"label_column": label, "label_values": [str(number) for number in range(len(meaning))]}
        if are_names or classes:
            yield {"label_column": label}
        if classes:
            yield {"label_column": label, "label_values": "sorted"}
    yield {}


def bytes_of(kind: pa.DataType) -> pa.DataType:
    """Hugging Face's images are a struct of bytes and path."""
    if pa.types.is_struct(kind):
        return next(
            (plain_type(kind.field(i).type) for i in range(kind.num_fields) if kind.field(i).name == "bytes"), kind
        )
    return kind


def usual(names: Sequence[str], there: Sequence[str], only: bool = False) -> str | None:
    """The first of the usual names that is there, in any case; else, unless ``only`` they will do, whatever is."""
    lower = {name.lower(): name for name in reversed(there)}
    found = [lower[name] for name in names if name in lower]
    return next(iter(found if only else [*found, *there]), None)


def hugging_face_names(schema: pa.Schema, column: str) -> list[str] | None:
    """What the numbers in a column mean, as ``datasets`` notes it in a file's schema."""
    with suppress(KeyError, TypeError, ValueError):
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
        return [str(name) for name in names]
    return None


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Place, Sequence[str], list[str] | None], Survey]]] = {
    "images": (SUFFIXES, look_at_images),
    "Parquet": (PARQUET_SUFFIXES, look_at_parquet),
}
