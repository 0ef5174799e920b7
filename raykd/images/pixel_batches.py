"""Batches of uris to batches of pixels: what a reading task does. Without Ray and torch, so that it starts fast.

A row of these tables is a whole batch, so nothing that cuts or joins tables on the way can mix two batches: a network's
last bits depend on what is in a batch, and where.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from raykd.images.decoding import LARGE_BYTES, Shrinks
from raykd.images.reading import load_many
from raykd.images.stored import ImageReader
from raykd.images.transforms import RandomViews, height_width

_NAMES = pa.list_(pa.string())
URI_BATCHES = pa.schema([("part", pa.int64()), ("sample_ids", _NAMES), ("uris", _NAMES), ("splits", _NAMES)])
PIXEL_BATCHES = pa.schema(
    [
        *(URI_BATCHES.field(name) for name in ("part", "sample_ids", "splits")),
        ("errors", _NAMES),  # why an image has no pixels; null: it has
        ("changes", pa.map_(pa.string(), pa.int64())),  # how often which of decoding.CHANGES was made
        ("pixels", pa.large_binary()),  # uint8 [batch size, H, W, 3]; zeros where there is no image
        ("crops", pa.list_(pa.int32())),  # [n, k, 5], what ``RandomViews`` has drawn; null: one clean view of each
    ]
)

CACHE_BYTES = 256 * 2**20  # of row groups of Parquet
PROCESS_BYTES = 320 * 2**20  # Python with Ray and Arrow

READER = ImageReader(CACHE_BYTES)  # of this process: what it has read of a Parquet file serves the next batch too


class Transform(Protocol):
    """From an RGB image to one of a fixed size (``raykd.images.transforms``)."""

    def shrinks(self, width: int, height: int) -> float:
        """How many times smaller an image of this size is made."""

    def __call__(self, image: Image.Image) -> Image.Image: ...


@dataclass(frozen=True)
class Fetch:
    """Reads images; a bad one becomes a black square and a reason.

    Args:
        transform: What is made of each.
        size: Height and width of the result, pixels.
        batch_size: Rows of every batch, whatever number of images is in it.
        exact: JPEGs are never decoded at a reduced size.
    """

    transform: Transform
    size: tuple[int, int]
    batch_size: int
    exact: bool = False

    @property
    def batch_bytes(self) -> int:
        return self.batch_size * math.prod(self.size) * 3

    @property
    def memory_bytes(self) -> int:
        """What a process that does this needs at most, but for one image above ``decoding.LARGE_BYTES`` a machine."""
        return _memory_bytes(self.batch_bytes)

    def __call__(self, batches: pa.Table) -> Iterator[pa.Table]:
        """URI_BATCHES to PIXEL_BATCHES, one at a time."""
        shrinks: Shrinks | None = None if self.exact else self.transform.shrinks
        for batch in batches.to_pylist():
            pixels = np.zeros((self.batch_size, *self.size, 3), np.uint8)
            errors: list[str | None] = []
            changes: Counter[str] = Counter()
            for i, image in enumerate(load_many(READER, batch["uris"], self.transform, shrinks, changes)):
                errors.append(image if isinstance(image, str) else None)
                if not isinstance(image, str):
                    pixels[i] = np.asarray(image)
            yield _row(batch, errors, changes, pixels, None)


@dataclass(frozen=True)
class FetchViews:
    """As :class:`Fetch`, but each image, decoded once, becomes k random crops.

    Args:
        views: Draws and cuts them.
        batch_size: Images of every batch; it has k times as many rows of pixels, an image's views one after another.
        exact: JPEGs are never decoded at a reduced size. Else crops are drawn in pixels of the reduced image.
    """

    views: RandomViews
    batch_size: int
    exact: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return height_width(self.views.crop.size)

    @property
    def batch_bytes(self) -> int:
        return self.batch_size * self.views.count * math.prod(self.size) * 3

    @property
    def memory_bytes(self) -> int:
        """As of :class:`Fetch`."""
        return _memory_bytes(self.batch_bytes)

    def __call__(self, batches: pa.Table) -> Iterator[pa.Table]:
        """URI_BATCHES to PIXEL_BATCHES, one at a time."""
        shrinks = None if self.exact else self.views.shrinks
        for batch in batches.to_pylist():
            pixels = np.zeros((self.batch_size, self.views.count, *self.size, 3), np.uint8)
            crops = np.zeros((len(batch["uris"]), self.views.count, 5), np.int32)
            errors: list[str | None] = []
            changes: Counter[str] = Counter()
            transforms = [partial(self.views, sample_id=sample_id) for sample_id in batch["sample_ids"]]
            for i, found in enumerate(load_many(READER, batch["uris"], transforms, shrinks, changes)):
                errors.append(found if isinstance(found, str) else None)
                if not isinstance(found, str):
                    pixels[i], crops[i] = found
            yield _row(batch, errors, changes, pixels, crops.ravel())


def _memory_bytes(batch_bytes: int) -> int:
    return PROCESS_BYTES + CACHE_BYTES + LARGE_BYTES + 4 * batch_bytes


def _row(
    batch: dict[str, Any],
    errors: list[str | None],
    changes: Counter[str],
    pixels: np.ndarray,
    crops: np.ndarray | None,
) -> pa.Table:
    """A row of PIXEL_BATCHES, without a copy of the pixels."""
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    row: dict[str, Any] = {name: [batch[name]] for name in ("part", "sample_ids", "splits")}
    row |= {"errors": [errors], "changes": [list(changes.items())], "crops": [crops]}
    row["pixels"] = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)])
    return pa.table(row, schema=PIXEL_BATCHES)


@dataclass(frozen=True)
class PixelBatch:
    """A batch as a model takes it: n images, and zeros up to the batch size.

    Args:
        part: The number of the part that it belongs to.
        sample_ids, splits: Of its images, string [n].
        errors: Why an image has no pixels, string [n]; null: it has.
        changes: How often which of ``decoding.CHANGES`` was made.
        pixels: uint8 [batch size, H, W, 3], not to be written to; of k views k times as many.
        crops: Of views: int32 [n, k, 5], as :class:`raykd.images.transforms.RandomViews` gives them; zeros where an
            image has no pixels.
    """

    part: int
    sample_ids: pa.Array
    splits: pa.Array
    errors: pa.Array
    changes: Mapping[str, int]
    pixels: np.ndarray
    crops: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def bad_N(self) -> np.ndarray:
        """Which images have no pixels, bool [n]."""
        bad: np.ndarray = self.errors.is_valid().to_numpy(zero_copy_only=False)
        return bad


def batches_of(table: pa.Table, size: tuple[int, int]) -> Iterator[PixelBatch]:
    """The batches of PIXEL_BATCHES, of images of this height and width."""
    for rows in table.to_batches():
        for i in range(rows.num_rows):
            pixels = np.frombuffer(rows["pixels"][i].as_buffer(), np.uint8)
            sample_ids, crops = rows["sample_ids"][i].values, rows["crops"][i].values
            yield PixelBatch(
                part=rows["part"][i].as_py(),
                sample_ids=sample_ids,
                splits=rows["splits"][i].values,
                errors=rows["errors"][i].values,
                changes=dict(rows["changes"][i].as_py()),
                pixels=pixels.reshape(-1, *size, 3),
                crops=None if crops is None else crops.to_numpy().reshape(len(sample_ids), -1, 5),
            )
