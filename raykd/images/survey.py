"""What lies in a folder, before anybody has said how to read it: the source that fits, and what its images are like.

A kind of source is an entry of :data:`KINDS`: the endings of its files, and what to try with them. The kind whose files
hold most bytes is taken; but tars beside images or Parquet are mostly where those came from, so they must hold ten
times as much, and a list is taken when there is nothing else.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raykd.errors import UserError
from raykd.images.columns import names_of_numbers, plain_type
from raykd.images.decoding import SUFFIXES
from raykd.images.lists import URI_NAMES, read_list
from raykd.images.manifest import LIST_SUFFIXES, NUMBER, SPLIT_NAMES, endings, few, in_order
from raykd.images.parquet import bytes_of, is_bytes, is_passed_over, is_text, not_parquet
from raykd.images.reading import load_many
from raykd.images.sources import Listing, list_source
from raykd.images.stored import PARQUET_SUFFIXES, ImageReader
from raykd.images.walk import files_below, is_utf8
from raykd.images.webdataset import BRACES, COMPRESSED
from raykd.store.place import Place
from raykd.store.tables import RUN_ROWS, first_duplicates

if TYPE_CHECKING:
    from raykd.config import Source

LOOKED_AT = 32  # images that are opened
NO_CLASS = re.compile(r"\d{4}[-_.]\d\d.*|\d{3}[A-Z0-9_]{5}|DCIM|images?|photos?|pictures?", re.IGNORECASE)
ID_COLUMNS = ("sample_id", "image_id", "id", "key")  # in the order of likelihood, as all that follow
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "image_bytes")
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
    if not is_utf8(place.uri):
        raise UserError(f"{place.uri!r} is not UTF-8, so no config can hold it; rename the folder")
    if not place.exists():
        if BRACES.search(path):
            return look_at_tars(place, [], classes)
        raise UserError(f"nothing at {place}; give the folder of the images, or a Parquet file, tar or list")
    lines: list[str] = []
    names, sizes = [place.name], [1]
    if place.is_dir():
        files = files_below(place, "pool", lambda _, line: lines.append(line))
        names, sizes = files.names, files.sizes
    weights = {
        kind: sum(size + 1 for name, size in zip(names, sizes, strict=True) if name.lower().endswith(suffixes))
        * {"tars": 1e-1, "lists": 1e-15}.get(kind, 1)
        for kind, (suffixes, _) in KINDS.items()
    }
    kind = max(weights, key=weights.__getitem__)
    if not weights[kind]:
        read = "; ".join(f"{kind} ({', '.join(suffixes)})" for kind, (suffixes, _) in KINDS.items())
        raise UserError(f"{place} holds {endings(names) or 'no file'}; looked for are {read}")
    suffixes, look = KINDS[kind]
    found = look(place, [name for name in names if name.lower().endswith(suffixes)], classes)
    lines = [line for line in lines if line not in found.lines]
    if kind == "images" and (lists := [name for name in names if name.lower().endswith(LIST_SUFFIXES)]):
        lines.append(f"if {few(lists)} says what the images are, give that file instead of the folder")
    return Survey(**{**vars(found), "lines": [*found.lines, *lines]})


def looked_at(found: Survey, listing: Listing) -> Survey:
    """The survey, with what a listing and a few of its images say."""
    rows = listing.rows
    places = np.arange(0, rows.num_rows, max(1, rows.num_rows // LOOKED_AT))[:LOOKED_AT]
    uris = [rows["uri"][place].as_py() for place in places.tolist()]
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


def uris_as_names(rows: pa.Table) -> Iterator[str]:
    """The uris, without the row of those inside a Parquet file."""
    for batch in rows.select(["uri"]).to_batches(max_chunksize=RUN_ROWS):
        yield from (uri.partition("#")[0] for uri in batch["uri"].to_pylist())


def listed_quietly(
    pool: dict[str, Any], classes: list[str] | None, lines: list[str], kept: Place | None = None
) -> Listing:
    return list_source(source_of(pool), "pool", classes, lambda _, line: lines.append(line), kept)


def source_of(fields: dict[str, Any]) -> Source:
    from raykd.config import Source  # here: what reads images needs no pydantic

    return Source(**fields)


# ---------------------------------------------------------------- folders of images


def look_at_images(place: Place, names: Sequence[str], classes: list[str] | None) -> Survey:
    """A folder of images, of class folders, or of such in train, val and test."""
    if not place.is_dir():
        raise UserError(f"{place} is a single image; give the folder of the images")
    found = Survey({"path": place.uri, "format": "images"}, classes=classes)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if tops and all(top.lower() in SPLIT_NAMES for top in tops) and all("/" in name for name in names):
        return look_at_splits(place, names, classes, tops)
    if are_classes(names, classes):
        found.pool["format"] = "class_folders"
    listing = listed_quietly(found.pool, None, found.lines)
    if listing.found_classes and found.pool["format"] == "class_folders":
        found.classes = classes or listing.found_classes
        otherwise = "" if classes else " (else give --classes)"
        found.lines.append(
            f"{len(tops)} folders: {few(in_order(tops))}, taken for the classes of the images in them{otherwise}"
        )
    elif tops:
        found.lines.append(f"{len(tops)} folders: {few(in_order(tops))}, not taken for classes")
    return looked_at(found, listing)


def are_classes(names: Sequence[str], classes: list[str] | None) -> bool:
    """Whether the first folders look like classes: all images lie in them, and they are given or of no usual name."""
    tops = {name.partition("/")[0] for name in names}
    if not all("/" in name for name in names):
        return False
    return tops <= set(classes) if classes else len(tops) > 1 and not all(map(NO_CLASS.fullmatch, tops))


def look_at_splits(place: Place, names: Sequence[str], classes: list[str] | None, tops: set[str]) -> Survey:
    """Folders that are called train, val, test: the pool, and what is measured on, where it has labels."""
    by_split = {SPLIT_NAMES[top.lower()]: top for top in sorted(tops)}
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


# ---------------------------------------------------------------- tables and tars


def look_at_parquet(place: Place, names: Sequence[str], classes: list[str] | None) -> Survey:
    """Columns by their types and usual names; an id only when it is one."""
    first = place / next((name for name in names if not is_passed_over(name)), names[0]) if place.is_dir() else place
    try:
        schema = pq.read_schema(first.path, filesystem=first.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise not_parquet(error, "pool", first) from error
    kinds = {name: plain_type(schema.field(name).type) for name in schema.names}
    images = [name for name, kind in kinds.items() if is_bytes(bytes_of(kind))]
    texts = [name for name, kind in kinds.items() if is_text(kind)]
    image, uri = usual(IMAGE_COLUMNS, images), usual(URI_NAMES, texts, only=True)
    if not (image or uri):
        raise UserError(
            f"{first} has no column of encoded images, and none of URIs ({', '.join(URI_NAMES)}); it has "
            f"{', '.join(schema.names)}"
        )
    pool: dict[str, Any] = {"path": place.uri, "format": "parquet"}
    pool |= {"image_column": image} if image else {"image_column": None, "uri_column": uri}
    found_ids = [*(name for name in ID_COLUMNS if name in kinds), None]
    label = usual(LABEL_COLUMNS, schema.names, only=True)
    are_names = label is not None and names_of_numbers(schema, label) is not None
    return look_at_columns(pool, schema.names, found_ids, SPLIT_COLUMN in texts, classes, are_names)


def look_at_list(place: Place, names: Sequence[str], classes: list[str] | None) -> Survey:
    """A list, or such of train, val and test; ids are the paths in it, if they differ."""
    lists = [place / name for name in names] if place.is_dir() else [place]
    by_split = {"pool": lists[0]}
    if len(lists) > 1:
        by_split = {SPLIT_NAMES.get(os.path.splitext(each.name)[0].lower(), ""): each for each in lists}
    if "" in by_split or "pool" not in by_split or len(by_split) < len(lists):
        raise UserError(f"{place} holds {len(lists)} lists: {few(names)}; give the one that says where the images are")
    file = by_split.pop("pool")
    fields: dict[str, Any] = {"path": file.uri, "format": "list"}
    header, _ = read_list(source_of(fields), file)
    if uri := usual(URI_NAMES, header, only=True):
        fields["uri_column"] = uri
    found_ids = [None, *(name for name in ID_COLUMNS if name in header)]
    found = look_at_columns(fields, header, found_ids, SPLIT_COLUMN in header, classes)
    for split, other in by_split.items():
        source = {**found.pool, "path": other.uri}
        try:
            rows = list_source(source_of(source), split, found.classes, lambda *_: None).rows
        except UserError as error:
            found.lines.append(f"{other.name} cannot be measured on: {error}; left out")
            continue
        if rows["label"].null_count:
            found.lines.append(f"{other.name} has no labels, so it cannot be measured on; left out")
        else:
            found.others[split] = source
    return found


def look_at_tars(place: Place, names: Sequence[str], classes: list[str] | None) -> Survey:
    """Tars of WebDataset: labels are in their .cls members, or under a usual key of the .json ones."""
    fields = {"path": place.uri, "format": "webdataset"}
    with tempfile.TemporaryDirectory(prefix="raykd-") as folder:
        kept = Place(folder)  # so that each tar is read once
        lines: list[str] = []
        listing = listed_quietly(fields, None, lines, kept)
        if labels := in_order(listing.rows["label"].drop_null().unique().to_pylist()):
            tries: list[dict[str, Any]] = [fields, {**fields, "label_values": "index"}] if classes else [fields]
        else:
            tries = [{**fields, "label_column": name} for name in LABEL_COLUMNS]
            tries += [{**each, "label_values": "index"} for each in tries] if classes else []
            tries.append(fields)
        found = first_that_fits(tries, classes, kept)
    if found is None and classes:
        raise UserError(f"{place}: the labels in its .cls members ({few(labels)}) do not fit the classes given")
    if found is None:
        found = looked_at(Survey(fields, lines=lines), listing)
        found.lines.append(f"labels in .cls members are numbers ({few(labels)}): the classes must be given, in order")
    if found.pool.get("label_column"):
        found.lines.append(f"labels are taken from {found.pool['label_column']!r} of the .json members")
    return found


def look_at_columns(
    pool: dict[str, Any],
    columns: Sequence[str],
    found_ids: Sequence[str | None],
    splits: bool,
    classes: list[str] | None,
    are_names: bool = False,
) -> Survey:
    """The first reading of a table that fits.

    Args:
        pool: The fields that are known.
        columns: All that the table has.
        found_ids: Columns that could be ids, the most likely first; None: the path, or file and row.
        splits: Whether a column says what is train and what is test.
        classes: The names, where they are known.
        are_names: Whether labels are names even if they look like numbers.
    """
    label = usual(LABEL_COLUMNS, columns, only=True)
    tries = []
    for labels in label_fields(label, classes):
        for split in [SPLIT_COLUMN, None] if splits else [None]:
            for name in found_ids:
                tries.append({**pool, "id_column": name, **labels, **({"split_column": split} if split else {})})
    found = first_that_fits(tries, classes, are_names=are_names)
    if found is None:
        raise UserError(f"{pool['path']}: ids repeat in every column that could be one ({', '.join(ID_COLUMNS)})")
    used = [f"{name}: {value}" for name, value in found.pool.items() if name.endswith("_column") and value]
    found.lines.append(f"columns taken: {', '.join(used)}; of {', '.join(columns)}")
    if label and "label_column" not in found.pool:
        found.lines.append(f"the labels in column {label!r} are no class names, so they are not used")
    return found


def first_that_fits(
    tries: Sequence[dict[str, Any]], classes: list[str] | None, kept: Place | None = None, are_names: bool = False
) -> Survey | None:
    """The survey of the first fields of a pool whose ids differ and whose labels are names, of the classes if given.

    Raises:
        UserError: Each was refused; with the first reason.
    """
    problem: UserError | None = None
    for fields in tries:
        lines: list[str] = []
        try:
            listing = listed_quietly(fields, classes, lines, kept)
        except UserError as refused:
            problem = problem or refused
            continue
        labels = set(listing.rows["label"].drop_null().unique().to_pylist())
        fit = labels <= set(classes) if classes else are_names or not labels or not all(map(NUMBER.fullmatch, labels))
        if not fit or first_duplicates(listing.rows["sample_id"]):
            continue
        found = Survey(fields, lines=lines, classes=classes or listing.found_classes)
        found.splits = frozenset(listing.rows["split"].unique().to_pylist()) - {"pool"}
        return looked_at(found, Listing(listing.rows.filter(pc.equal(listing.rows["split"], "pool"))))
    if problem:
        raise problem
    return None


def label_fields(label: str | None, classes: list[str] | None) -> Iterator[dict[str, Any]]:
    """What to try with a column of labels: as names, then by order; at last without it."""
    if label:
        yield {"label_column": label}
        if classes:
            yield {"label_column": label, "label_values": "sorted"}
    yield {}


def usual(names: Sequence[str], there: Sequence[str], only: bool = False) -> str | None:
    """The first of the usual names that is there, in any case; else, unless ``only`` they will do, whatever is."""
    lower = {name.lower(): name for name in reversed(there)}
    found = [lower[name] for name in names if name in lower]
    return next(iter(found if only else [*found, *there]), None)


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Place, Sequence[str], list[str] | None], Survey]]] = {
    "images": (SUFFIXES, look_at_images),
    "Parquet": (PARQUET_SUFFIXES, look_at_parquet),
    "tars": ((".tar", *COMPRESSED), look_at_tars),
    "lists": (LIST_SUFFIXES, look_at_list),
}
