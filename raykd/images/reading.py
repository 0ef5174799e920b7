"""From an image's uri to its bytes, and to what is made of them. Knows no Ray.

A uri is the path or URI of an image file, or ``<Parquet file>#<column>/<row>`` for bytes inside Parquet (the row in
nine digits, so that the order of uris is that of the file); the column may be Hugging Face's ``struct<bytes, path>``.

Three things can go wrong. The image is broken: that stays so, and is a reason. It is not there: a reason too, which
begins with :data:`raykd.images.decoding.UNREACHABLE`, as it can be mended. The storage does not answer: no image's
fault, so it is tried again and then raised as :class:`StorageError`. What becomes of the bytes:
:mod:`raykd.images.decoding`.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raykd.errors import StorageError, UserError, one_line
from raykd.images.decoding import OUT_OF_MEMORY, UNREACHABLE, Shrinks, decode, reason_of
from raykd.store.place import Place

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")  # in any case
INSIDE_PARQUET = re.compile(
    rf"(?P<file>.+(?i:{'|'.join(map(re.escape, PARQUET_SUFFIXES))})(\?[^#]*)?)#(?P<column>[^#/]+)/(?P<row>\d+)",
    re.DOTALL,
)
FETCHED_AHEAD = 8  # files
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR)
ABOUT_ONE_FILE = (*NOT_FOUND, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
Result = TypeVar("Result")


class ImageReader:
    """Reads encoded images, from files or from Parquet rows, with a bounded cache of row groups.

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

    def read(self, uri: str) -> bytes:
        """The encoded bytes.

        Raises:
            OSError: This file is not there or must not be read; or it is a damaged Parquet file.
            ValueError: The Parquet row holds no bytes, or the uri is none.
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
                self._files.pop(uri.rpartition("#")[0], None)  # an open file may be what is stale
                self.sleep(wait_s)

    def _read(self, uri: str) -> bytes:
        if not (inside := INSIDE_PARQUET.fullmatch(uri)):
            return Place(uri).read_bytes()
        value = self._row(inside["file"], inside["column"], int(inside["row"]))
        if isinstance(value, dict):  # Hugging Face: the bytes, or where they are
            if not value.get("bytes") and value.get("path"):
                return beside(Place(inside["file"]), value["path"]).read_bytes()
            value = value.get("bytes")
        if not value:
            raise UserError("no image bytes in this row")
        if not isinstance(value, bytes):
            raise UserError(f"{type(value).__name__} in this row; expected image bytes")
        return value

    def _row(self, uri: str, column: str, row: int) -> Any:
        if uri not in self._files:
            place = Place(uri)
            file = pq.ParquetFile(place.path, filesystem=place.fs)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            self._files[uri] = file, np.cumsum([0, *sizes])
        file, starts = self._files[uri]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        key = (uri, column, group)
        if key not in self._groups:
            self._groups[key] = file.read_row_group(group, columns=[column])[column]
            while len(self._groups) > 1 and sum(chunk.nbytes for chunk in self._groups.values()) > self.cache_bytes:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key][row - int(starts[group])].as_py()


def beside(file: Place, path: str) -> Place:
    """What a file calls ``path``: a URI, an absolute path, or one relative to the file's folder."""
    if "://" in path or path.startswith("/"):
        return Place(path)
    return file.sibling(file.path.rpartition("/")[0]) / path


# ---------------------------------------------------------------- without ever raising for a bad image


def load_one(
    reader: ImageReader,
    uri: str,
    transform: Callable[[Image.Image], Result],
    shrinks: Shrinks | None = None,
    changes: Counter[str] | None = None,
) -> Result | str:
    """What ``transform`` makes of the decoded image, or in one short line why there is none.

    Never raises for a bad image, one that ``transform`` cannot take included.

    Args:
        reader: Gets the bytes.
        uri: Where they are.
        transform: From an RGB image.
        shrinks: See :func:`raykd.images.decoding.decode`.
        changes: Counts what was done to readable images on their way (``decoding.CHANGES``).

    Raises:
        StorageError: The storage fails, so nothing can be said about the image.
    """
    return _made_of(_attempt(reader.read, uri), transform, shrinks, changes)


def load_many(
    reader: ImageReader,
    uris: list[str],
    transform: Callable[[Image.Image], Result],
    shrinks: Shrinks | None = None,
    changes: Counter[str] | None = None,
) -> Iterator[Result | str]:
    """:func:`load_one` of each uri, in order, as they are asked for.

    Decoding is this thread's: one image at a time is in memory at full size. Files of an object store are fetched
    ahead, :data:`FETCHED_AHEAD` at most; what lies on a disk comes as fast as it is asked for.
    """
    if not any(map(is_remote, uris)) or any(map(INSIDE_PARQUET.fullmatch, uris)):
        for uri in uris:
            yield load_one(reader, uri, transform, shrinks, changes)
        return
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        todo, ahead = deque(uris), deque[Future[bytes | Exception]]()
        while todo or ahead:
            while todo and len(ahead) <= FETCHED_AHEAD:
                ahead.append(pool.submit(_attempt, reader.read, todo.popleft()))
            yield _made_of(ahead.popleft().result(), transform, shrinks, changes)


def _attempt(read: Callable[[str], bytes], uri: str) -> bytes | Exception:
    try:
        return read(uri)
    except StorageError:
        raise
    except Exception as error:
        return error


def _made_of(
    encoded: bytes | Exception,
    transform: Callable[[Image.Image], Result],
    shrinks: Shrinks | None,
    changes: Counter[str] | None,
) -> Result | str:
    try:
        if isinstance(encoded, Exception):
            raise encoded
        decoded = decode(encoded, shrinks)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        number = getattr(error, "errno", None)
        if number in ABOUT_ONE_FILE:
            return UNREACHABLE + ("not found" if number in NOT_FOUND else os.strerror(number).lower())
        return reason_of(error)
    try:
        result = transform(decoded.image)
    except Exception as error:
        return OUT_OF_MEMORY if isinstance(error, MemoryError) else "cannot be cropped or resized"
    if changes is not None:
        changes.update(decoded.changes)
    return result


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file:")


def storage_fails(error: Exception, uri: str) -> bool:
    """Whether a reading error is of the network, the credentials or the disk, and not of this one image.

    A local error has an errno, unless the content is what is wrong (a damaged Parquet file). An object store's has one
    only when the object is not there, so a damaged Parquet file on a bucket counts as the storage's.
    """
    cause = error.__cause__ if isinstance(error, ValueError) else error  # Place: the filesystem cannot be reached
    if not isinstance(cause, OSError):
        return False
    return cause.errno not in ABOUT_ONE_FILE and (is_remote(uri) or cause.errno is not None)
