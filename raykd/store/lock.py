"""One job at a time in a campaign's folder: two would delete each other's half-made stages.

On a disk the kernel keeps the lock, and frees it however the job ends. An object store has no locks: there a
small file is a lease that its job renews, and one that does not change for a minute is of a job that was killed.
It is written only if nobody was faster, where the store has conditional writes (S3 with boto3: conditional.py): then
two jobs can never both have begun. Elsewhere this cannot be airtight, which is said. In any case a job looks whether
the lease is still its own before it begins a stage and before it calls one complete. One that was cut off, or asleep,
for longer than that minute may still have put data files of the stage it was in beside those of its successor.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from raykd.errors import StorageError, UserError, of_store, why
from raykd.store.conditional import conditional
from raykd.store.place import Place

LOCK, LEASE = ".lock", ".lease.json"
RENEW_S = 20.0
WATCH_S = 3 * RENEW_S  # so that a living job is seen to renew even when one attempt fails
LOOK_S = 5.0
LOOKS = 5  # attempts at a lock that may be held by a mere look at it (is_held), for microseconds
SETTLE_S = 2.0  # longer than a starter takes from seeing no lease to having written its own
log = logging.getLogger(__name__)

NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # NFS without its lock service, Lustre mounted without flock


@contextmanager
def only_job(storage: Place, wait: Callable[[float], Any] = time.sleep) -> Iterator[Callable[[], None]]:
    """Hold a campaign's folder as its only job; on an object store this starts with a look of 2 s, or up to 62.

    Args:
        storage: The campaign's folder; a local one is made when missing.
        wait: Waits for some seconds.

    Yields:
        ``still_ours``, which raises a UserError when another job took over. Costs one small read.

    Raises:
        UserError: Another job holds the folder; says which and what to do.
        StorageError: The folder cannot be written: a file is there, no permission, a full disk, no such bucket.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, only_job(Place.of(folder)) as still_ours:
        ...     still_ours()
    """
    me = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        descriptor = flocked(storage, me) if storage.is_local else None
    except OSError as error:
        raise not_writable(storage, error) from error
    hold = Lease(storage, me, wait).held() if descriptor is None else flock_held(storage, me, descriptor)
    with hold as file:

        def still_ours() -> None:
            if (holder := read(file)) is None:
                raise gone(storage)
            if not is_of(me, holder):
                raise UserError(
                    f"another job took over {storage} ({who(holder)}), so this one stops before it changes more there; "
                    "run the same command again when that one has ended, or give another storage_path"
                )

        yield still_ours


# ---------------------------------------------------------------- who holds a folder


def is_held(storage: Place) -> bool:
    """Whether a job is at work in a campaign's folder; told at once, and nothing is changed there.

    On a disk the kernel knows. A lease counts for a minute from its last renewal, by the store's clock and ours.
    """
    if storage.is_local:
        try:
            descriptor = os.open((storage / LOCK).path, os.O_RDONLY)
        except FileNotFoundError:
            pass  # or there is a lease, where the filesystem has no locks
        except OSError:
            return True  # nobody knows
        else:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
            finally:
                os.close(descriptor)
    lease = storage.fs.get_file_info((storage / LEASE).path)
    return lease.is_file and (lease.mtime is None or time.time() - lease.mtime.timestamp() < WATCH_S)


def read(file: Place) -> dict[str, Any] | None:
    """What a lock or lease says; None when there is none, empty when it is just being written."""
    try:
        found = json.loads(file.read_bytes() or b"{}")
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_of(me: dict[str, Any], holder: dict[str, Any] | None) -> bool:
    return holder is not None and holder.get("token") == me["token"]


def who(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "which one is not written there"
    return f"pid {holder.get('pid')} on host {holder.get('host')}, since {holder.get('since')}"


def in_use(storage: Place, holder: dict[str, Any] | None) -> UserError:
    return UserError(
        f"another job is at work in {storage} ({who(holder)}): wait until it has ended or stop it, then run the same "
        "command again; or give another storage_path"
    )


def gone(storage: Place) -> StorageError:
    return StorageError(
        f"{storage} is gone, or what was written there that this job holds it: it was deleted, moved or unmounted, or "
        "another job has had it since. Put it back, see that no other job is at work there, and run the same command "
        "again to go on"
    )


def not_writable(storage: Place, error: OSError) -> StorageError:
    """What keeps a campaign from its folder, and what to do."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        what = "is a file, or below one; give a folder"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "is on a disk without space left; free some, then run the same command again, or give another"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        what = "cannot be written to (no permission); make it writable, or give another"
        what += f". To see how a campaign stands, python jobs/status.py {storage} only reads"
    else:
        reason = of_store(error)
        what = f"cannot be used: {reason or why(error)}"
        what += "" if storage.is_local or reason else "; check the bucket's name, its region and your credentials"
    return StorageError(f"storage_path {storage} {what}")


