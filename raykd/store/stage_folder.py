"""Where a campaign keeps things, and what of it is already done.

::

    <storage_path>/
      campaign.json            resolved config, versions, commit: written before anything else
      starts/<time>.json       the same for every later start
      pool/                    manifest of every image
      teacher_model/ teacher/  fetched weights; features and logits of every image
      ledger/                  every answer ever given, append-only
      answers/                 where people put their label files
      round_000/
        select/ label/ train/ predict/ tune/ evaluate/
        tasks.csv              what to label
      metrics.jsonl report.html
      .lock or .lease.json     while a job is at work here (raykd/store/lock.py)

A stage's folder is complete or absent. On a local disk it is written aside, its marker ``_DONE.json`` last, and
renamed. An object store cannot rename a folder: there it is written in place with the marker last, and a
folder without a marker counts as absent. The marker holds the stage's inputs: the same inputs mean *skip*,
others mean *stop and say which*.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raykd.errors import UserError
from raykd.store.place import Place

MARKER = "_DONE.json"


def fingerprint(value: Any) -> str:
    """A short, stable name for plain data (dict, list, str, numbers): 16 hex digits of SHA-256 of its JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys: ``{"a": {"b": 1}}`` gives ``{"a.b": 1}``."""
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for every dotted field in which two nested mappings differ."""
    old, new = flatten(before), flatten(now)
    missing = "(absent)"
    return [
        f"{key}: was {shorten(old.get(key, missing))}, now {shorten(new.get(key, missing))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def shorten(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass
class Stage:
    """One step of a campaign: a folder, and the inputs that its content depends on.

    Args:
        place: The stage's folder.
        inputs: Plain data; everything that, when changed, would change the content.
        still_ours: Raises when another job took over the campaign's folder (:func:`raykd.store.lock.only_job`).
    """

    place: Place
    inputs: dict[str, Any]
    still_ours: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def name(self) -> str:
        parts = self.place.uri.split("?")[0].split("/")
        return "/".join(parts[-2:]) if parts[-2].startswith("round_") else parts[-1]

    @property
    def fingerprint(self) -> str:
        """Names the inputs and, by them, everything upstream."""
        return fingerprint(self.inputs)

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage noted about itself (rows, seconds, ...); only of a complete stage."""
        return (self.place / MARKER).read_json()["facts"]

    def is_done(self) -> bool:
        """True when the folder is complete and was made from the same inputs.

        Raises:
            ValueError: It is complete, but was made from others; names the fields.
        """
        marker = self.place / MARKER
        if not marker.exists():
            return False
        now = json.loads(json.dumps(self.inputs))  # as the marker has them: no tuples
        if changed := differences(marker.read_json()["inputs"], now):
            raise UserError(
                f"{self.place} was made from other inputs: "
                + "; ".join(changed)
                + ". Put these back, or give another storage_path: nothing that is done is overwritten"
            )
        return True

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Make the stage: write into ``.place``, note ``.facts``; complete when the block ends without an error."""
        out = Writing(self.place)
        self.still_ours()  # or what is deleted next may be that job's
        if self.place.is_local:
            if self.place.files(recursive=True):  # the rename would fail, when all the work is done
                raise UserError(
                    f"{self.place} holds files but no {MARKER}: not made by raykd, or half copied; move it away"
                )
            folder, name = os.path.split(self.place.path)
            for leftover in Path(folder).glob(f".{name}.*.aside"):  # of an attempt that was killed
                shutil.rmtree(leftover)
            out.place = Place(f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.aside")
        else:  # what a killed attempt left behind was never complete, and would be read as part of this one
            for info in self.place.files(recursive=True):
                self.place.fs.delete_file(info.path)
        self.place.fs.create_dir(out.place.path, recursive=True)
        started = time.perf_counter()
        try:
            yield out
            self.still_ours()
        except BaseException:
            if out.place != self.place:
                shutil.rmtree(out.place.path)
            raise
        out.facts.setdefault("seconds", round(time.perf_counter() - started, 3))
        marker = {"stage": self.name, "fingerprint": self.fingerprint, "inputs": self.inputs, "facts": out.facts}
        (out.place / MARKER).write_json(marker)
        if out.place != self.place:
            os.rename(out.place.path, self.place.path)


@dataclass
class Writing:
    """A stage in the making: where to write, and what to note."""

    place: Place
    facts: dict[str, Any] = field(default_factory=dict)
