"""From bytes to RGB pixels: every kind of image, every way of being broken, and what is done to images on their way."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from fakes import encode, picture, same
from PIL import Image

from raykd.images import decoding
from raykd.images.decoding import UNREACHABLE, decode
from raykd.images.reading import load_one
from raykd.images.stored import ImageReader


def pixels_of(encoded):
    return decode(encoded).image


# ---------------------------------------------------------------- broken images


def huge_png(side=60_000):
    """A few bytes that claim to be 3.6 billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CUT = "truncated: the file ends before the image does"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(encode(picture(), "JPEG")[:600], CUT, id="truncated JPEG"),
        pytest.param(encode(picture())[:900], CUT, id="truncated PNG"),
        pytest.param(encode(picture(), "WEBP")[:200], "", id="truncated WebP"),
        pytest.param(b"\xff\xd8\xff", "broken or of a kind that is not read", id="three bytes of JPEG"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "", id="signature alone"),
        pytest.param(huge_png(), "too large: more than 179 million pixels", id="bomb"),
        pytest.param(encode(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point pixels", id="float"),
        pytest.param(encode(Image.new("I", (4, 4), 1 << 20), "TIFF"), "32-bit pixels", id="32 bit"),
        pytest.param(encode(Image.new("I", (4, 4), -3), "TIFF"), "32-bit pixels", id="negative"),
        pytest.param(b"", "empty file", id="no bytes"),
        pytest.param(bytes(500), "nothing but zero bytes", id="zeros"),
        pytest.param(b"these are words\n" * 40, "not an image: text", id="text"),
        pytest.param("ünïcode ".encode() * 200, "not an image: text", id="text that is cut in a letter"),
        pytest.param(b"\n<!DOCTYPE HTML><title>404", "not an image: a web page (HTML)", id="web page"),
        pytest.param(b"<?xml?><!-- --><HTML lang=en>", "not an image: a web page (HTML)", id="XHTML"),
        pytest.param(b"<?xml version='1.0'?><Error>denied", "not an image: an XML document", id="XML"),
        pytest.param(b"<?xml?><svg xmlns=''/>", "not an image of pixels: a drawing (SVG)", id="SVG"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a Git LFS pointer: the file itself was never fetched", id="LFS",
        ),
        pytest.param(b"/annex/objects/SHA256E-s1--2c.jpg\n", "a git-annex pointer", id="annex"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image, which is not read; convert it", id="HEIC"),
        pytest.param(b"\0\0\0\x18ftypisom\0\0\0\0", "not an image: a video", id="video"),
        pytest.param(b"%PDF-1.7\n\x80", "not an image: a PDF document", id="PDF"),
        pytest.param(b"PK\x03\x04\x14\0\xff", "not an image: a ZIP archive", id="ZIP"),
        pytest.param(b"\x9c\xfe" * 99, "not an image of a format that is read", id="anything"),
    ],
)  # fmt: skip
def test_a_bad_image_is_a_reason_of_one_short_line(data, reason, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    got = load_one(ImageReader(), str(path), same)
    assert isinstance(got, str)
    assert not got.startswith(UNREACHABLE)
    assert got.startswith(reason)
    assert "\n" not in got
    assert 5 < len(got) <= 200
    with pytest.raises(Exception):  # noqa: B017, PT011
        pixels_of(data)


def test_reasons_can_be_counted(tmp_path):
    """Files that are broken in the same way have the same reason, whatever else differs."""
    kinds = {
        "cut": [encode(picture(i, height=90, width=80 + i), "JPEG")[: 1500 + 10 * i] for i in range(9)],
        "header": [encode(picture(i, width=30 + i), "JPEG")[: 100 + i] for i in range(9)],
        "bomb": [huge_png(side) for side in range(60_000, 60_009)],
        "noise": [b"\x9c" + np.random.default_rng(i).bytes(99) for i in range(9)],
    }
    for name, files in kinds.items():
        reasons = set()
        for i, data in enumerate(files):
            (tmp_path / f"{i}.jpg").write_bytes(data)
            reasons.add(load_one(ImageReader(), f"{tmp_path}/{i}.jpg", same))
        assert len(reasons) == 1, (name, reasons)
        assert "0x" not in reasons.pop()


def test_no_reason_holds_what_a_library_says_of_one_file():
    error = OSError(f"cannot identify image file {io.BytesIO()!r}")
    assert decoding.reason_of(error) == decoding.UNDECODABLE


def png_with(*chunks, at=33):
    """A PNG with further chunks behind its header, or before its end."""
    data = encode(picture())
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:at] + more + data[at:]


LONG = zlib.compress(bytes(3_000_000))


@pytest.mark.slow
@pytest.mark.parametrize("at", [33, -12], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param((b"iCCP", b"profile\0\0" + LONG), id="profile"),
        pytest.param((b"zTXt", b"Comment\0\0" + LONG), id="compressed text"),
        pytest.param((b"iTXt", b"Comment\0\x01\0\0\0" + LONG), id="international text"),
        pytest.param((b"tEXt", b"Comment\0" + b"x" * 70_000_000), id="70 MB of plain text"),
    ],
)
def test_a_png_with_a_large_profile_or_long_notes_is_read(chunk, at):
    data = png_with((b"tEXt", b"Author\0me"), chunk, at=at)
    assert np.array_equal(np.array(pixels_of(data)), np.array(picture()))


