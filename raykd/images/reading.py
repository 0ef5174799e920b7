"""From an image's uri (:mod:`raykd.images.stored`) to pixels. Knows no Ray.

Three things can go wrong. The image is broken: that stays so, and is a reason. It is not there: a reason too, which
begins with :data:`UNREACHABLE`, as it can be mended. The storage does not answer: no image's fault, so it is tried
again and then raised as :class:`StorageError`. Reasons name the kind of what is wrong and nothing of the one image, so
that they can be counted.

Pixels are RGB, 8 bits, turned upright. What is transparent is white, the paper that ink was meant for. Of 16 bits the
8 highest that the image uses are kept (:func:`significant_bits`). Colour profiles are not applied.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raykd.errors import StorageError, UserError, one_line
from raykd.images.stored import ABOUT_ONE_FILE, INSIDE_PARQUET, NOT_FOUND, ImageReader

# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".tga",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif",
)
# fmt: on
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
    (b"<?xml", "an XML document, not an image"),
    (b"%PDF", "a PDF document, not an image"),
    (b"PK\x03\x04", "a ZIP archive, not an image"),
    (b"\x1f\x8b", "a gzip archive, not an image"),
    (b"PAR1", "a Parquet file, not an image"),
    (b"\xff\x0a", "a JPEG XL image, which is not read; convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image, which is not read; convert it to JPEG or PNG"),
    (b"\xff\xd8\xff", "broken in its first bytes: begins as a JPEG does"),
    (PNG_SIGNATURE, "broken in its first bytes: begins as a PNG does"),
)
UNREACHABLE = "unreachable: "  # how the reason begins when there are no bytes to decode; no other begins so
Result = TypeVar("Result")


# ---------------------------------------------------------------- from bytes to pixels


def upright(image: Image.Image) -> Image.Image:
    """The image as people see it: turned as its EXIF orientation says; as stored where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # nearly anything, on broken EXIF; the pixels may be fine, and are read next
        return image


def decode(encoded: bytes) -> Image.Image:
    """The image as RGB, upright, on white. Memory: 4 bytes a pixel of the file; three times that with transparency.

    Raises:
        UserError: Not an image, or one of unknown range.
        OSError, ValueError, SyntaxError, DecompressionBombError, ...: Pillow's, of a file that is cut off, broken or
            absurdly large; :func:`reason_of` has the words for them.
    """
    try:
        return _decode(encoded)
    except UnidentifiedImageError as error:
        raise UserError(kind_of(encoded)) from error
    except ValueError as error:
        if "MAX_TEXT" not in str(error):  # Pillow's guard against bombs; it also meets profiles and notes above 1 MiB
            raise
        return _decode(without_notes(encoded))


