"""From an image's uri (:mod:`raykd.images.stored`) to pixels (:mod:`raykd.images.decoding`). Knows no Ray.

Three things can go wrong. The image is broken: that stays so, and is a reason. It is not there: a reason too, which
begins with ``decoding.UNREACHABLE``, as it can be mended. The storage does not answer: no image's fault, so it is tried
again and then raised as :class:`StorageError`.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from raykd.errors import StorageError
from raykd.images.decoding import OUT_OF_MEMORY, UNREACHABLE, Shrinks, decode, reason_of
from raykd.images.stored import ABOUT_ONE_FILE, INSIDE_PARQUET, NOT_FOUND, ImageReader, is_remote

FETCHED_AHEAD = 8  # files
Result = TypeVar("Result")


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
    transform: Callable[[Image.Image], Result] | Sequence[Callable[[Image.Image], Result]],
    shrinks: Shrinks | None = None,
    changes: Counter[str] | None = None,
) -> Iterator[Result | str]:
    """:func:`load_one` of each uri, in order, as they are asked for; with one ``transform``, or one for each uri.

    Decoding is this thread's: one image at a time is in memory at full size. Files of an object store are fetched
    ahead, :data:`FETCHED_AHEAD` at most; what lies on a disk comes as fast as it is asked for.
    """
    transforms = [transform] * len(uris) if callable(transform) else transform
    if not any(map(is_remote, uris)) or any(map(INSIDE_PARQUET.fullmatch, uris)):
        for uri, each in zip(uris, transforms, strict=True):
            yield load_one(reader, uri, each, shrinks, changes)
        return
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        todo, ahead = deque(uris), deque[Future[bytes | Exception]]()
        for _, each in zip(uris, transforms, strict=True):
            while todo and len(ahead) <= FETCHED_AHEAD:
                ahead.append(pool.submit(_attempt, reader.read, todo.popleft()))
            yield _made_of(ahead.popleft().result(), each, shrinks, changes)


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
