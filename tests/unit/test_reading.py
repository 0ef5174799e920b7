"""From a uri to RGB pixels: files, Parquet rows, every kind of image, and every way of being broken."""

import errno
import io
import os
import struct
import threading
import warnings
import weakref
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raykd.errors import StorageError
from raykd.images import reading
from raykd.images.reading import UNREACHABLE, ImageReader, decode, load_many, load_one
from raykd.store.place import Place


def encode(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def picture(seed=0, height=20, width=30):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(image):
    return image


@pytest.fixture
def parquet(tmp_path):
    """23 rows in groups of 5: PNGs, and a second column."""
    rows = [encode(picture(i)) for i in range(23)]
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"image": rows, "other": [b"x%d" % i for i in range(23)]}), path, row_group_size=5)
    return path, rows


# ---------------------------------------------------------------- where the bytes are


def test_a_file_is_read_by_its_path_and_by_its_uri(tmp_path):
    path = tmp_path / "a b#c.png"
    path.write_bytes(encode(picture()))
    uris = [str(path), (Place.of(f"file://{tmp_path}") / "a b#c.png").uri]
    assert {ImageReader().read(uri) for uri in uris} == {path.read_bytes()}


def test_parquet_rows_are_read_across_row_groups_in_any_order(parquet):
    path, rows = parquet
    reader = ImageReader()
    for row in [0, 22, 4, 5, 9, 10, 20, 3, *np.random.default_rng(0).permutation(23).tolist()]:
        assert reader.read(f"{path}#image/{row}") == rows[row]
        assert reader.read(f"file://{path}#image/{row}") == rows[row]
        assert reader.read(f"{path}#other/{row}") == b"x%d" % row


def test_row_groups_may_have_any_sizes(tmp_path):
    path, sizes = tmp_path / "pool.parquet", [3, 1, 0, 7, 2]
    rows = [b"row %d" % i for i in range(sum(sizes))]
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        for size, start in zip(sizes, np.cumsum([0, *sizes]), strict=False):
            writer.write_table(pa.table({"image": rows[start : start + size]}, writer.schema))
    reader = ImageReader()
    assert [reader.read(f"{path}#image/{row}") for row in range(len(rows))] == rows


@pytest.mark.parametrize("name", ["p.pq", "P.PARQUET", "p.parq", "p.Parquet"])
def test_parquet_files_are_known_by_any_of_their_endings(name, tmp_path):
    pq.write_table(pa.table({"image": [b"a", b"b"]}), tmp_path / name)
    assert ImageReader().read(f"{tmp_path}/{name}#image/000000001") == b"b"


def test_a_column_of_bytes_and_path_gives_the_bytes_or_else_the_file(tmp_path):
    """As Hugging Face writes images: inside, or beside the Parquet file, or anywhere."""
    (tmp_path / "data" / "more").mkdir(parents=True)
    (tmp_path / "data" / "more" / "a b.png").write_bytes(b"relative")
    (tmp_path / "c.png").write_bytes(b"absolute")
    rows = [
        {"bytes": b"inside", "path": "nowhere.png"},
        {"bytes": None, "path": "more/a b.png"},
        {"bytes": b"", "path": str(tmp_path / "c.png")},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "nowhere.png"},
    ]
    path = tmp_path / "data" / "p.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), path)
    reader = ImageReader()
    for start in (f"{path}", f"file://{path}"):
        assert [reader.read(f"{start}#image/{i}") for i in range(3)] == [b"inside", b"relative", b"absolute"]
        reasons = [load_one(reader, f"{start}#image/{i}", same) for i in (3, 4, 5)]
        assert reasons == ["no image bytes in this row"] * 2 + ["unreachable: not found"]


def test_rows_that_hold_no_bytes_say_what_they_hold(tmp_path):
    pq.write_table(pa.table({"image": ["aGVsbG8="], "list": [[1, 2]]}), tmp_path / "p.parquet")
    reader = ImageReader()
    assert load_one(reader, f"{tmp_path}/p.parquet#image/0", same) == "str in this row; expected image bytes"
    assert load_one(reader, f"{tmp_path}/p.parquet#list/0", same) == "list in this row; expected image bytes"


