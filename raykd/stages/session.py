"""A Ray to work on, and errors that read well: what every job is wrapped in."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from raykd.errors import UserError, WaitingForLabels


@contextmanager
def ray_session(local_cpus: int | None = None, stall_s: float = 1800) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names (a submitted job's too), else start a Ray on this machine.

    A Ray that is already up in this process is used as it is and left up.

    Args:
        local_cpus: Logical CPUs of a local Ray; null: the cores, at least 4, since Ray Data waits for ever when its
            actors take every CPU. They are a budget for scheduling, not threads.
        stall_s: Seconds without any progress after which a Ray Data stage stops with an error.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        with silent_stderr():
            ray.init(address=address, **quiet)
    else:
        with silent_stderr():
            ray.init(
                address="local", num_cpus=local_cpus or max(4, os.cpu_count() or 4), include_dashboard=False, **quiet
            )
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = stall_s
    try:
        yield
    finally:
        ray.shutdown()


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


@contextmanager
def user_errors() -> Iterator[None]:
    """End the process for what a user can mend: one message, no traceback, exit code 2 (0 when waiting for labels).

    ``RAYKD_DEBUG=1`` shows the traceback too. Anything but a UserError is our mistake and stays as it is.
    """
    try:
        yield
    except WaitingForLabels as wait:
        print(wait, flush=True)
        sys.exit(0)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(130)
    except UserError as error:
        if os.environ.get("RAYKD_DEBUG"):
            traceback.print_exc()
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        print(f"error: {cause}", file=sys.stderr, flush=True)
        sys.exit(2)
