"""The errors that are for the reader: one message, no traceback. Everything else that is raised is our mistake."""

from __future__ import annotations

import errno
import os
import re
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
    "is_passing",
    "of_store",
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
    errno.EIO: "the disk fails, or the server that it is on; look after it",
    errno.ESTALE: "the server that it is on has lost it; mount it anew",
    errno.ENOTCONN: "it is no longer mounted; mount it anew",
    errno.EHOSTDOWN: "the server that it is on does not answer; look after it",
}


CREDENTIALS = "AWS_ACCESS_KEY_ID, AWS_PROFILE (store.profile) or the machine's own role, on every node"
OF_S3 = {  # what a store's client calls it (without underscores, in any case), and what to do
    "InvalidAccessKeyId|InvalidClientToken": f"the store does not know the access key; check {CREDENTIALS}",
    "SignatureDoesNotMatch|InvalidSignature": "the secret key is not that of the access key; check both",
    "Expired|TokenRefresh|InvalidToken": f"the credentials have expired; log in again, or check {CREDENTIALS}",
    "AccessDenied|UnrecognizedClient|MissingAuthentication|Forbidden": "the credentials that were found, if any, may "
    f"not do that; check {CREDENTIALS}, and the rights to list, read, write and delete",
    "NoSuchBucket": "there is no such bucket; check its name, and the endpoint (store.endpoint)",
    "HTTP status 301|PermanentRedirect|AuthorizationHeaderMalformed": "the bucket is in another region; give "
    "store.region",
    "HTTP status 411|HTTP status 501|MissingContentLength": "it is an older S3-compatible store, which does not know "
    "the checksums that are sent; set store.checksums: false",
    "curlCode: 6,": "there is no host of that name; check the endpoint (store.endpoint), or the region",
    "curlCode: 7,": "nobody listens there; check the endpoint (store.endpoint) and the network",
    "curlCode: 35,": "what answers there speaks no TLS; is it http:// (store.endpoint)?",
    "No space left|QuotaExceeded": "it is full; free some space",
}
PASSING = {  # what is over when one waits
    "curlCode: (28|52|55|56),|RequestTimeout|ReadTimeout|ConnectTimeout": "it did not answer in time; check the "
    "network",
    r"SlowDown|ServiceUnavailable|InternalFailure|InternalError|Throttling|HTTP status 50\d": "it refused for too long "
    "(overloaded, or down)",
}


LOST = (  # Ray's errors (ray.exceptions) of processes and machines that are gone
    *("ActorDiedError", "ActorUnavailableError", "ActorUnschedulableError", "LocalRayletDiedError", "NodeDiedError"),
    *("ObjectLostError", "OutOfMemoryError", "OwnerDiedError", "RaySystemError", "WorkerCrashedError"),
)


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
    if isinstance(error, OSError) and (reason := of_store(error)):
        return f"{reason}; then {AGAIN}"
    if any(kind.__module__ == "ray.exceptions" and kind.__name__ in LOST for kind in type(error).__mro__):
        why = of_store(error) or f"Ray lost a process or a machine ({one_line(error)})"  # the store's, on a worker
        return f"{why}; what is complete is kept: {AGAIN}"
    return None


def of_store(error: BaseException) -> str | None:
    """What an object store's refusal means, and what to do; None of any other error."""
    text = " ".join(str(error).split())
    if "AWS Error" in text:
        code = re.search(r"AWS Error (\w+)[^.]*? during (\w+)", text)
        where = re.search(r"(?:key '(?P<key>[^']*)' in )?bucket '(?P<bucket>[^']*)'", text)
        at = f"bucket {where['bucket']!r}" + (f", {where['key']!r}" if where["key"] else "") if where else "a bucket"
        asked = f" ({code[1]} of {code[2]})" if code else ""
        reason = next((words for pattern, words in (OF_S3 | PASSING).items() if says(text, pattern)), text[:200])
        return f"object store, {at}{asked}: {reason}"
    if "google::cloud::Status" in text or "GCS" in text.split(":")[0]:
        return f"object store: {text[:300]}; check the bucket's name, the credentials and the network"
    return None


def is_passing(error: BaseException) -> bool:
    """Whether an object store refused for a while only: it is overloaded, or did not answer in time."""
    return any(says(str(error), pattern) for pattern in PASSING)


def says(text: str, pattern: str) -> bool:
    return re.search(pattern, text.replace("_", ""), re.IGNORECASE) is not None


def one_line(error: BaseException) -> str:
    """An error's type and words, at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def why(error: OSError) -> str:
    """What the system says, without what libraries wrap around it."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
