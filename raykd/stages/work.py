"""What every step is given, whatever it is part of: a campaign, or a job that does one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raykd.stages.progress import Progress
from raykd.stages.session import Session
from raykd.store.place import Place


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