def test_orientation_is_kept_when_long_notes_are_left_out():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    note = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert pixels_of(png_with(note)).size == (20, 30)
    assert np.array_equal(
        np.array(pixels_of(png_with(note, (b"iCCP", b"p\0\0" + LONG)))), np.array(pixels_of(png_with(note)))
    )


def test_pillows_limits_are_as_they_were():
    from PIL import PngImagePlugin

    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_an_image_that_the_transform_cannot_take_is_a_bad_one(tmp_path):
    path = tmp_path / "line.png"
    path.write_bytes(encode(picture(height=1)))

    def halve(image):
        return image.resize((image.width // 2, image.height // 2))

    assert load_one(ImageReader(), str(path), halve) == "cannot be cropped or resized"


# ---------------------------------------------------------------- every kind is RGB


def two_colours(image):
    palette = Image.new("P", image.size, 0)
    palette.putpalette([*image.getpixel((0, 0)), 1, 2, 3])
    return palette


def test_every_mode_becomes_rgb_of_the_right_colours():
    red = Image.new("RGB", (9, 7), (250, 10, 20))
    kinds = {
        "RGB": encode(red),
        "palette": encode(red.convert("P", palette=Image.Palette.ADAPTIVE)),
        "RGBA": encode(red.convert("RGBA")),
        "palette, another colour of which is transparent": encode(two_colours(red), transparency=1),
        "CMYK JPEG": encode(red.convert("CMYK"), "JPEG", quality=95),
        "GIF": encode(red.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        "BMP": encode(red, "BMP"),
        "WebP": encode(red, "WEBP", lossless=True),
        "TIFF": encode(red, "TIFF"),
        "PPM": encode(red, "PPM"),
    }
    for name, data in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = pixels_of(data)
        assert (got.mode, got.size) == ("RGB", (9, 7)), name
        assert np.abs(np.array(got).astype(int) - (250, 10, 20)).max() <= 6, name


INK = np.array([[0, 0, 1], [0, 1, 0]], dtype=bool)  # where there is ink


def inked(mode):
    """Black ink on a page that is not there."""
    page = Image.fromarray(np.where(INK, 255, 0).astype(np.uint8))
    ink = Image.new("L", page.size, 0)
    return Image.merge(mode, [*[ink] * (len(mode) - 1), page])


def png_of(samples_HWC, color, *chunks):
    """A PNG of 16 bits a channel, as Pillow cannot write it."""
    height, width = samples_HWC.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def key_of(*samples):
    return b"tRNS", struct.pack(f">{len(samples)}H", *samples)


def pages():
    """The same page in every way of being transparent: ink is 0, what is not there would be 0 or 5 to other eyes."""
    gray = Image.fromarray(np.where(INK, 0, 5).astype(np.uint8))
    color = gray.convert("RGB")
    palette = Image.fromarray(np.where(INK, 0, 1).astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    deep = np.where(INK, 0, 5)[..., None].astype(np.uint16)
    deep_alpha = np.where(INK, 0xFFFF, 0)[..., None].astype(np.uint16)
    nothing = np.zeros_like(deep)
    return {
        "RGBA": encode(inked("RGBA")),
        "RGBA WebP": encode(inked("RGBA"), "WEBP", lossless=True, exact=True),
        "RGBA TIFF": encode(inked("RGBA"), "TIFF"),
        "LA": encode(inked("LA")),
        "palette": encode(palette, transparency=1),
        "palette of many": encode(palette, transparency=bytes([255, 0])),
        "GIF": encode(palette, "GIF", transparency=1),
        "gray with a key": encode(gray, transparency=5),
        "RGB with a key": encode(color, transparency=(5, 5, 5)),
        "one bit with a key": encode(Image.fromarray(~INK).convert("1"), transparency=255),
        "16-bit gray with a key": png_of(deep, 0, key_of(5)),
        "16-bit RGB with a key": png_of(np.repeat(deep, 3, axis=2), 2, key_of(5, 5, 5)),
        "16-bit LA": png_of(np.concatenate([nothing, deep_alpha], axis=2), 4),
        "16-bit RGBA": png_of(np.concatenate([nothing] * 3 + [deep_alpha], axis=2), 6),
    }


@pytest.mark.parametrize("name", pages())
def test_black_ink_on_a_transparent_page_is_black_on_white(name):
    got = pixels_of(pages()[name])
    assert got.mode == "RGB"
    assert np.array(got).tolist() == np.where(INK[..., None], 0, [255] * 3).tolist()


def test_what_is_half_transparent_is_half_white_and_what_is_opaque_stays_as_it_is():
    image = picture().convert("RGBA")
    assert np.array_equal(np.array(pixels_of(encode(image))), np.array(picture()))
    image.putalpha(102)
    expected = np.array(picture()) * 0.4 + 255 * 0.6
    np.testing.assert_allclose(np.array(pixels_of(encode(image))), expected, atol=1)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_shades_and_do_not_turn_white(format):
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    got = pixels_of(encode(Image.fromarray(deep), format))
    assert got.mode == "RGB"
    np.testing.assert_allclose(np.array(got).astype(int), (deep >> 8)[..., None].repeat(3, axis=2), atol=1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("color", [0, 2, 4, 6], ids=["gray", "RGB", "gray and alpha", "RGBA"])
def test_ten_to_fourteen_bits_in_sixteen_use_the_whole_range(bits, color):
    shades = np.linspace(0, 2**bits - 1, 35).astype(np.uint16).reshape(5, 7)
    channels = [shades, shades[::-1], shades[:, ::-1]][: 3 if color in (2, 6) else 1]
    alpha = [np.full_like(shades, 2**bits - 1)] if color in (4, 6) else []
    got = np.array(pixels_of(png_of(np.stack([*channels, *alpha], axis=2), color)))
    expected = np.stack([channel >> (bits - 8) for channel in channels], axis=2)
    np.testing.assert_array_equal(got, np.broadcast_to(expected, got.shape))
    assert got.max() == 255


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_deflate"}, {"compression": "tiff_lzw"}])
def test_twelve_bits_in_a_gray_tiff_use_the_whole_range(options):
    shades = np.linspace(0, 4095, 35).astype(np.uint16).reshape(5, 7)
    got = np.array(pixels_of(encode(Image.fromarray(shades), "TIFF", **options)))
    np.testing.assert_array_equal(got, np.repeat((shades >> 4)[..., None], 3, axis=2))


@pytest.mark.parametrize("order", ["<", ">"])
def test_twelve_bits_in_a_colour_tiff_use_the_whole_range(order):
    shades = np.linspace(0, 4095, 3 * 35).astype(np.uint16).reshape(5, 7, 3)
    got = np.array(pixels_of(color_tiff(shades, order)))
    np.testing.assert_array_equal(got, shades >> 4)


def color_tiff(samples_HWC, order):
    """An uncompressed TIFF of three channels of 16 bits, in either byte order."""
    height, width, _ = samples_HWC.shape
    data = samples_HWC.astype(f"{order}u2").tobytes()
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + len(data)), (259, 3, 1, 1), (262, 3, 1, 2),
               (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data))]  # fmt: skip
    start = 8 + len(data) + 6
    tags = b""
    for tag, kind, count, value in entries:
        small = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        tags += struct.pack(f"{order}HHI", tag, kind, count) + small
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    return head + data + bits + struct.pack(f"{order}H", len(entries)) + tags + struct.pack(f"{order}I", 0)


@pytest.mark.parametrize(
    ("said", "most", "bits"),
    [
        (12, 4095, 12),
        (12, 100, 12),  # a dark picture stays dark
        (12, 40_000, 16),  # scaled to 16 bits, as the format wants it
        (16, 4095, 16),
        (None, 4095, 12),
        (None, 4096, 13),
        (None, 100, 8),
        (None, 0, 8),
        (None, 65_535, 16),
    ],
)
@pytest.mark.parametrize("color", [0, 2])
def test_a_png_says_how_many_bits_count_or_its_largest_value_does(said, most, bits, color):
    channels = 3 if color == 2 else 1
    samples = np.full((2, 2, channels), most, dtype=np.uint16)
    samples[0, 0] = most // 2
    notes = [] if said is None else [(b"sBIT", bytes([said] * channels))]
    got = np.array(pixels_of(png_of(samples, color, *notes)))
    assert got[1, 1].tolist() == [most >> (bits - 8)] * 3
    assert got[0, 0].tolist() == [most // 2 >> (bits - 8)] * 3


def test_gray_and_one_bit_images_have_three_equal_channels():
    gray = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    for image in (gray, gray.convert("LA"), gray.point(lambda v: 255 * (v > 99), "1")):
        got = np.array(pixels_of(encode(image)))
        assert got.shape == (10, 20, 3)
        assert (got == got[..., :1]).all()
        assert len(np.unique(got)) > 1
    np.testing.assert_array_equal(np.array(pixels_of(encode(gray)))[..., 0], np.array(gray))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    got = pixels_of(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.array(got)[0, 0].tolist() == [255, 0, 0]


def test_an_image_of_one_pixel_is_an_image():
    assert pixels_of(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)


def test_pillow_knows_every_suffix_that_is_listed():
    assert set(decoding.SUFFIXES) <= set(Image.registered_extensions())


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(orientation, mode):
    """Each stored picture is the upright one, turned the other way; so all of them decode to the same."""
    pixels = (np.arange(6 * 4).reshape(6, 4) * (2048 if mode == "I;16" else 8)).astype(
        np.uint16 if mode == "I;16" else np.uint8
    )
    turns = {1: [], 2: ["FLIP_LEFT_RIGHT"], 3: ["ROTATE_180"], 4: ["FLIP_TOP_BOTTOM"], 5: ["TRANSPOSE"],
             6: ["ROTATE_90"], 7: ["TRANSVERSE"], 8: ["ROTATE_270"]}[orientation]  # fmt: skip
    upright = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray(np.stack([pixels] * 3, axis=2))
    stored = upright
    for turn in turns:
        stored = stored.transpose(Image.Transpose[turn])
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    plain = io.BytesIO()
    upright.save(plain, "PNG")
    assert np.array_equal(np.asarray(pixels_of(file.getvalue())), np.asarray(pixels_of(plain.getvalue())))


def test_broken_exif_leaves_the_image_as_it_is_stored():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    file = io.BytesIO()
    image.save(file, "PNG", exif=b"Exif\0\0MM nonsense")
    assert np.array_equal(np.asarray(pixels_of(file.getvalue())), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P"])
def test_an_open_image_is_seen_as_its_file_is(mode):
    from raykd.images.decoding import as_seen

    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.putpixel((3, 3), (0, 0, 0, 255))
    buffer = io.BytesIO()
    drawing.convert(mode).save(buffer, "PNG")
    seen = np.asarray(as_seen(Image.open(io.BytesIO(buffer.getvalue()))))
    assert np.array_equal(seen, np.asarray(pixels_of(buffer.getvalue())))
    if mode in ("RGBA", "LA"):
        assert (seen[0, 0].tolist(), seen[3, 3].tolist()) == ([255] * 3, [0] * 3)


# ---------------------------------------------------------------- what was done is told


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


DEEP = Image.fromarray(np.full((4, 4), 4095, np.uint16))


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        pytest.param(encode(picture()), (), id="RGB"),
        pytest.param(encode(picture().convert("L"), "JPEG"), (), id="gray"),
        pytest.param(encode(picture().convert("P")), (), id="palette"),
        pytest.param(encode(picture(), "JPEG", exif=turned(1)), (), id="upright"),
        pytest.param(encode(picture(), "JPEG", exif=turned(6)), ("turned",), id="turned"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128))), ("transparency",), id="RGBA"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 255))), (), id="RGBA, opaque"),
        pytest.param(encode(Image.new("LA", (4, 4), (0, 0)), "PNG"), ("transparency",), id="LA"),
        pytest.param(encode(DEEP), ("depth",), id="16 bits"),
        pytest.param(encode(picture().convert("CMYK"), "JPEG"), ("colors",), id="CMYK"),
        pytest.param(encode(Image.new("LAB", (4, 4)), "TIFF"), ("colors",), id="Lab"),
        pytest.param(
            encode(picture(), "GIF", save_all=True, append_images=[picture(1)]), ("frames",), id="animated GIF"
        ),
        pytest.param(
            encode(picture(), "TIFF", save_all=True, append_images=[picture(1)]), ("frames",), id="TIFF of two pages"
        ),
        pytest.param(
            encode(Image.new("RGBA", (4, 6), (0, 0, 0, 9)), exif=turned(6)),
            ("transparency", "turned"),
            id="two of them",
        ),
    ],
)
def test_what_was_done_to_an_image_is_told(data, changes):
    assert decode(data).changes == changes
    assert set(changes) <= decoding.CHANGES.keys()


