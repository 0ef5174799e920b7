"""What an image goes through before a student sees it, without torch: whoever reads images needs none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

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

    def clean(self) -> Callable[[Image.Image], Image.Image]:
        """Short side to ``image_size``, centre crop: for predicting (PAPERS.md 1.4)."""
        from torchvision import transforms as T

        mode = T.InterpolationMode(self.interpolation)
        return T.Compose([T.Resize(self.image_size, mode), T.CenterCrop(self.image_size)])

    def augmented(self, area: tuple[float, float], flip: bool) -> Callable[[Image.Image, int], Image.Image]:
        """A random resized crop, and a flip in half the cases; both hang on the seed alone: for training.

        Args:
            area: Of the crop, smallest and largest share of the image.
            flip: Whether to flip at all.
        """
        import torch
        from torchvision import transforms as T

        crop = T.RandomResizedCrop(self.image_size, scale=area, interpolation=T.InterpolationMode(self.interpolation))
        transform = T.Compose([crop, T.RandomHorizontalFlip()]) if flip else crop

        def drawn(image: Image.Image, seed: int) -> Image.Image:
            torch.default_generator.manual_seed(seed)
            return transform(image)

        return drawn


def read_preprocess(student: Place) -> Preprocess:
    """The preprocessing of a saved student."""
    saved = (student / ABOUT).read_json()["preprocess"]
    return Preprocess(saved["image_size"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"])
