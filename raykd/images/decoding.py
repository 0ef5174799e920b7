"""From the bytes of an image file to its pixels: RGB, 8 bits, as people see it. The one place that says how.

What an image goes through, and what is counted of it (:data:`CHANGES`), so that a pool's line can say it:

- It is turned upright as its EXIF says; as stored, where that cannot be read.
- What is transparent is white, the paper that ink was meant for.
- Of more than 8 bits a channel the 8 highest that the image uses are kept (:func:`significant_bits`): 12-bit scans are
  not black. Of 32 bits only what fits into 16 is read, as nothing says what their range is; nor is floating point.
- CMYK and Lab become RGB by Pillow's plain rule; colour profiles are not applied.
- Of several frames or pages the first is read.
- A JPEG that will be shrunk may be decoded at a half, a quarter or an eighth of its size (``shrinks``), never at less
  than will be seen: several times as fast, in a fraction of the memory. README.md says what that changes.

What cannot be read gets a reason (:func:`reason_of`) that names the kind of what is wrong and nothing of the one image,
so that reasons can be counted. ``python -m raykd.images`` prints all of this.

Memory: 4 to 44 bytes a pixel (:data:`HELD_BYTES`). What takes more than :data:`LARGE_BYTES` is decoded one at a time on
a machine; what would take more than :data:`MOST_BYTES` is not read.

Known limit, as Pillow does not tell: a JPEG or PNG of which the later rows are missing, but that is closed as if it
were whole, is read, gray or black where there is nothing.
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
UNREACHABLE = "unreachable: "  # how a reason begins that may not last; no other begins so
CHANGES = {  # what may have been done to an image on its way: how a line about so many images goes on
    "turned": "were turned upright, as their EXIF says",
    "transparency": "had transparency, shown on white",
    "depth": "had more than 8 bits a channel, of which the 8 highest in use are kept",
    "colors": "were CMYK or Lab, made RGB without their colour profile",
    "frames": "had several frames or pages, of which the first is taken",
}
FORMATS = (  # Pillow knows more, some of which start programs
    "JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "TGA", "PPM", "JPEG2000", "AVIF", "ICO",
)  # fmt: skip
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow refuses more: what claims so much is mostly an attack
HELD_BYTES = {  # of a pixel, while it is decoded
    "plain": 8, "gray of 16 bits": 12, "transparent": 20, "colours of 16 bits": 44,
}  # fmt: skip
LARGE_BYTES = 384 * 2**20
MOST_BYTES = 4 * 2**30
DEFLATE_RATIO = 1032  # no zlib stream is longer than so many times what it is packed into
PLANAR_TAG, BITS_TAG, PHOTOMETRIC_TAG, ORIENTATION_TAG = 284, 258, 262, 274  # of TIFF
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
    (b"%!PS", "not an image of pixels: a drawing (PostScript)"),
    (b"\xff\xd8\xff", "broken or of a kind that is not read: begins as a JPEG does"),
    (PNG_SIGNATURE, "broken in its first bytes: begins as a PNG does"),
    (b"gif8", "broken in its first bytes: begins as a GIF does"),
    (b"II*\0", "broken or of a kind that is not read: begins as a TIFF does"),
    (b"II+\0", "broken or of a kind that is not read: begins as a TIFF does"),
    (b"MM\0*", "broken or of a kind that is not read: begins as a TIFF does"),
    (b"MM\0+", "broken or of a kind that is not read: begins as a TIFF does"),
    (b"\0\0\0\x0cjP", "broken or of a kind that is not read: begins as a JPEG 2000 does"),
)
EMPTY, TRUNCATED = "empty file", "truncated: the file ends before the image does"
TOO_LARGE = f"too large: more than {MOST_PIXELS / 1e6:.0f} million pixels, or {MOST_BYTES / 2**30:.0f} GiB to decode it"
DAMAGED_PNG = "broken: a PNG whose pixels are not those that were written (checksum)"
UNDECODABLE = "broken: it cannot be decoded"
OUT_OF_MEMORY = f"{UNREACHABLE}not enough memory"
PLANAR = "a TIFF of 16-bit colours in separate planes, which is not read; convert it to PNG"
FLOATS = "floating-point pixels, of unknown range; expected 8 or 16 bits a channel"
DEEPER = "32-bit pixels, of unknown range; expected 8 or 16 bits a channel"
ZEROS, WEB_PAGE, TEXT = "nothing but zero bytes", "not an image: a web page (HTML)", "not an image: text"
DRAWING, VIDEO = "not an image of pixels: a drawing (SVG)", "not an image: a video"
HEIC = "a HEIC image, which is not read; convert it to JPEG or PNG"
UNKNOWN_FORMAT = "not an image of a format that is read"
REASONS = (  # but for those of SIGNATURES
    EMPTY, TRUNCATED, UNDECODABLE, DAMAGED_PNG, TOO_LARGE, PLANAR, FLOATS, DEEPER, ZEROS, WEB_PAGE, TEXT, DRAWING,
    VIDEO, HEIC, UNKNOWN_FORMAT,
)  # fmt: skip
Shrinks = Callable[[int, int], float]

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # a large image is no news
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # nor is broken EXIF


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
    except (UserError, Image.DecompressionBombError):
        raise
    except Exception as error:  # nearly anything; of a PNG it may be a note or a profile: too long, or damaged
        if (bare := without_notes(encoded)) == encoded:
            if isinstance(error, UnidentifiedImageError):
                raise UserError(kind_of(encoded)) from error
            raise
        return _decode(bare, shrinks)


def _decode(encoded: bytes, shrinks: Shrinks | None) -> Decoded:
    check_whole(encoded)
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        changes = {"frames"} if getattr(image, "is_animated", False) else set()
        if shrinks is not None and image.format in ("JPEG", "MPO"):
            reduce(image, shrinks)
        with alone_if_large(image):
            return Decoded(_as_rgb(image, encoded, changes), tuple(sorted(changes)))


def check_whole(encoded: bytes) -> None:
    """Refuse, by UserError, what Pillow would read as if nothing were missing: gray, black or white in its place."""
    if encoded.startswith(b"\xff\xd8"):
        if encoded.endswith(bytes(64)) and encoded.rfind(b"\xff\xd9") < encoded.rfind(b"\xff\xda"):
            raise UserError(TRUNCATED)  # the disk space was taken, and never filled
    elif encoded.startswith(PNG_SIGNATURE) and len(encoded) > 33:
        width, height, depth, color = struct.unpack_from(">IIBB", encoded, 16)
        row_bytes = 1 + width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1) // 8
        if row_bytes * height > DEFLATE_RATIO * len(encoded) and width * height <= MOST_PIXELS:
            raise UserError(TRUNCATED)
        kinds = set()
        for kind, start, end in png_chunks(encoded):
            kinds.add(kind)
            if kind == b"IDAT" and zlib.crc32(encoded[start + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end]):
                raise UserError(DAMAGED_PNG)
        if b"IDAT" not in kinds and b"IEND" in kinds:
            raise UserError(TRUNCATED)


def reduce(image: Image.Image, shrinks: Shrinks) -> None:
    """Let an open JPEG be decoded at a half, a quarter or an eighth of its size, if that has all pixels to be seen."""
    width, height = image.size
    least = min(shrinks(width, height), shrinks(height, width))  # it may yet be turned
    if (times := next((times for times in (8, 4, 2) if least >= times), 1)) > 1:
        image.draft(None, (width // times, height // times))


@contextmanager
def alone_if_large(image: ImageFile.ImageFile) -> Iterator[None]:
    """Of large images only one is decoded at a time, by all processes of this user on this machine.

    So the memory of many that decode side by side is bounded by :data:`LARGE_BYTES` each, and one large image.
    """
    held_bytes = image.width * image.height * HELD_BYTES[_kind_of_pixels(image)]
    if image.info.get("progressive") and (config := getattr(image, "decoderconfig", ())):
        held_bytes *= config[0] ** 2  # all of them are held, whatever is made of them
    if held_bytes > MOST_BYTES:
        raise UserError(TOO_LARGE)
    if held_bytes <= LARGE_BYTES:
        yield
        return
    path = os.path.join(tempfile.gettempdir(), f".raykd-large-image-{os.getuid()}")
    with open(path, "w") as turnstile:
        fcntl.flock(turnstile, fcntl.LOCK_EX)  # given up when the file is closed, or with the process
        yield


def _kind_of_pixels(image: ImageFile.ImageFile) -> str:
    if _rawmode(image) in LOW_BYTES:
        return "colours of 16 bits"
    if image.mode.startswith("I"):
        return "gray of 16 bits"
    return "transparent" if image.has_transparency_data else "plain"


def _as_rgb(image: ImageFile.ImageFile, encoded: bytes, changes: set[str]) -> Image.Image:
    rawmode, tags = _rawmode(image), getattr(image, "tag_v2", {})
    turned_by_pillow = tags.get(ORIENTATION_TAG, 1) in range(2, 9)  # a TIFF, when it is loaded
    most_of_ppm = image.tile[0].args[-1] if image.format == "PPM" and isinstance(image.tile[0].args, tuple) else 0
    if tags.get(PLANAR_TAG) == 2 and 16 in np.atleast_1d(tags.get(BITS_TAG, 0)) and len(image.getbands()) > 1:
        raise UserError(PLANAR)
    if turned_by_pillow | turn_upright(image):
        changes.add("turned")
    key = image.info.get("transparency")  # of PNG: the one colour that is not there; of a palette: something else
    if image.mode == "F":
        raise UserError(FLOATS)
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255: all white
        white_is_zero = tags.get(PHOTOMETRIC_TAG) == 0
        return _from_deep(np.asarray(image)[..., None], encoded, changes, key=key, white_is_zero=white_is_zero)
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
    if image.format == "TGA" and not encoded[17] & 0x0F:
        return image.convert("RGB")  # its fourth byte is no alpha: the header says that there is none
    if image.format == "GIF" and (drawn := getattr(image, "dispose_extent", None)) not in (None, (0, 0, *image.size)):
        return _on_white(_with_nothing_around(image.convert("RGBA"), drawn), changes)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), changes)
    if most_of_ppm > 0xFF:
        changes.add("depth")
    if image.mode in ("CMYK", "LAB"):
        changes.add("colors")
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_nothing_around(image: Image.Image, drawn: tuple[int, int, int, int]) -> Image.Image:
    """A first frame that covers a part of the canvas: Pillow fills the rest with a colour, browsers with nothing."""
    canvas = Image.new("RGBA", image.size, (0, 0, 0, 0))
    canvas.paste(image.crop(drawn), drawn[:2])
    return canvas


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the pixels lie in the file, by Pillow's name."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _in_other_bytes(encoded: bytes, rawmode: str) -> Image.Image:
    """The file read as if its pixels lay in it so."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
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
    color_HWC: np.ndarray,
    encoded: bytes,
    changes: set[str],
    alpha_HW: np.ndarray | None = None,
    key: Any = None,
    white_is_zero: bool = False,
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
    if white_is_zero:
        shades_HWC = 255 - shades_HWC
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
    """An open image as training saw it: upright, RGB, what is transparent white.

    Of 16-bit colours Pillow has given only the high bytes by now: give :func:`decode` the file instead.

    Raises:
        UserError: Pixels of unknown range.
        OSError, ...: Pillow's, of a file that is broken.
    """
    image.load()
    with suppress(Exception):  # nearly anything, on broken EXIF
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(FLOATS)
    if image.mode.startswith("I"):
        return _from_deep(np.asarray(image)[..., None], b"", set(), key=image.info.get("transparency"))
    return _on_white(image.convert("RGBA"), set()) if image.has_transparency_data else image.convert("RGB")


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
    """A PNG without colour profile and text, but for text that can hold the orientation; any other file as it is."""
    if not encoded.startswith(PNG_SIGNATURE):
        return encoded
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
        if data[8:12] in (b"avif", b"avis"):
            return "broken in its first bytes: begins as an AVIF does"
        return VIDEO
    if data.startswith((b"\0\0\1\xba", b"\0\0\1\xb3")):
        return VIDEO
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "broken in its first bytes: begins as a WebP does"
    if data.startswith(b"BM") and data[6:10] in (b"", bytes(4)):
        return "broken in its first bytes: begins as a BMP does"
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


def instead(start: bytes) -> str | None:
    """What a file is that begins so, and was to be something else than an image; None when it is not known.

    Example:
        >>> instead(b"<!DOCTYPE html><html>")
        'it is a web page (HTML)'
    """
    words = kind_of(start).removeprefix("not an image: ")
    if words in (EMPTY, UNKNOWN_FORMAT):
        return "it is empty" if words == EMPTY else None
    return f"it {words.partition(': ')[2]}" if words.startswith("broken") else f"it is {words}"


def reason_of(error: Exception) -> str:
    """One short line on a file that Pillow cannot decode, the same for all that are broken in the same way."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    words = one_line(error).lower()
    return TRUNCATED if "truncated" in words or "unexpected end" in words else UNDECODABLE
