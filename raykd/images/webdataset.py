"""``format: webdataset``: tars of images, whose members with a common key belong together.

A member's key is its folder and all of its name before the first dot, the rest is its suffix; as WebDataset has it.
Only headers are read: on a disk by seeking (20 µs a member), on an object store by pieces of a few MiB, which of small
members is all of it; a tar whose index was kept is not read again while its size and time stay. Rows point into the
tar, so that an image is one read.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raykd.errors import StorageError, UserError, one_line, why
from raykd.images.columns import value_as_text
from raykd.images.decoding import SUFFIXES, instead
from raykd.images.manifest import Say, endings, few, in_order, manifest_rows
from raykd.images.stored import member_uri
from raykd.images.walk import files_below, hidden, is_utf8
from raykd.store.place import Place
from raykd.store.stage_folder import fingerprint

if TYPE_CHECKING:
    from raykd.config import Source

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.zstd", ".tar.lz4")
SIGNATURES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
PIECE_BYTES = 2**22  # of a remote tar that are read at once to find its headers
THREADS = 8  # tars that are indexed at the same time on an object store
NOT_SMALL = 2**24  # bytes; a label or a note is less
INDEX_VERSION = 1
INDEX = pa.schema(
    [("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("content", pa.binary())]  # .cls and .json
)


@dataclass(frozen=True)
class Tar:
    """A tar, by the name that ids begin with."""

    name: str
    place: Place
    size: int
    mtime_ns: int | None


def list_webdataset(source: Source, split: str, say: Say, kept: Place | None = None) -> pa.Table:
    """A row for each key that has an image, in the order of tars and members.

    Args:
        source: Its path is a tar, a folder of them, or a pattern such as ``shard-{000000..000099}.tar``.
        kept: A folder for the indexes of tars; None: none is kept.

    Raises:
        UserError: No tar, one that is compressed or broken from its beginning, or a key with several images.
        StorageError: A folder or a tar cannot be read.
    """
    tars = find_tars(source.path, split, say)
    notes = bool(source.label_column or source.id_column)
    with ThreadPoolExecutor(1 if tars[0].place.is_local else THREADS) as pool:
        indexes = list(pool.map(lambda tar: index_of(tar, split, notes, kept), tars))
    left_out: Counter[str] = Counter()
    first: dict[str, str] = {}
    for tar, index in zip(tars, indexes, strict=True):
        for kind, names in json.loads((index.schema.metadata or {})[b"left_out"]).items():
            left_out[kind] += names["count"]
            first.setdefault(kind, f"{names['first']!r} in {tar.name}")
    for kind, count in left_out.items():
        say(split, f"{count:,} {kind}, such as {first[kind]}; left out")
    by_cls = source.label_column is None and any(
        pc.any(pc.ends_with(index["name"], ".cls")).as_py() for index in indexes
    )
    tables, others, without, keys = [], [], [], set()
    for tar, index in zip(tars, indexes, strict=True):
        samples = Samples(source, split, tar, index)
        tables.append(samples.rows(by_cls))
        if not any(table.num_rows for table in tables):
            others += samples.others  # to be said if there is no image at all
        without += samples.without_image
        keys |= samples.json_keys
    rows = pa.concat_tables(tables)
    if not rows.num_rows:
        raise UserError(
            f"{split}: no image in the tars of {source.path}: they hold {endings(others) or 'no file'}. Read are "
            f"{', '.join(SUFFIXES)}" + (f"; image_column is {source.image_column!r}" if source.image_column else "")
        )
    if without:
        say(split, f"{len(without):,} keys in {source.path} have no image, such as {without[0]!r}; left out")
    if by_cls:
        say(split, f"labels are those in the .cls members of {source.path}")
    if source.label_column and rows["label"].null_count == rows.num_rows:
        raise UserError(
            f"{split}.label_column: no .json member in {source.path} has the key {source.label_column!r}; "
            f"{'they have ' + few(in_order(keys), 8) if keys else 'there is no .json member'}"
        )
    return rows


# ---------------------------------------------------------------- which tars


def find_tars(path: str, split: str, say: Say) -> list[Tar]:
    """The tars that a path names, sorted by name (of a pattern, in its order)."""
    place = Place.of(path)
    if not BRACES.search(path) or ("://" not in path and place.exists()):
        if place.is_dir():
            files = files_below(place, split, say)
            refuse_compressed(files.names, split)
            of_tars = [i for i, name in enumerate(files.names) if name.lower().endswith(".tar")]
            if not of_tars:
                raise UserError(
                    f"{split}: no .tar in {path} (format webdataset): it holds {endings(files.names) or 'no file'}"
                )
            return [Tar(files.names[i], place / files.names[i], files.sizes[i], files.times[i]) for i in of_tars]
        paths = [path]
    else:
        paths = list(expanded(path))
    refuse_compressed(paths, split)
    root = path.rfind("/", 0, path.index("{")) + 1 if paths != [path] else None  # ids begin with what is below
    tars, missing = [], []
    for one in paths:
        info = (tar := Place.of(one)).fs.get_file_info(tar.path)
        if not info.is_file:
            missing.append(one)
        name = tar.name if root is None else one[root:].partition("?")[0]
        tars.append(Tar(name, tar, info.size, info.mtime_ns))
    if missing:
        hint = "; a pattern is written {000000..000099}" if "*" in path else ""
        raise UserError(f"{split}: {len(missing)} of {len(paths)} tars are not there, such as {missing[0]!r}{hint}")
    if other := next((tar.place for tar in tars if not tar.place.name.lower().endswith(".tar")), None):
        raise UserError(f"{split}: {other} is no tar by its name; expected .tar, a folder of them or a pattern")
    return tars


def expanded(pattern: str) -> Iterator[str]:
    """The paths that ``{000..099}`` and ``{a,b}`` stand for, as a shell has it.

    Example:
        >>> list(expanded("{a,b}-{08..10}.tar"))
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    if not (found := BRACES.search(pattern)):
        yield pattern
        return
    first, last, words = found.groups()
    if words is None:
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        values: Any = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    else:
        values = words.split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    for value in values:
        yield from (f"{head}{value}{rest}" for rest in expanded(tail))


