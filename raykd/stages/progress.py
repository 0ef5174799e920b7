"""Progress that a person can follow: rows done, rate and time left, per stage; few lines in jobs and CI.

The one channel for lines of a job: what modules log under ``raykd`` comes out here too.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from raykd.stages.counters import IMAGES, count

LINE_EVERY_S = 30.0
BAR_EVERY_S = 0.5
NAME_WIDTH = 18


class Counter:
    """Counts the rows that workers report, by stage; lost counts (a restart) only make the display wrong."""

    def __init__(self) -> None:
        self.done: dict[int, int] = {}

    def add(self, stage: int, rows: int) -> None:
        self.done[stage] = self.done.get(stage, 0) + rows

    def get(self, stage: int) -> int:
        return self.done.get(stage, 0)


@dataclass
class Ticker:
    """What workers call when they have done some rows; travels to them. ``Ticker(None)`` counts nothing."""

    counter: Any
    stage: int = 0

    def add(self, rows: int) -> None:
        if self.counter is not None:
            self.counter.add.remote(self.stage, int(rows))

    def done(self) -> int:
        """Rows so far, of a ticker that counts; 0 when the counter can't be asked."""
        if self.counter is None:
            return 0
        import ray

        with suppress(ray.exceptions.RayError):
            found: int = ray.get(self.counter.get.remote(self.stage), timeout=5)
            return found
        return 0


@dataclass
class LocalTicker(Ticker):
    """What this process calls, when there are no workers."""

    counter: Any = None
    so_far: int = 0

    def add(self, rows: int) -> None:
        self.so_far += int(rows)

    def done(self) -> int:
        return self.so_far


def own_stderr() -> TextIO:
    """Standard error by a descriptor of its own: while Ray's C++ is kept silent (session.py), lines still come."""
    try:
        is_plain = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # something else stands in its place
        is_plain = False
    return os.fdopen(os.dup(2), "w", errors="backslashreplace") if is_plain else sys.stderr


class Lines(logging.Handler):
    """Shows what is logged as lines of the module that logs it; errors in spite of ``none``."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.say(record.name.rsplit(".", 1)[-1], record.getMessage(), always=record.levelno >= logging.ERROR)


@dataclass
class Progress:
    """Shows stages as they run.

    Args:
        mode: ``bar`` redraws one line, ``lines`` prints one at the end of a stage and every 30 s, ``none`` is
            silent, ``auto`` is ``bar`` on a terminal and ``lines`` elsewhere.
    """

    mode: str = "auto"
    stream: TextIO = field(default_factory=own_stderr)
    _counts: tuple[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode == "auto":
            self.mode = "bar" if self.stream.isatty() else "lines"

    def say(self, name: str, text: str, always: bool = False) -> None:
        """One line about a stage that needs no counting; ``always``: even when all others are not wanted."""
        if self.mode != "none" or always:
            begin = "\r\x1b[K" if self.mode == "bar" else ""  # over the bar, which is drawn anew
            print(f"{begin}{name:<{NAME_WIDTH}} {text}", file=self.stream, flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, what modules of raykd log is said here."""
        logger, handler = logging.getLogger("raykd"), Lines(self)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # or Ray, which sets up the root logger, would say it again
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate

    @contextmanager
    def stage(
        self, name: str, total: int, unit: str = "rows", *, here: bool = False,
        lacks: Callable[[], str | None] | None = None, counted_anyhow: bool = False,
    ) -> Iterator[Ticker]:  # fmt: skip
        """Show a stage of ``total`` units while the block runs; whoever does them calls the ticker.

        Args:
            name: Of the stage.
            total: Of no units nothing is shown.
            unit: What is counted.
            here: This process alone does them; else workers may, and a Ray must be running.
            lacks: Says what the stage waits for, when nothing has been done yet.
            counted_anyhow: Even when nothing is shown.
        """
        counted = 0

        def count_images(done: int) -> None:
            nonlocal counted
            if unit == "images":
                count(IMAGES, name, done - counted)
                counted = done

        if not total or (self.mode == "none" and not counted_anyhow):
            yield Ticker(None)
            count_images(total)
            return
        import ray

        ticker = LocalTicker() if here else Ticker(self._counter(), next(self._numbers))
        stop, started = threading.Event(), time.perf_counter()
        every = BAR_EVERY_S if self.mode == "bar" else LINE_EVERY_S

        def watch() -> None:
            first = started  # when the first rows came: the workers' start says nothing about their pace
            while not stop.wait(every):
                with suppress(ray.exceptions.RayError):
                    done = min(total, ticker.done())
                    first = first if done else time.perf_counter()
                    count_images(max(done, counted))
                    text = status(name, done, total, unit, time.perf_counter() - first)
                    if not done and lacks and time.perf_counter() - started >= LINE_EVERY_S and (what := lacks()):
                        text += f": {what}"
                    self._show(text)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield ticker
        finally:
            stop.set()
            thread.join()
            if self.mode == "bar":
                print("\r\x1b[K", end="", file=self.stream)
        count_images(total)
        seconds = time.perf_counter() - started
        self.say(name, f"{total:,} {unit} in {seconds:.1f} s ({pace(total / max(seconds, 1e-9))})")

    def _counter(self) -> Any:
        """The actor that counts, one for all stages of a Ray: its process takes half a second to start."""
        import ray

        job = ray.get_runtime_context().get_job_id()
        if self._counts is None or self._counts[0] != job:
            self._counts = (job, ray.remote(num_cpus=0, max_restarts=-1)(Counter).remote())
        return self._counts[1]

    def _show(self, text: str) -> None:
        if self.mode == "none":
            return
        if self.mode == "bar":
            print(f"\r{text}\x1b[K", end="", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)


def status(name: str, done: int, total: int, unit: str, seconds: float) -> str:
    """One line: done/total, share, rate, time left."""
    rate = done / max(seconds, 1e-9)
    left = f"{(total - done) / rate:.0f} s left" if done else "starting"
    return f"{name:<{NAME_WIDTH}} {done:,}/{total:,} {unit} {done / max(total, 1):4.0%}  {pace(rate)}  {left}"


def pace(rate: float) -> str:
    """So many a second, in words; of what takes more than a second, a minute."""
    return f"{rate:,.0f}/s" if rate >= 1 or not rate else f"{60 * rate:.2g}/min"
