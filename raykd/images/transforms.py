"""From an RGB image to the pixels that a model sees, by Pillow and numpy alone: a reading process starts without torch.

The pixels are those of torchvision and open_clip, bit for bit (tests hold them against both), with one departure: where
less than a 16th of the resized image would be kept, only what the crop can see is resized. An image of 1 x 1,500 pixels
costs what others cost, not 300 MB. Its pixels differ by a level or two, at hard edges under bicubic filters by more.

Transforms are small frozen values: they pickle into Ray tasks and DataLoader processes, and threads may share them.
Each says by ``shrinks`` how many times smaller it makes an image of a size (less than 1: larger), so that whoever
decodes may leave out detail that would not be seen (:func:`raykd.images.decoding.decode`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from raykd.algo.keyed import bits, hash_ids, uniform
from raykd.errors import UserError, did_you_mean

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SUPPORT = 2  # source pixels on either side that a bicubic filter looks at, when it does not shrink
RESIZE_MODES = ("shortest", "longest", "squash")
MOST_DISCARDED = 16  # times what is kept: above it, the image is cropped before it is resized
GAP = 2.0  # times the size that is wanted: down to that pixels are merely averaged, when it need not be exact

CROP_ASPECT = (3 / 4, 4 / 3)  # width / height of random crops, as in torchvision
CROP_ATTEMPTS = 10

JPEG_QUALITY = 80


@dataclass(frozen=True)
class CenterCrop:
    """Short side to ``size``, then the square in the middle: torchvision's ``Resize(size)`` and ``CenterCrop(size)``.

    Args:
        size: Side of the result, pixels.
        interpolation: ``bilinear`` or ``bicubic``; both average over what they shrink.
        exact: torchvision's pixels; else only what the crop sees is resized, large images in two steps (:data:`GAP`).
    """

    size: int
    interpolation: str = "bilinear"
    exact: bool = True

    def __post_init__(self) -> None:
        check("interpolation", self.interpolation, RESAMPLING)

    def shrinks(self, width: int, height: int) -> float:
        return min(width, height) / self.size

    def __call__(self, image: Image.Image) -> Image.Image:
        resized = short_side_to(image, self.size)
        return middle_of_resized(image, resized, (self.size, self.size), RESAMPLING[self.interpolation], self.exact)


@dataclass(frozen=True)
class ClipPreprocess:
    """What an open_clip model expects, up to the pixels: ``image_transform_v2(config, is_train=False)``.

    Args:
        config: open_clip's ``preprocess_cfg``: ``size`` (pixels, or [height, width]), ``resize_mode`` (shortest,
            longest, squash), ``interpolation`` (bicubic, bilinear, random), ``fill_color`` (0 to 255, or one a channel;
            around what ``longest`` leaves free). Mean and deviation are the model's business.
        exact: open_clip's pixels; else only what the crop sees is resized, large images in two steps (:data:`GAP`).

    Raises:
        UserError: No size, or a word that open_clip does not know.
    """

    config: Mapping[str, Any]
    exact: bool = True

    def __post_init__(self) -> None:
        if not self.config.get("size"):
            raise UserError(f"the model's preprocess_cfg has no size; it has {', '.join(self.config) or 'nothing'}")
        check("resize_mode", self._mode, RESIZE_MODES)
        check("interpolation", self.config.get("interpolation") or "bicubic", (*RESAMPLING, "random"))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result, pixels."""
        return height_width(self.config["size"])

    @property
    def _mode(self) -> str:
        return self.config.get("resize_mode") or "shortest"

    def shrinks(self, width: int, height: int) -> float:
        ratios = height / self.size[0], width / self.size[1]
        return max(ratios) if self._mode == "longest" else min(ratios)

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        resample = RESAMPLING.get(self.config.get("interpolation") or "", Image.Resampling.BICUBIC)
        gap = None if self.exact else GAP
        if self._mode == "squash":
            return image.resize((width, height), resample, reducing_gap=gap)
        ratios = image.height / height, image.width / width
        if self._mode == "longest":
            fill = self.config.get("fill_color") or 0
            color = (fill,) * 3 if isinstance(fill, int) else tuple(fill)
            resized = divided(image, max(ratios))
            return middle(image.resize(resized, resample, reducing_gap=gap), self.size, color)
        if height == width:
            return middle_of_resized(image, short_side_to(image, height), self.size, resample, self.exact)
        # open_clip resizes to what is not square by bicubic filters, whatever the config says
        resample = Image.Resampling.BICUBIC
        return middle_of_resized(image, divided(image, min(ratios)), self.size, resample, self.exact)


