"""The errors that are for the reader: one message, no traceback. Everything else that is raised is our mistake."""

from __future__ import annotations

import os

from raykd.algo.errors import UserError, did_you_mean

__all__ = ["LabelFileError", "StorageError", "UserError", "WaitingForLabels", "did_you_mean", "one_line", "why"]


class StorageError(UserError):
    """The network, the credentials or the disk fail; one line, for the reader."""


class LabelFileError(UserError):
    """A label file is wrong; says where and why. Nothing of the file was applied."""


class WaitingForLabels(Exception):
    """The campaign can only go on when people have labeled; the message says what to do. No error: a job's result."""


def one_line(error: BaseException) -> str:
    """An error's type and words, at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def why(error: OSError) -> str:
    """What the system says, without what libraries wrap around it."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