def test_two_parquet_files_with_equal_names_are_kept_apart(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": [name.encode()]}), tmp_path / name / "p.parquet")
    reader = ImageReader()
    assert [reader.read(f"{tmp_path}/{name}/p.parquet#image/0") for name in "aba"] == [b"a", b"b", b"a"]


def test_row_groups_are_read_once_while_they_fit_the_cache(parquet, monkeypatch):
    path, _ = parquet
    reads = count_reads(monkeypatch)
    reader = ImageReader()
    for row in [*range(23), *range(23)]:
        reader.read(f"{path}#image/{row}")
    assert reads == [0, 1, 2, 3, 4]


def test_the_cache_stays_within_its_bound_and_drops_what_was_used_longest_ago(parquet, monkeypatch):
    path, rows = parquet
    reads = count_reads(monkeypatch)
    group_bytes = sum(map(len, rows[:5]))
    reader = ImageReader(cache_bytes=int(2.5 * group_bytes))
    for group in (0, 1, 0, 2, 0, 1):  # 1 is the older one when 2 comes
        assert reader.read(f"{path}#image/{group * 5}") == rows[group * 5]
        assert sum(chunk.nbytes for chunk in reader._groups.values()) <= reader.cache_bytes
    assert reads == [0, 1, 2, 1]


def test_a_row_group_larger_than_the_cache_is_still_read_once_for_its_rows(parquet, monkeypatch):
    path, rows = parquet
    reads = count_reads(monkeypatch)
    reader = ImageReader(cache_bytes=1)
    assert [reader.read(f"{path}#image/{row}") for row in range(10)] == rows[:10]
    assert reads == [0, 1]
    assert len(reader._groups) == 1


def count_reads(monkeypatch):
    reads, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: (reads.append(i), read(self, i, **options))[1]
    )
    return reads


def test_missing_bytes_rows_columns_and_files_are_reasons_and_not_crashes(tmp_path):
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"image": [None, b""]}), path)
    reader = ImageReader()
    for row in (0, 1):
        assert load_one(reader, f"{path}#image/{row}", same) == "no image bytes in this row"
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-30])
    for uri in (f"{path}#image/2", f"{path}#picture/0", f"{tmp_path}/cut.parquet#image/0", "http://x/y.png"):
        reason = load_one(reader, uri, same)
        assert isinstance(reason, str), uri
        assert not reason.startswith(UNREACHABLE)


def test_a_photo_is_never_copied_on_its_way(monkeypatch):
    """24 megapixels are 96 MB in Pillow; what needs no turning and no converting is there once."""
    monkeypatch.setattr(Image.Image, "copy", lambda image: pytest.fail("copied"))
    for kind in ("JPEG", "PNG", "WEBP"):
        assert decode(encode(picture(), kind)).size == (30, 20)


def test_many_images_come_in_order_with_the_bad_ones_in_their_places(tmp_path, parquet):
    path, _ = parquet
    uris = []
    for i in range(12):
        file = tmp_path / f"{i}.png"
        file.write_bytes(encode(picture(i, height=i + 1)) if i % 5 else b"no image")
        uris.append(str(file))
    got = load_many(ImageReader(), uris, same, threads=4)
    assert [one if isinstance(one, str) else one.height for one in got][1:5] == [2, 3, 4, 5]
    assert [i for i, one in enumerate(got) if isinstance(one, str)] == [0, 5, 10]
    rows = load_many(ImageReader(), [f"{path}#image/{row}" for row in (7, 1)], same)
    assert [np.array(row).tobytes() for row in rows] == [np.array(picture(i)).tobytes() for i in (7, 1)]
    assert load_many(ImageReader(), [], same) == []


