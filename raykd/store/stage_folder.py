"""A folder that is complete or absent, and knows what it was made from.

On a local disk it is written aside, its marker ``_DONE.json`` last, and renamed. An object store cannot rename folders:
there it is written in place with the marker last, and a folder without a marker counts as absent. Where several jobs
may make the same folder at the same time, each writes into one of its own inside it, and the marker names the one that
counts. Nothing that is complete is ever overwritten or deleted.

The marker holds what the content depends on, in two kinds. What it was *made from* (the results of earlier stages, and
the version of the stage's code) must be the same for ever: else two campaigns, or two versions of raykd, are mixed, and
that stops with the names of what differs. The *settings* are the part of the config that went in. They are the user's
to change until the folder is complete, and from then on they count for later rounds: a complete folder keeps its own.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raykd.errors import UserError, one_line
from raykd.store.place import Place

MARKER = "_DONE.json"
SURELY_KILLED_S = 24 * 3600.0  # after so long without a change a half-made folder is nobody's


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
        if old.get(key, missing) != new.get(key, missing) and not _is_parent(key, old.get(key), new.get(key), old, new)
    ]


def _is_parent(key: str, was: Any, is_now: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a key stands for an empty mapping that has keys on the other side: those are named instead."""
    return {} in (was, is_now) and any(name.startswith(f"{key}.") for name in (*old, *new))


def shorten(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True)
class Done:
    """A complete folder: what its marker says, read once.

    Args:
        place: Where the content is.
        fingerprint: Names all that it was made from, by that everything upstream.
        facts: What the stage noted about itself (rows, seconds, ...).
        settings: The part of the config that went in.
        made_from: The version of the stage's code, and what earlier stages left.
    """

    place: Place
    fingerprint: str
    facts: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    settings: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    made_from: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


