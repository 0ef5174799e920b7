"""A model in a folder, whatever form it has: what it is, without torch; and opened, ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from raykd.errors import UserError
from raykd.models.classifier import Classifier
from raykd.models.preprocess import ABOUT, Preprocess, preprocess_from, read_preprocess
from raykd.models.saved import NETWORK, WEIGHTS
from raykd.models.teacher import check_checkpoint
from raykd.store.place import Place

CARD_FILE = "card.json"  # of an export
TIMM_CONFIG = "config.json"
LISTED = 8  # files of a folder that is none
WEIGHTS_ENDING = ".safetensors"


@dataclass(frozen=True)
class Found:
    """A model that is there.

    Args:
        place: Its folder.
        files: What of the folder is the model; copied elsewhere, they are it, too.
        classes: Names, in the order of its probabilities.
        preprocess: What images go through first.
        words: What it is, for people.
    """

    place: Place
    files: tuple[str, ...]
    classes: list[str]
    preprocess: Preprocess
    words: str

    @property
    def is_export(self) -> bool:
        """Whether jobs/export.py wrote it; else it is a student as raykd saves one."""
        return CARD_FILE in self.files


def find_model(folder: Place) -> Found:
    """The model in a folder, or in its ``student/``, as a round's folder has it.

    Raises:
        UserError: There is none, or it is not whole; says what was looked for.
    """
    at = next((place for place in (folder, folder / "student") if (place / ABOUT).exists()), None)
    if at is None and (folder / CARD_FILE).exists():
        return find_exported(folder)
    if at is None:
        raise UserError(
            f"{folder} {holds(folder)}; looked for {ABOUT}, of a student such as RUN/round_002/student, and "
            f"{CARD_FILE}, of an export"
        )
    about = (at / ABOUT).read_json()
    try:
        classes, words = list(about["classes"]), f"{about['backbone']}, heads: {about['heads']}"
        preprocess = read_preprocess(at)
    except (KeyError, TypeError) as error:
        raise UserError(f"{at / ABOUT} is not as raykd writes it: {error} is missing; copy the folder again") from error
    if not (at / WEIGHTS).exists():
        raise UserError(f"{at} has {ABOUT} and no {WEIGHTS}, so it is half a student; copy the folder again")
    if "frozen" in about and not (at / NETWORK).exists():
        raise UserError(
            f"{at} holds the heads of a frozen student, without the network under them ({NETWORK}); give the round's "
            "student/ folder"
        )
    if at.is_local:
        check_checkpoint((at / WEIGHTS).path, "the student")
    weights = [info.base_name for info in at.files() if info.base_name.endswith(WEIGHTS_ENDING)]  # in one file or more
    return Found(at, (ABOUT, *weights), classes, preprocess, words)


def find_exported(folder: Place) -> Found:
    """The model of a folder of jobs/export.py. Raises UserError: it is not whole."""
    card = (folder / CARD_FILE).read_json()
    try:
        files, words = exported_files(card), f"{card['backbone']}, exported as {card['format']}"
        found = Found(folder, (CARD_FILE, *files), list(card["classes"]), preprocess_of_card(card), words)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD_FILE} is not as raykd writes it: {error} is missing") from error
    for name in files:
        if not (folder / name).exists():
            raise UserError(f"{folder} has {CARD_FILE} and no {name}, so it is half an export; copy the folder again")
    return found


def exported_files(card: Mapping[str, Any]) -> tuple[str, ...]:
    """What of an exported folder is the model, beside its card."""
    return (card["weights"], TIMM_CONFIG) if card["format"] == "timm" else (card["weights"],)


def preprocess_of_card(card: Mapping[str, Any]) -> Preprocess:
    return preprocess_from(card["preprocess"])


def open_model(folder: Place, device: str = "cpu") -> Classifier:
    """What :func:`find_model` has found, or a copy of its files."""
    if not (folder / ABOUT).exists():
        from raykd.models.exported import Exported

        return Exported(folder, device)
    from raykd.models.student import Student

    return Student.load(folder, device)


def holds(folder: Place) -> str:
    """What is there instead of a model."""
    if not folder.exists():
        return "is not there"
    if not folder.is_dir():
        return "is a file"
    names = sorted(info.base_name for info in folder.fs.get_file_info(pafs.FileSelector(folder.path)))
    return f"holds {', '.join(names[:LISTED]) + (', ...' if len(names) > LISTED else '') or 'nothing'}"
