"""Images, files and tables as the world has them, made here: what each is, and what must become of it.

``python tests/hostile.py FOLDER`` writes them all, to look at. Nothing is drawn at random: every run makes the same.

:data:`IMAGES` are bytes, which may lie in a file or in a row of Parquet; :data:`FILES` are about where and how bytes
lie; :data:`TABLES` and :data:`CSV_TABLES` are sources. An image is either seen, with the colours that people see, or
bad for a reason of a kind (:data:`REASONS`); a table is either rows, or refused with words that name what was given.

The picture is four quarters of one colour each, :data:`COLORS`: so it shows when an image is turned, inverted, clipped,
cut off, or another frame.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WIDTH, HEIGHT = 64, 32
COLORS = ((220, 30, 40), (30, 180, 60), (40, 60, 210), (240, 220, 60))  # top left, top right, bottom left, bottom right
GRAYS = (20, 90, 160, 230)
WHITE = (255, 255, 255)

REASONS = {  # kind: what its words must match
    "empty file": "empty file",
    "zeros": "zero bytes",
    "HTML": "HTML",
    "SVG": "SVG",
    "drawing": "drawing",
    "XML": "XML",
    "JSON": "JSON|not an image: text",
    "text": "text|HTML",
    "PDF": "PDF",
    "ZIP": "ZIP",
    "Git LFS": "Git LFS",
    "HEIC": "HEIC",
    "JPEG XL": "JPEG XL",
    "video": "video",
    "unknown": "not an image of a format that is read",
    "truncated": "cut off|truncated",
    "too large": "more pixels|too large",
    "damaged": "cut off|truncated|broken|damaged",  # what of it, nobody may know
    "kind not read": "not read|of unknown range",  # an image, of a kind that is not: its words say which
    "not found": "^unreachable: not found",
    "no file": "^unreachable: ",
    "no filesystem": "^(https?|gopher|a URI of no known kind) is not read; fetch the images",
    "no bytes": "(no|expected) image bytes|no such (row|column)",
}


@dataclass(frozen=True)
class Seen:
    """An image that is right when the middles of its quarters have these colours, as they come from any transform.

    Args:
        changes: What is done to it on its way, to be counted: transparency (shown on white), turned (as its EXIF says),
            16-bit (the high 8 are kept), 12-bit (fewer than 16 are used, scaled), CMYK, first frame.
    """

    colors: tuple[tuple[int, ...], ...] = COLORS
    changes: tuple[str, ...] = ()
    tolerance: int = 2


@dataclass(frozen=True)
class Bad:
    kind: str  # of REASONS


@dataclass(frozen=True)
class Hostile:
    """An image: ``make`` gives its bytes. A file: it is called with the path, and writes whatever it is."""

    name: str
    make: Callable[..., Any]
    expect: Seen | Bad
    listed: bool = True  # with the folder that it is in
    is_large: bool = False  # of many pixels, all of which must be decoded

    def __str__(self) -> str:
        return self.name if self.name.isascii() and len(self.name) < 60 else ascii(self.name)[:60]


@dataclass(frozen=True)
class Rows:
    """A table that is right when it gives these labels and pictures.

    Args:
        labels: Of each row, or None: without.
        pictures: Of each row, the number of the :func:`dot` that is seen, or the kind of its reason; None: 0, 1, 2, ...
        ids: Of each row; None: not looked at.
    """

    labels: tuple[str | None, ...]
    pictures: tuple[int | str, ...] | None = None
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Refused:
    words: tuple[str, ...]  # that the message must hold


@dataclass(frozen=True)
class Table:
    """``make`` writes into an empty folder, and gives the fields of the source; its path is relative to that folder."""

    name: str
    make: Callable[[Path], dict[str, Any]]
    expect: Rows | Refused

    def __str__(self) -> str:
        return self.name


# ---------------------------------------------------------------- encoders of what Pillow does not write


def quarters(*values: Any, dtype: Any = np.uint8) -> np.ndarray:
    """[H, W, C] of four values, of one number or C."""
    corners = np.array([np.atleast_1d(value) for value in values], dtype).reshape(2, 2, -1)
    return corners.repeat(HEIGHT // 2, axis=0).repeat(WIDTH // 2, axis=1)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(quarters(*COLORS)).convert(mode)


def gray(*values: int, dtype: Any = np.uint8) -> Image.Image:
    return Image.fromarray(quarters(*values, dtype=dtype)[..., 0])


def grays(*values: int) -> tuple[tuple[int, ...], ...]:
    return tuple((value,) * 3 for value in values)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or picture(), "JPEG", **{"quality": 95, "subsampling": 0} | options)


def large() -> Image.Image:
    """The picture, of 640 x 320 and with some noise: so that parts of its file are parts of it."""
    pixels = quarters(*COLORS).repeat(10, axis=0).repeat(10, axis=1).astype(np.int16)
    noise = np.random.default_rng(0).integers(-9, 10, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def chunk(kind: bytes, data: bytes, crc: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


def png(
    samples_HWC: np.ndarray,
    color: int,
    *chunks: bytes,
    depth: int = 0,
    interlace: bool = False,
    rows: int | None = None,
) -> bytes:
    """A PNG of any depth (below 8: one channel, the values as they stand); ``chunks`` come before the pixels.

    Args:
        rows: How many of them the file really holds.
    """
    height, width, _ = samples_HWC.shape
    depth = depth or samples_HWC.dtype.itemsize * 8
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = []
    for top, left, down, right in passes:
        for line in samples_HWC[top::down, left::right]:
            if depth < 8:
                bits = np.unpackbits(line.astype(np.uint8)[:, :1], axis=1)[:, 8 - depth :]
                lines.append(b"\0" + np.packbits(bits.reshape(-1)).tobytes())
            else:
                lines.append(b"\0" + line.astype(line.dtype.newbyteorder(">")).tobytes())
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    pixels = zlib.compress(b"".join(lines[:rows]))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def flat_png(width: int, height: int, depth: int, color: int, *chunks: bytes, real: bool = True) -> bytes:
    """A white PNG that is large and a small file; only claimed, when it is not ``real``."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    line = b"\0" + b"\xff" * (-(-width * depth * channels // 8))
    packer, packed = zlib.compressobj(1), []
    for _ in range(height if real else 1):
        packed.append(packer.compress(line))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    pixels = b"".join([*packed, packer.flush()])
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def tiff(
    samples_HWC: np.ndarray, photometric: int, *tags: tuple[int, int, list[int]], order: str = "<", big: bool = False,
    planar: bool = False, tile: tuple[int, int] | None = None, kind: int = 1, bits: int = 0,
) -> bytes:  # fmt: skip
    """An uncompressed TIFF.

    Args:
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
        tags: More of them: number, type (3 of 16 bits, 4 of 32) and values.
        tile: Height and width.
        kind: Of the samples: 1 whole, 2 signed, 3 floating point.
        bits: A sample, where it is not the array's.
    """
    height, width, channels = samples_HWC.shape
    data_HWC = samples_HWC.astype(samples_HWC.dtype.newbyteorder(order))
    planes = [data_HWC[..., [c]] for c in range(channels)] if planar else [data_HWC]
    down, right = tile or (height, width)
    parts = [
        plane[top : top + down, left : left + right].tobytes()
        for plane in planes
        for top, left in product(range(0, height, down or 1), range(0, width, right or 1))
    ]
    start = 16 if big else 8
    offsets = [start + sum(map(len, parts[:i])) for i in range(len(parts))]
    lengths = [len(part) for part in parts]
    layout = [(322, 4, [right]), (323, 4, [down]), (324, 4, offsets), (325, 4, lengths)]
    if tile is None:
        layout = [(273, 4, offsets), (278, 4, [height]), (279, 4, lengths)]
    entries = sorted(
        [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits or samples_HWC.dtype.itemsize * 8] * channels),
         (259, 3, [1]), (262, 3, [photometric]), (277, 3, [channels]), (284, 3, [1 + planar]),
         (339, 3, [kind] * channels), *layout, *tags]
    )  # fmt: skip
    body, room = b"".join(parts), 8 if big else 4
    table = b""
    for tag, type_, values in entries:
        packed = struct.pack(f"{order}{len(values)}{'H' if type_ == 3 else 'I'}", *values)
        if len(packed) > room:
            body, packed = body + packed, struct.pack(f"{order}{'Q' if big else 'I'}", start + len(body))
        table += struct.pack(f"{order}HH{'Q' if big else 'I'}", tag, type_, len(values)) + packed.ljust(room, b"\0")
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start + len(body))
        return head + body + struct.pack(f"{order}Q", len(entries)) + table + bytes(8)
    head = mark + struct.pack(f"{order}HI", 42, start + len(body))
    return head + body + struct.pack(f"{order}H", len(entries)) + table + bytes(4)