def test_changes_of_readable_images_are_counted(tmp_path):
    from collections import Counter

    from raykd.images.reading import load_many

    clear = picture()
    clear.putalpha(picture(1).convert("L"))
    files = [encode(clear), encode(picture()), encode(clear)[:900], encode(clear), b""]
    for i, data in enumerate(files):
        (tmp_path / f"{i}.png").write_bytes(data)
    changes = Counter()
    list(load_many(ImageReader(), [f"{tmp_path}/{i}.png" for i in range(5)], same, changes=changes))
    assert changes == {"transparency": 2}


# ---------------------------------------------------------------- reduced decoding, and memory


def smooth(width, height):
    """A picture whose detail is coarse, so that every way of shrinking it gives about the same."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(5 * x * y + 1)]
    return Image.fromarray((np.stack(waves, -1) * 120 + 128).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "times"),
    [
        ((63, 300), 1),
        ((64, 300), 2),
        ((127, 128), 2),
        ((128, 999), 4),
        ((256, 255), 4),
        ((256, 600), 8),
        ((4000, 600), 8),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_the_smallest_size_that_has_all_that_will_be_seen(size, times, orientation):
    data = encode(smooth(*size), "JPEG", exif=turned(orientation))
    shown = decode(data, lambda width, height: min(width, height) / 32).image
    expected = tuple(-(-side // times) for side in size)
    assert shown.size == (expected if orientation == 1 else expected[::-1])
    assert min(shown.size) >= 32
    assert decode(data).image.size == (size if orientation == 1 else size[::-1])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_reduced_decoding_shows_what_exact_decoding_shows(mode, options):
    from raykd.images.transforms import CenterCrop

    crop = CenterCrop(48)
    data = encode(smooth(800, 600).convert(mode), "JPEG", **options)
    exact, reduced = (np.asarray(crop(decode(data, shrinks).image), int) for shrinks in (None, crop.shrinks))
    assert np.abs(exact - reduced).mean() < 1


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_what_is_no_jpeg_is_decoded_exactly(format):
    assert decode(encode(smooth(300, 200), format), lambda *_: 99).image.size == (300, 200)


def test_large_images_are_decoded_one_at_a_time_by_all_threads_and_processes(tmp_path, monkeypatch):
    import fcntl
    import threading

    monkeypatch.setattr(decoding, "LARGE_BYTES", 8 * 500)
    monkeypatch.setattr(decoding.tempfile, "gettempdir", lambda: str(tmp_path))
    data, inside, most = encode(picture()), [], []
    convert = decoding._as_rgb

    def watched(*arguments):
        inside.append(1)
        most.append(len(inside))
        with open(next(tmp_path.iterdir()), "w") as turnstile, pytest.raises(BlockingIOError):
            fcntl.flock(turnstile, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process would wait, too
        inside.pop()
        return convert(*arguments)

    monkeypatch.setattr(decoding, "_as_rgb", watched)
    threads = [threading.Thread(target=decode, args=(data,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    most.clear()
    monkeypatch.setattr(decoding, "_as_rgb", convert)
    (turnstile,) = tmp_path.iterdir()
    with open(turnstile, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert decode(encode(picture(height=10))).image.size == (30, 10)  # not large: waits for nobody


def test_of_a_progressive_jpeg_all_pixels_count_as_all_are_held(monkeypatch):
    from contextlib import contextmanager

    entered = []

    @contextmanager
    def watched(image):
        entered.append(image.size)
        with alone(image):
            yield

    alone = decoding.alone_if_large
    monkeypatch.setattr(decoding.fcntl, "flock", lambda *_: entered.append("alone"))
    monkeypatch.setattr(decoding, "alone_if_large", watched)
    monkeypatch.setattr(decoding, "LARGE_BYTES", 8 * 100_000)
    for options in ({}, {"progressive": True}):
        decode(encode(smooth(800, 600), "JPEG", **options), lambda *_: 99)
    assert entered == [(100, 75), (100, 75), "alone"]


def test_the_page_says_what_is_read_what_is_done_and_what_is_wrong():
    import subprocess
    import sys

    from raykd.images.__main__ import page

    text = page()
    for word in (*decoding.SUFFIXES, *decoding.CHANGES, *decoding.CHANGES.values(), *decoding.REASONS):
        assert word in text
    for _, words in decoding.SIGNATURES:
        assert words in text
    assert ":func:" not in text
    assert max(map(len, text.splitlines())) <= 120
    printed = subprocess.run([sys.executable, "-m", "raykd.images"], capture_output=True, text=True, check=True)
    assert printed.stdout == f"{text}\n"