# ---------------------------------------------------------------- on a disk


def flocked(storage: Place, me: dict[str, Any]) -> int | None:
    """An open descriptor of ``.lock`` that has the kernel's lock; None where the filesystem has no locks."""
    file = storage / LOCK
    os.makedirs(storage.path, exist_ok=True)
    for attempt in range(10):  # again when the holder just ended and removed the file that was opened here
        descriptor = os.open(file.path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by the processes that Ray starts
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, (json.dumps(me) + "\n").encode())
            os.fsync(descriptor)  # other hosts read it
            if is_of(me, read(file)):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                if attempt < LOOKS:
                    time.sleep(0.01)
                    continue
                raise in_use(storage, read(file)) from None
            if error.errno not in NO_FLOCK:
                raise
            with suppress(FileNotFoundError):
                os.unlink(file.path)
            return None
        os.close(descriptor)
    raise in_use(storage, read(file))


@contextmanager
def flock_held(storage: Place, me: dict[str, Any], descriptor: int) -> Iterator[Place]:
    file = storage / LOCK
    try:
        yield file
    finally:
        if is_of(me, read(file)):
            os.unlink(file.path)  # while it is locked: whoever waits on this very file will see that it is gone
        os.close(descriptor)


# ---------------------------------------------------------------- on an object store


class Lease:
    """``.lease.json``: who is at work, and a counter that a thread keeps counting while that job lives."""

    def __init__(self, storage: Place, me: dict[str, Any], wait: Callable[[float], Any]) -> None:
        self.storage, self.file, self.wait = storage, storage / LEASE, wait
        self.content = me | {"counter": 0}
        self.ended = threading.Event()
        self.object = conditional(self.file)
        self.version: str | None = None  # of what this job wrote last, where writes are conditional

    @contextmanager
    def held(self) -> Iterator[Place]:
        thread = threading.Thread(target=self.keep, daemon=True, name="raykd lease")
        try:
            try:
                self.take()
            except OSError as error:
                raise not_writable(self.storage, error) from error
            thread.start()
            yield self.file
        finally:
            self.ended.set()
            if thread.ident is not None:
                thread.join()  # or it might write once more
            with suppress(OSError):  # one that stays costs the next job a minute
                if is_of(self.content, read(self.file)):
                    self.file.fs.delete_file(self.file.path)

    def take(self) -> None:
        """Write the lease when there is none, or none that changes.

        Raises:
            UserError: Another job renews its lease, or wrote one at the same moment.
        """
        if (found := read(self.file)) is not None:
            log.info("%s is there (%s): watching for up to %.0f s if that job is alive", self.file, who(found), WATCH_S)
            for _ in range(round(WATCH_S / LOOK_S)):
                self.wait(LOOK_S)
                if (now := read(self.file)) is None:
                    break  # it has ended
                if now != found:
                    raise in_use(self.storage, now)
        if self.object and self.taken_tightly(found):
            return
        self.file.write_json(self.content)
        self.wait(SETTLE_S)
        if not is_of(self.content, now := read(self.file)):
            raise in_use(self.storage, now)  # of two that started at once the last to write stays

    def taken_tightly(self, found: dict[str, Any] | None) -> bool:
        """Write the lease by a conditional write; whether the store heeds these.

        Raises:
            UserError: Another job was faster.
        """
        assert self.object is not None
        before = self.object.version()
        if before is not None and read(self.file) != found:
            raise in_use(self.storage, read(self.file))
        data = self.data()
        self.version = self.object.create(data) if before is None else self.object.replace(data, before)
        if self.version is None:
            if not is_of(self.content, now := read(self.file)):
                raise in_use(self.storage, now)
            self.version = self.object.version()  # it was written, and only the answer was lost
        if self.object.create(data) is None:  # as it must be, now that there is one
            return True
        log.info("%s: no conditional writes there, so jobs that start at once are told apart by time", self.file)
        self.object = self.version = None
        return False

    def data(self) -> bytes:
        return json.dumps(self.content).encode()

    def keep(self) -> None:
        while not self.ended.wait(RENEW_S):
            with suppress(OSError):  # out of reach: the next time
                self.renew()

    def renew(self) -> None:
        """Count on; never over the lease of a job that took over."""
        if not is_of(self.content, read(self.file)):
            return
        self.content["counter"] += 1
        if self.object is None or self.version is None:
            self.file.write_json(self.content)
        elif version := self.object.replace(self.data(), self.version):
            self.version = version
        elif is_of(self.content, read(self.file)):  # a write whose answer was lost
            self.version = self.object.version()
