"""From an image's uri to pixels. Knows no Ray.

A uri is the path or URI of an image file, or ``<parquet file>#<column>/<row>`` for bytes inside Parquet (the row in
nine digits, so that the order of uris is that of the file).
"""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raykd.storage import Place

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
INSIDE_PARQUET = re.compile(r"(?P<file>.+\.parquet(\?[^#]*)?)#(?P<column>[^#/]+)/(?P<row>\d+)", re.DOTALL)


class ImageReader:
    """Reads encoded images, from files or from Parquet rows, with a bounded cache of row groups.

    Rows that lie together cost one read per row group. Random access (training) is quick while a process' share
    of the encoded images fits ``cache_bytes`` or row groups are small; files by URI have no such limit.
    """

    def __init__(self, cache_bytes: int = 512 * 2**20) -> None:
        self.cache_bytes = cache_bytes
        self._files: dict[str, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._groups: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()

    def read(self, uri: str) -> bytes:
        """The encoded bytes.

        Raises:
            OSError: Not there, or not readable.
            ValueError: The Parquet row holds no bytes.
        """
        if not (inside := INSIDE_PARQUET.fullmatch(uri)):
            return Place(uri).read_bytes()
        value = self._row(inside["file"], inside["column"], int(inside["row"]))
        if not value:
            raise ValueError("no image bytes in this row")
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


def decode(encoded: bytes) -> Image.Image:
    """The image as RGB.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: Not an image, truncated, or absurdly large.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode == "F":
            raise ValueError("floating-point pixels, of unknown range; expected 8 or 16 bits a channel")
        if not image.mode.startswith("I"):
            return image.convert("RGB")
        pixels = np.asarray(image)  # Pillow's own conversion clips 16 bits at 255: all white
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("32-bit pixels, of unknown range; expected 8 or 16 bits a channel")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")


def load(reader: ImageReader, uri: str) -> Image.Image | str:
    """The decoded image, or in one short line why there is none. Never raises for a bad image."""
    try:
        return decode(reader.read(uri))
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text}"[:200]


def load_many(reader: ImageReader, uris: list[str], threads: int = 8) -> list[Image.Image | str]:
    """:func:`load` of each uri, in order; files are fetched in parallel, Parquet rows one after the other."""
    if any(map(INSIDE_PARQUET.fullmatch, uris)):
        return [load(reader, uri) for uri in uris]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri: load(reader, uri), uris))
