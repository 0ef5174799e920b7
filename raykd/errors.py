"""The errors that are for the reader: one message, no traceback. Everything else that is raised is our mistake."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from raykd.algo.errors import UserError, did_you_mean

__all__ = [
    "AGAIN",
    "LabelFileError",
    "StorageError",
    "UserError",
    "WaitingForLabels",
    "did_you_mean",
    "for_the_reader",
    "one_line",
    "why",
]

AGAIN = "run the same command again to go on"
STORAGE = {  # what a disk or its rights refuse, and what to do
    errno.ENOSPC: "no space left; free some",
    errno.EDQUOT: "the quota is used up; free some space",
    errno.EROFS: "it can only be read; make it writable",
    errno.EACCES: "no permission; grant it",
    errno.EPERM: "no permission; grant it",
}


class StorageError(UserError):
    """The network, the credentials or the disk fail; one line, for the reader."""


class LabelFileError(UserError):
    """A label file is wrong; says where and why. Nothing of the file was applied."""


class WaitingForLabels(Exception):
    """The campaign can only go on when people have labeled; the message says what to do. No error: a job's result.

    Args:
        words: For people.
        about: For scripts: how many are missing, and where they are put (``raykd/store/status.py``).
    """

    def __init__(self, words: str, about: Mapping[str, Any] | None = None) -> None:
        super().__init__(words)
        self.about = {"what": "labels", **(about or {}), "words": words}


def for_the_reader(error: BaseException) -> str | None:
    """What to print of an error that a user can mend; None of any other.

    A :class:`UserError` says it all. A disk that is full or may not be written to is no mistake of ours either.
    """
    inner = getattr(error, "cause", None)  # where it was raised, if that was inside Ray
    error = inner if isinstance(inner, BaseException) else error
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in STORAGE:
        where = error.filename or f"a file ({' '.join(str(error).split())})"
        return f"cannot write or read {where}: {STORAGE[error.errno]}, then {AGAIN}"
    return None


def one_line(error: BaseException) -> str:
    """An error's type and words, at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def why(error: OSError) -> str:
    """What the system says, without what libraries wrap around it."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
