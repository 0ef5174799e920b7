"""One job at a time in a storage_path: a second one is refused, a dead one's place is taken over.

On a local disk (or NFS) it is a lock of the kernel's, free at the moment its process ends, however that ends. An object
store has no locks: there it is a lease, a small file that its holder changes every so often. Who finds one waits
whether it changes; if not, its holder is dead. A holder that was away so long that another took over is told before it
completes a stage.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raykd.storage import Place

LOCK, LEASE = ".lock", ".lease.json"
RENEW_S, WATCH_S = 20.0, 65.0  # a living holder changes its lease three times while it is watched

_leases: list[Lease] = []  # those that this process holds


@contextmanager
def only_job(
    place: Place, say: Callable[[str], None] = print, pause: Callable[[float], Any] = time.sleep
) -> Iterator[None]:
    """Hold a storage_path for this process.

    Args:
        place: The storage_path; it need not exist yet.
        say: Called with a line when there is a wait.
        pause: Waits some seconds.

    Raises:
        ValueError: Another job holds it; says which.
    """
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    with _locked(place, me) if place.is_local else _leased(place, me, say, pause):
        yield


def check_still_held() -> None:
    """Refuse to go on, by RuntimeError, if another job took over a lease of this process's."""
    for lease in _leases:
        lease.check()


@contextmanager
def _locked(place: Place, me: dict[str, Any]) -> Iterator[None]:
    os.makedirs(place.path, exist_ok=True)
    with open(os.path.join(place.path, LOCK), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refusal(place, file.read()) from None
        file.truncate(0)
        file.write(json.dumps(me))
        file.flush()
        yield


@contextmanager
def _leased(
    place: Place, me: dict[str, Any], say: Callable[[str], None], pause: Callable[[float], Any]
) -> Iterator[None]:
    lease = Lease(place / LEASE, me)
    if before := lease.read():
        say(f"{place} has a lease of {_who(before)}; watching for {WATCH_S:g} s whether that job lives")
        pause(WATCH_S)
        if (after := lease.read()) and after != before:
            raise _refusal(place, after)
    lease.renew()
    pause(0.0 if before is None else 1.0)  # of two that take over at once, the later writer has it
    lease.check()
    _leases.append(lease)
    try:
        with lease.renewed():
            yield
    finally:
        _leases.remove(lease)
        lease.give_back()


class Lease:
    """A file that says who works here, changed every :data:`RENEW_S` seconds."""

    def __init__(self, place: Place, me: dict[str, Any]) -> None:
        self.place, self.content = place, me | {"token": uuid.uuid4().hex, "count": 0}

    def read(self) -> str | None:
        return self.place.read_bytes().decode() if self.place.exists() else None

    def renew(self) -> None:
        self.content["count"] += 1
        self.place.write_json(self.content)

    def is_mine(self) -> bool:
        found = self.read()
        return found is not None and json.loads(found)["token"] == self.content["token"]

    def check(self) -> None:
        if not self.is_mine():
            raise RuntimeError(
                f"another job works in {self.place} now ({_who(self.read())}), as this one was not heard of for a "
                "while; nothing more is written. Let that one finish, or stop it and run again"
            )

    def give_back(self) -> None:
        if self.is_mine():
            self.place.fs.delete_file(self.place.path)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(RENEW_S):
                try:
                    if not self.is_mine():
                        return  # the next stage to be completed says so
                    self.renew()
                except OSError:
                    continue  # the store may be back the next time

        keeper = threading.Thread(target=keep, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()


def _who(content: str | None) -> str:
    try:
        holder = json.loads(content or "")
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def _refusal(place: Place, content: str) -> ValueError:
    return ValueError(
        f"another job works in {place}: {_who(content)}. Two would write over each other; let it finish or stop it, "
        "or give another storage_path"
    )
