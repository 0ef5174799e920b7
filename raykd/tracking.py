"""The figures of rounds in trackers, too: TensorBoard, MLflow, Weights & Biases (``tracking`` of the config).

A tracker is a copy: ``metrics.jsonl`` is always complete, and a tracker that fails stops nothing. What it misses it is
given when the next round is measured, or by the next run of the job. The step of a figure is its round, as rounds are
what all runs have in common; labels are a figure among them, for charts against labels. TensorBoard cannot choose what
a chart is drawn against, so there the accuracies stand a second time, by labels. A training's curves go by its steps.

::

    <storage_path>/tracking/
      tensorboard/rounds/        the figures; tensorboard/round_000/ ... a round's training
      mlflow.json wandb.json     which run it is, and how many rounds that has
      mlflow.db                  all of MLflow, where MLFLOW_TRACKING_URI names no server and the storage is local
      wandb/                     what W&B keeps on this machine, where the storage is local
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from raykd.config import Config, flat_values
from raykd.errors import UserError
from raykd.store.outputs import RoundFigures
from raykd.store.place import Place
from raykd.store.stage_folder import shorten
from raykd.trackers import PATIENCE_S, MLflow, TensorBoard, TrackedRound, TrackedRun, Tracker, WandB

FOLDER = "tracking"
NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
LONGEST_VALUE = 250  # characters of a config's value
SECRET = re.compile(r"://[^/@\s]+@")  # user and password in a URI


def tracked_run(name: str, config: Config, version: str, commit: str | None) -> TrackedRun:
    """A campaign of this config; a password in a URI is left out, and long values are cut."""
    plain = {key: plain_value(value) for key, value in flat_values(config).items() if value is not None}
    return TrackedRun(name, plain, {"raykd": version} | ({"commit": commit} if commit else {}))


def plain_value(value: Any) -> Any:
    """A number or truth as it is; anything else as a text, without secrets."""
    if isinstance(value, (bool, int, float)):
        return value
    text = without_secrets(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= LONGEST_VALUE else shorten(text, LONGEST_VALUE)


def without_secrets(text: str) -> str:
    """A text whose URIs name no user and no password.

    Example:
        >>> without_secrets("no answer from https://me:secret@host/api")
        'no answer from https://host/api'
    """
    return SECRET.sub("://", text)


def make_tracker(word: str, place: Place) -> Tracker:
    """The tracker of a word of the config, for the campaign at a place; nothing is opened yet."""
    folder = place / FOLDER
    if word == "tensorboard":
        return TensorBoard(folder / word)
    if word == "mlflow":
        return MLflow(folder / "mlflow.json", os.environ.get("MLFLOW_TRACKING_URI") or None)
    return WandB(folder / "wandb.json", folder.path if place.is_local else None)


@dataclass
class Tracking:
    """The trackers of a campaign, which are given its rounds as they are measured.

    Args:
        place: Of the campaign.
        trackers: By their words.
        run: What they say of the campaign.
        say: Told, in one line, of a tracker that fails.
        patience_s: For a tracker to take the rounds.
    """

    place: Place
    trackers: Mapping[str, Tracker]
    run: TrackedRun
    say: Callable[[str, str], None]
    patience_s: float = PATIENCE_S
    _tried: int = field(default=0, init=False, repr=False)  # rounds that all were given, taken or not
    _busy: dict[str, threading.Thread] = field(default_factory=dict, init=False, repr=False)

    def update(self, figures: Sequence[RoundFigures]) -> None:
        """Give all rounds, in order, to each tracker, which logs what it has not. Raises nothing.

        A tracker that fails, or does not answer in time, is given them again when there is a round more.
        """
        if not self.trackers or len(figures) <= self._tried:
            return
        self._tried = len(figures)
        rounds = [TrackedRound(self.place, values) for values in figures]
        for word, tracker in self.trackers.items():
            if (error := self._brought(word, tracker, rounds)) is not None:
                what = without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")[:200]
                self.say(
                    word, f"did not take the rounds ({what}); metrics.jsonl has them, the next run gives them again"
                )

    def _brought(self, word: str, tracker: Tracker, rounds: Sequence[TrackedRound]) -> BaseException | None:
        """Whether a tracker took the rounds: None, or why not. In a thread, as some wait for a server for ever."""
        if (before := self._busy.get(word)) and before.is_alive():
            return TimeoutError("still at the round before")
        failed: list[BaseException] = []

        def bring() -> None:
            try:
                tracker.bring(rounds, self.run)
            except BaseException as error:  # whatever it is, the campaign goes on
                failed.append(error)

        thread = self._busy[word] = threading.Thread(target=bring, daemon=True)
        thread.start()
        thread.join(self.patience_s)
        if thread.is_alive():
            return TimeoutError(f"no answer within {self.patience_s:.0f} s")
        return failed[0] if failed else None


def check_tracking(words: Sequence[str], place: Place) -> None:
    """Whether the trackers can be used, as far as can be told without a server.

    Args:
        words: Of the config.
        place: Of the campaign.

    Raises:
        UserError: A package is missing, or MLflow or W&B does not know where to.
    """
    for word in words:
        if missing := [module for module in NEEDS[word] if find_spec(module) is None]:
            raise UserError(
                f"tracking: {word} needs {' and '.join(missing)}, which this Python has not: pip install "
                f"'raykd[{word}]', or leave {word} out"
            )
    if "mlflow" in words and not place.is_local and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"tracking: mlflow cannot keep its database on {place}: set MLFLOW_TRACKING_URI to a server's address"
        )
    if "wandb" in words and not os.environ.get("WANDB_API_KEY") and not knows_wandb():
        raise UserError(
            "tracking: wandb does not know who you are: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
        )


def knows_wandb() -> bool:
    """Whether W&B can be written to without asking for a key, which it would do in the middle of a campaign."""
    import wandb

    if wandb.setup().settings.mode != "online":
        return True
    try:
        return wandb.login(prompt=False)
    except Exception:  # it has a key, and no server answers: that may change until a round is done
        return True
