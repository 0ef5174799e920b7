"""What an image goes through before a student sees it, without torch: whoever reads images needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raykd.images.transforms import CenterCrop, ClipPreprocess, RandomCrop
from raykd.store.place import Place

ABOUT = "student.json"


@dataclass(frozen=True)
class Preprocess:
    """From an RGB image to the square that the student sees.

    Args:
        image_size: Side, pixels.
        mean, std: Of each channel, 0 to 1, to normalise with (``raykd.models.student.normalised``).
        interpolation: Of resizing: bilinear or bicubic.
        clip: open_clip's ``preprocess_cfg`` of a frozen image tower that sees something else than the middle of an
            image, such as SigLIP's, squashed ones. None: the middle.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    clip: Mapping[str, Any] | None = None

    def clean(self, exact: bool = True) -> CenterCrop | ClipPreprocess:
        """Short side to ``image_size``, centre crop: for predicting (PAPERS.md 1.4). Or as ``clip`` says."""
        if self.clip is not None:
            return ClipPreprocess(self.clip, exact)
        return CenterCrop(self.image_size, self.interpolation, exact)

    def augmented(self, area: tuple[float, float], flip: bool) -> RandomCrop:
        """A random resized crop, and a flip in half the cases; called with image and seed: for training.

        Args:
            area: Of the crop, smallest and largest share of the image.
            flip: Whether to flip at all.
        """
        return RandomCrop(self.image_size, area, flip, self.interpolation)


def read_preprocess(student: Place) -> Preprocess:
    """The preprocessing of a saved student."""
    return preprocess_from((student / ABOUT).read_json()["preprocess"])


def preprocess_from(saved: Mapping[str, Any]) -> Preprocess:
    """A preprocessing from plain data."""
    seen = (saved["image_size"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"])
    return Preprocess(*seen, saved.get("clip"))