@dataclass(frozen=True)
class RandomCrop:
    """A random crop, resized, and a flip in half the cases: torchvision's ``RandomResizedCrop``, drawn by a seed.

    Args:
        size: Of the result, pixels: the side of a square, or (height, width).
        area: Of the crop: smallest and largest share of the image.
        flip: Whether to flip at all; it changes nothing about the crop.
        interpolation: ``bilinear`` or ``bicubic``.

    Example:
        >>> crop = RandomCrop(2, area=(0.5, 1.0), flip=True)
        >>> image = Image.radial_gradient("L").convert("RGB")
        >>> crop(image, 7) == crop(image, 7)
        True
    """

    size: int | tuple[int, int]
    area: tuple[float, float]
    flip: bool
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        check("interpolation", self.interpolation, RESAMPLING)

    def shrinks(self, width: int, height: int) -> float:
        """Of the smallest crop that may be drawn."""
        least = min(math.sqrt(width * height * self.area[0] * CROP_ASPECT[0]), width, height)
        return least / max(height_width(self.size))

    def __call__(self, image: Image.Image, seed: int) -> Image.Image:
        """The crop of this seed (0 or more): the same for equal seeds and image sizes."""
        return self.cut(image, *self.draw(image.width, image.height, seed))

    def cut(self, image: Image.Image, box: tuple[int, int, int, int], flipped: bool) -> Image.Image:
        """The crop of this box, as :meth:`draw` gives it."""
        height, width = height_width(self.size)
        cropped = image.crop(box).resize((width, height), RESAMPLING[self.interpolation])
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cropped

    def draw(self, width: int, height: int, seed: int) -> tuple[tuple[int, int, int, int], bool]:
        """The crop's left, top, right and bottom, pixels; and whether it is flipped."""
        drawn_N5 = self.draws(np.array([width]), np.array([height]), np.array([seed]))
        left, top, right, bottom, flipped = drawn_N5[0].tolist()
        return (left, top, right, bottom), bool(flipped)

    def draws(self, widths_N: np.ndarray, heights_N: np.ndarray, seeds_N: np.ndarray) -> np.ndarray:
        """Of each image left, top, right and bottom, pixels, and 1 if it is flipped: int64 [N, 5].

        Each as if it was drawn alone. Cost: about 0.3 ms for a batch, whatever its size.

        Args:
            widths_N, heights_N: Pixels.
            seeds_N: int64 [N], 0 or more.
        """
        names_N = seeds_N.astype(np.uint64)
        found_N5 = np.zeros((len(names_N), 5), np.int64)
        found_N5[:, 4] = (uniform(names_N, "flip") < 0.5) & self.flip  # drawn in any case: crops do not hang on it
        (low, high), (narrowest, widest) = self.area, CROP_ASPECT
        left = np.arange(len(names_N))
        for attempt in range(CROP_ATTEMPTS):
            drawn = bits(names_N[left], attempt)
            width_n, height_n = widths_N[left], heights_N[left]
            area_n = width_n * height_n * (low + (high - low) * uniform(drawn, "area"))
            aspect_n = np.exp(math.log(narrowest) + math.log(widest / narrowest) * uniform(drawn, "aspect"))
            wide_n = np.rint(np.sqrt(area_n * aspect_n)).astype(np.int64)
            high_n = np.rint(np.sqrt(area_n / aspect_n)).astype(np.int64)
            fits = (wide_n > 0) & (wide_n <= width_n) & (high_n > 0) & (high_n <= height_n)
            x_n = (uniform(drawn, "left") * (width_n - wide_n + 1)).astype(np.int64)
            y_n = (uniform(drawn, "top") * (height_n - high_n + 1)).astype(np.int64)
            found_N5[left[fits], :4] = np.stack([x_n, y_n, x_n + wide_n, y_n + high_n], axis=1)[fits]
            if not len(left := left[~fits]):
                return found_N5
        # too long or too wide an image: the largest crop in its middle that has such an aspect
        width_n, height_n = widths_N[left], heights_N[left]
        wide_n = np.minimum(width_n, np.rint(height_n * widest).astype(np.int64))
        high_n = np.minimum(height_n, np.rint(width_n / narrowest).astype(np.int64))
        x_n, y_n = (width_n - wide_n) // 2, (height_n - high_n) // 2
        found_N5[left, :4] = np.stack([x_n, y_n, x_n + wide_n, y_n + high_n], axis=1)
        return found_N5


