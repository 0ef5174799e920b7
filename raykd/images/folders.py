"""Folders of images: ``format: images`` and ``format: class_folders``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from raykd.errors import UserError
from raykd.images.decoding import SUFFIXES
from raykd.images.manifest import SPLIT_NAMES, Say, endings, few, in_order, manifest_rows, other_format
from raykd.images.walk import files_below
from raykd.store.place import Place
from raykd.store.tables import RUN_ROWS

if TYPE_CHECKING:
    from raykd.config import Source


def list_images(source: Source, place: Place, split: str, say: Say) -> tuple[pa.Table, list[str] | None]:
    """Image files at any depth; with class_folders the first folder is the label, and every first folder a class."""
    if not place.is_dir():
        raise UserError(
            f"{split}: {source.path!r} is a file; format {source.format} expects a folder{other_format([place.name])}"
        )
    files = files_below(place, split, say)
    is_image = [name.lower().endswith(SUFFIXES) for name in files.names]
    others = [name for name, image in zip(files.names, is_image, strict=True) if not image]
    if not any(is_image):
        raise UserError(
            f"{split}: no image in {source.path} (format {source.format}): it holds {endings(others) or 'no file'}. "
            f"Read are {', '.join(SUFFIXES)}{other_format(others)}"
        )
    if others:
        say(
            split,
            f"{len(others):,} files in {source.path} are not images that are read ({endings(others)}), such as "
            f"{others[0]!r}; left out",
        )
    names = [name for name, image in zip(files.names, is_image, strict=True) if image]
    sizes = [size for size, image in zip(files.sizes, is_image, strict=True) if image]
    times = [time for time, image in zip(files.times, is_image, strict=True) if image]
    labels, classes = None, None
    if source.format == "class_folders":
        labels, classes = class_folders(source, split, names, files.folders, say)
    return manifest_rows(split, names, uris_of(place, names), sizes, times, labels), classes


def class_folders(
    source: Source, split: str, names: list[str], folders: Iterable[str], say: Say
) -> tuple[list[str], list[str]]:
    """The label of each image, and the classes: every folder at the top, those without an image too."""
    labels = [name.partition("/")[0] for name in names]
    if loose := [name for name in names if "/" not in name]:
        raise UserError(f"{split}: {len(loose)} images, such as {loose[0]!r}, lie in no class folder of {source.path}")
    used = set(labels)
    splits = {name: SPLIT_NAMES[name.lower()] for name in sorted(used) if name.lower() in SPLIT_NAMES}
    if used == splits.keys() or len(set(splits.values())) > 1:  # a class may be called train, but hardly another test
        own = next((name for name, meaning in splits.items() if meaning == split), min(splits))
        raise UserError(
            f"{split}: the folders of {source.path} are splits ({', '.join(splits)}), not classes; expected a folder a "
            f"class. Give {split}.path: {source.path}/{own}, and each of the others as pool, val or test"
        )
    classes = {folder for folder in folders if "/" not in folder} | used
    if empty := in_order(classes - used):
        say(split, f"{len(empty)} class folders in {source.path} hold no image: {few(empty)}; they are classes too")
    return labels, in_order(classes)


def uris_of(place: Place, names: list[str]) -> pa.Array | pa.ChunkedArray:
    if "://" in place.uri:
        runs = (names[start : start + RUN_ROWS] for start in range(0, len(names), RUN_ROWS))
        return pa.chunked_array(
            [pa.array([(place / name).uri for name in run], pa.string()) for run in runs], pa.string()
        )
    return pc.binary_join_element_wise(place.path.rstrip("/"), pa.array(names, pa.string()), "/")