def refuse_compressed(names: list[str], split: str) -> None:
    if found := [name for name in names if name.lower().partition("?")[0].endswith(COMPRESSED)]:
        raise UserError(
            f"{split}: {found[0]!r} is compressed ({len(found)} such files): its images could not be read one by one. "
            "Decompress it to .tar; images are hardly smaller compressed"
        )


# ---------------------------------------------------------------- what is in a tar


def index_of(tar: Tar, split: str, notes: bool, kept: Place | None) -> pa.Table:
    """INDEX of a tar's files, in order, and what is left out in its metadata; kept by size and time, if it may be."""
    file = None
    if kept is not None and tar.mtime_ns is not None:
        about = [INDEX_VERSION, tar.place.uri, tar.size, tar.mtime_ns, notes]
        file = kept / f"{fingerprint(about)}.parquet"
        if file.exists():
            return file.read_table()
    try:
        index = read_index(tar, notes)
    except (tarfile.TarError, ValueError) as error:
        what = str(error) if isinstance(error, UserError) else one_line(error)
        raise UserError(f"{split}: {tar.place} cannot be read as a tar: {what}") from error
    except OSError as error:
        raise StorageError(f"{split}: cannot read {tar.place}: {why(error)}") from error
    if file is not None:
        file.write_table(index)
    return index


def read_index(tar: Tar, notes: bool) -> pa.Table:
    """INDEX of a tar, from its headers; ``notes``: with what .json members say."""
    small = (".cls", ".json") if notes else (".cls",)
    rows: dict[str, tuple[int, int, bytes | None]] = {}
    left_out: dict[str, dict[str, Any]] = {}

    def leave_out(kind: str, name: str) -> None:
        left_out.setdefault(kind, {"count": 0, "first": name})["count"] += 1

    with opened(tar.place) as stream:
        start = stream.read(1024)
        for signature, name in SIGNATURES.items():
            if start.startswith(signature):
                raise UserError(f"its content is compressed ({name}); decompress it")
        stream.seek(0)
        try:
            members = Members(stream, tar.size)
        except tarfile.TarError as error:
            raise UserError(instead(start) or one_line(error)) from error
        for member in members:
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            if not name.isascii() and not is_utf8(name):
                leave_out("names are not UTF-8", repr(name))
            elif any(map(hidden, name.split("/"))):
                leave_out("hidden members", name)
            elif member.issym() or member.islnk():
                leave_out("links inside tars", name)
            elif not member.isreg() or member.sparse is not None:
                leave_out("members are no plain files (devices, sparse files)", name)
            elif "." not in name.rpartition("/")[2]:
                leave_out("members have no suffix, so no key", name)
            elif member.offset_data + member.size > tar.size:
                leave_out("members are cut off: the tar ends before they do", name)
            else:
                content = None
                if name.lower().endswith(small) and member.size < NOT_SMALL:
                    stream.seek(member.offset_data)
                    content = stream.read(member.size)
                if name in rows:  # as `tar -u` writes them; the last counts when it is unpacked
                    leave_out("members are in a tar again, further on, which counts", name)
                    del rows[name]
                rows[name] = member.offset_data, member.size, content
        if members.trouble:
            leave_out(members.trouble, f"{len(rows):,} files before")
    columns = [list(rows), *([row[i] for row in rows.values()] for i in range(3))]
    return pa.table(columns, schema=INDEX).replace_schema_metadata({"left_out": json.dumps(left_out)})


