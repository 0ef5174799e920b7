"""What an image goes through before a student sees it, without torch: whoever reads images needs none."""

from __future__ import annotations

from dataclasses import dataclass

from raykd.images.transforms import CenterCrop, RandomCrop
from raykd.store.place import Place

ABOUT = "student.json"


@dataclass(frozen=True)
class Preprocess:
    """From an RGB image to the square that the student sees.

    Args:
        image_size: Side, pixels.
        mean, std: Of each channel, 0 to 1, to normalise with (``raykd.models.student.normalised``).
        interpolation: Of resizing: bilinear or bicubic.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def clean(self, exact: bool = True) -> CenterCrop:
        """Short side to ``image_size``, centre crop: for predicting (PAPERS.md 1.4)."""
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
    saved = (student / ABOUT).read_json()["preprocess"]
    return Preprocess(saved["image_size"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"])
