"""From an image's uri to its encoded bytes, wherever they lie. Knows no Ray.

A uri is the path or URI of an image file, or names bytes inside another file:

- ``<Parquet file>#<column>/<row>``; the column may be Hugging Face's ``struct<bytes, path>``;
- ``<tar>#<offset>+<size>/<name>``: a member of a tar, read in one piece; its name is only for people.

Row and offset have leading zeros, so that the order of uris is the order in the file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.errors import StorageError, UserError, one_line
from raykd.images.decoding import UNREACHABLE
from raykd.store.place import Place

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")  # in any case
INSIDE_PARQUET = re.compile(
    rf"(?P<file>.+(?i:{'|'.join(map(re.escape, PARQUET_SUFFIXES))})(\?[^#]*)?)#(?P<column>[^#/]+)/(?P<row>\d+)",
    re.DOTALL,
)
INSIDE_TAR = re.compile(r"(?P<file>.+(?i:\.tar)(\?[^#]*)?)#(?P<offset>\d{12,})\+(?P<size>\d+)/[^#]*", re.DOTALL)
SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # of URIs that pyarrow reads
SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,15}")
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR)
ABOUT_ONE_FILE = (*NOT_FOUND, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
AHEAD_BYTES = 2**23  # read at once from a remote tar whose members are asked for one after the other
MOST_BYTES = 2**30  # of one encoded image
NUM_AHEAD = 8  # of such pieces that are kept
ROWS_LOCK, TARS_LOCK = threading.Lock(), threading.Lock()  # not in the objects: readers are sent to other processes


def member_uri(tar: Place, offset: int, size: int, name: str) -> str:
    """The uri of a member of a tar, by where its bytes lie."""
    return f"{tar.uri}#{offset:012d}+{size}/{name.replace('#', '%23')}"


class ImageReader:
    """Reads encoded images from files, rows of Parquet and members of tars, with a bounded cache of row groups.

    Threads may share it; rows of Parquet come to them one after the other.

    Rows that lie together cost one read per row group. Random access (training) is quick while a process' share
    of the encoded images fits ``cache_bytes`` or row groups are small; files by URI have no such limit.

    Args:
        cache_bytes: Bound of the cached row groups.
        waits_s: How long to wait before each further attempt when the storage fails.
        sleep: What waits.
    """

    def __init__(
        self,
        cache_bytes: int = 512 * 2**20,
        waits_s: tuple[float, ...] = (0.5, 2.0, 8.0),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cache_bytes, self.waits_s, self.sleep = cache_bytes, waits_s, sleep
        self._files: dict[str, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._groups: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()
        self._tars = RemoteTars()

    def read(self, uri: str) -> bytes:
        """The encoded bytes.

        Raises:
            OSError: This file is not there or must not be read; or it is a damaged Parquet file.
            ValueError: The Parquet row holds no bytes, the tar ends before the member does, or the uri is none.
            StorageError: The storage fails, at every attempt.
        """
        waits_s = iter(self.waits_s)
        while True:
            try:
                return self._read(uri)
            except (OSError, ValueError) as error:
                if not storage_fails(error, uri):
                    raise
                if (wait_s := next(waits_s, None)) is None:
                    raise StorageError(
                        f"cannot read {uri!r} ({1 + len(self.waits_s)} attempts): {one_line(error)}. That is the "
                        "storage, the network or the credentials, not this image; mend it and run again: what is done "
                        "is kept"
                    ) from error
                self._files.pop(file := uri.rpartition("#")[0], None)  # an open file may be what is stale
                self._tars.forget(file)
                self.sleep(wait_s)

    def _read(self, uri: str) -> bytes:
        if inside := INSIDE_TAR.fullmatch(uri):
            return self._member(inside["file"], int(inside["offset"]), int(inside["size"]))
        if not (inside := INSIDE_PARQUET.fullmatch(uri)):
            return read_file(uri)
        with ROWS_LOCK:
            value = self._row(inside["file"], inside["column"], int(inside["row"]))
        if isinstance(value, dict):  # Hugging Face: the bytes, or where they are
            if not value.get("bytes") and value.get("path"):
                return read_file(beside(Place(inside["file"]), value["path"]).uri)
            value = value.get("bytes")
        if not value:
            raise UserError("no image bytes in this row")
        if not isinstance(value, bytes):
            raise UserError(f"{type(value).__name__} in this row; expected image bytes")
        return value

    def _member(self, uri: str, offset: int, size: int) -> bytes:
        if "://" in uri:
            data = self._tars.read(place_of(uri), offset, size)
        else:
            with open(uri, "rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        if len(data) < size:
            raise UserError("the tar ends before this image does: it was cut off, or written anew since it was listed")
        return data

    def _row(self, uri: str, column: str, row: int) -> Any:
        if uri not in self._files:
            place = place_of(uri)
            file = pq.ParquetFile(place.path, filesystem=place.fs)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            self._files[uri] = file, np.cumsum([0, *sizes])
        file, starts = self._files[uri]
        if row >= starts[-1]:
            raise UserError("no such row in the Parquet file: was it written anew since it was listed?")
        if column not in file.schema_arrow.names:
            raise UserError("no such column in the Parquet file: was it written anew since it was listed?")
        group = int(np.searchsorted(starts, row, side="right")) - 1
        key = (uri, column, group)
        if key not in self._groups:
            self._groups[key] = file.read_row_group(group, columns=[column])[column]
            while len(self._groups) > 1 and sum(chunk.nbytes for chunk in self._groups.values()) > self.cache_bytes:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key][row - int(starts[group])].as_py()


class RemoteTars:
    """Members of tars on an object store; threads may share it.

    Members that are asked for in the order of the file, as a pass over the pool does, are served from a piece of
    :data:`AHEAD_BYTES`, one request for many; any other costs a request of its own size.
    """

    def __init__(self) -> None:
        self._files: dict[str, pa.NativeFile] = {}
        self._pieces: OrderedDict[str, tuple[int, bytes]] = OrderedDict()  # of a tar: where its last piece began

    def read(self, place: Place, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; fewer when the tar ends before."""
        with TARS_LOCK:
            if place.uri not in self._files:
                self._files[place.uri] = place.fs.open_input_file(place.path)
            file = self._files[place.uri]
            start, piece = self._pieces.get(place.uri, (-(2**62), b""))
            gap = offset - start
            if 0 <= gap <= len(piece) - size:
                self._pieces.move_to_end(place.uri)
                return piece[gap : gap + size]
            if 0 < gap <= len(piece) + AHEAD_BYTES:
                piece = file.read_at(max(size, AHEAD_BYTES), offset)
                self._keep(place.uri, offset, piece)
                return piece[:size]
            if not -AHEAD_BYTES <= gap < 0:  # else it is a thread that comes a little late
                self._keep(place.uri, offset, b"")
        data: bytes = file.read_at(size, offset)
        return data

    def _keep(self, uri: str, start: int, piece: bytes) -> None:
        self._pieces[uri] = start, piece
        self._pieces.move_to_end(uri)
        while len(self._pieces) > NUM_AHEAD:
            self._pieces.popitem(last=False)

    def forget(self, uri: str) -> None:
        """Open the tar anew when it is read next."""
        with TARS_LOCK:
            self._files.pop(uri, None)
            self._pieces.pop(uri, None)