def _decode(encoded: bytes) -> Image.Image:
    image, rawmode = _stored(encoded)
    key = image.info.get("transparency")  # of PNG: the one colour that is not there; of a palette: something else
    if image.mode == "F":
        raise UserError("floating-point pixels, of unknown range; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255: all white
        return _from_deep(np.asarray(image)[..., None], encoded, key=key)
    if rawmode in LOW_BYTES:  # 16-bit colours, of which Pillow has given the high bytes
        high_HWC = np.asarray(image)
        if key is not None or high_HWC[..., :3].max() < 0x80:
            low_HWC = np.asarray(_stored(encoded, LOW_BYTES[rawmode])[0])
            if rawmode.startswith("LA"):  # read as four bytes: gray and alpha, high and low
                high_HWC, low_HWC = low_HWC[..., [0, 2]], low_HWC[..., [1, 3]]
            deep_HWC = high_HWC.astype(np.uint16) << 8 | low_HWC
            if deep_HWC.shape[2] in (2, 4):
                return _from_deep(deep_HWC[..., :-1], encoded, alpha_HW=deep_HWC[..., -1])
            return _from_deep(deep_HWC, encoded, key=key)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _stored(encoded: bytes, rawmode: str = "") -> tuple[Image.Image, str]:
    """The pixels as Pillow gives them, upright; and how they lie in the file, which ``rawmode`` replaces."""
    with Image.open(io.BytesIO(encoded)) as image:
        arguments = image.tile[0].args if image.tile else ""
        found, *more = arguments if isinstance(arguments, tuple) and arguments else (arguments,)
        if rawmode:
            changed = (rawmode, *more) if more else rawmode
            image.tile = [tile._replace(args=changed) for tile in image.tile]
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception:  # nearly anything, on broken EXIF
            image.load()  # the pixels may be fine
    return image, str(found)


def _from_deep(
    color_HWC: np.ndarray, encoded: bytes, alpha_HW: np.ndarray | None = None, key: Any = None
) -> Image.Image:
    """An image of 16-bit pixels, gray or RGB, of which ``alpha_HW`` or one colour (``key``) may be transparent."""
    if key is not None:
        alpha_HW = np.where((color_HWC == key).all(axis=2), 0, 0xFFFF)
    seen = color_HWC if alpha_HW is None else color_HWC[alpha_HW > 0]
    if seen.min(initial=0) < 0 or (most := int(seen.max(initial=0))) > 0xFFFF:
        raise UserError("32-bit pixels, of unknown range; expected 8 or 16 bits a channel")
    bits = significant_bits(most, encoded)
    shades_HWC = np.minimum(color_HWC >> (bits - 8), 0xFF).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(shades_HWC, (*shades_HWC.shape[:2], 3))))
    if alpha_HW is None:
        return image
    alpha_bits = bits if alpha_HW.max(initial=0) < 1 << bits else 16
    image.putalpha(Image.fromarray((alpha_HW >> (alpha_bits - 8)).astype(np.uint8)))
    return _on_white(image)


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
    image = upright(image)
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return _on_white(image.convert("RGBA")) if transparent else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as ink on paper: what is not there is white (a browser's page), and black lines stay visible."""
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
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
        return "empty file"
    if not data.strip(b"\0"):
        return "nothing but zero bytes"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return "a web page (HTML), not an image"
    if b"<svg" in start:
        return "a drawing (SVG), which is not read; expected pixels, such as JPEG or PNG"
    if data[4:8] == b"ftyp":
        if data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
            return "a HEIC image, which is not read; convert it to JPEG or PNG"
        return "a video, not an image"
    for signature, words in SIGNATURES:
        if start.startswith(signature.lower()):
            return words
    try:
        text = data[:1024].decode()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode() if error.start > 1000 else "\0"  # cut in a character
    if all(letter.isprintable() or letter.isspace() for letter in text):
        return "text, not an image"
    return "not an image of a format that is read"


def reason_of(error: Exception) -> str:
    """One short line on a file that Pillow cannot decode, the same for all that are broken in the same way."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than are read of one image; expected at most 179 million"
    words = one_line(error)
    if "truncated" in words.lower():
        return "cut off: the file ends before the image does"
    return re.sub(r"<\S+ object at 0x[0-9a-fA-F]+>", "this file", words)


# ---------------------------------------------------------------- without ever raising for a bad image


def load_one(reader: ImageReader, uri: str, transform: Callable[[Image.Image], Result]) -> Result | str:
    """What ``transform`` makes of the decoded image, or in one short line why there is none.

    Never raises for a bad image, one that ``transform`` cannot take included.

    Raises:
        StorageError: The storage fails, so nothing can be said about the image.
    """
    try:
        return transform(decode(reader.read(uri)))
    except StorageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        number = getattr(error, "errno", None)
        if number in ABOUT_ONE_FILE:
            return UNREACHABLE + ("not found" if number in NOT_FOUND else os.strerror(number).lower())
        return reason_of(error)


def load_many(
    reader: ImageReader, uris: list[str], transform: Callable[[Image.Image], Result], threads: int = 8
) -> list[Result | str]:
    """:func:`load_one` of each uri, in order; files are fetched in parallel, Parquet rows one after the other.

    Every image is transformed as soon as it is decoded, so at most ``threads`` of them are in memory at full size.
    """
    if any(map(INSIDE_PARQUET.fullmatch, uris)):
        return [load_one(reader, uri, transform) for uri in uris]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda uri: load_one(reader, uri, transform), uris))
