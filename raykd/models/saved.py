"""A saved student as files, without torch: what it takes to deploy one with another mixture."""

from __future__ import annotations

from dataclasses import asdict

from raykd.algo.heads import Mixture
from raykd.models.preprocess import ABOUT
from raykd.store.place import Place

WEIGHTS = "model.safetensors"


def deploy(student: Place, folder: Place, mixture: Mixture) -> None:
    """Copy a saved student into a folder, with this mixture."""
    (folder / WEIGHTS).write_bytes((student / WEIGHTS).read_bytes())
    (folder / ABOUT).write_json((student / ABOUT).read_json() | {"mixture": asdict(mixture)})
