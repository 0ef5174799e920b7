"""A Ray to work on, started when it is first needed: a campaign that is finished only prints its table."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from raykd.errors import AGAIN, UserError, one_line, why
from raykd.stages.counters import ray_is_up
from raykd.store.options import handed_on

if TYPE_CHECKING:
    from raykd.stages.progress import Progress
    from raykd.store.place import Place

LOST_S = 45.0  # without an answer of the cluster's head, after which a job ends by itself: Ray would after 60, mutely
LOOK_S = 5.0  # between two looks at it
CONNECT_S = 3.0  # to wait for an answer of a cluster that is there
SOCKET_BYTES = 107  # the longest path of a Unix socket on Linux
SOCKET_PATH = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # as Ray names it
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # preface, empty settings
HTTP2_SETTINGS = 4

log = logging.getLogger(__name__)


class Session:
    """The Ray of a job: the cluster that ``RAY_ADDRESS`` names (a submitted job's too), else one on this machine.

    A Ray that is already up in this process is used as it is and left up.

    Args:
        local_cpus: Logical CPUs of a local Ray; None: the cores, at least 4, since Ray Data waits for ever when its
            actors take every CPU. They are a budget for scheduling, not threads.
        stall_s: Seconds without any progress after which a Ray Data stage stops with an error.
        progress: Shows what modules log (that shards are slow, ...) as lines, while the session lasts.

    Example:
        >>> with Session() as session:  # starts nothing yet
        ...     session.is_local
        True
    """

    def __init__(self, local_cpus: int | None = None, stall_s: float = 1800, progress: Progress | None = None) -> None:
        self.local_cpus, self.stall_s, self.progress = local_cpus, stall_s, progress
        self._started, self._listening = False, ExitStack()
        self._starting: Future[None] | None = None
        self._head: HeadWatch | None = None
        self._starter: ThreadPoolExecutor | None = None  # kept: Ray's processes die with the thread that made them

    @property
    def is_local(self) -> bool:
        """Whether the Ray is, or will be, one of this machine alone, that raykd starts itself."""
        return os.environ.get("RAY_ADDRESS", "local") in ("", "local")

    def is_at_home(self, place: Place) -> bool:
        """Whether this machine alone works there, on its own disk."""
        return self.is_local and place.is_local

    @property
    def is_up(self) -> bool:
        """Whether a Ray is up in this process, ours or not."""
        return ray_is_up()

    @property
    def num_cpus(self) -> int:
        """Logical CPUs of a Ray that is started here."""
        return self.local_cpus or max(4, os.cpu_count() or 4)

    def check(self) -> None:
        """Whether a Ray can be started or joined, as far as can be told in seconds and without Ray.

        Raises:
            UserError: No Ray answers at ``RAY_ADDRESS``, or the folder for temporary files is of no use to Ray.
        """
        if self.is_local:
            check_temporary_folder()
        else:
            check_address(os.environ["RAY_ADDRESS"])

    def begin(self) -> None:
        """Start or join the Ray beside what this process does next; :meth:`ensure` waits for it.

        Most of a start is waiting, and to import torch takes as long.

        Raises:
            UserError: As :meth:`check` says.
        """
        if self._starting is None and not self.is_up:
            self.check()
            self._starter = ThreadPoolExecutor(1)
            self._starting = self._starter.submit(self._start)

    def ensure(self) -> None:
        """Start or join the Ray, unless that is done. Costs some seconds the first time, nothing later.

        Raises:
            UserError: As :meth:`check` says, or Ray itself refuses.
        """
        if self._starting is None and self.is_up:
            return
        handler = signal.getsignal(signal.SIGTERM)
        if self._starting is None:
            self._start()
        else:
            starting, self._starting = self._starting, None
            starting.result()
        if "ray.data" in sys.modules:
            sys.modules["ray.data"].DataContext.get_current().execution_no_progress_timeout_s = self.stall_s
        else:  # it takes a second to import, and not every job needs it
            os.environ["RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"] = str(math.ceil(self.stall_s))
        for name in ("ray", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # they log the tracebacks of errors that they also raise, and Tune those of notes that a search goes on by
        for name in ("ray.data", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own there, and its C++ another, that prints frames

    def _start(self) -> None:
        import ray
        from ray._private import worker

        self.check()
        with silent_stderr():
            try:
                ray.init(**self._arguments(), log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # Ray raises nearly anything, plain Exception included
                where = "start on this machine" if self.is_local else f"join RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
                raise UserError(f"Ray does not {where}: {one_line(error)}") from error
        self._started = True
        worker.print_to_stdstream = raylet_lines  # type: ignore[assignment]
        if not self.is_local:
            self._head = HeadWatch(watched_address(ray.get_runtime_context().gcs_address))

    def _arguments(self) -> dict[str, Any]:
        if not self.is_local:
            told = handed_on()
            runtime_env = {"runtime_env": {"env_vars": told}} if told else {}
            return {"address": os.environ["RAY_ADDRESS"], **runtime_env}
        for name in ("RAY_enable_metrics_collection", "RAY_enable_open_telemetry"):
            os.environ.setdefault(name, "0")  # nobody reads them here, and the start is a second faster
        return {
            "address": "local",
            "num_cpus": self.num_cpus,
            "include_dashboard": False,
        }

    def __enter__(self) -> Session:
        if self.progress is not None:
            self._listening.enter_context(self.progress.listening())
        return self

    def __exit__(self, *exception: object) -> None:
        self._listening.close()
        if self._starting is not None:
            wait([self._starting])
        if self._head is not None:
            self._head.end()
        if self._started:
            import ray

            self._started = False
            ray.shutdown()
        if self._starter is not None:
            self._starter.shutdown()


class HeadWatch:
    """Ends the job in a line when the head of its cluster is gone: Ray ends the process without one.

    Args:
        address: ``host:port`` of the head's GCS.
    """

    def __init__(self, address: str) -> None:
        self.address, self.ended = address, threading.Event()
        threading.Thread(target=self.watch, daemon=True, name="raykd head").start()

    def watch(self) -> None:
        host, _, port = self.address.rpartition(":")
        seen, told = time.monotonic(), False
        while not self.ended.wait(LOOK_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S).close()
                seen, told = time.monotonic(), False
            except OSError as error:
                gone = time.monotonic() - seen
                if gone >= LOST_S:
                    self.give_up(
                        f"error: Ray's head at {self.address} has not answered for {gone:.0f} s ({why(error)})"
                    )
                if gone >= 2 * LOOK_S and not told:
                    told = True
                    log.warning("Ray's head at %s does not answer (%s); waiting for it", self.address, why(error))

    def give_up(self, words: str) -> None:
        os.write(2, f"{words}: what is complete is kept. When the cluster is there again, {AGAIN}\n".encode())
        os._exit(2)  # every other thread waits for that head

    def end(self) -> None:
        self.ended.set()


def watched_address(gcs_address: str) -> str:
    """Where the cluster's head answers this process: through Ray's client (``ray://``) its own port, of it alone."""
    scheme, mark, rest = os.environ["RAY_ADDRESS"].partition("://")
    return rest.partition("/")[0] if mark and scheme == "ray" else gcs_address


@contextmanager
def ray_session(
    local_cpus: int | None = None, stall_s: float = 1800, progress: Progress | None = None
) -> Iterator[Session]:
    """A :class:`Session` whose Ray is up from the start."""
    with Session(local_cpus, stall_s, progress) as session:
        session.ensure()
        yield session


def check_address(address: str) -> None:
    """Whether a Ray answers there; Ray's own attempt would last a quarter of an hour, without a word.

    Raises:
        UserError: Nobody listens, or not a Ray; within seconds.
    """
    expected = "expected host:port of a Ray's head (port 6379 by default), ray://host:10001, or auto"
    clear = "; start that Ray, mend RAY_ADDRESS, or unset it to work on this machine"
    if address == "auto":
        return  # Ray looks for one of this machine, and is quick to say that there is none
    scheme, _, rest = address.rpartition("://")
    host, colon, port = rest.partition("/")[0].rpartition(":")
    if scheme not in ("", "ray"):
        raise UserError(f"RAY_ADDRESS={address}: {expected}{clear}")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"RAY_ADDRESS={address} names no port; {expected}{clear}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(HTTP2_HELLO)
            answer = connection.recv(9)
    except TimeoutError:
        raise UserError(f"RAY_ADDRESS={address}: no answer within {CONNECT_S:.0f} s{clear}") from None
    except OSError as error:
        raise UserError(f"RAY_ADDRESS={address}: no Ray answers there ({error.strerror or error}){clear}") from None
    if len(answer) < 4 or answer[3] != HTTP2_SETTINGS:  # such as the dashboard's port
        raise UserError(f"RAY_ADDRESS={address}: what answers there is no Ray; {expected}{clear}")


def check_temporary_folder() -> None:
    """Whether Ray can put its files and sockets into the folder for temporary ones.

    Raises:
        UserError: Its path is too long for sockets, or it cannot be written.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    folder = os.environ.get(name, "/tmp")
    path = os.path.join(os.path.abspath(folder), SOCKET_PATH.format(pid=os.getpid()))
    if (length := len(os.fsencode(path))) > SOCKET_BYTES:
        raise UserError(
            f"{name}={folder} is too long for Ray's sockets: {length} bytes, and the system allows {SOCKET_BYTES}; "
            "set RAY_TMPDIR to a short path on a disk of this machine, such as /tmp"
        )
    try:
        os.makedirs(os.path.join(folder, "ray"), exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        writable = False
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk of {folder} is full, where Ray puts its files; free some, or set {name}"
            ) from None
    if not writable:
        raise UserError(f"Ray cannot write into {folder}; set RAY_TMPDIR to a folder that it can write to")


def raylet_lines(said: dict[str, Any], **_: Any) -> None:
    """What Ray's own processes tell the driver, as lines of ours; that a task is tried again is no news."""
    for line in said["lines"]:
        if "retries remaining" not in line:
            log.warning("%s", " ".join(line.split()))


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep Ray's C++ from announcing its log level; what goes wrong in the block is still raised."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