def beside(file: Place, path: str) -> Place:
    """What a file calls ``path``: a URI, an absolute path, or one relative to the file's folder."""
    if "://" in path or path.startswith("/"):
        return Place(path)
    return file.sibling(file.path.rpartition("/")[0]) / path


def read_file(uri: str) -> bytes:
    """All bytes of a file that is an image."""
    place = place_of(uri)
    if place.is_local:
        check_regular(place.path)
    return place.read_bytes()


def place_of(uri: str) -> Place:
    """Where an image lies. Raises UserError, a reason that can be counted, when no filesystem is meant by the URI."""
    place, scheme = Place(uri), uri.partition("://")[0].lower()
    try:
        place.fs  # noqa: B018
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        if scheme in SCHEMES:
            raise UserError(f"not a URI of {scheme} as it is expected") from error
        raise UserError(not_read(scheme)) from error
    return place


def not_read(scheme: str) -> str:
    """Why images of ``https``, ... are not read, and what to do."""
    kind = scheme if SCHEME.fullmatch(scheme) else "a URI of no known kind"
    return f"{kind} is not read; fetch the images, and give paths or URIs of {', '.join(SCHEMES[:3])}"


def storage_fails(error: Exception, uri: str) -> bool:
    """Whether a reading error is of the network, the credentials or the disk, and not of this one image.

    A local error has an errno, unless the content is what is wrong (a damaged Parquet file). An object store's has one
    only when the object is not there, so a damaged Parquet file on a bucket counts as the storage's.
    """
    cause = error.__cause__ if isinstance(error, ValueError) else error  # Place: the filesystem cannot be reached
    if not isinstance(cause, OSError):
        return False
    return cause.errno not in ABOUT_ONE_FILE and (is_remote(uri) or cause.errno is not None)


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file:")


def check_regular(path: str) -> None:
    """Refuse, by UserError or OSError, to read what may have no end: a pipe, a device, a file beyond all images."""
    about = os.stat(path)
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{UNREACHABLE}a pipe or a device")
    if about.st_size > MOST_BYTES:
        raise UserError(f"too large: a file of more than {MOST_BYTES / 2**20:.0f} MiB")
