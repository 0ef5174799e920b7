"""From an image's uri to pixels. Knows no Ray.

A uri is the path or URI of an image file, or ``<parquet file>#<column>/<row>`` for bytes inside Parquet (the row in
nine digits, so that the order of uris is that of the file).

Three things can go wrong. The image is broken: that stays so, and is a reason. It is not there: a reason too, which
begins with :data:`UNREACHABLE`, as it can be mended. The storage does not answer: no image's fault, so it is tried
again and then raised as :class:`StorageError`.
"""

from __future__ import annotations

import errno
import io
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from raykd.errors import StorageError, UserError, one_line
from raykd.store.place import Place

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
INSIDE_PARQUET = re.compile(r"(?P<file>.+\.parquet(\?[^#]*)?)#(?P<column>[^#/]+)/(?P<row>\d+)", re.DOTALL)
UNREACHABLE = "unreachable: "  # how the reason begins when there are no bytes to decode; no other begins so
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
        if not value:
            raise UserError("no image bytes in this row")
        return value

    def _row(self, uri: str, column: str, row: int) -> bytes | None:
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


def upright(image: Image.Image) -> Image.Image:
    """The image as people see it: turned as its EXIF orientation says; as stored where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # nearly anything, on broken EXIF; the pixels may be fine, and are read next
        return image


def decode(encoded: bytes) -> Image.Image:
    """The image as RGB, upright.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: Not an image, truncated, or absurdly large.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode == "F":
            raise UserError("floating-point pixels, of unknown range; expected 8 or 16 bits a channel")
        if not image.mode.startswith("I"):
            return upright(image).convert("RGB")
        pixels = np.asarray(upright(image))  # Pillow's own conversion clips 16 bits at 255: all white
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise UserError("32-bit pixels, of unknown range; expected 8 or 16 bits a channel")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")


def load(reader: ImageReader, uri: str, transform: Callable[[Image.Image], Result]) -> Result | str:
    """What ``transform`` makes of the decoded image, or in one short line why there is none.

    Never raises for a bad image, one that ``transform`` cannot take included.

    Raises:
        StorageError: The storage fails, so nothing can be said about the image.
    """
    try:
        return transform(decode(reader.read(uri)))
    except StorageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        number = getattr(error, "errno", None)
        if number in ABOUT_ONE_FILE:
            return UNREACHABLE + ("not found" if number in NOT_FOUND else os.strerror(number).lower())
        return one_line(error)


def load_many(
    reader: ImageReader, uris: list[str], transform: Callable[[Image.Image], Result], threads: int = 8
) -> list[Result | str]:
    """:func:`load` of each uri, in order; files are fetched in parallel, Parquet rows one after the other.

    Every image is transformed as soon as it is decoded, so at most ``threads`` of them are in memory at full size.
    """
    if any(map(INSIDE_PARQUET.fullmatch, uris)):
        return [load(reader, uri, transform) for uri in uris]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri: load(reader, uri, transform), uris))


def storage_fails(error: Exception, uri: str) -> bool:
    """Whether a reading error is of the network, the credentials or the disk, and not of this one image.

    A local error has an errno, unless the content is what is wrong (a damaged Parquet file). An object store's has one
    only when the object is not there, so a damaged Parquet file on a bucket counts as the storage's.
    """
    cause = error.__cause__ if isinstance(error, ValueError) else error  # Place: the filesystem cannot be reached
    if not isinstance(cause, OSError):
        return False
    remote = "://" in uri and not uri.startswith("file:")
    return cause.errno not in ABOUT_ONE_FILE and (remote or cause.errno is not None)