def read_done(place: Place) -> Done | None:
    """What is complete at a place; None when nothing is.

    Raises:
        UserError: The marker is there, but no whole marker.
    """
    marker = place / MARKER
    if not marker.exists():
        return None
    try:
        said = marker.read_json()
        content = place / said["attempt"] if "attempt" in said else place
        return Done(content, said["fingerprint"], said["facts"], said["settings"], said["made_from"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{marker} is damaged ({one_line(error)}): a copy that broke off, or another program's. If what is beside "
            f"it is whole, put the marker back; else move {place} away and run again: it is made anew"
        ) from error


@dataclass(frozen=True)
class StageFolder:
    """A step's folder, complete or still to be made.

    Args:
        place: Where.
        name: As messages say it, such as ``round 2 train``.
        version: Of the stage's code: raised when the same inputs would give another content or format.
        made_from: Plain data: fingerprints and contents of what earlier stages left.
        settings: Plain data: the config's part.
        still_ours: Raises when another job took over the campaign's folder (:func:`raykd.store.lock.only_job`).
        shared: Other jobs may make the same folder at the same time, as in a cache: whoever is first completes it, and
            nobody deletes what others are making.
        told: Called with the name when its making begins, and with None when it is complete.
    """

    place: Place
    name: str
    version: int
    made_from: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    still_ours: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    shared: bool = False
    told: Callable[[str | None], None] = field(default=lambda _: None, repr=False, compare=False)

    def under(self, place: Place) -> StageFolder:
        """The same, in a folder of ``place`` that is named by what it is made from: so what is there is found."""
        return replace(self, place=place / fingerprint([self._made_from, {}]))

    @property
    def fingerprint(self) -> str:
        """Names version, inputs and settings, and by them everything upstream."""
        return fingerprint([self._made_from, self.settings])

    def done(self) -> Done | None:
        """What is complete here; None when it is still to be made.

        Raises:
            UserError: It is complete, but was made from other inputs or by another version; names the fields.
        """
        found = read_done(self.place)
        if found is None:
            return None
        if changed := self.inputs_changed(found):
            raise UserError(
                f"{self.name}: {self.place} was made from other inputs: {'; '.join(changed)}. It was copied from "
                "another campaign, or made by another raykd (campaign.json says which): go on with that one, or give a "
                f"new storage_path and labels.given: {str(self.place).rpartition('/round_')[0] or self.place}"
            )
        return found

    def inputs_changed(self, done: Done) -> list[str]:
        """One line for every input that differs from those that a complete folder was made from."""
        return differences(done.made_from, _plain(self._made_from))

    def settings_changed(self, done: Done) -> list[str]:
        """One line for every setting that differs from those that a complete folder was made with."""
        return differences(done.settings, _plain(self.settings))

    @property
    def _made_from(self) -> dict[str, Any]:
        return {"version": self.version, **self.made_from}

    def begin(self) -> Writing:
        """Start to make the folder; :meth:`Writing.commit` completes it.

        Raises:
            UserError: The folder holds files, but no marker.
        """
        self.still_ours()  # or what is deleted next may be that job's
        self.told(self.name)
        place = self.place
        if place.is_local:
            if place.files(recursive=True) and not self.shared:  # the rename would fail, when all the work is done
                raise UserError(f"{place} holds files but no {MARKER}: not made by raykd, or half copied; move it away")
            folder, name = os.path.split(place.path)
            for leftover in Path(folder).glob(f".{name}.*.aside"):  # of an attempt that was killed
                if not self.shared or time.time() - leftover.stat().st_mtime > SURELY_KILLED_S:
                    shutil.rmtree(leftover, ignore_errors=self.shared)
            place = Place(f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.aside")
        elif self.shared:
            place = place / f"attempt_{uuid.uuid4().hex[:8]}"
        else:  # what a killed attempt left behind was never complete, and would be read as part of this one
            for info in place.files(recursive=True):
                place.fs.delete_file(info.path)
        place.fs.create_dir(place.path, recursive=True)
        return Writing(place, self)

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Make the folder: write into ``.place``, note ``.facts``; complete when the block ends without an error."""
        out = self.begin()
        try:
            yield out
            out.commit()
        except BaseException:
            out.abandon()
            raise


@dataclass
class Writing:
    """A folder in the making: where to write, and what to note."""

    place: Place
    folder: StageFolder
    facts: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    done: Done | None = None  # once it is complete

    @property
    def complete(self) -> Done:
        """What was made, after :meth:`commit`."""
        assert self.done is not None, self.folder
        return self.done

    def commit(self) -> Done:
        """Make it complete, or, where another job was faster, take what it made. Raises what ``still_ours`` does."""
        folder = self.folder
        folder.still_ours()
        if folder.shared and (theirs := read_done(folder.place)):
            self.abandon()
            self.done = theirs
            return theirs
        self.facts.setdefault("seconds", round(time.perf_counter() - self.started, 3))
        marker = {
            "stage": folder.name,
            "fingerprint": folder.fingerprint,
            "made_from": folder._made_from,
            "settings": folder.settings,
            "facts": self.facts,
        }
        content = folder.place
        if folder.place.is_local:
            (self.place / MARKER).write_json(marker)
            try:
                os.rename(self.place.path, folder.place.path)
            except OSError:
                if not (folder.shared and read_done(folder.place)):
                    raise
                return self.commit()  # another job was faster by a moment
        else:
            if folder.shared:
                content, marker["attempt"] = self.place, self.place.name
            (folder.place / MARKER).write_json(marker)
        made_from, settings = _plain(folder._made_from), _plain(folder.settings)
        self.done = Done(content, folder.fingerprint, _plain(self.facts), settings, made_from)
        folder.told(None)
        return self.done

    def abandon(self) -> None:
        """Leave nothing behind that is this attempt's alone."""
        if self.place == self.folder.place:  # in place: the next attempt begins with deleting it
            return
        if self.place.is_local:
            shutil.rmtree(self.place.path, ignore_errors=True)
        else:
            for info in self.place.files(recursive=True):
                self.place.fs.delete_file(info.path)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As a marker gives it back: no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain
