"""What every step is given, whatever it is part of: a campaign, or a job that does one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

    def say(self, name: str, text: str) -> None:
        self.progress.say(name, text)

    def write_stage(self, name: str | None) -> None:
        """Called with a step's name when its making begins, and with None when it is complete."""

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
            place, name, version, made_from, settings or {}, self.still_ours, shared=shared, told=self.write_stage
        )
