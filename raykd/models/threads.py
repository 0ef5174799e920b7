"""How many threads torch works with: the last bits of what it computes may hang on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def limited_threads(num_threads: int | None) -> Iterator[None]:
    """Let torch work with so many threads in the block, in an actor as in a job's own process; None: as it is."""
    import torch

    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        if num_threads is not None:
            torch.set_num_threads(before)
