"""Decoded images in memory, for those who look at each many times. Knows neither Ray nor torch.

One piece of memory for all processes that read images together: what one has decoded, the others need not. It is no
file on any disk and belongs to nobody else: with the last process that has it, it is gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

WORD = np.dtype(np.int64).itemsize


class DecodedImages:
    """Images uint8 [H, W, 3] of any sizes, by number, up to a number of bytes; what comes when it is full is not kept.

    Processes that were forked share it, and on Linux those that were spawned, as long as the first one lives. One
    thread of each may use it.

    Args:
        num_images: N.
        most_bytes: Of pixels. Memory is taken as it fills.
    """

    def __init__(self, num_images: int, most_bytes: int) -> None:
        self.num_images, self.most_bytes = num_images, most_bytes
        self._fd = _memory("raykd-decoded")
        os.ftruncate(self._fd, (1 + 3 * num_images) * WORD + most_bytes)
        self._map()

    def _map(self) -> None:
        self._memory = mmap.mmap(self._fd, 0)
        head = np.frombuffer(self._memory, np.int64, 1 + 3 * self.num_images)
        self._used, self._index_N3 = head[:1], head[1:].reshape(-1, 3)  # where each begins, and 1; height; width
        self._pixels = np.frombuffer(self._memory, np.uint8, offset=head.nbytes)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "num_images": self.num_images,
            "most_bytes": self.most_bytes,
            "path": f"/proc/{os.getpid()}/fd/{self._fd}",
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        path = state.pop("path")
        self.__dict__ |= state
        try:
            self._fd = os.open(path, os.O_RDWR)
        except OSError:  # no Linux: this process has a memory of its own
            self.__init__(self.num_images, self.most_bytes)  # type: ignore[misc]
            return
        self._map()

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._fd)

    @property
    def num_bytes(self) -> int:
        """Of pixels that are kept."""
        return int(self._used[0])

    def get(self, number: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """An image, uint8 [H, W, 3], not to be written to; decoded when it is not there."""
        begin, height, width = self._index_N3[number].tolist()
        if begin:
            return self._pixels[begin - 1 : begin - 1 + height * width * 3].reshape(height, width, 3)
        pixels = decode()
        if (place := self._take(pixels.nbytes)) is not None:
            self._pixels[place : place + pixels.nbytes] = pixels.ravel()
            self._index_N3[number, 1:] = pixels.shape[:2]
            self._index_N3[number, 0] = place + 1  # last: from now on others may read it
        return pixels

    def _take(self, num_bytes: int) -> int | None:
        """Room for so many bytes; None when there is none. Two processes may each decode an image, into two places."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            begin = self.num_bytes
            if begin + num_bytes > self.most_bytes:
                return None
            self._used[0] = begin + num_bytes
            return begin
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _memory(name: str) -> int:
    """A file descriptor of memory that has no name in any folder."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