@dataclass(frozen=True)
class RandomViews:
    """Several random crops of an image, drawn by the image's name: they hang on nothing that is read with it.

    Args:
        crop: How each is drawn and cut.
        count: k, how many. The first few are the same for any k.
        seed: Another one, other crops.
    """

    crop: RandomCrop
    count: int
    seed: int

    def shrinks(self, width: int, height: int) -> float:
        return self.crop.shrinks(width, height)

    def __call__(self, image: Image.Image, sample_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The views uint8 [k, H, W, 3], and int32 [k, 5] of each: left, top, right, bottom, and 1 if it is flipped."""
        name = hash_ids([sample_id])
        seeds_K = np.concatenate([bits(name, self.seed, "view", number) for number in range(self.count)])
        every_K = np.ones(self.count, np.int64)
        drawn_K5 = self.crop.draws(image.width * every_K, image.height * every_K, seeds_K)
        cuts = [self.crop.cut(image, (x, y, right, low), bool(flip)) for x, y, right, low, flip in drawn_K5.tolist()]
        return np.stack([np.asarray(cut) for cut in cuts]), drawn_K5.astype(np.int32)


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG whose longer side is ``size`` pixels; an image that is no larger stays as it is, as PNG."""

    size: int

    def shrinks(self, width: int, height: int) -> float:
        return max(width, height) / self.size

    def __call__(self, image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        longer = max(image.size)
        if longer <= self.size:
            image.save(buffer, "PNG")
        else:
            width, height = (max(1, round(side * self.size / longer)) for side in image.size)
            small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
            small.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()


# ---------------------------------------------------------------- sizes are (width, height), crops (height, width)


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Of a size given as the side of a square, or as height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def short_side_to(image: Image.Image, size: int) -> tuple[int, int]:
    """The image's size when its short side is ``size``; the long one is rounded down, as torchvision does."""
    width, height = image.size
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def divided(image: Image.Image, ratio: float) -> tuple[int, int]:
    """The image's size divided by a ratio, as open_clip rounds it (which fails on what is less than a pixel)."""
    return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))


def middle(image: Image.Image, crop: tuple[int, int], color: tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    """The crop in the middle of an image; where the image is smaller, ``color`` is around it."""
    (left, top), (height, width) = offsets(image.size, crop), crop
    if image.width < width or image.height < height:
        canvas = Image.new(image.mode, (width, height), color)
        canvas.paste(image, (-left, -top))
        return canvas
    return image.crop((left, top, left + width, top + height))


def middle_of_resized(
    image: Image.Image, resized: tuple[int, int], crop: tuple[int, int], resample: Image.Resampling, exact: bool = True
) -> Image.Image:
    """:func:`middle` of the image resized to ``resized``, which covers the crop.

    Where that is much larger than the crop, or it need not be exact, only what the crop sees is resized: memory and
    time of the crop. Pillow rounds to 8 bits between its two passes, and which is first hangs on the sizes; so the
    pixels are nearly the same.
    """
    (height, width), (left, top) = crop, offsets(resized, crop)
    if exact and math.prod(resized) <= MOST_DISCARDED * height * width:
        return middle(image.resize(resized, resample), crop)
    spans = []
    for side, new_side, start, length in zip(image.size, resized, (left, top), (width, height), strict=True):
        scale = side / new_side
        margin = SUPPORT * max(scale, 1.0) + 1
        begin, end = start * scale, min((start + length) * scale, side)
        spans.append((begin, end, max(0, math.floor(begin - margin)), min(side, math.ceil(end + margin))))
    (x0, x1, seen_left, seen_right), (y0, y1, seen_top, seen_bottom) = spans
    seen = image.crop((seen_left, seen_top, seen_right, seen_bottom))
    box = (x0 - seen_left, y0 - seen_top, x1 - seen_left, y1 - seen_top)
    return seen.resize((width, height), resample, box, reducing_gap=None if exact else GAP)


def offsets(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a (height, width) crop in the middle of (width, height), as torchvision rounds."""
    (width, height), (crop_height, crop_width) = size, crop
    left, top = (
        -((length - side) // 2) if length > side else round((side - length) / 2)
        for side, length in ((width, crop_width), (height, crop_height))
    )
    return left, top


def check(what: str, given: str, known: Any) -> None:
    if given not in known:
        raise UserError(f"unknown {what} {given!r}; {did_you_mean(given, known)}")
