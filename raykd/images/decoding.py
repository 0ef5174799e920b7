"""From the bytes of an image file to its pixels: RGB, 8 bits, as people see it. The one place that says how.

What an image goes through, and what is counted of it (:data:`CHANGES`), so that a pool's line can say it:

- It is turned upright as its EXIF says; as stored, where that cannot be read.
- What is transparent is white, the paper that ink was meant for.
- Of more than 8 bits a channel the 8 highest that the image uses are kept (:func:`significant_bits`): 12-bit scans are
  not black. Of 32 bits only what fits into 16 is read, as nothing says what their range is; nor is floating point.
- CMYK and Lab become RGB by Pillow's plain rule; colour profiles are not applied.
- Of several frames or pages the first is read.
- A JPEG that will be shrunk may be decoded at a half, a quarter or an eighth of its size (``shrinks``), as long as
  twice the detail that will be seen is left: several times as fast, in a fraction of the memory. README.md says what
  that changes.

What cannot be read gets a reason (:func:`reason_of`) that names the kind of what is wrong and nothing of the one image,
so that reasons can be counted. ``python -m raykd.images`` prints all of this.

Memory: at most 16 bytes a pixel. Images of more than :data:`LARGE_PIXELS` are decoded one at a time on a machine.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from raykd.errors import UserError, one_line

# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".tga",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif",
)
# fmt: on
CHANGES = {  # what may have been done to an image on its way: how a line about so many images goes on
    "turned": "were turned upright, as their EXIF says",
    "transparency": "had transparency, shown on white",
    "depth": "had more than 8 bits a channel, of which the 8 highest in use are kept",
    "colors": "were CMYK or Lab, made RGB without their colour profile",
    "frames": "had several frames or pages, of which the first is taken",
}
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow refuses more: what claims so much is mostly an attack
LARGE_PIXELS = 24_000_000
DETAIL = 2  # times what will be seen is decoded at least
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION_NOTES = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
LITTLE = sys.byteorder == "little"
LOW_BYTES = {  # Pillow's names of how 16-bit colours lie in a file: the high bytes, and how to ask for the low ones
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if LITTLE else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if LITTLE else "RGBA;16L",
    "LA;16B": "RGBA",
}
SIGNATURES = (  # of what is no image that is read, and of what would be one
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was never fetched (git lfs pull)"),
    (b"/annex/objects/", "a git-annex pointer: the file itself was never fetched (git annex get)"),
    (b"<?xml", "not an image: an XML document"),
    (b"%PDF", "not an image: a PDF document"),
    (b"PK\x03\x04", "not an image: a ZIP archive"),
    (b"\x1f\x8b", "not an image: a gzip archive"),
    (b"PAR1", "not an image: a Parquet file"),
    (b"\xff\x0a", "a JPEG XL image, which is not read; convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image, which is not read; convert it to JPEG or PNG"),
    (b"\xff\xd8\xff", "broken in its first bytes: begins as a JPEG does"),
    (PNG_SIGNATURE, "broken in its first bytes: begins as a PNG does"),
)
EMPTY, TRUNCATED = "empty file", "truncated: the file ends before the image does"
TOO_LARGE = f"too large: more than {MOST_PIXELS / 1e6:.0f} million pixels"
FLOATS = "floating-point pixels, of unknown range; expected 8 or 16 bits a channel"
DEEPER = "32-bit pixels, of unknown range; expected 8 or 16 bits a channel"
ZEROS, WEB_PAGE, TEXT = "nothing but zero bytes", "not an image: a web page (HTML)", "not an image: text"
DRAWING, VIDEO = "not an image of pixels: a drawing (SVG)", "not an image: a video"
HEIC = "a HEIC image, which is not read; convert it to JPEG or PNG"
UNKNOWN_FORMAT = "not an image of a format that is read"
REASONS = (EMPTY, TRUNCATED, TOO_LARGE, FLOATS, DEEPER, ZEROS, WEB_PAGE, TEXT, DRAWING, VIDEO, HEIC, UNKNOWN_FORMAT)
Shrinks = Callable[[int, int], float]

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # a large image is no news


class Decoded(NamedTuple):
    """An RGB image, and what was done to it on the way: keys of :data:`CHANGES`."""

    image: Image.Image
    changes: tuple[str, ...]


def decode(encoded: bytes, shrinks: Shrinks | None = None) -> Decoded:
    """The image as the module says.

    Args:
        encoded: The file.
        shrinks: How many times smaller the image will be made, from its width and height: a JPEG is decoded at a
            reduced size then. None: exactly.

    Raises:
        UserError: Not an image, or one of unknown range.
        OSError, ValueError, SyntaxError, DecompressionBombError, ...: Pillow's, of a file that is cut off, broken or
            absurdly large; :func:`reason_of` has the words for them.
    """
    try:
        return _decode(encoded, shrinks)
    except UnidentifiedImageError as error:
        raise UserError(kind_of(encoded)) from error
    except ValueError as error:
        if "MAX_TEXT" not in str(error):  # Pillow's guard against bombs; it also meets profiles and notes above 1 MiB
            raise
        return _decode(without_notes(encoded), shrinks)


def _decode(encoded: bytes, shrinks: Shrinks | None) -> Decoded:
    with Image.open(io.BytesIO(encoded)) as image:
        changes = {"frames"} if getattr(image, "is_animated", False) else set()
        if shrinks is not None and image.format in ("JPEG", "MPO"):
            reduce(image, shrinks)
        with alone_if_large(image):
            return Decoded(_as_rgb(image, encoded, changes), tuple(sorted(changes)))


def reduce(image: Image.Image, shrinks: Shrinks) -> None:
    """Let an open JPEG be decoded at a half, a quarter or an eighth of its size, if :data:`DETAIL` is left."""
    width, height = image.size
    least = min(shrinks(width, height), shrinks(height, width)) / DETAIL  # it may yet be turned
    if (times := next((times for times in (8, 4, 2) if least >= times), 1)) > 1:
        image.draft(None, (width // times, height // times))


@contextmanager
def alone_if_large(image: Image.Image) -> Iterator[None]:
    """Of large images only one is decoded at a time, by all processes of this user on this machine.

    So the memory of many that decode side by side is bounded by :data:`LARGE_PIXELS` each, and one large image.
    """
    pixels = image.width * image.height
    if image.info.get("progressive") and (config := getattr(image, "decoderconfig", ())):
        pixels *= config[0] ** 2  # all of them are held, whatever is made of them
    if pixels <= LARGE_PIXELS:
        yield
        return
    path = os.path.join(tempfile.gettempdir(), f".raykd-large-image-{os.getuid()}")
    with open(path, "w") as turnstile:
        fcntl.flock(turnstile, fcntl.LOCK_EX)  # given up when the file is closed, or with the process
        yield


def _as_rgb(image: ImageFile.ImageFile, encoded: bytes, changes: set[str]) -> Image.Image:
    rawmode = _rawmode(image)
    if turn_upright(image):
        changes.add("turned")
    key = image.info.get("transparency")  # of PNG: the one colour that is not there; of a palette: something else
    if image.mode == "F":
        raise UserError(FLOATS)
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255: all white
        return _from_deep(np.asarray(image)[..., None], encoded, changes, key=key)
    if rawmode in LOW_BYTES:  # 16-bit colours, of which Pillow has given the high bytes
        changes.add("depth")
        high_HWC = np.asarray(image)
        if key is not None or high_HWC[..., :3].max() < 0x80:
            low_HWC = np.asarray(_in_other_bytes(encoded, LOW_BYTES[rawmode]))
            if rawmode.startswith("LA"):  # read as four bytes: gray and alpha, high and low
                high_HWC, low_HWC = low_HWC[..., [0, 2]], low_HWC[..., [1, 3]]
            deep_HWC = high_HWC.astype(np.uint16) << 8 | low_HWC
            if deep_HWC.shape[2] in (2, 4):
                return _from_deep(deep_HWC[..., :-1], encoded, changes, alpha_HW=deep_HWC[..., -1])
            return _from_deep(deep_HWC, encoded, changes, key=key)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), changes)
    if image.mode in ("CMYK", "LAB"):
        changes.add("colors")
    return image if image.mode == "RGB" else image.convert("RGB")


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the pixels lie in the file, by Pillow's name."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _in_other_bytes(encoded: bytes, rawmode: str) -> Image.Image:
    """The file read as if its pixels lay in it so."""
    with Image.open(io.BytesIO(encoded)) as image:
        for i, tile in enumerate(image.tile):
            more = tile.args[1:] if isinstance(tile.args, tuple) else ()
            image.tile[i] = tile._replace(args=(rawmode, *more) if more else rawmode)
        turn_upright(image)
    return image


def turn_upright(image: Image.Image) -> bool:
    """Load an open image and turn it as its EXIF orientation says, in place; whether that changed it."""
    image.load()  # what lies behind the pixels may say it
    before = image.im
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # nearly anything, on broken EXIF; the pixels are fine
        return False
    return image.im is not before


def _from_deep(
    color_HWC: np.ndarray, encoded: bytes, changes: set[str], alpha_HW: np.ndarray | None = None, key: Any = None
) -> Image.Image:
    """An image of 16-bit pixels, gray or RGB, of which ``alpha_HW`` or one colour (``key``) may be transparent."""
    changes.add("depth")
    if key is not None:
        alpha_HW = np.where((color_HWC == key).all(axis=2), 0, 0xFFFF)
    seen = color_HWC if alpha_HW is None else color_HWC[alpha_HW > 0]
    if seen.min(initial=0) < 0 or (most := int(seen.max(initial=0))) > 0xFFFF:
        raise UserError(DEEPER)
    bits = significant_bits(most, encoded)
    shades_HWC = np.minimum(color_HWC >> (bits - 8), 0xFF).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(shades_HWC, (*shades_HWC.shape[:2], 3))))
    if alpha_HW is None:
        return image
    alpha_bits = bits if alpha_HW.max(initial=0) < 1 << bits else 16
    image.putalpha(Image.fromarray((alpha_HW >> (alpha_bits - 8)).astype(np.uint8)))
    return _on_white(image, changes)


def significant_bits(most: int, encoded: bytes) -> int:
    """How many of the 16 bits a file uses, 8 to 16: scanners and cameras store 10, 12 or 14 bits as they are.

    What a PNG says itself (sBIT), unless its values are larger, as it wants them scaled to 16 bits; else as many as the
    largest value needs. So a 16-bit picture that is very dark and says nothing becomes lighter, by a power of two.

    Args:
        most: The largest value, 0 to 65,535.
        encoded: The file.
    """
    said = 0
    if encoded.startswith(PNG_SIGNATURE):
        data = next((encoded[start + 8 : end - 4] for kind, start, end in png_chunks(encoded) if kind == b"sBIT"), b"")
        said = max(data[:3] if len(data) > 2 else data[:1], default=0)
    needed = max(8, most.bit_length())
    return said if needed <= said <= 16 else 16 if said else needed


def as_seen(image: Image.Image) -> Image.Image:
    """An open image as training saw it: upright, RGB, what is transparent white."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # nearly anything, on broken EXIF
        image.load()
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return _on_white(image.convert("RGBA"), set()) if transparent else image.convert("RGB")