@pytest.mark.parametrize("kind", ["files", "Parquet"])
def test_never_more_full_size_images_are_in_memory_than_there_are_threads(kind, tmp_path, parquet, monkeypatch):
    path, rows = parquet
    uris = [f"{path}#image/{row}" for row in range(len(rows))]
    if kind == "files":
        uris = [str(tmp_path / f"{i}.png") for i in range(len(rows))]
        for uri, row in zip(uris, rows, strict=True):
            Place(uri).write_bytes(row)
    alive, most, lock = set(), [], threading.Lock()

    def watched(encoded):
        image = decode(encoded)
        with lock:
            alive.add(id(image))
            most.append(len(alive))
        weakref.finalize(image, alive.discard, id(image))
        return image

    monkeypatch.setattr(reading, "decode", watched)
    small = load_many(ImageReader(), uris, lambda image: image.resize((2, 2)), threads=3)
    assert [image.size for image in small] == [(2, 2)] * 23
    assert len(most) == 23
    assert max(most) <= (3 if kind == "files" else 1)
    assert not alive


# ---------------------------------------------------------------- what is not there, and storage that fails


def test_what_is_not_there_or_not_for_us_is_a_reason_of_its_own_kind_and_not_tried_again(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    reader = ImageReader(sleep=lambda wait_s: pytest.fail("waited"))
    for uri in (f"{tmp_path}/no.png", f"{tmp_path}/file/no.png", f"{tmp_path}/no.parquet#image/0"):
        assert load_one(reader, uri, same) == "unreachable: not found"

    def refuse(place):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Place, "read_bytes", refuse)
    assert load_one(reader, "/images/a.png", same) == "unreachable: permission denied"


def test_an_object_that_is_not_in_the_bucket_is_not_found(bucket):
    assert load_one(ImageReader(), (bucket / "no.png").uri, same) == "unreachable: not found"


NETWORK = OSError("When reading key 'a' in bucket 'b': AWS Error NETWORK_CONNECTION:\ncurlCode: 7, Couldn't connect")
DENIED = OSError("AWS Error ACCESS_DENIED during GetObject operation: the token has expired")
DISK = OSError(errno.EIO, os.strerror(errno.EIO))


def failing(monkeypatch, error, times):
    """Makes reading fail so many times; returns the waits that a reader would have made, and the reader."""
    left, waits, read = [error] * times, [], ImageReader._read

    def flaky(reader, uri):
        if left:
            raise left.pop()
        return read(reader, uri)

    monkeypatch.setattr(ImageReader, "_read", flaky)
    return waits, ImageReader(waits_s=(1, 2, 4), sleep=waits.append)


@pytest.mark.parametrize("times", [1, 3])
def test_storage_that_fails_for_a_moment_is_tried_again(times, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture()))
    waits, reader = failing(monkeypatch, DISK, times)
    assert np.array_equal(np.array(load_one(reader, str(path), same)), np.array(picture()))
    assert waits == [1, 2, 4][:times]


@pytest.mark.parametrize(
    ("error", "uri"),
    [(NETWORK, "s3://b/a.png"), (DENIED, "s3://b/p.parquet#image/0"), (DISK, "/images/a.png"), (DISK, "file:///a.png")],
)
def test_storage_that_keeps_failing_is_no_reason_but_an_error_that_says_what_to_do(error, uri, monkeypatch):
    waits, reader = failing(monkeypatch, error, 99)
    with pytest.raises(StorageError) as caught:
        load_many(reader, [uri, uri], same, threads=1)
    assert waits[:3] == [1, 2, 4]
    message = str(caught.value)
    assert f"cannot read '{uri}' (4 attempts): OSError: " in message
    assert " ".join(str(error).split()) in message
    assert "run again" in message
    assert "\n" not in message


def test_a_bucket_that_cannot_be_looked_up_is_the_storages_fault(monkeypatch):
    """``Place`` says so as a ValueError: for its other callers the uri is what a user wrote."""
    cannot = ValueError("cannot reach 's3://b/a.png'")
    cannot.__cause__ = NETWORK
    _, reader = failing(monkeypatch, cannot, 99)
    with pytest.raises(StorageError, match="cannot reach"):
        load_one(reader, "s3://b/a.png", same)