class Members:
    """The members of an open tar, each once and none kept in memory; then ``trouble`` says whether it was whole."""

    def __init__(self, stream: Any, size: int) -> None:
        self.tar: Any = tarfile.TarFile(fileobj=stream)  # raises ReadError when it is none from the beginning
        self.stream, self.size, self.trouble = stream, size, ""

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            while (member := self.tar.next()) is not None:
                self.tar.members = []
                yield member
        except tarfile.TarError:  # the tar ends inside a member
            self.trouble = "tars are cut off"
            return
        # tarfile takes a header that is broken for the end, so what stands there is looked at
        self.stream.seek(end := self.tar.offset)
        block = self.stream.read(tarfile.BLOCKSIZE)
        if not block:
            self.trouble = "tars have no end mark, so may be cut off" if end else ""
        elif block.strip(b"\0"):
            self.trouble = "tars are cut off or damaged in the middle"
        else:
            while block := self.stream.read(PIECE_BYTES):
                if block.strip(b"\0"):
                    self.trouble = "tars go on after their end mark (several put one after the other?)"
                    return


def opened(place: Place) -> Any:
    """A tar to seek in: as it is on a disk, and in pieces on an object store."""
    if place.is_local:
        return open(place.path, "rb")
    return io.BufferedReader(_Remote(place), PIECE_BYTES)


class _Remote(io.RawIOBase):
    """What :class:`io.BufferedReader` asks of a file; as on a disk, one may seek to behind the end."""

    def __init__(self, place: Place) -> None:
        self.file = place.fs.open_input_file(place.path)
        self.position, self.size = 0, self.file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.size - self.position)
        data = self.file.read_at(size, self.position) if size > 0 else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


# ---------------------------------------------------------------- samples: members with one key


class Samples:
    """The members of a tar by their keys."""

    def __init__(self, source: Source, split: str, tar: Tar, index: pa.Table) -> None:
        self.source, self.split, self.tar = source, split, tar
        self.images: dict[str, dict[str, tuple[str, int, int]]] = {}  # by key and suffix
        self.classes: dict[str, bytes] = {}
        self.notes: dict[str, bytes] = {}
        self.others: list[str] = []
        keys: dict[str, None] = {}
        chosen = source.image_column and source.image_column.lower().removeprefix(".")
        names, offsets, sizes, contents = (index[column].to_pylist() for column in INDEX.names)
        for name, offset, size, content in zip(names, offsets, sizes, contents, strict=True):
            folder, slash, base = name.rpartition("/")
            stem, _, written = base.partition(".")
            key, suffix = folder + slash + stem, written.lower()
            keys[key] = None
            if f".{suffix}".endswith(SUFFIXES) and chosen in (None, suffix):
                self.images.setdefault(key, {})[written] = name, offset, size
            elif suffix == "cls" and content is not None:
                self.classes[key] = content
            elif suffix == "json" and content is not None:
                self.notes[key] = content
            else:
                self.others.append(name)
        self.without_image = [key for key in keys if key not in self.images]

    @property
    def json_keys(self) -> set[str]:
        return {name for key in itertools.islice(self.notes, 20) for name in self.note(key)}

    def rows(self, by_cls: bool) -> pa.Table:
        """MANIFEST of the keys that have an image; ``by_cls``: labels are in the .cls members."""
        uris, sizes, labels, ids = [], [], [], []
        for key, images in self.images.items():
            if len(images) > 1:
                raise UserError(
                    f"{self.split}: {self.tar.place}: the key {key!r} (the name before its first dot) has "
                    f"{len(images):,} images: {few([f'{key}.{suffix}' for suffix in images])}. If one of them is "
                    "meant, name its suffix as image_column; else rename the members: one key an image"
                )
            ((name, offset, size),) = images.values()
            uris.append(member_uri(self.tar.place, offset, size, name))
            sizes.append(size)
            ids.append(f"{self.tar.name}/{key}")
            if self.source.id_column:
                ids[-1] = self.noted(key, self.source.id_column) or self.without_id(key)
            labels.append(self.label(key, by_cls))
        times = pa.repeat(pa.scalar(self.tar.mtime_ns, pa.int64()), len(uris))
        return manifest_rows(self.split, pa.array(ids, pa.string()), uris, sizes, times, labels)

    def label(self, key: str, by_cls: bool) -> str | None:
        if self.source.label_column:
            return self.noted(key, self.source.label_column) or None
        if not by_cls or key not in self.classes:
            return None
        try:
            return self.classes[key].decode("utf-8-sig").strip() or None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.split}: {key}.cls in {self.tar.place} is not UTF-8; expected a label") from error

    def noted(self, key: str, name: str) -> str | None:
        return value_as_text(self.note(key).get(name), f"{self.split}: {name!r} in {key}.json of {self.tar.place}")

    def note(self, key: str) -> dict[str, Any]:
        """What a key's .json says; nothing where there is none."""
        if key not in self.notes:
            return {}
        try:
            note = json.loads(self.notes[key])
        except ValueError as error:
            raise UserError(f"{self.split}: {key}.json in {self.tar.place} is not JSON ({error})") from error
        return note if isinstance(note, dict) else {}

    def without_id(self, key: str) -> str:
        raise UserError(
            f"{self.split}.id_column: {key}.json in {self.tar.place} has no {self.source.id_column!r}; every image "
            "needs its own id (id_column: null takes tar and key)"
        )
