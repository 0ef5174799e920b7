"""What every step is given, whatever it is part of: a campaign, or a job that does one thing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raykd.stages.counters import ROUNDS, SECONDS, count, tags_of
from raykd.stages.progress import Progress
from raykd.stages.session import Session
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder


@dataclass(kw_only=True)
class Work:
    """A place to work in.

    Args:
        place: Where outputs lie.
        progress: Shows the steps as they run.
        session: The Ray to work on; started by the first step that needs it.
        still_ours: Raises when another job took over the place; every step asks it.
    """

    place: Place
    progress: Progress
    session: Session
    still_ours: Callable[[], None] = lambda: None
    _making: tuple[str, float] = field(default=("", 0.0), init=False, repr=False)  # which step, counted until when

    def say(self, name: str, text: str) -> None:
        self.progress.say(name, text)

    def write_stage(self, name: str | None) -> None:
        """Called with a step's name when its making begins, and with None when it is complete."""

    def note_stage(self, name: str | None) -> None:
        """Write and count that a step begins, or is complete (None); a step in parts does both for each of them."""
        self.write_stage(name)
        making, since = self._making
        now = time.perf_counter()
        if name in (None, making):
            count(SECONDS, making, now - since)
        self._making = (name or making, now)
        if name is None and tags_of(making)["stage"] == "evaluate":
            count(ROUNDS, making, 1)

    def stage_folder(
        self,
        place: Place,
        name: str,
        *,
        version: int,
        made_from: dict[str, Any],
        settings: dict[str, Any] | None = None,
        shared: bool = False,
    ) -> StageFolder:
        """The folder of a step, wherever it is; see :class:`raykd.store.stage_folder.StageFolder`."""
        return StageFolder(
            place, name, version, made_from, settings or {}, self.still_ours, shared=shared, told=self.note_stage
        )