def bmp(
    rows: bytes, bits: int, *, height: int = HEIGHT, compression: int = 0, palette: bytes = b"", masks: bytes = b""
) -> bytes:
    start = 14 + 40 + len(masks) + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    about = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, len(rows), 0, 0, len(palette) // 4, 0)
    return head + about + masks + palette + rows


def bottom_up(samples_HWC: np.ndarray) -> bytes:
    return samples_HWC[::-1].tobytes()


def rgb565() -> bytes:
    red, green, blue = quarters(*COLORS).astype(np.uint16).transpose(2, 0, 1)
    return bottom_up(((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2"))


def run_lengths() -> bytes:
    """The four quarters, each line two runs of one palette index, in BMP's 8-bit run-length code."""
    half = WIDTH // 2
    lines = [bytes([half, a, half, b, 0, 0]) for a, b in ((2, 3), (0, 1)) for _ in range(HEIGHT // 2)]
    return b"".join(lines) + b"\0\1"


def small_gif(left: int, top: int) -> bytes:
    """A red quarter, alone, on a canvas of the whole picture's size: the rest was never drawn."""
    small = Image.new("P", (WIDTH // 2, HEIGHT // 2), 1)
    small.putpalette([0, 0, 0, *COLORS[0]])
    data = bytearray(encode(small, "GIF", optimize=False))
    data[6:10] = struct.pack("<HH", WIDTH, HEIGHT)
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[at + 1 : at + 5] = struct.pack("<HH", left, top)
    return bytes(data)


def in_words(head: str, samples_HWC: np.ndarray) -> bytes:
    return (head + "\n".join(" ".join(map(str, row)) for row in samples_HWC.reshape(HEIGHT, -1).tolist())).encode()


def tga(samples_HWC: np.ndarray, alpha_bits: int) -> bytes:
    """Four channels of 8 bits, of which the header says how many are alpha."""
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, WIDTH, HEIGHT, 32, 0x20 | alpha_bits)
    return head + samples_HWC[..., [2, 1, 0, 3]].tobytes()


def ycck() -> bytes:
    """As Photoshop writes CMYK: inverted, its colours turned into luma and chroma. Pillow writes any four channels."""
    inks = 255 - quarters(*COLORS)
    channels = np.dstack([np.asarray(Image.fromarray(inks).convert("YCbCr")), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    data = bytearray(jpeg(Image.fromarray(255 - channels, "CMYK")))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def arithmetic_jpeg() -> bytes:
    """Arithmetic coding, of which the shortest message is no bytes at all: nearly even gray, as libjpeg reads it."""

    def part(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    frame = struct.pack(">BHHBBBB", 8, HEIGHT, WIDTH, 1, 1, 0x11, 0)
    tables = part(0xDB, b"\0" + b"\1" * 64)
    return b"\xff\xd8" + tables + part(0xCA, frame) + part(0xDA, b"\1\1\0\0\0\0") + b"\xff\xd9"


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def frame_of(data: bytes) -> int:
    """Where the header of a baseline JPEG's frame begins."""
    return data.index(b"\xff\xc0")


def twelve_bit_jpeg() -> bytes:
    """One that says so: 12 bits a sample, and a table of it."""
    data = jpeg()
    return patched(patched(data, frame_of(data) + 4, b"\x0c"), frame_of(data) + 1, b"\xc1")


def exif(orientation: Any) -> Image.Exif:
    notes = Image.Exif()
    notes[0x0112] = orientation
    return notes


TURNED = ("", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")


def turned(orientation: int, format: str, **options: Any) -> bytes:
    """Stored in another way than it is to be seen; EXIF says how."""
    image = picture()
    if turn := TURNED[orientation - 1]:
        image = image.transpose(Image.Transpose[turn])
    return encode(image, format, exif=exif(orientation), **options)


def exif_block(count: int, value: int, kind: int = 3) -> bytes:
    """EXIF with one entry, the orientation, of any type, count and value or offset."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, kind, count, value, 0)


def animation(format: str, **options: Any) -> bytes:
    other = Image.new("RGB", (WIDTH, HEIGHT), "black")
    return encode(picture(), format, save_all=True, append_images=[other, other], duration=100, **options)


def ink(mode: str) -> Image.Image:
    """Black, of which the last three quarters are not there."""
    alpha = quarters(255, 0, 0, 0)
    return Image.fromarray(np.concatenate([np.zeros_like(alpha)] * (len(mode) - 1) + [alpha], axis=2), mode)


ON_WHITE = Seen(((0, 0, 0), WHITE, WHITE, WHITE), ("transparency",))


def deep(bits: int, channels: int = 1) -> np.ndarray:
    """[H, W, C], 16 bits a sample of which ``bits`` are used: the whole range of them."""
    most = (1 << bits) - 1
    return quarters(*([most * share // 3] * channels for share in range(4)), dtype=np.uint16)


SHADES = grays(0, 85, 170, 255)  # what deep() is, seen


def of_bits(bits: int, *more: str) -> Seen:
    return Seen(SHADES, ("16-bit" if bits == 16 else "12-bit", *more))


def key(*samples: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(samples)}H", *samples))


PALETTE = chunk(b"PLTE", bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
LONG_TEXT = chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000)
LONG_PROFILE = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000)))
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"


def images() -> Iterator[Hostile]:
    """See the module."""

    def image(name: str, make: Callable[[], bytes], expect: Seen | Bad = Seen(tolerance=6)) -> Hostile:
        return Hostile(name, make, expect)

    # what is transparent is white
    yield image("rgba.png", lambda: encode(ink("RGBA"), "PNG"), ON_WHITE)
    yield image("la.png", lambda: encode(ink("LA"), "PNG"), ON_WHITE)
    yield image("rgba.webp", lambda: encode(ink("RGBA"), "WEBP", lossless=True, exact=True), ON_WHITE)
    yield image("rgba.tif", lambda: encode(ink("RGBA"), "TIFF"), ON_WHITE)
    yield image("la.tif", lambda: tiff(quarters((0, 255), *[(0, 0)] * 3), 1, (338, 3, [2])), ON_WHITE)
    yield image("rgba premultiplied.tif", lambda: tiff(np.asarray(ink("RGBA")), 2, (338, 3, [1])), ON_WHITE)
    yield image("rgba.avif", lambda: encode(ink("RGBA"), "AVIF", quality=100), ON_WHITE)
    yield image("rgba.jp2", lambda: encode(ink("RGBA"), "JPEG2000"), ON_WHITE)
    yield image("rgba.tga", lambda: tga(np.asarray(ink("RGBA")), 8), ON_WHITE)
    yield image(
        "no alpha, but a fourth channel.tga",
        lambda: tga(np.dstack([quarters(*COLORS), quarters(0, 0, 0, 0)]), 0),
        Seen(),
    )
    yield image("palette.png", lambda: png(quarters(0, 1, 1, 1), 3, PALETTE, chunk(b"tRNS", b"\xff\0")), ON_WHITE)
    yield image(
        "palette of 2 bits.png",
        lambda: png(quarters(0, 1, 2, 3), 3, PALETTE, chunk(b"tRNS", b"\xff\0\0\0"), depth=2),
        ON_WHITE,
    )
    yield image("rgb with a key.png", lambda: png(quarters((0, 0, 0), *[(5, 5, 5)] * 3), 2, key(5, 5, 5)), ON_WHITE)
    yield image("gray with a key.png", lambda: png(quarters(0, 5, 5, 5), 0, key(5)), ON_WHITE)
    for depth in (1, 2, 4):
        yield image(
            f"gray of {depth} bits with a key.png",
            lambda depth=depth: png(quarters(1, 0, 0, 0), 0, key(0), depth=depth),
            Seen((grays(255 // ((1 << depth) - 1))[0], WHITE, WHITE, WHITE), ("transparency",)),
        )
    yield image(
        "gray of 16 bits with a key.png",
        lambda: png(quarters(0, 5, 5, 5, dtype=np.uint16), 0, key(5)),
        Seen(ON_WHITE.colors, ("transparency", "12-bit")),
    )
    yield image(
        "rgba of 16 bits.png",
        lambda: png(quarters((0, 0, 0, 65535), *[(0, 0, 0, 0)] * 3, dtype=np.uint16), 6),
        Seen(ON_WHITE.colors, ("transparency", "16-bit")),
    )
    yield image(
        "rgba of 16 bits.tif",
        lambda: tiff(quarters((0, 0, 0, 65535), *[(0, 0, 0, 0)] * 3, dtype=np.uint16), 2, (338, 3, [2])),
        Seen(ON_WHITE.colors, ("transparency", "16-bit")),
    )
    yield image(
        "nothing at all.png", lambda: encode(Image.new("RGBA", (9, 9)), "PNG"), Seen((WHITE,) * 4, ON_WHITE.changes)
    )
    yield image(
        "transparent.gif",
        lambda: encode(gray(0, 1, 1, 1).convert("P"), "GIF", transparency=1, optimize=False),
        ON_WHITE,
    )
    corner = Seen((WHITE, WHITE, WHITE, COLORS[0]), ("transparency",))
    yield image("first frame in a corner.gif", lambda: small_gif(WIDTH // 2, HEIGHT // 2), corner)

    # bits
    for bits in (10, 12, 14, 16):
        yield image(f"gray of {bits} bits in 16.png", lambda bits=bits: png(deep(bits), 0), of_bits(bits))
        yield image(f"gray of {bits} bits in 16.tif", lambda bits=bits: tiff(deep(bits), 1), of_bits(bits))
    yield image(
        "12 bits, scaled to 16, and says so.png",
        lambda: png((deep(12) << 4) | (deep(12) >> 8), 0, chunk(b"sBIT", b"\x0c")),
        of_bits(16),
    )
    yield image(
        "dark, of 12 bits, and says so.png",
        lambda: png(deep(12) >> 2, 0, chunk(b"sBIT", b"\x0c")),
        Seen(grays(0, 21, 42, 63), ("12-bit",)),
    )
    yield image("rgb of 16 bits.png", lambda: png(deep(16, 3), 2), of_bits(16))
    yield image("rgb of 12 bits in 16, big endian.tif", lambda: tiff(deep(12, 3), 2, order=">"), of_bits(12))
    yield image("rgb of 16 bits, in planes.tif", lambda: tiff(deep(16, 3), 2, planar=True), Bad("kind not read"))
    yield image("white is zero.tif", lambda: tiff(quarters(255, 170, 85, 0), 0), Seen(SHADES))
    yield image("white is zero, 16 bits.tif", lambda: tiff(deep(16)[::-1, ::-1], 0), of_bits(16))
    yield image("signed 16 bits.tif", lambda: tiff((deep(15)).astype(np.int16), 1, kind=2), of_bits(15))
    yield image("below zero.tif", lambda: tiff(quarters(-9, 0, 9, 99, dtype=np.int16), 1, kind=2), Bad("kind not read"))
    yield image("32 bits.tif", lambda: tiff(quarters(0, 1 << 20, 5, 6, dtype=np.uint32), 1), Bad("kind not read"))
    yield image("float.tif", lambda: tiff(quarters(0, 0.3, 0.6, 1, dtype=np.float32), 1, kind=3), Bad("kind not read"))
    yield image(
        "half float.tif", lambda: tiff(quarters(0, 0.3, 0.6, 1, dtype=np.float16), 1, kind=3), Bad("kind not read")
    )
    yield image("double.tif", lambda: tiff(quarters(0, 0.3, 0.6, 1, dtype=np.float64), 1, kind=3), Bad("kind not read"))
    yield image(
        "five channels.tif", lambda: tiff(quarters(*[(9, 9, 9, 9, 9)] * 4), 1, (338, 3, [0] * 4)), Bad("kind not read")
    )
    yield image(
        "gray of 16 bits.jp2",
        lambda: encode(gray(*deep(16)[::16, ::32, 0].reshape(-1).tolist(), dtype=np.uint16), "JPEG2000"),
        of_bits(16),
    )
    yield image("gray of 16 bits.pgm", lambda: b"P5 64 32 65535\n" + deep(16).astype(">u2").tobytes(), of_bits(16))
    yield image("gray of 12 bits.pgm", lambda: b"P5 64 32 4095\n" + deep(12).astype(">u2").tobytes(), of_bits(16))
    yield image("rgb of 16 bits.ppm", lambda: b"P6 64 32 65535\n" + deep(16, 3).astype(">u2").tobytes(), of_bits(16))
    yield image(
        "float.ppm",
        lambda: b"Pf\n64 32\n-1.0\n" + quarters(0, 0.3, 0.6, 1, dtype="<f4").tobytes(),
        Bad("kind not read"),
    )
    bits = Seen(grays(0, 255, 255, 0))
    yield image("one bit.png", lambda: encode(gray(0, 255, 255, 0).convert("1"), "PNG"), bits)
    yield image(
        "one bit, by fax.tif", lambda: encode(gray(0, 255, 255, 0).convert("1"), "TIFF", compression="group4"), bits
    )
    yield image("one bit.pbm", lambda: in_words("P1\n# a comment\n64 32\n", quarters(1, 0, 0, 1)), bits)
    yield image("in words.ppm", lambda: in_words("P3 64 32 255\n", quarters(*COLORS)), Seen())
    yield image("12 bits.jpg", twelve_bit_jpeg, Bad("kind not read"))

    # colour spaces
    cmyk = Seen(tolerance=12, changes=("CMYK",))
    yield image("cmyk.jpg", lambda: jpeg(picture("CMYK")), cmyk)
    yield image("ycck.jpg", ycck, cmyk)
    yield image("cmyk.tif", lambda: encode(picture("CMYK"), "TIFF"), cmyk)
    yield image("lab.tif", lambda: tiff(quarters(*[(120, 10, 20)] * 4), 8), Seen(((136, 105, 78),) * 4, ("CMYK",), 4))
    yield image("ycbcr.tif", lambda: tiff(np.asarray(picture("YCbCr")), 6, (530, 3, [1, 1])), Seen(tolerance=6))
    yield image(
        "jpeg inside.tif", lambda: encode(picture(), "TIFF", compression="jpeg", quality=95), Seen(tolerance=60)
    )
    yield image("rgb, not luma and chroma.jpg", lambda: jpeg(keep_rgb=True))
    yield image("gray.jpg", lambda: jpeg(gray(*GRAYS)), Seen(grays(*GRAYS), tolerance=4))
    yield image(
        "gamma and chromaticities.png",
        lambda: png(
            quarters(*COLORS),
            2,
            chunk(b"gAMA", struct.pack(">I", 22_000)),
            chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        ),
        Seen(),
    )

    # how a file may be written
    yield image("progressive.jpg", lambda: jpeg(progressive=True))
    yield image("restart markers.jpg", lambda: jpeg(restart_marker_blocks=1))
    yield image("arithmetic coding.jpg", arithmetic_jpeg, Seen(grays(124, 124, 124, 124), tolerance=8))
    yield image("several pictures.jpg", lambda: animation("MPO"), Seen(changes=("first frame",), tolerance=60))
    yield image("a PNG.jpg", lambda: encode(picture(), "PNG"), Seen())
    yield image("a JPEG.png", jpeg)
    yield image("a WebP.gif", lambda: encode(picture(), "WEBP", lossless=True), Seen())
    yield image("interlaced.png", lambda: png(quarters(*COLORS), 2, interlace=True), Seen())
    yield image("in planes.tif", lambda: tiff(quarters(*COLORS), 2, planar=True), Seen())
    yield image("in tiles.tif", lambda: tiff(quarters(*COLORS), 2, tile=(16, 32)), Seen())
    yield image("big.tif", lambda: tiff(quarters(*COLORS), 2, big=True), Seen())
    yield image("of several pages.tif", lambda: animation("TIFF"), Seen(changes=("first frame",)))
    yield image("animated.gif", lambda: animation("GIF"), Seen(changes=("first frame",)))
    yield image("animated.apng", lambda: animation("PNG"), Seen(changes=("first frame",)))
    yield image("animated.webp", lambda: animation("WEBP", lossless=True), Seen(changes=("first frame",)))
    yield image("animated.avif", lambda: animation("AVIF", quality=100), Seen(changes=("first frame",), tolerance=12))
    yield image(
        "16 bits.bmp",
        lambda: bmp(rgb565(), 16, compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
        Seen(tolerance=8),
    )
    yield image("24 bits.bmp", lambda: encode(picture(), "BMP"), Seen())
    yield image(
        "32 bits.bmp",
        lambda: bmp(bottom_up(np.dstack([quarters(*COLORS)[..., ::-1], quarters(0, 0, 0, 0)])), 32),
        Seen(),
    )
    yield image("top down.bmp", lambda: bmp(quarters(*COLORS)[..., ::-1].tobytes(), 24, height=-HEIGHT), Seen())
    yield image(
        "run lengths.bmp",
        lambda: bmp(run_lengths(), 8, compression=1, palette=b"".join(bytes([*c[::-1], 0]) for c in COLORS)),
        Seen(),
    )
    yield image("plain.tga", lambda: encode(picture(), "TGA"), Seen())
    yield image("run lengths.tga", lambda: encode(picture(), "TGA", compression="tga_rle"), Seen())
    yield image("lossless.jp2", lambda: encode(picture(), "JPEG2000"), Seen())
    yield image("an icon.png", lambda: encode(picture().resize((64, 64)), "ICO", sizes=[(64, 64)]), Seen())

    # EXIF
    for orientation in range(1, 9):
        changes = ("turned",) if orientation > 1 else ()
        yield image(
            f"orientation {orientation}.jpg",
            lambda o=orientation: turned(o, "JPEG", quality=95, subsampling=0),
            Seen(changes=changes, tolerance=6),
        )
    for format, ending in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif"), ("MPO", "mpo.jpg")):
        options = {"lossless": True} if format == "WEBP" else {"quality": 100}
        yield image(
            f"orientation 6.{ending}",
            lambda f=format, o=options: turned(6, f, **o),
            Seen(changes=("turned",), tolerance=12),
        )
    yield image(
        "orientation 6, of 16 bits.png",
        lambda: encode(Image.fromarray(deep(16)[..., 0]).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(6)),
        of_bits(16, "turned"),
    )
    yield image(
        "orientation 6, transparent.png",
        lambda: encode(ink("RGBA").transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(6)),
        Seen(ON_WHITE.colors, ("transparency", "turned")),
    )
    yield image("orientation 0.jpg", lambda: jpeg(exif=exif_block(1, 0)))
    yield image("orientation 99.jpg", lambda: jpeg(exif=exif_block(1, 99)))
    yield image("orientation of 4 billion values.jpg", lambda: jpeg(exif=exif_block(0xFFFFFFFF, 26)))
    yield image("orientation in words.jpg", lambda: jpeg(exif=exif_block(4, 0x00706F74, kind=2)))
    yield image("orientation far away.jpg", lambda: jpeg(exif=exif_block(9, 0x7FFFFFFF, kind=5)))
    yield image("broken exif.jpg", lambda: jpeg(exif=b"Exif\0\0MM nonsense"))
    yield image("empty exif.jpg", lambda: jpeg(exif=b"Exif\0\0"))
    yield image(
        "broken exif.webp",
        lambda: encode(picture(), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        Seen(),
    )
    yield image("broken exif.png", lambda: png(quarters(*COLORS), 2, chunk(b"eXIf", b"MM nonsense")), Seen())

    # cut off, and broken in other ways
    silent = ("webp", "tif", "packed.tif", "jp2", "avif")  # of which the decoder does not say what is wrong
    whole: dict[str, Callable[[], bytes]] = {
        "jpg": lambda: jpeg(large()),
        "progressive.jpg": lambda: jpeg(large(), progressive=True),
        "png": lambda: encode(large(), "PNG"),
        "webp": lambda: encode(large(), "WEBP"),
        "gif": lambda: encode(large(), "GIF"),
        "bmp": lambda: encode(large(), "BMP"),
        "tif": lambda: tiff(np.asarray(large()), 2),
        "packed.tif": lambda: encode(large(), "TIFF", compression="tiff_lzw"),
        "tga": lambda: encode(large(), "TGA"),
        "ppm": lambda: encode(large(), "PPM"),
        "jp2": lambda: encode(large(), "JPEG2000"),
        "avif": lambda: encode(large(), "AVIF"),
    }
    for ending, make in whole.items():
        for percent in (10, 50, 99):
            yield image(
                f"cut at {percent} percent.{ending}",
                lambda m=make, p=percent: m()[: len(m()) * p // 100],
                Bad("damaged" if ending in silent else "truncated"),
            )
    for ending in ("jpg", "png"):
        yield image(
            f"half, and zeros.{ending}",
            lambda m=whole[ending]: m()[: len(m()) // 2] + bytes(len(m()) // 2),
            Bad("damaged"),
        )
    yield image(
        "half, and an end.jpg", lambda: jpeg(large())[: len(jpeg(large())) // 2] + b"\xff\xd9", Bad("truncated")
    )
    yield image("half of the rows.png", lambda: png(quarters(*COLORS), 2, rows=HEIGHT // 2), Bad("truncated"))
    yield image("without its end.jpg", lambda: jpeg()[:-2], Bad("truncated"))
    yield image("without its end.png", lambda: encode(picture(), "PNG")[:-12], Seen())
    yield image("without its end.gif", lambda: encode(picture(), "GIF")[:-1], Seen())
    yield image("and more.jpg", lambda: jpeg() + b"more" * 999)
    yield image("and more.png", lambda: encode(picture(), "PNG") + b"more" * 999, Seen())
    yield image("behind a HTTP header.jpg", lambda: HTTP + jpeg(), Bad("unknown"))
    yield image("behind an empty line.jpg", lambda: b"\r\n" + jpeg(), Bad("damaged"))
    yield image("read as text once.png", lambda: encode(picture(), "PNG").replace(b"\r\n", b"\n"), Bad("unknown"))
    yield image("read as UTF-8 once.jpg", lambda: jpeg().decode("utf-8", "replace").encode(), Bad("unknown"))
    yield image("a wrong sum in a note.png", lambda: png(quarters(*COLORS), 2, chunk(b"tEXt", b"a\0b", crc=1)), Seen())
    yield image(
        "a wrong sum in the header.png", lambda: patched(encode(picture(), "PNG"), 29, b"\0\0\0\0"), Bad("damaged")
    )
    yield image(
        "a wrong sum in the pixels.png", lambda: patched(encode(picture(), "PNG"), -16, b"\0\0\0\0"), Bad("damaged")
    )
    yield image("wrong pixels.png", lambda: patched(encode(large(), "PNG"), 99_999, b"\xff" * 99), Bad("damaged"))
    yield image(
        "wrong pixels.tif",
        lambda: patched(encode(large(), "TIFF", compression="tiff_lzw"), 99_999, b"\xff" * 99),
        Bad("damaged"),
    )
    yield image("no pixels.png", lambda: encode(picture(), "PNG")[:33] + chunk(b"IEND", b""), Bad("truncated"))
    yield image(
        "a palette that is too short.png",
        lambda: png(quarters(0, 1, 2, 200), 3, chunk(b"PLTE", bytes([9, 9, 9]))),
        Seen(grays(9, 0, 0, 0)),
    )
    yield image("no palette.png", lambda: png(quarters(0, 1, 2, 3), 3), Bad("damaged"))
    yield image("no frames.gif", lambda: encode(picture(), "GIF")[:13] + bytes(3 * 256) + b";", Bad("damaged"))
    yield image("2 MB of text.png", lambda: png(quarters(*COLORS), 2, LONG_TEXT), Seen())
    yield image("2 MB of profile.png", lambda: png(quarters(*COLORS), 2, LONG_PROFILE), Seen())
    yield image("2 MB of profile.jpg", lambda: jpeg(icc_profile=bytes(2_000_000)))
    yield image(
        "a broken profile.png", lambda: png(quarters(*COLORS), 2, chunk(b"iCCP", b"profile\0\0nonsense")), Seen()
    )

    # sizes
    red = (COLORS[0],) * 4
    for width, height in ((1, 1), (1, 1500), (1500, 1), (1, 60_000), (60_000, 1)):
        yield image(
            f"{width} x {height}.png",
            lambda s=(width, height): encode(Image.new("RGB", s, COLORS[0]), "PNG"),
            Seen(red),
        )
    yield image("1 x 60000.jpg", lambda: jpeg(Image.new("RGB", (1, 60_000), COLORS[0])), Seen(red, tolerance=6))
    yield image("no width.png", lambda: flat_png(0, 9, 8, 2), Bad("damaged"))
    yield image("no height.jpg", lambda: patched(jpeg(), frame_of(jpeg()) + 5, b"\0\0"), Bad("damaged"))
    yield image("no size.gif", lambda: patched(encode(picture(), "GIF"), 6, bytes(4)), Seen())
    yield image("no size.tif", lambda: tiff(np.zeros((0, 0, 3), np.uint8), 2), Bad("damaged"))
    yield image("claims 60000 x 60000.png", lambda: flat_png(60_000, 60_000, 8, 2, real=False), Bad("too large"))
    yield image(
        "claims 65000 x 65000.jpg", lambda: patched(jpeg(), frame_of(jpeg()) + 5, b"\xfd\xe8\xfd\xe8"), Bad("too large")
    )
    yield image(
        "claims 60000 x 60000.gif", lambda: patched(encode(picture(), "GIF"), 6, b"\x60\xea\x60\xea"), Bad("too large")
    )
    yield image("claims 9000 x 9000.png", lambda: flat_png(9_000, 9_000, 8, 6, real=False), Bad("truncated"))
    yield image("20000 x 20000.png", lambda: flat_png(20_000, 20_000, 1, 0), Bad("too large"))
    yield Hostile(
        "12000 x 12000, transparent.png",
        lambda: flat_png(12_000, 12_000, 1, 3, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\xff\0")),
        Seen((WHITE,) * 4, ON_WHITE.changes),
        is_large=True,
    )

    # no image at all
    yield image("empty.jpg", lambda: b"", Bad("empty file"))
    yield image("zeros.jpg", lambda: bytes(5000), Bad("zeros"))
    yield image("random.jpg", lambda: b"\x9c" + np.random.default_rng(0).bytes(5000), Bad("unknown"))
    yield image("a web page.jpg", lambda: b"\n<!DOCTYPE html><html><body>404 Not Found", Bad("HTML"))
    yield image(
        "a web page, later.jpg", lambda: b"<!-- " + b"-" * 1500 + b" -->\n<html><body>404 Not Found", Bad("text")
    )
    yield image("an answer.jpg", lambda: b'{"error": "not found", "code": 404}', Bad("JSON"))
    yield image("a refusal.jpg", lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", Bad("XML"))
    yield image("a drawing.png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", Bad("SVG"))
    yield image("a document.jpg", lambda: b"%PDF-1.7\n\x80\x81", Bad("PDF"))
    yield image("an archive.jpg", lambda: b"PK\x03\x04\x14\0\0\0", Bad("ZIP"))
    yield image(
        "a pointer.jpg",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        Bad("Git LFS"),
    )
    yield image("words.jpg", lambda: b"an image would be here\n" * 9, Bad("text"))
    yield image("data.jpg", lambda: b"data:image/png;base64,iVBORw0KGgo=", Bad("text"))
    for name, brand, kind in (
        ("a photo", b"heic", "HEIC"),
        ("a film", b"isom", "video"),
        ("another film", b"qt  ", "video"),
    ):
        yield image(
            f"{name}.{brand.decode().strip()}.jpg", lambda b=brand: b"\0\0\0\x18ftyp" + b + bytes(12), Bad(kind)
        )
    yield image("a broken avif.avif", lambda: b"\0\0\0\x18ftypavif" + bytes(12), Bad("damaged"))
    yield image("jpeg xl.jpg", lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(12), Bad("JPEG XL"))
    yield image("jpeg xl, bare.jpg", lambda: b"\xff\x0a" + bytes(range(99)), Bad("JPEG XL"))
    yield image(
        "a raw photo.tif",
        lambda: tiff(quarters(1, 2, 3, 4, dtype=np.uint16), 32803, (33421, 3, [2, 2])),
        Bad("kind not read"),
    )
    yield image("a film of 1993.jpg", lambda: b"\0\0\x01\xb3\x04\x00\x20\x13" + bytes(99), Bad("video"))
    yield image(
        "postscript.jpg",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        Bad("drawing"),
    )
    yield image("an array.jpg", lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), Bad("unknown"))
    yield image("weather.jpg", lambda: b"GRIB\0\0\0\x01" + bytes(99), Bad("unknown"))
    yield image("signature alone.jpg", lambda: b"\xff\xd8\xff", Bad("damaged"))
    yield image("signature alone.png", lambda: b"\x89PNG\r\n\x1a\n", Bad("damaged"))
    yield image("signature alone.gif", lambda: b"GIF89a", Bad("damaged"))
    yield image("signature alone.bmp", lambda: b"BM", Bad("damaged"))
    yield image("signature alone.webp", lambda: b"RIFF\x24\0\0\0WEBPVP8 ", Bad("damaged"))
    yield image("signature alone.tif", lambda: b"II*\0", Bad("damaged"))


IMAGES = list(images())


# ---------------------------------------------------------------- where and how bytes lie


def good(path: Path) -> None:
    path.write_bytes(encode(picture(), "PNG"))


def closed(path: Path) -> None:
    good(path)
    path.chmod(0)


def hole(path: Path) -> None:
    """4 GiB that take no room."""
    with open(path, "wb") as stream:
        stream.truncate(1 << 32)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(path.parent / target)


FILES = [
    *(
        Hostile(name, good, Seen())
        for name in (
            "line\nbreak.png", "smile \N{GRINNING FACE}.png", "a#b?c%20d&e=f.png", "  spaces  .png", "-rf.png",
            "'quotes\".png", "back\\slash.png", "bell\a.png", "x" * 251 + ".png", "UPPER.PNG", "upper.png",
            "Caf\u00e9.png", "Cafe\u0301.png", "s3:.png", "x.parquet#image.png", "{braces}.png", "\u202etxt.png",
            "two.jpg.png",
        )
    ),
    Hostile("a link.png", link_to("UPPER.PNG"), Seen(), listed=False),
    Hostile("a folder.png", Path.mkdir, Bad("no file"), listed=False),
    Hostile("leads nowhere.png", link_to("nowhere"), Bad("not found"), listed=False),
    Hostile("leads to itself.png", link_to("leads to itself.png"), Bad("no file"), listed=False),
    Hostile("not there.png", lambda path: None, Bad("not found"), listed=False),
    Hostile("closed.png", closed, Bad("no file")),  # root may read it
    Hostile("a pipe.png", os.mkfifo, Bad("no file"), listed=False),
    Hostile("endless.png", link_to("/dev/zero"), Bad("no file"), listed=False),
    Hostile("4 GiB of nothing.jpg", hole, Bad("too large")),
]  # fmt: skip


# ---------------------------------------------------------------- tables


def color_of(number: int) -> tuple[int, int, int]:
    return (10 + 20 * number, 200, 250 - 20 * number)


def dot(number: int) -> bytes:
    return encode(Image.new("RGB", (4, 4), color_of(number)), "PNG")


CATS = ("cat", "dog", "cat")
HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def columns(count: int = 3, **more: Any) -> dict[str, Any]:
    """Ids, images and labels of so many rows; others instead or besides, None: without that one."""
    base = {
        "sample_id": [f"s{i}" for i in range(count)],
        "image": [dot(i) for i in range(count)],
        "label": [CATS[i % 3] for i in range(count)],
    }
    return {name: values for name, values in (base | more).items() if values is not None}


def write(path: Path, values: dict[str, Any] | pa.Table | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = values if isinstance(values, pa.Table) else pa.table(columns() if values is None else values)
    pq.write_table(table, path, **options)


LABELED = {"format": "parquet", "label_column": "label"}
BY_URI = LABELED | {"image_column": None, "uri_column": "uri"}


def one_file(
    fields: dict[str, Any] = LABELED, options: dict[str, Any] | None = None, **more: Any
) -> Callable[[Path], Any]:
    """A table ``t.parquet`` of three rows, with these columns."""

    def make(folder: Path) -> dict[str, Any]:
        write(folder / "t.parquet", columns(**more), **(options or {}))
        return fields

    return make


def by_uri(*uris: str | None) -> Callable[[Path], Any]:
    """A table of uris, in which ``{}`` is the folder; ``dots/0.png``, ... lie there."""

    def make(folder: Path) -> dict[str, Any]:
        for number in range(3):
            (folder / "dots").mkdir(exist_ok=True)
            (folder / "dots" / f"{number}.png").write_bytes(dot(number))
            (folder / "dots" / f"{number} #?%41.png").write_bytes(dot(number))
        given = [uri and uri.replace("{}", str(folder)) for uri in uris]
        write(folder / "t.parquet", columns(len(uris), image=None, uri=pa.array(given, pa.string())))
        return BY_URI

    return make


def labels(values: Any) -> Callable[[Path], Any]:
    return one_file(label=values)


def ids(*names: str) -> Callable[[Path], Any]:
    return one_file(sample_id=list(names))


def beside(name: str, content: bytes | None = None, fields: dict[str, Any] = LABELED) -> Callable[[Path], Any]:
    """A good table, and another file beside it: of these bytes, or a table too."""

    def make(folder: Path) -> dict[str, Any]:
        write(folder / "a.parquet")
        if content is None:
            write(folder / name, columns(sample_id=["t0", "t1", "t2"]))
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return fields

    return make


def two(second: dict[str, Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> dict[str, Any]:
        write(folder / "a.parquet")
        write(folder / "b.parquet", columns(**{"sample_id": ["t0", "t1", "t2"]} | second))
        return LABELED

    return make


def named(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> dict[str, Any]:
        write(folder / name)
        return LABELED

    return make


def parquet_bytes(values: dict[str, Any] | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns() if values is None else values), sink)
    return sink.getvalue().to_pybytes()


def sealed(folder: Path) -> dict[str, Any]:
    """As a file with an encrypted footer begins and ends."""
    (folder / "t.parquet").write_bytes(b"PARE" + parquet_bytes()[4:-4] + b"PARE")
    return LABELED


def cut(folder: Path) -> dict[str, Any]:
    (folder / "t.parquet").write_bytes(parquet_bytes()[:-50])
    return LABELED


def damaged(folder: Path) -> dict[str, Any]:
    """Its footer is whole, a page of labels is not."""
    write(folder / "t.parquet", columns(300), compression="zstd")
    data = (folder / "t.parquet").read_bytes()
    at = pq.ParquetFile(folder / "t.parquet").metadata.row_group(0).column(2).dictionary_page_offset
    (folder / "t.parquet").write_bytes(patched(data, at + 20, b"\xff" * 40))
    return LABELED


def no_groups(folder: Path) -> dict[str, Any]:
    schema = pa.table(columns()).schema
    pq.ParquetWriter(folder / "t.parquet", schema).close()
    return LABELED


def some_empty(folder: Path) -> dict[str, Any]:
    """Several files and row groups, of which some hold no row."""
    no_groups(folder)
    with pq.ParquetWriter(folder / "u.parquet", pa.table(columns()).schema) as writer:
        for part in (slice(0, 0), slice(0, 1), slice(1, 1), slice(1, 3)):
            writer.write_table(pa.table({name: values[part] for name, values in columns().items()}, writer.schema))
    return LABELED


def two_labels(folder: Path) -> dict[str, Any]:
    table = pa.table(columns())
    write(folder / "t.parquet", table.append_column("label", table["sample_id"]))
    return LABELED


def paths_inside(folder: Path) -> dict[str, Any]:
    (folder / "dots").mkdir()
    (folder / "dots" / "1.png").write_bytes(dot(1))
    rows = [
        {"bytes": dot(0), "path": "a.png"},
        {"bytes": None, "path": "dots/1.png"},
        {"bytes": None, "path": "no.png"},
    ]
    write(folder / "t.parquet", columns(image=pa.array(rows, HUGGING_FACE)))
    return LABELED


def pandas_wrote(folder: Path) -> dict[str, Any]:
    """With its index as a column, and a note on that."""
    table = pa.table(columns() | {"__index_level_0__": [7, 8, 9]})
    about = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": [], "pandas_version": "3.0"}
    write(folder / "t.parquet", table.replace_schema_metadata({b"pandas": json.dumps(about).encode()}))
    return LABELED


def partitions(folder: Path) -> dict[str, Any]:
    for name in ("cat", "dog"):
        write(folder / f"label={name}" / "part-0.parquet", columns(label=None))
    return LABELED


def every_codec(folder: Path) -> dict[str, Any]:
    for i, codec in enumerate(("zstd", "lz4", "brotli", "snappy", "gzip", "none")):
        write(folder / f"{i}.parquet", columns(sample_id=[f"{codec}{j}" for j in range(3)]), compression=codec)
    return LABELED


def coop(train: Any) -> Callable[[Path], Any]:
    """A split file whose list ``train`` is this, as JSON has it."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "cat.png").write_bytes(dot(0))
        (folder / "split.json").write_text(json.dumps({"train": train, "val": [], "test": []}), "ascii")
        return {"format": "coop_split", "split_file": str(folder / "split.json")}

    return make


def struct_of(kind: pa.DataType) -> pa.Array:
    return pa.array(
        [{"bytes": dot(i), "path": None} for i in range(3)], pa.struct([("bytes", kind), ("path", pa.string())])
    )


RIGHT = Rows(CATS)
LETTERS = tuple("abcdefghijkl")  # the names that are given, where labels have values of their own
FILE = "t.parquet"


def refused(*words: str) -> Refused:
    return Refused(words)


OWN = {name: ["x", "y", "z"] for name in ("split", "error", "features", "probs", "uri", "part", "pixels", "size_bytes")}
LONG_IDS = ("line\nbreak", "smile \N{GRINNING FACE}", "x" * 10_000)
ALIKE_IDS = ("Caf\u00e9", "Cafe\u0301", "CAF\u00c9")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

TABLES = [
    # the images
    Table("hugging face", one_file(image=struct_of(pa.binary())), RIGHT),
    Table("hugging face, large", one_file(image=struct_of(pa.large_binary())), RIGHT),
    Table("hugging face, paths", paths_inside, Rows(CATS, (0, 1, "not found"))),
    Table("large binary", one_file(image=pa.array([dot(i) for i in range(3)], pa.large_binary())), RIGHT),
    Table("binary view", one_file(image=pa.array([dot(i) for i in range(3)], pa.binary_view())), RIGHT),
    Table(
        "dictionary of images",
        one_file(image=pa.array([dot(0), dot(1), dot(0)]).dictionary_encode()),
        Rows(CATS, (0, 1, 0)),
    ),
    Table(
        "lists of numbers",
        one_file(image=pa.array([list(dot(i)) for i in range(3)], pa.list_(pa.uint8()))),
        refused(FILE, "'image'", "list"),
    ),
    Table(
        "lists of images",
        one_file(image=pa.array([[{"bytes": dot(i), "path": ""}] for i in range(3)])),
        refused(FILE, "'image'", "list"),
    ),
    Table("base64", one_file(image=["aGVsbG8="] * 3), refused(FILE, "'image'", "text")),
    Table("null images", one_file(image=pa.array([dot(0), None, b""])), Rows(CATS, (0, "no bytes", "no bytes"))),
    Table("only null images", one_file(image=pa.nulls(3)), Rows(CATS, ("no bytes",) * 3)),
    Table("a web page among images", one_file(image=[dot(0), b"<html>404", dot(2)]), Rows(CATS, (0, "HTML", 2))),
    # ids
    Table("no ids", one_file(LABELED | {"id_column": None}, sample_id=None), RIGHT),
    Table("null id", one_file(sample_id=["a", None, "c"]), refused(FILE, "sample_id", "row 1")),
    Table("empty id", one_file(sample_id=["a", "", "c"]), refused(FILE, "sample_id", "row 1")),
    Table("ids that repeat", ids("a", "b", "a"), refused("'a'", "repeat")),
    Table("whole numbers as ids", one_file(sample_id=[10, 9, 2]), Rows(CATS, ids=("10", "9", "2"))),
    Table(
        "large numbers as ids",
        one_file(sample_id=pa.array([1e15, 1e15 + 1, 1e16])),
        Rows(CATS, ids=(str(10**15), str(10**15 + 1), str(10**16))),
    ),
    Table("bytes as ids", one_file(sample_id=[b"a", b"b", b"c"]), Rows(CATS, ids=("a", "b", "c"))),
    Table("bytes that are not UTF-8 as ids", one_file(sample_id=[b"a", b"\xff", b"c"]), refused(FILE, "'sample_id'")),
    Table("ids of odd letters", ids(*LONG_IDS), Rows(CATS, ids=LONG_IDS)),
    Table("ids that look alike", ids(*ALIKE_IDS), Rows(CATS, ids=ALIKE_IDS)),
    Table("ids with spaces", ids("a", "a ", " a"), Rows(CATS, ids=("a", "a ", " a"))),
    # labels
    Table("labels of a dictionary", labels(pa.array(CATS).dictionary_encode()), RIGHT),
    Table("labels of bytes", labels([b"cat", b"dog", b"cat"]), RIGHT),
    Table("labels of whole numbers", labels([10, 2, 10]), Rows(("10", "2", "10"))),
    Table("labels with gaps, by pandas", labels(pa.array([1.0, float("nan"), 2.0])), Rows(("1", None, "2"))),
    Table(
        "labels of a dictionary of numbers",
        labels(pa.array([1.0, 2.0, 1.0]).dictionary_encode()),
        Rows(("1", "2", "1")),
    ),
    Table("labels of small floats", labels(pa.array([1, 2, 1], pa.float16())), Rows(("1", "2", "1"))),
    Table("labels without end", labels([1.0, float("inf"), 2.0]), refused(FILE, "'label'")),
    Table("labels of huge numbers", labels([1e300, 2.0, 2.0]), refused(FILE, "'label'")),
    Table(
        "labels of decimals in the order of classes",
        one_file(
            LABELED | {"label_values": "sorted"},
            **columns(12, label=pa.array(map(Decimal, range(12)), pa.decimal128(9, 2))),
        ),
        Rows(LETTERS),
    ),
    Table(
        "labels of halves in the order of classes",
        one_file(LABELED | {"label_values": "sorted"}, **columns(12, label=[i + 0.5 for i in range(12)])),
        Rows(LETTERS),
    ),
    Table("labels yes and no", labels([True, False, True]), Rows(("true", "false", "true"))),
    Table(
        "labels of dates", labels(pa.array([0, 1, 0], pa.date32())), Rows(("1970-01-01", "1970-01-02", "1970-01-01"))
    ),
    Table("null labels", labels(["cat", None, ""]), Rows(("cat", None, None))),
    Table("only null labels", labels(pa.nulls(3)), Rows((None,) * 3)),
    Table("lists of labels", labels([["cat"], ["dog"], []]), refused(FILE, "'label'", "list")),
    Table("labels of odd letters", labels(list(LONG_IDS)), Rows(LONG_IDS)),
    # uris
    Table(
        "uris of every kind",
        by_uri("dots/0.png", "{}/dots/1.png", "file://{}/dots/2.png", "./dots/0.png", "dots/../dots/1.png"),
        Rows((*CATS, "cat", "dog"), (0, 1, 2, 0, 1)),
    ),
    Table(
        "uris with signs",
        by_uri("dots/0 #?%41.png", "{}/dots/1 #?%41.png", "file://{}/dots/2%20%23%3F%2541.png"),
        RIGHT,
    ),
    Table(
        "uris out of reach",
        by_uri("dots/0.png", "dots/no.png", "~/no.png", "C:\\no.png", "dots", "dots/0.png/no"),
        Rows((*CATS, *CATS), (0, "not found", "not found", "not found", "no file", "not found")),
    ),
    Table(
        "uris of the web",
        by_uri("http://localhost/a.png", "https://localhost/b.png", "data:image/png;base64,iVBO"),
        Rows(CATS, ("no filesystem", "no filesystem", "not found")),
    ),
    Table(
        "uris of no such kind",
        by_uri("gopher://a/b.png", "://", "s3:/typo/a.png"),
        Rows(CATS, ("no filesystem", "no filesystem", "not found")),
    ),
    Table(
        "uri of another table",
        by_uri("t.parquet#uri/0", "t.parquet#no/0", "t.parquet#uri/99"),
        Rows(CATS, ("no bytes", "no bytes", "no bytes")),
    ),
    Table(
        "only uris of the web", by_uri("http://localhost/a.png", "HTTP://x/b.png"), refused(FILE, "http is not read")
    ),
    Table("uri of a device", by_uri("file:///dev/zero", "/dev/zero"), Rows(("cat", "dog"), ("no file",) * 2)),
    Table("null uri", by_uri("dots/0.png", None, "dots/2.png"), refused(FILE, "uri", "row 1")),
    Table("uris of bytes", one_file(BY_URI, image=None, uri=[b"a", b"b", b"c"]), refused(FILE, "'uri'", "binary")),
    # columns
    Table("columns of the user's own", one_file(**OWN), RIGHT),
    Table("by pandas", pandas_wrote, RIGHT),
    Table("two columns of one name", two_labels, refused(FILE, "'label'")),
    Table("no label column", one_file(label=None), refused(FILE, "'label'")),
    Table("another case", one_file(label=None, Label=["a", "b", "c"]), refused(FILE, "'label'", "Label")),
    Table("a dotted column", one_file(LABELED | {"label_column": "a.b"}, **{"a.b": list(CATS)}), RIGHT),
    Table("no columns", lambda folder: write(folder / FILE, {}) or LABELED, refused(FILE, "'label'")),
    Table("partitions", partitions, refused("part-0.parquet", "'label'")),
    # rows
    Table(
        "no rows",
        one_file(sample_id=pa.array([], pa.string()), image=pa.array([], pa.binary()), label=pa.array([], pa.string())),
        refused(FILE, "no row"),
    ),
    Table("no row groups", no_groups, refused(FILE, "no row")),
    Table("some empty", some_empty, RIGHT),
    # split files
    Table("a split", coop([["cat.png", 0, "cat"]]), Rows(("cat",))),
    Table(
        "a split file that is a folder",
        lambda folder: {"format": "coop_split", "split_file": str(folder)},
        refused("is a folder; expected a file"),
    ),
    Table("a split that is null", coop(None), refused("split.json", "'train'")),
    Table("a split that is empty", coop([]), refused("split.json", "no row")),
    Table("a split of another form", coop({"cat.png": "cat"}), refused("split.json", "'train'")),
    Table("a split with half a letter", coop([["\ud800.png", 0, "cat"]]), refused("split.json", "'train'")),
    # files
    Table("every codec", every_codec, Rows(CATS * 6, (0, 1, 2) * 6)),
    Table(
        "pages of version 2",
        one_file(options={"data_page_version": "2.0", "use_dictionary": False, "write_statistics": False}),
        RIGHT,
    ),
    Table("pq", named("t.pq"), RIGHT),
    Table("PARQUET", named("T.PARQUET"), RIGHT),
    Table("deep", named("a/b.parquet/c#d/t.parquet"), RIGHT),
    Table("of macOS", beside("._a.parquet", b"\0\5\x16\7"), RIGHT),
    Table("of Spark", beside("_SUCCESS", b""), RIGHT),
    Table("of Spark, unfinished", beside("_temporary/0/part-0.parquet"), RIGHT),
    Table(
        "only what Spark passes over",
        named("_temporary/0/t.parquet"),
        refused("_temporary/0/t.parquet", "begins with _"),
    ),
    Table("a partition with a line before its name", named("_day=1/t.parquet"), RIGHT),
    Table("of Delta", beside("_delta_log/00010.checkpoint.parquet", parquet_bytes({"add": [1]})), RIGHT),
    Table("of Hugging Face", beside(".cache/huggingface/x.parquet", b""), RIGHT),
    Table("metadata", beside("_metadata", parquet_bytes()), RIGHT),
    Table("a second without labels", two({"label": None}), refused("b.parquet", "'label'")),
    Table("a second of numbers", two({"label": [1, 2, 1]}), Rows((*CATS, "1", "2", "1"), (0, 1, 2) * 2)),
    Table("a second with other images", two({"image": [1, 2, 3]}), refused("b.parquet", "'image'")),
    Table("the same rows twice", two({"sample_id": ["s0", "s1", "s2"]}), refused("'s0'", "repeat")),
    Table("text", beside("b.parquet", b"a,b\n1,2\n"), refused("b.parquet")),
    Table("a pointer", beside("b.parquet", POINTER), refused("b.parquet", "Git LFS")),
    Table("a web page", beside("b.parquet", b"<!DOCTYPE html><html>Login"), refused("b.parquet", "HTML")),
    Table("an empty file", beside("b.parquet", b""), refused("b.parquet", "empty")),
    Table("cut off", cut, refused(FILE)),
    Table("damaged", damaged, refused(FILE)),
    Table("encrypted", sealed, refused(FILE, "encrypted")),
]


# ---------------------------------------------------------------- lists: CSV


def csv(text: str, encoding: str = "utf-8", name: str = "list.csv", **fields: Any) -> Callable[[Path], Any]:
    """A list of the images ``dots/0.png``, ``dots/1.png``, ``dots/2.png``; ``{}`` is the folder."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "dots").mkdir()
        for number in range(3):
            (folder / "dots" / f"{number}.png").write_bytes(dot(number))
        (folder / "dots" / "1, 2.png").write_bytes(dot(1))
        (folder / name).write_bytes(text.replace("{}", str(folder)).encode(encoding))
        return {"path": name, "id_column": None, "uri_column": "uri", "label_column": "label"} | fields

    return make


PLAIN = "uri,label\ndots/0.png,cat\ndots/1.png,dog\ndots/2.png,cat\n"
BY_NAME = ("dots/0.png", "dots/1.png", "dots/2.png")
CSV = "list.csv"

CSV_TABLES = [
    Table("plain", csv(PLAIN), Rows(CATS, ids=BY_NAME)),
    Table("with a BOM", csv(PLAIN, "utf-8-sig"), Rows(CATS, ids=BY_NAME)),
    Table("of Excel", csv(PLAIN.replace(",", ";").replace("\n", "\r\n"), "utf-8-sig"), Rows(CATS, ids=BY_NAME)),
    Table("with tabs", csv(PLAIN.replace(",", "\t"), name="list.tsv"), Rows(CATS, ids=BY_NAME)),
    Table("UTF-16", csv(PLAIN, "utf-16"), refused(CSV, "UTF-8")),
    Table("latin-1", csv(PLAIN.replace("dog", "chi\u00ebn"), "latin-1"), refused(CSV, "UTF-8")),
    Table("quotes", csv('uri,label\ndots/0.png,"cat"\n"dots/1, 2.png","dog, ""big"""\n'), Rows(("cat", 'dog, "big"'))),
    Table("a line break in quotes", csv('uri,label\ndots/0.png,"cat\nof two"\n'), Rows(("cat\nof two",))),
    Table("a quote that is not closed", csv('uri,label\ndots/0.png,"cat\ndots/1.png,dog\n'), refused(CSV)),
    Table("empty lines", csv(PLAIN.replace("\n", "\n\n")), Rows(CATS, ids=BY_NAME)),
    Table("without an end", csv(PLAIN.rstrip()), Rows(CATS, ids=BY_NAME)),
    Table("no header", csv(PLAIN.partition("\n")[2]), refused(CSV, "uri")),
    Table("no rows", csv("uri,label\n"), refused(CSV, "no row")),
    Table("nothing", csv(""), refused(CSV, "empty")),
    Table("a pointer", csv(POINTER.decode()), refused(CSV, "Git LFS")),
    Table("a web page", csv("<html><body>404"), refused(CSV, "HTML")),
    Table("zeros", csv("\0" * 500), refused(CSV, "zero bytes")),
    Table(
        "half a letter",
        csv('{"uri": "\\ud800.png", "label": "cat"}', name="list.jsonl"),
        refused("list.jsonl", "line 1"),
    ),
    Table("only uris of the web", csv("uri,label\nhttps://a/b.png,cat\n"), refused(CSV, "https is not read")),
    Table("a field too many", csv(PLAIN + "dots/0.png,cat,again\n"), refused(CSV, "5")),
    Table("a field too few", csv(PLAIN + '"dots/1, 2.png"\n'), Rows((*CATS, None), (0, 1, 2, 1))),  # Excel drops them
    Table("an empty uri", csv("uri,label\n,cat\n"), refused(CSV, "uri", "2")),
    Table("an empty label", csv("uri,label\ndots/0.png,\ndots/1.png,dog\n"), Rows((None, "dog"))),
    Table("numbers with zeros", csv("uri,label\ndots/0.png,007\ndots/1.png,7\n"), Rows(("007", "7"))),
    Table(
        "words that are values elsewhere",
        csv("uri,label\ndots/0.png,NA\ndots/1.png,null\ndots/2.png,true\n"),
        Rows(("NA", "null", "true")),
    ),
    Table("a label column twice", csv("uri,label,label\ndots/0.png,cat,dog\n"), refused(CSV, "label")),
    Table("ids", csv("uri,label,sample_id\ndots/0.png,cat,7\n", id_column="sample_id"), Rows(("cat",), ids=("7",))),
    Table("no such file", csv("uri,label\ndots/no.png,cat\n"), Rows(("cat",), ("not found",))),
    Table(
        "a picture by that name", lambda folder: good(folder / CSV) or {"path": CSV, "uri_column": "uri"}, refused(CSV)
    ),
]


# ---------------------------------------------------------------- to look at


def write_image(case: Hostile, folder: Path) -> Path:
    """The file of one of :data:`IMAGES` or :data:`FILES`."""
    path = folder / case.name
    if case in FILES:
        case.make(path)
    else:
        path.write_bytes(case.make())
    return path


def write_all(folder: Path) -> None:
    """Everything, each kind in a folder of its own."""
    for name, cases in (("images", IMAGES), ("files", FILES)):
        (folder / name).mkdir(parents=True)
        for case in cases:
            write_image(case, folder / name)
    for name, tables in (("tables", TABLES), ("lists", CSV_TABLES)):
        for table in tables:
            (folder / name / table.name).mkdir(parents=True)
            table.make(folder / name / table.name)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
