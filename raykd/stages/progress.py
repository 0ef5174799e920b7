"""Progress that a person can follow: rows done, rate and time left, per stage; few lines in jobs and CI."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

import ray

LINE_EVERY_S = 30.0
BAR_EVERY_S = 0.5
NAME_WIDTH = 18


class Counter:
    """Counts the rows that a stage's workers report; lost counts (a restart) only make the display wrong."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, rows: int) -> None:
        self.done += rows

    def get(self) -> int:
        return self.done


@dataclass
class Ticker:
    """What workers call when they have done some rows; travels to them. ``Ticker(None)`` counts nothing."""

    counter: Any

    def add(self, rows: int) -> None:
        if self.counter is not None:
            self.counter.add.remote(int(rows))


@dataclass
class Progress:
    """Shows stages as they run.

    Args:
        mode: ``bar`` redraws one line, ``lines`` prints one at the end of a stage and every 30 s, ``none`` is
            silent, ``auto`` is ``bar`` on a terminal and ``lines`` elsewhere.
    """

    mode: str = "auto"
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        if self.mode == "auto":
            self.mode = "bar" if self.stream.isatty() else "lines"

    def say(self, name: str, text: str) -> None:
        """One line about a stage that needs no counting."""
        if self.mode != "none":
            print(f"{name:<{NAME_WIDTH}} {text}", file=self.stream, flush=True)

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "rows") -> Iterator[Ticker]:
        """Show a stage of ``total`` units while the block runs; its workers call the ticker."""
        if self.mode == "none":
            yield Ticker(None)
            return
        counter: Any = ray.remote(num_cpus=0, max_restarts=-1)(Counter).remote()
        stop, started = threading.Event(), time.perf_counter()
        every = BAR_EVERY_S if self.mode == "bar" else LINE_EVERY_S

        def watch() -> None:
            first = started  # when the first rows came: the workers' start says nothing about their pace
            while not stop.wait(every):
                with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                    done = min(total, ray.get(counter.get.remote(), timeout=5))
                    first = first if done else time.perf_counter()
                    self._show(status(name, done, total, unit, time.perf_counter() - first))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield Ticker(counter)
        finally:
            stop.set()
            thread.join()
            ray.kill(counter)
            if self.mode == "bar":
                print("\r\x1b[K", end="", file=self.stream)
        seconds = time.perf_counter() - started
        self.say(name, f"{total:,} {unit} in {seconds:.1f} s ({total / max(seconds, 1e-9):,.0f}/s)")

    def _show(self, text: str) -> None:
        if self.mode == "bar":
            print(f"\r{text}\x1b[K", end="", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)


def status(name: str, done: int, total: int, unit: str, seconds: float) -> str:
    """One line: done/total, share, rate, time left."""
    rate = done / max(seconds, 1e-9)
    left = f"{(total - done) / rate:.0f} s left" if done else "starting"
    return f"{name:<{NAME_WIDTH}} {done:,}/{total:,} {unit} {done / max(total, 1):4.0%}  {rate:,.0f}/s  {left}"
