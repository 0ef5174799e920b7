"""Whatever images people have, through any model that raykd leaves behind. Knows no Ray and no torch.

A model is a :class:`Classifier`: a student, or one of the forms that it was exported to.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from PIL import Image

from raykd.errors import UserError, did_you_mean
from raykd.images import decoding
from raykd.images.reading import load_one
from raykd.images.stored import ImageReader
from raykd.models.preprocess import Preprocess
from raykd.models.threads import num_cores
from raykd.store.place import Place

Given: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
OnError = Literal["raise", "nan"]
Decode = Literal["exact", "reduced"]
Progress = bool | Callable[[int, int | None], None] | None

EXPECTED = (
    "a path or uri, a PIL image, the bytes of an image file, or an array uint8 [H, W, 3], [H, W, 4] (RGB, with alpha) "
    "or [H, W] (gray)"
)
CACHE_BYTES = 256 * 2**20  # of row groups of Parquet
BAR_AFTER_S = 1.0  # what is done by then needs none
NAMED = 5  # images that cannot be read, in a warning

log = logging.getLogger(__name__)


class Classifier(ABC):
    """What gives the class probabilities of images.

    Args:
        classes: Names, in the order of the probabilities.
        preprocess: What images go through first.
    """

    classes: list[str]
    preprocess: Preprocess

    @abstractmethod
    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [n, C], rows sum to 1, of images that are cropped already: uint8 [n, H, W, 3], 0 to 255."""

    def with_features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [n, D], and the probabilities. Raises UserError: this form of a model gives none."""
        raise UserError("this form of the model gives no features; take the student's own folder")

    def predict(
        self,
        images: Given | Iterable[Given],
        batch_size: int = 64,
        *,
        on_error: OnError = "raise",
        decode: Decode = "exact",
        progress: Progress = None,
    ) -> np.ndarray:
        """Class probabilities of images in any form, mixed or not.

        An image goes through what it went through in training: turned upright as its EXIF says, white where it is
        transparent, of 16 bits the 8 highest in use, the middle of the resized image. Files are decoded by as many
        threads as there are cores, while the model is at the batch before. In memory are, at full size, an image a
        thread; cropped, two batches.

        Args:
            images: Each a path or a uri (also of a row of Parquet or a member of a tar, as manifests have them), a PIL
                image, the bytes of an image file, or an array: uint8 [H, W, 3] in the order red, green, blue, [H, W, 4]
                with alpha, or [H, W] gray. One image, or any iterable of them, a generator too, which is drawn from as
                images are needed; of an array [n, H, W, 3] each image.
            batch_size: Images in one forward pass. Other sizes change the last bits (about 1e-6).
            on_error: Of an image that cannot be read: ``raise`` stops and names it; ``nan`` gives it a row of NaN, and
                at the end logs a warning that counts and names them. What is no image at all (another type, another
                shape) and a storage that fails are raised in any case.
            decode: ``exact``: a path gives the same pixels as its open PIL image, in torchvision's own resizing;
                ``reduced``: as campaigns do by default, large JPEGs are decoded at a fraction of their size, several
                times as fast.
            progress: A bar on stderr: True or False; None: where that is a terminal, from the first second on. Or what
                is called after each batch, with the number of images done and of all (None: not known).

        Returns:
            float32 [n, C], a row an image, in the order given; [1, C] of a single one.

        Raises:
            UserError: An image cannot be read, or is none; names it.
            StorageError: The network, the credentials or a disk fail.
        """
        for name, value, known in (("on_error", on_error, OnError), ("decode", decode, Decode)):
            if value not in get_args(known):
                raise UserError(f"unknown {name} {value!r}; {did_you_mean(str(value), get_args(known))}")
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}; expected 1 or more")
        many, total = several(images)
        num_classes, rows, bad = len(self.classes), [], []
        with shown(progress, total) as show, closing(each_read(many, self.preprocess, decode, batch_size)) as read:
            while batch := list(islice(read, batch_size)):
                for each in batch:
                    if isinstance(each.pixels, str):
                        bad.append(f"{each.name}: {each.pixels}")
                        if on_error == "raise":
                            raise UserError(f"cannot read {bad[0]}; mend it, or give on_error='nan' for a row of NaN")
                rows.append(np.full((len(batch), num_classes), np.nan, np.float32))
                good = [n for n, each in enumerate(batch) if not isinstance(each.pixels, str)]
                if good:
                    rows[-1][good] = self.probabilities(np.stack([batch[n].pixels for n in good]))
                show(len(batch))
        if bad:
            named = "; ".join(bad[:NAMED]) + ("; ..." if len(bad) > NAMED else "")
            log.warning(
                "%d of %d images cannot be read, and their rows are NaN: %s", len(bad), sum(map(len, rows)), named
            )
        return np.concatenate(rows) if rows else np.empty((0, num_classes), np.float32)


# ---------------------------------------------------------------- from what is given to pixels


def several(images: Any) -> tuple[Iterable[Given], int | None]:
    """The images, and how many there are, where that is known. Raises UserError when it is nothing to go through."""
    is_one = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))
    if isinstance(images, np.ndarray):
        is_one = images.dtype.kind not in "OSU" and images.ndim in (0, 2, 3)
    if is_one:
        return [images], 1
    if not isinstance(images, Iterable) or isinstance(images, (dict, set, frozenset)):
        raise UserError(f"{what_is_given(images)}; expected {EXPECTED}; or a list or generator of such")
    return images, len(images) if isinstance(images, (Sequence, np.ndarray)) else None


class Read(NamedTuple):
    """What became of one image."""

    name: str  # as messages say it
    pixels: np.ndarray | str  # uint8 [H, W, 3]; or why there are none


def each_read(
    images: Iterable[Given], preprocess: Preprocess, decode: Decode, num_ahead: int
) -> Generator[Read, None, None]:
    """The images, cropped, in order; files are read ahead, so many at most.

    Raises:
        UserError: One is no image.
        StorageError: The storage fails.
    """
    exact = decode == "exact"
    clean, reader = preprocess.clean(exact), ImageReader(CACHE_BYTES)
    from_file = partial(load_one, reader, transform=clean, shrinks=None if exact else clean.shrinks)
    ahead: deque[tuple[str, Future[Image.Image | str] | Image.Image | str]] = deque()
    pool = ThreadPoolExecutor(num_cores())
    try:
        for number, image in enumerate(images):
            if isinstance(image, (str, os.PathLike)):
                uri = Place.of(image).uri
                ahead.append((f"image {number}, {os.fspath(image)!r}", pool.submit(from_file, uri)))
            else:  # here: threads cannot share an open image, and of many one after the other is in memory
                ahead.append((f"image {number}, {what_is_given(image)}", from_memory(image, number, clean)))
            if len(ahead) > num_ahead:
                yield settled(*ahead.popleft())
        while ahead:
            yield settled(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def settled(name: str, found: Future[Image.Image | str] | Image.Image | str) -> Read:
    found = found.result() if isinstance(found, Future) else found
    return Read(name, found if isinstance(found, str) else np.asarray(found))


def from_memory(given: Any, number: int, clean: Callable[[Image.Image], Image.Image]) -> Image.Image | str:
    """What ``clean`` makes of an image that is no file, or why it cannot be seen. Raises UserError when it is none."""
    if isinstance(given, np.ndarray):
        height, width, *channels = (*given.shape, 0, 0)[: max(2, given.ndim)]
        if given.dtype != np.uint8 or not height or not width or channels not in ([], [3], [4]):
            raise UserError(f"image {number} is {what_is_given(given)}; expected {EXPECTED}")
        given = Image.fromarray(np.ascontiguousarray(given))
    elif not isinstance(given, (bytes, Image.Image)):
        raise UserError(f"image {number} is {what_is_given(given)}; expected {EXPECTED}")
    try:
        return clean(decoding.decode(given).image if isinstance(given, bytes) else decoding.as_seen(given))
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        return decoding.reason_of(error)


def what_is_given(given: Any) -> str:
    """What something is, in a few words."""
    if isinstance(given, np.ndarray):
        return f"an array {given.dtype} {list(given.shape)}"
    if isinstance(given, Image.Image):
        file = getattr(given, "filename", "")
        return f"a PIL image of mode {given.mode}, {given.width} x {given.height}" + (f", {file!r}" if file else "")
    if isinstance(given, bytes):
        return f"a file of {len(given):,} bytes"
    return f"a value of type {type(given).__module__}.{type(given).__qualname__}".replace("builtins.", "")


# ---------------------------------------------------------------- progress


@contextmanager
def shown(progress: Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """What to call with the number of images that have been done since the call before."""
    if callable(progress):
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        yield count
        return
    from tqdm import tqdm

    off = None if progress is None else not progress  # None: quiet unless stderr is a terminal
    with tqdm(total=total, unit=" images", disable=off, delay=BAR_AFTER_S if progress is None else 0) as bar:
        yield bar.update
