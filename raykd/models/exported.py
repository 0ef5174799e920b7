"""An exported model, back in raykd: whatever it was written as, it predicts images as the student does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from raykd.errors import UserError
from raykd.models.classifier import Classifier
from raykd.models.export import check_installed, open_written
from raykd.models.opened import CARD_FILE, exported_files, preprocess_of_card
from raykd.store.place import Place


class Exported(Classifier):
    """A folder of jobs/export.py, on the CPU, opened as those open it who have no raykd.

    Args:
        folder: Its place; what lies elsewhere is copied here first.
        device: ``cpu``.

    Raises:
        UserError: Another device; the format needs packages that are not there.
    """

    def __init__(self, folder: Place, device: str = "cpu") -> None:
        if device != "cpu":
            raise UserError(
                f"an exported model runs on the CPU here, not on {device}: leave --num-gpus away, or take the "
                "student's own folder"
            )
        card = (folder / CARD_FILE).read_json()
        check_installed(card["format"])
        self.classes, self.preprocess = list(card["classes"]), preprocess_of_card(card)
        with tempfile.TemporaryDirectory() as copy:
            here = Path(folder.path)
            if not folder.is_local:
                here = Path(copy)
                for name in exported_files(card):
                    (here / name).write_bytes((folder / name).read_bytes())
            self._ask = open_written(card["format"], here)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return self._ask(pixels)
