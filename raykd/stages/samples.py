"""A few images of each source, found in seconds; and the files that a job's working dir would hold. Without torch."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from raykd.config import Config
from raykd.demo import POOL
from raykd.demo.digits import materialise
from raykd.diagnosis import Finding, failed, warn
from raykd.errors import UserError
from raykd.images.decoding import SUFFIXES
from raykd.images.sources import list_rows
from raykd.store.place import Place

SAMPLED = 8  # images of a source
LISTING_S = 8.0


class Listings:
    """The images of a config's sources, listed beside what this process does next.

    Not the demo's where it lies in the campaign's folder, as on a cluster: it is only made when a campaign begins.
    """

    def __init__(self, config: Config, on_one_machine: bool) -> None:
        self.sources = {
            split: source for split, source in config.sources.items() if on_one_machine or source.path != POOL
        }
        self.found: dict[str, list[str] | Exception] = {}
        self.thread = threading.Thread(target=self._list, daemon=True)  # a listing cannot be broken off
        self.thread.start()

    def _list(self) -> None:
        for split, source in self.sources.items():
            try:
                table, _ = list_rows(materialise(source), split, lambda *_: None, None)
                self.found[split] = table["uri"].to_pylist()
            except Exception as error:
                self.found[split] = error

    def samples(self) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
        """Some images of each source, by split: first, last and random ones; and what is wrong with these.

        Of one that is not listed within :data:`LISTING_S` from now the first that are found.
        """
        self.thread.join(LISTING_S)
        some: dict[str, tuple[str, ...]] = {}
        told: list[Finding] = []
        for split, source in self.sources.items():
            listed = self.found.get(split)
            if isinstance(listed, Exception):
                told.append(failed("images", listed))
            elif listed is None:
                some[split] = tuple(itertools.islice(first_images(Place.of(source.path)), SAMPLED))
                what = (
                    f"{source.path} takes more than {LISTING_S:.0f} s to list, {len(some[split])} of it are looked at"
                )
                told.append(warn("images", f"{split}: {what}", "nothing, if it is large"))
            else:
                some[split] = some_of(listed)
        return some, told


def some_of(uris: list[str]) -> tuple[str, ...]:
    """The first, the last, and others at random."""
    if len(uris) <= SAMPLED:
        return tuple(uris)
    return (uris[0], uris[-1], *random.Random(0).sample(uris[1:-1], SAMPLED - 2))


def first_images(folder: Place) -> Iterator[str]:
    """URIs of images below a folder as they are found, a folder's own before those of the folders in it."""
    try:
        infos = folder.fs.get_file_info(pafs.FileSelector(folder.path))
    except (OSError, UserError):
        return
    for info in infos:
        if info.is_file and info.base_name.lower().endswith(SUFFIXES):
            yield (folder / info.base_name).uri
    for info in infos:
        if info.type == pafs.FileType.Directory:
            yield from first_images(folder / info.base_name)


def packed_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that a job's working dir would hold, ``.gitignore`` and ``.rayignore`` obeyed as Ray does."""
    from ray._private.runtime_env.packaging import _dir_travel

    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size

    _dir_travel(folder, [], add, include_gitignore=True, logger=logging.getLogger("raykd.packed"))
    return sizes
