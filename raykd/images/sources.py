"""From where images lie to rows of the manifest (:data:`raykd.store.tables.MANIFEST`), and what they are called there.

Nothing is decoded: a folder is listed once, of Parquet only the columns of ids and labels are read. Equal sources give
equal tables, sorted by name. 10^6 files on a local disk take about 7 s of a CPU and 0.5 GB, as many Parquet rows 0.4 s.

What is left out (other files, links that lead nowhere, ...) is counted and said; hidden names (``.x``, macOS's ``._x``
and ``__MACOSX``) are passed over.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raykd.errors import StorageError, UserError, did_you_mean, one_line, why
from raykd.images.reading import SUFFIXES
from raykd.images.stored import PARQUET_SUFFIXES, beside
from raykd.store.place import Place
from raykd.store.tables import MANIFEST

if TYPE_CHECKING:
    from raykd.config import Source

Say = Callable[[str, str], None]

SPLIT_NAMES = {"pool": "pool", "train": "pool", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COOP_LISTS = ("train", "val", "test")
WHOLE_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Args:
        rows: MANIFEST, by name; labels are class names, or null.
        found_classes: The classes that the source suggests: its folders, or its labels; none with ``label_values``.
        mapping: The data's own labels and the classes that they became, in the order of classes; empty without
            ``label_values``.
    """

    rows: pa.Table
    found_classes: list[str] | None = None
    mapping: dict[str, str] = field(default_factory=dict)


def list_source(source: Source, split: str, classes: list[str] | None, say: Say) -> Listing:
    """The rows of one source.

    Args:
        split: What its images are for: pool, val or test. Only a pool may hold several; ids of others begin with it.
        classes: The names given, in order; needed for ``label_values``.
        say: Called with a topic (the split) and a line for people.

    Raises:
        UserError: Nothing is there, it is of another format, columns are missing or rows lack what they must have.
        StorageError: A folder cannot be listed.
    """
    place = Place.of(source.path)
    if not place.exists():
        raise UserError(f"{split}: nothing at {source.path!r} ({place}); give the folder or Parquet file of the images")
    found: list[str] | None = None
    if source.format == "parquet":
        rows = list_parquet(source, place, split, say)
    elif source.format == "coop_split":
        rows = list_coop(source, place, split)
    else:
        rows, found = list_images(source, place, split, say)
    values = found or in_order(rows["label"].drop_null().unique().to_pylist())
    if source.label_values is None:
        return Listing(rows, values or None)
    known = values if source.label_values == "sorted" else source.label_values
    if classes is None:
        raise UserError(f"{split}.label_values is given, so classes must be too: the names in the same order")
    if len(known) != len(classes):
        raise UserError(
            f"{split}.label_values has {len(known)} values ({few(known)}), classes has {len(classes)} names; expected "
            "as many"
        )
    if missing := set(values) - set(known):
        raise UserError(f"{split}: labels {in_order(missing)[:5]} are not in label_values")
    mapped = pc.take(pa.array(classes, pa.string()), pc.index_in(rows["label"], value_set=pa.array(known, pa.string())))
    labeled = rows.set_column(rows.schema.get_field_index("label"), "label", mapped)
    return Listing(labeled, None, dict(zip(known, classes, strict=True)))


def manifest_rows(
    split: str, ids: Any, uris: Any, sizes: Any = None, times: Any = None, labels: Any = None, splits: Any = None
) -> pa.Table:
    """MANIFEST of columns or lists; ids of what is no pool begin with the split's name."""
    count = len(uris)
    if split != "pool":
        ids = pc.binary_join_element_wise(split, pa.array(ids, pa.string()) if isinstance(ids, list) else ids, "/")
    columns = {
        "sample_id": ids,
        "uri": uris,
        "size_bytes": pa.nulls(count, pa.int64()) if sizes is None else sizes,
        "mtime_ns": pa.nulls(count, pa.int64()) if times is None else times,
        "label": pa.nulls(count, pa.string()) if labels is None else labels,
        "split": pa.repeat(pa.scalar(split), count) if splits is None else splits,
    }
    return pa.table(columns, schema=MANIFEST)


# ---------------------------------------------------------------- folders of images


def list_images(source: Source, place: Place, split: str, say: Say) -> tuple[pa.Table, list[str] | None]:
    """Image files at any depth; with class_folders the first folder is the label, and every first folder a class."""
    if not place.is_dir():
        raise UserError(f"{split}: {source.path!r} is a file; format {source.format} expects a folder")
    files = files_below(place, split, say)
    is_image = [name.lower().endswith(SUFFIXES) for name in files.names]
    others = [name for name, image in zip(files.names, is_image, strict=True) if not image]
    if not any(is_image):
        raise UserError(
            f"{split}: no image in {source.path} (format {source.format}): it holds {endings(others) or 'no file'}. "
            f"Read are {', '.join(SUFFIXES)}"
        )
    if others:
        say(
            split,
            f"{len(others):,} files in {source.path} are not images that are read ({endings(others)}), such as "
            f"{others[0]!r}; left out",
        )
    names = [name for name, image in zip(files.names, is_image, strict=True) if image]
    sizes = [size for size, image in zip(files.sizes, is_image, strict=True) if image]
    times = [time for time, image in zip(files.times, is_image, strict=True) if image]
    labels, classes = None, None
    if source.format == "class_folders":
        labels, classes = class_folders(source, split, names, files.folders, say)
    return manifest_rows(split, names, uris_of(place, names), sizes, times, labels), classes


def class_folders(
    source: Source, split: str, names: list[str], folders: Iterable[str], say: Say
) -> tuple[list[str], list[str]]:
    """The label of each image, and the classes: every folder at the top, those without an image too."""
    labels = [name.partition("/")[0] for name in names]
    if loose := [name for name in names if "/" not in name]:
        raise UserError(f"{split}: {len(loose)} images, such as {loose[0]!r}, lie in no class folder of {source.path}")
    used = set(labels)
    if used <= SPLIT_NAMES.keys():
        own = next((name for name in SPLIT_NAMES if name in used and SPLIT_NAMES[name] == split), min(used))
        raise UserError(
            f"{split}: the folders of {source.path} are splits ({', '.join(sorted(used))}), not classes; expected a "
            f"folder a class. Give {split}.path: {source.path}/{own}, and each of the others as pool, val or test"
        )
    classes = {folder for folder in folders if "/" not in folder} | used
    if empty := in_order(classes - used):
        say(split, f"{len(empty)} class folders in {source.path} hold no image: {few(empty)}; they are classes too")
    return labels, in_order(classes)


def endings(names: list[str], most: int = 5) -> str:
    """The endings of file names and how often each is there: ``12 .heic, 3 .txt``."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in names).most_common()
    more = [f"{len(names) - sum(count for _, count in counts[:most]):,} others"] if len(counts) > most else []
    return ", ".join([f"{count:,} {ending}" for ending, count in counts[:most]] + more)


def uris_of(place: Place, names: list[str]) -> pa.Array | list[str]:
    if "://" in place.uri:
        return [(place / name).uri for name in names]
    return pc.binary_join_element_wise(place.path.rstrip("/"), pa.array(names, pa.string()), "/")


# ---------------------------------------------------------------- what lies below a folder


@dataclass
class Files:
    """Files and folders below a folder, by their paths relative to it; and what is not listed."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes
    times: list[int] = field(default_factory=list)  # of the last change, nanoseconds
    folders: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # links to what is listed, and loops
    unnamed: list[bytes] = field(default_factory=list)  # names that are not UTF-8, so that no table can hold them


def files_below(place: Place, split: str, say: Say) -> Files:
    """All files below a folder, sorted, each real one once: links are followed, but not into loops."""
    files = LocalWalk(place.path, split).files if place.is_local else stored_files(place, split)
    order = sorted(range(len(files.names)), key=files.names.__getitem__)
    files.names = [files.names[i] for i in order]
    files.sizes, files.times = [files.sizes[i] for i in order], [files.times[i] for i in order]
    for what, left_out in (
        ("links lead nowhere", files.dangling),
        ("links lead to what is listed already", files.repeated),
        ("names are not UTF-8; rename them", files.unnamed),
    ):
        if left_out:
            say(split, f"{len(left_out):,} {what}, such as {min(left_out)!r} in {place}; left out")
    return files


def hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def stored_files(place: Place, split: str) -> Files:
    """Of an object store, which has no links."""
    files, root = Files(), place.path.rstrip("/") + "/"
    try:
        infos = place.fs.get_file_info(pafs.FileSelector(place.path, recursive=True))
    except OSError as error:
        raise StorageError(f"{split}: cannot list {place}: {why(error)}") from error
    for info in infos:
        name = info.path.removeprefix(root)
        if any(map(hidden, name.split("/"))):
            continue
        if info.type == pafs.FileType.Directory:
            files.folders.append(name)
        elif info.is_file:
            files.names.append(name)
            files.sizes.append(info.size)
            files.times.append(info.mtime_ns)
    return files


class LocalWalk:
    """Lists a folder on a disk: first what is there itself, then what links lead to, in the order of their names."""

    def __init__(self, root: str, split: str) -> None:
        self.root, self.split, self.files = root, split, Files()
        self.real_root = os.path.realpath(root)
        self.links: list[str] = []  # still to be followed
        self.real_folders: set[str] = set()
        self.real_files: set[str] = set()  # kept when there are links: without, no file can be there twice
        self.keep = False
        self.add_folder("", self.real_root)
        if self.links:
            self.keep = True
            self.real_files = {f"{self.real_root}/{name}" for name in self.files.names}
        while self.links:
            links, self.links = sorted(self.links), []
            for name in links:
                self.follow(name)

    def follow(self, name: str) -> None:
        real = os.path.realpath(f"{self.root}/{name}")
        if not os.path.exists(real):
            self.files.dangling.append(name)
        elif real in self.real_folders or real in self.real_files or self.real_root.startswith(real.rstrip("/") + "/"):
            self.files.repeated.append(name)
        elif os.path.isdir(real):
            self.files.folders.append(name)
            self.add_folder(name, real)
        elif os.path.isfile(real):
            self.add_file(name, real, os.stat(real))

    def add_file(self, name: str, real: str, about: os.stat_result) -> None:
        if real in self.real_files:
            self.files.repeated.append(name)
            return
        if self.keep:
            self.real_files.add(real)
        self.files.names.append(name)
        self.files.sizes.append(about.st_size)
        self.files.times.append(about.st_mtime_ns)

    def add_folder(self, top: str, real_top: str) -> None:
        """Add what lies below the folder ``top``, which really is ``real_top``; links are only noted."""
        todo = [(top, real_top)]
        while todo:
            folder, real = todo.pop()
            if real in self.real_folders:
                self.files.repeated.append(folder)
                continue
            self.real_folders.add(real)
            prefix = f"{folder}/" if folder else ""
            try:
                with os.scandir(real) as entries:
                    for entry in entries:
                        name, real_name = prefix + entry.name, f"{real}/{entry.name}"
                        if hidden(entry.name):
                            continue
                        if not name.isascii() and not is_utf8(name):
                            self.files.unnamed.append(os.fsencode(name))
                        elif entry.is_symlink():
                            self.links.append(name)
                        elif entry.is_dir():
                            self.files.folders.append(name)
                            todo.append((name, real_name))
                        elif entry.is_file():
                            self.add_file(name, real_name, entry.stat())
            except OSError as error:
                raise StorageError(
                    f"{self.split}: cannot list {real}: {why(error)}; make it readable, or move it away"
                ) from error


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------- Parquet


def list_parquet(source: Source, place: Place, split: str, say: Say) -> pa.Table:
    """Rows of Parquet files; the bytes stay there, the uri says in which row."""
    if source.image_column and re.search("[/#]", source.image_column):
        raise UserError(f"{split}.image_column: {source.image_column!r} holds / or #; rename the column")
    return pa.concat_tables(
        list_one_parquet(source, file, name, split, say) for name, file in parquet_files(source, place, split, say)
    )


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