def _on_white(image: Image.Image, changes: set[str]) -> Image.Image:
    """An RGBA image as ink on paper: what is not there is white (a browser's page), and black lines stay visible."""
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:  # it could be transparent, and is not
        return image.convert("RGB")
    changes.add("transparency")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=alpha)
    return paper


# ---------------------------------------------------------------- what a file is


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk of a PNG, as far as it is whole."""
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, start)
        if (end := start + 12 + length) > len(encoded):
            return
        yield kind, start, end
        start = end


def without_notes(encoded: bytes) -> bytes:
    """A PNG without colour profile and text, but for text that can hold the orientation."""
    parts, kept_to = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    for kind, start, end in png_chunks(encoded):
        text = kind in (b"tEXt", b"zTXt", b"iTXt") and not encoded[start + 8 : end].startswith(ORIENTATION_NOTES)
        if text or kind == b"iCCP":
            parts.append(encoded[kept_to:start])
            kept_to = end
    return b"".join([*parts, encoded[kept_to:]])


def kind_of(data: bytes) -> str:
    """What a file is that Pillow does not know, in a few words for people."""
    if not data:
        return EMPTY
    if not data.strip(b"\0"):
        return ZEROS
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return WEB_PAGE
    if b"<svg" in start:
        return DRAWING
    if data[4:8] == b"ftyp":
        if data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
            return HEIC
        return VIDEO
    for signature, words in SIGNATURES:
        if start.startswith(signature.lower()):
            return words
    try:
        text = data[:1024].decode()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode() if error.start > 1000 else "\0"  # cut in a character
    if all(letter.isprintable() or letter.isspace() for letter in text):
        return TEXT
    return UNKNOWN_FORMAT


def reason_of(error: Exception) -> str:
    """One short line on a file that Pillow cannot decode, the same for all that are broken in the same way."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    words = one_line(error)
    if "truncated" in words.lower():
        return TRUNCATED
    return re.sub(r"<\S+ object at 0x[0-9a-fA-F]+>", "this file", words)
