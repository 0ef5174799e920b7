"""``status.json``: where a campaign stands, for scripts and for ``jobs/status.py``. Imports neither Ray nor torch.

::

    {
      "state": "waiting",            running, waiting, finished, stopped (by a person or a signal), failed
      "message": null,               what went wrong, for people
      "round": 1,                    the one under way; null when finished
      "rounds": 3, "rounds_done": 1,
      "stage": null,                 such as "round 1 train": the last that began; null when waiting or finished
      "waiting_for": {"what": "labels", "count": 7, "enough": 7, "of": 30,
                      "where": {"tasks": ".../tasks.csv", "answers": ".../answers"}, "words": "7 of 30 images ..."},
      "figures": {                   of the last round that is done; null before
        "round": 0, "accuracy": 0.912, "measured_on": "test", "interval": [0.88, 0.94], "at_least": 0.873,
        "labels": 50, "labels_spent": {"training": 50, ...}, "forecast": {...}, "price": null, "words": ["at least ..."]
      },
      "started": "2026-01-02T03:04:05Z", "time": "...", "host": "node-7", "pid": 4711, "raykd": "0.1.0"
    }

``kill -9`` leaves ``running``; :func:`raykd.store.lock.is_held` tells whether that job is still there.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import raykd
from raykd.errors import AGAIN, UserError
from raykd.store.lock import is_held
from raykd.store.place import Place

STATUS_FILE, CAMPAIGN_FILE = "status.json", "campaign.json"
FINISHED, WAITING, RUNNING, STOPPED, NEVER = 0, 3, 4, 5, 6  # how jobs/status.py ends
CODES = {"finished": FINISHED, "waiting": WAITING, "running": RUNNING, "stopped": STOPPED, "failed": STOPPED}


class StatusFile:
    """The status of a job's campaign, written anew with every change.

    Args:
        storage: The campaign's folder.
    """

    def __init__(self, storage: Place) -> None:
        self.file = storage / STATUS_FILE
        self.values: dict[str, Any] = dict.fromkeys(
            ("state", "message", "round", "rounds", "rounds_done", "stage", "waiting_for", "figures")
        )
        self.job = {"host": socket.gethostname(), "pid": os.getpid(), "raykd": raykd.__version__}
        self.started = now()

    def write(self, **changes: Any) -> None:
        """Note what has changed. Costs one small write."""
        self.values |= changes
        self.file.write_json({**self.values, "started": self.started, "time": now(), **self.job})


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_status(storage: Place) -> dict[str, Any] | None:
    """What ``status.json`` says; None where no campaign has been yet.

    Raises:
        UserError: There is something else, or the file is damaged.
    """
    file = storage / STATUS_FILE
    if not file.exists():
        if (storage / CAMPAIGN_FILE).exists():
            raise UserError(f"{storage} holds a campaign that has no {STATUS_FILE} yet: run its job once more")
        if storage.exists() and (not storage.is_dir() or any(not f.base_name.startswith(".") for f in storage.files())):
            raise UserError(f"{storage} holds no campaign; give a campaign's storage_path, or its config")
        return None
    found = file.read_json()
    if not isinstance(found, dict) or found.get("state") not in CODES:
        raise UserError(f"{file} is damaged, or not of this raykd: run the campaign's job, which writes it anew")
    return found


def standing(storage: Place, status: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Where a campaign stands: the exit code that says it, and lines for people."""
    if status is None:
        return NEVER, [f"{storage}: no campaign yet"]
    state, code = status["state"], CODES[status["state"]]
    where = f"round {status['round']}; {status['rounds_done']} of {status['rounds']} are done"
    if state == "running":
        where = f"{status['stage']}; {where.partition('; ')[2]}" if status["stage"] else where
        head = f"running ({where}), pid {status['pid']} on host {status['host']}"
        if not is_held(storage):
            code = STOPPED
            head = f"running, but its job is gone ({where}): it was killed; {AGAIN}"
    elif state == "waiting":
        asked = status["waiting_for"]
        head = f"waiting for {asked['count']} {asked['what']} ({where})"
    elif state == "finished":
        head = f"finished, rounds: {status['rounds_done']}"
    else:
        head = f"{state} ({where}); {AGAIN}"
    lines = [f"{storage}: {head}"]
    lines += [text for text in (status["message"], (status["waiting_for"] or {}).get("words")) if text]
    if figures := status["figures"]:
        of = "the audited images" if figures.get("measured_on") == "audit" else "test"
        share = "nothing to measure on," if figures["accuracy"] is None else f"{figures['accuracy']:.1%} of {of}"
        lines.append(f"last figures: {share} with {figures['labels']} labels (round {figures['round']})")
        lines += figures.get("words") or []
    return code, [*lines, f"as of {status['time']}"]