def list_one_parquet(source: Source, file: Place, name: str, split: str, say: Say) -> pa.Table:
    splits = source.split_column if split == "pool" else None
    wanted = [source.id_column, source.label_column, splits, source.uri_column]
    columns = list(dict.fromkeys(column for column in wanted if column))
    try:
        with pq.ParquetFile(file.path, filesystem=file.fs) as parquet:
            check_columns(source, split, file, columns, parquet.schema_arrow)
            table, count = parquet.read(columns=columns), parquet.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{split}: {file} cannot be read as Parquet: {one_line(error)}") from error

    def texts(column: str, what: str) -> pa.ChunkedArray:
        """A column as strings, none of them missing."""
        found = as_text(table[column], f"{split}: column {column!r} of {file}")
        lacking = pc.fill_null(pc.equal(found, ""), True)
        if num_lacking := pc.sum(lacking).as_py() or 0:
            row = pc.index(lacking, True).as_py()
            raise UserError(
                f"{split}: {num_lacking} of {count} rows of {file} have no {column}, first row {row} (counted from 0); "
                f"every image needs {what}"
            )
        return found

    row_texts = pc.utf8_lpad(pc.cast(pa.array(np.arange(count)), pa.string()), 9, padding="0")
    if source.uri_column:
        given = texts(source.uri_column, "the path or URI of its file")
        uris = absolute(given, file)
    else:
        uris = pc.binary_join_element_wise(f"{file.uri}#{source.image_column}", row_texts, "/")
    if source.id_column:
        ids = texts(source.id_column, "its own id")
    else:
        ids = given if source.uri_column else pc.binary_join_element_wise(name, row_texts, "/")
    labels = labels_of(table[source.label_column], source, split, file, say) if source.label_column else None
    times = None if source.uri_column else pa.repeat(pa.scalar(changed_at(file), pa.int64()), count)
    column = split_column(table[splits], source, file) if splits else None
    return manifest_rows(split, ids, uris, None, times, labels, column)


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
    if source.image_column:
        kind = plain_type(schema.field(source.image_column).type)
        if is_text(kind):
            raise UserError(
                f"{split}.image_column: {source.image_column!r} of {file} holds text; for paths or URIs give it as "
                "uri_column, and image_column: null"
            )
        if pa.types.is_struct(kind):  # Hugging Face: bytes, or the path of a file
            kind = next(
                (plain_type(kind.field(i).type) for i in range(kind.num_fields) if kind.field(i).name == "bytes"), kind
            )
        if not is_bytes(kind):
            raise UserError(
                f"{split}.image_column: {source.image_column!r} of {file} is {schema.field(source.image_column).type}; "
                "expected encoded images, binary or struct<bytes: binary, path: string>"
            )
    if source.uri_column and not is_text(plain_type(schema.field(source.uri_column).type)):
        raise UserError(
            f"{split}.uri_column: {source.uri_column!r} of {file} is {schema.field(source.uri_column).type}; expected "
            "paths or URIs as text (bytes belong to image_column)"
        )


def plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


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