def test_a_parquet_file_whose_handle_went_stale_is_opened_again(parquet, monkeypatch):
    path, rows = parquet
    reader, waits, read = ImageReader(cache_bytes=1), [], pq.ParquetFile.read_row_group
    reader.sleep = waits.append
    assert reader.read(f"{path}#image/0") == rows[0]
    stale = reader._files[str(path)][0]

    def fails_when_stale(file, *args, **options):
        if file is stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(file, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fails_when_stale)
    assert reader.read(f"{path}#image/20") == rows[20]
    assert waits == [0.5]


# ---------------------------------------------------------------- broken images


def huge_png(side=60_000):
    """A few bytes that claim to be 3.6 billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CUT = "cut off: the file ends before the image does"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(encode(picture(), "JPEG")[:600], CUT, id="truncated JPEG"),
        pytest.param(encode(picture())[:900], CUT, id="truncated PNG"),
        pytest.param(encode(picture(), "WEBP")[:200], "", id="truncated WebP"),
        pytest.param(b"\xff\xd8\xff", "broken in its first bytes: begins as a JPEG does", id="three bytes of JPEG"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "", id="signature alone"),
        pytest.param(huge_png(), "more pixels than are read of one image; expected at most 179 million", id="bomb"),
        pytest.param(encode(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point pixels", id="float"),
        pytest.param(encode(Image.new("I", (4, 4), 1 << 20), "TIFF"), "32-bit pixels", id="32 bit"),
        pytest.param(encode(Image.new("I", (4, 4), -3), "TIFF"), "32-bit pixels", id="negative"),
        pytest.param(b"", "empty file", id="no bytes"),
        pytest.param(bytes(500), "nothing but zero bytes", id="zeros"),
        pytest.param(b"these are words\n" * 40, "text, not an image", id="text"),
        pytest.param("ünïcode ".encode() * 200, "text, not an image", id="text that is cut in a letter"),
        pytest.param(b"\n<!DOCTYPE HTML><title>404", "a web page (HTML), not an image", id="web page"),
        pytest.param(b"<?xml?><!-- --><HTML lang=en>", "a web page (HTML), not an image", id="XHTML"),
        pytest.param(b"<?xml version='1.0'?><Error>denied", "an XML document, not an image", id="XML"),
        pytest.param(b"<?xml?><svg xmlns=''/>", "a drawing (SVG), which is not read", id="SVG"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a Git LFS pointer: the file itself was never fetched", id="LFS",
        ),
        pytest.param(b"/annex/objects/SHA256E-s1--2c.jpg\n", "a git-annex pointer", id="annex"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image, which is not read; convert it", id="HEIC"),
        pytest.param(b"\0\0\0\x18ftypisom\0\0\0\0", "a video, not an image", id="video"),
        pytest.param(b"%PDF-1.7\n\x80", "a PDF document, not an image", id="PDF"),
        pytest.param(b"PK\x03\x04\x14\0\xff", "a ZIP archive, not an image", id="ZIP"),
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
        decode(data)


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


def test_no_reason_holds_an_address_of_memory():
    error = OSError(f"cannot identify image file {io.BytesIO()!r}")
    assert reading.reason_of(error) == "OSError: cannot identify image file this file"


def png_with(*chunks, at=33):
    """A PNG with further chunks behind its header, or before its end."""
    data = encode(picture())
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:at] + more + data[at:]


LONG = zlib.compress(bytes(3_000_000))


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
    assert np.array_equal(np.array(decode(data)), np.array(picture()))


def test_orientation_is_kept_when_long_notes_are_left_out():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    note = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert decode(png_with(note)).size == (20, 30)
    assert np.array_equal(
        np.array(decode(png_with(note, (b"iCCP", b"p\0\0" + LONG)))), np.array(decode(png_with(note)))
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

    assert load_one(ImageReader(), str(path), halve).startswith("ValueError: ")


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
            got = decode(data)
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
    got = decode(pages()[name])
    assert got.mode == "RGB"
    assert np.array(got).tolist() == np.where(INK[..., None], 0, [255] * 3).tolist()


def test_what_is_half_transparent_is_half_white_and_what_is_opaque_stays_as_it_is():
    image = picture().convert("RGBA")
    assert np.array_equal(np.array(decode(encode(image))), np.array(picture()))
    image.putalpha(102)
    expected = np.array(picture()) * 0.4 + 255 * 0.6
    np.testing.assert_allclose(np.array(decode(encode(image))), expected, atol=1)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_shades_and_do_not_turn_white(format):
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    got = decode(encode(Image.fromarray(deep), format))
    assert got.mode == "RGB"
    np.testing.assert_allclose(np.array(got).astype(int), (deep >> 8)[..., None].repeat(3, axis=2), atol=1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("color", [0, 2, 4, 6], ids=["gray", "RGB", "gray and alpha", "RGBA"])
def test_ten_to_fourteen_bits_in_sixteen_use_the_whole_range(bits, color):
    shades = np.linspace(0, 2**bits - 1, 35).astype(np.uint16).reshape(5, 7)
    channels = [shades, shades[::-1], shades[:, ::-1]][: 3 if color in (2, 6) else 1]
    alpha = [np.full_like(shades, 2**bits - 1)] if color in (4, 6) else []
    got = np.array(decode(png_of(np.stack([*channels, *alpha], axis=2), color)))
    expected = np.stack([channel >> (bits - 8) for channel in channels], axis=2)
    np.testing.assert_array_equal(got, np.broadcast_to(expected, got.shape))
    assert got.max() == 255


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_deflate"}, {"compression": "tiff_lzw"}])
def test_twelve_bits_in_a_gray_tiff_use_the_whole_range(options):
    shades = np.linspace(0, 4095, 35).astype(np.uint16).reshape(5, 7)
    got = np.array(decode(encode(Image.fromarray(shades), "TIFF", **options)))
    np.testing.assert_array_equal(got, np.repeat((shades >> 4)[..., None], 3, axis=2))


@pytest.mark.parametrize("order", ["<", ">"])
def test_twelve_bits_in_a_colour_tiff_use_the_whole_range(order):
    shades = np.linspace(0, 4095, 3 * 35).astype(np.uint16).reshape(5, 7, 3)
    got = np.array(decode(color_tiff(shades, order)))
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
    got = np.array(decode(png_of(samples, color, *notes)))
    assert got[1, 1].tolist() == [most >> (bits - 8)] * 3
    assert got[0, 0].tolist() == [most // 2 >> (bits - 8)] * 3


def test_gray_and_one_bit_images_have_three_equal_channels():
    gray = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    for image in (gray, gray.convert("LA"), gray.point(lambda v: 255 * (v > 99), "1")):
        got = np.array(decode(encode(image)))
        assert got.shape == (10, 20, 3)
        assert (got == got[..., :1]).all()
        assert len(np.unique(got)) > 1
    np.testing.assert_array_equal(np.array(decode(encode(gray)))[..., 0], np.array(gray))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    got = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.array(got)[0, 0].tolist() == [255, 0, 0]


def test_an_image_of_one_pixel_is_an_image():
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)


def test_pillow_knows_every_suffix_that_is_listed():
    assert set(reading.SUFFIXES) <= set(Image.registered_extensions())


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
    assert np.array_equal(np.asarray(decode(file.getvalue())), np.asarray(decode(plain.getvalue())))


def test_broken_exif_leaves_the_image_as_it_is_stored():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    file = io.BytesIO()
    image.save(file, "PNG", exif=b"Exif\0\0MM nonsense")
    assert np.array_equal(np.asarray(decode(file.getvalue())), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P"])
def test_an_open_image_is_seen_as_its_file_is(mode):
    from raykd.images.reading import as_seen

    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.putpixel((3, 3), (0, 0, 0, 255))
    buffer = io.BytesIO()
    drawing.convert(mode).save(buffer, "PNG")
    seen = np.asarray(as_seen(Image.open(io.BytesIO(buffer.getvalue()))))
    assert np.array_equal(seen, np.asarray(decode(buffer.getvalue())))
    if mode in ("RGBA", "LA"):
        assert (seen[0, 0].tolist(), seen[3, 3].tolist()) == ([255] * 3, [0] * 3)