def as_text(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Any column of single values as strings; ``what`` begins the error."""
    try:
        return pc.cast(pc.cast(column, plain_type(column.type)), pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{what} is {column.type} and cannot be text: {one_line(error)}") from error


def labels_of(column: pa.ChunkedArray, source: Source, split: str, file: Place, say: Say) -> pa.ChunkedArray:
    """Labels as text; what pandas makes of whole numbers with gaps (1.0, NaN) is whole numbers again."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if pc.all(pc.equal(column, pc.round(column))).as_py() is not False:
            column = pc.cast(column, pa.int64())
    labels = as_text(column, f"{split}: column {source.label_column!r} of {file}")
    empty = pc.equal(labels, "")
    if num_empty := pc.sum(empty).as_py():
        say(split, f"{num_empty} of {len(labels)} labels in {file} are empty text; taken as no label")
        labels = pc.if_else(empty, pa.scalar(None, pa.string()), labels)
    return labels


def absolute(uris: pa.ChunkedArray, file: Place) -> pa.Array | pa.ChunkedArray:
    """Paths relative to the folder of a Parquet file, made absolute; URIs and absolute paths stay."""
    if "://" in file.uri:
        return pa.array([beside(file, uri).uri for uri in uris.to_pylist()], pa.string())
    stays = pc.or_(pc.starts_with(uris, "/"), pc.match_substring(uris, "://"))
    return pc.if_else(stays, uris, pc.binary_join_element_wise(file.path.rpartition("/")[0], uris, "/"))


def split_column(column: pa.ChunkedArray, source: Source, file: Place) -> pa.Array:
    values = as_text(column, f"column {source.split_column!r} of {file}")
    if unknown := [value for value in values.unique().to_pylist() if value not in SPLIT_NAMES]:
        raise UserError(
            f"column {source.split_column!r} holds {sorted(map(str, unknown))[:5]} in {file}; expected "
            f"{list(SPLIT_NAMES)}"
        )
    known, meanings = (pa.array(words, pa.string()) for words in (SPLIT_NAMES.keys(), SPLIT_NAMES.values()))
    return pc.take(meanings, pc.index_in(values, value_set=known))


# ---------------------------------------------------------------- CoOp's split files


def list_coop(source: Source, place: Place, split: str) -> pa.Table:
    """A CoOp-style split file: ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    assert source.split_file is not None
    file = Place.of(source.split_file)
    if not file.exists():
        raise UserError(f"{split}.split_file: nothing at {source.split_file!r}")
    lists = file.read_json()
    if not isinstance(lists, dict) or not set(COOP_LISTS) <= set(lists):
        raise UserError(f"{split}.split_file: {source.split_file!r} has not the lists train, val and test")
    rows = []
    for part in COOP_LISTS:
        for i, entry in enumerate(lists[part]):
            match entry:
                case [str(path), _, str(name)] if path and name:
                    rows.append((path, name, SPLIT_NAMES[part]))
                case _:
                    raise UserError(
                        f"{split}.split_file: entry {i} of {part!r} in {source.split_file!r} is {entry!r:.80}; "
                        "expected [path, label, class name]"
                    )
    paths = [path for path, _, _ in rows]
    uris = [beside(place / "file", path).uri for path in paths]
    labels, parts = [name for _, name, _ in rows], [part for _, _, part in rows]
    return manifest_rows(split, paths, uris, labels=labels, splits=parts)


# ---------------------------------------------------------------- splits, classes, labels


def draw_splits(rows: pa.Table, draws_N: np.ndarray, test_share: float, val_share: float) -> pa.Table:
    """Set aside random shares of the labeled pool rows as test and val.

    Args:
        draws_N: float [N], 0 to 1, a row's own: the smallest are test, the next val.

    Raises:
        UserError: No pool row has a label.
    """
    if not test_share and not val_share:
        return rows
    split = np.array(rows["split"].to_pylist(), dtype=object)
    labeled = np.flatnonzero((split == "pool") & rows["label"].is_valid().to_numpy())
    if not labeled.size:
        raise UserError("test_share and val_share need a pool with labels; give test: and val: sources instead")
    order = labeled[np.argsort(draws_N[labeled], kind="stable")]
    num_test, num_val = round(test_share * len(order)), round(val_share * len(order))
    split[order[:num_test]] = "test"
    split[order[num_test : num_test + num_val]] = "val"
    return rows.set_column(rows.schema.get_field_index("split"), "split", pa.array(split.tolist(), pa.string()))


def class_names(given: list[str] | str | None, found: list[str] | None) -> list[str]:
    """The class list: given, from a file (one name a line, or a JSON list), or what the labels suggest.

    Raises:
        UserError: There is none, the file is something else, there are fewer than two names, or names repeat.
    """
    if isinstance(given, str):
        given = class_file(given)
    names = given if given is not None else found
    if names is None:
        raise UserError("classes: not given, and the pool has no labels to take them from; give a list or a text file")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"classes: {', '.join(map(repr, repeated[:5]))} is there more than once")
    if len(names) < 2:
        raise UserError(f"classes: {names}; expected at least two")
    return list(names)


def class_file(path: str) -> list[str]:
    """The names in a text file, one a line (empty lines do not count), or in a JSON list."""
    place, expected = Place.of(path), "expected text with one class a line, or a JSON list of names"
    if not place.exists() or place.is_dir():
        what = f"{path!r} is a folder" if place.exists() else f"no file {path!r}"
        raise UserError(f"classes: {what}; give a text file with one class a line, or a list")
    try:
        text = place.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"classes: {path!r} is not UTF-8 (byte {error.start}); {expected}") from error
    ending = os.path.splitext(place.name)[1].lower()
    if ending == ".json" or text.startswith(("[", "{")):
        try:
            names = json.loads(text)
        except ValueError as error:
            if ending == ".json":
                raise UserError(f"classes: {path!r} is not JSON ({error}); {expected}") from error
        else:
            if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
                raise UserError(f"classes: {path!r} holds JSON that is no list of names: {text!r:.60}; {expected}")
            return names
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if ending in (".yaml", ".yml") or (ending in (".csv", ".tsv") and any(re.search("[,;\t]", line) for line in lines)):
        raise UserError(f"classes: {path!r} is {ending[1:].upper()}, such as {lines[:1]}; {expected}")
    return lines


def check_label_names(rows: pa.Table, classes: Iterable[str]) -> None:
    """Whether each label is a class. Raises UserError with the first that is none."""
    known = list(classes)
    if unknown := in_order(set(rows["label"].drop_null().unique().to_pylist()) - set(known)):
        raise UserError(
            f"{len(unknown)} labels in the data are not in classes, such as {unknown[0]!r}; "
            f"{did_you_mean(unknown[0], known)} (labels.renamed says what an old class is called now, label_values "
            "what the data's own values mean)"
        )


def in_order(values: Iterable[str]) -> list[str]:
    """Sorted: by number when all are whole numbers (2 before 10), else by letter."""
    values = list(values)
    if all(map(WHOLE_NUMBER.fullmatch, values)):
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def few(names: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


# ---------------------------------------------------------------- pools that grow


@dataclass(frozen=True)
class Grown:
    """How one listing differs from an earlier one; each is MANIFEST, in the order of the listing it is from."""

    new: pa.Table  # of now: ids that were not there
    gone: pa.Table  # of before: ids that are no longer there
    moved: pa.Table  # of now: ids at another uri
    rewritten: pa.Table  # of now: ids at the same uri, whose file has another size or time (where both are known)
    relabeled: tuple[pa.Table, pa.Table]  # of before and of now, row by row: ids with another label


def grown(before: pa.Table, now: pa.Table) -> Grown:
    """Compare two listings by ``sample_id``, whatever their splits. Cost: two hash look-ups a row, 1.5 s for 10^6."""
    position = pc.index_in(now["sample_id"], value_set=before["sample_id"])
    is_new = pc.is_null(position)
    kept, was = now.filter(pc.invert(is_new)), before.take(position.drop_null())
    moved = pc.not_equal(kept["uri"], was["uri"])
    another_file = [pc.fill_null(pc.not_equal(kept[name], was[name]), False) for name in ("size_bytes", "mtime_ns")]
    another_label = pc.not_equal(pc.fill_null(kept["label"], ""), pc.fill_null(was["label"], ""))
    is_gone = pc.invert(pc.is_in(before["sample_id"], value_set=now["sample_id"]))
    return Grown(
        now.filter(is_new),
        before.filter(is_gone),
        kept.filter(moved),
        kept.filter(pc.and_not(pc.or_(*another_file), moved)),
        (was.filter(another_label), kept.filter(another_label)),
    )
