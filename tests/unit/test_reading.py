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
from raykd.images.reading import UNREACHABLE, ImageReader, decode, load, load_many
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
        assert load(reader, f"{path}#image/{row}", same) == "ValueError: no image bytes in this row"
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-30])
    for uri in (f"{path}#image/2", f"{path}#picture/0", f"{tmp_path}/cut.parquet#image/0", "http://x/y.png"):
        reason = load(reader, uri, same)
        assert isinstance(reason, str), uri
        assert not reason.startswith(UNREACHABLE)


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
        assert load(reader, uri, same) == "unreachable: not found"

    def refuse(place):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Place, "read_bytes", refuse)
    assert load(reader, "/images/a.png", same) == "unreachable: permission denied"


def test_an_object_that_is_not_in_the_bucket_is_not_found(bucket):
    assert load(ImageReader(), (bucket / "no.png").uri, same) == "unreachable: not found"


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
    assert np.array_equal(np.array(load(reader, str(path), same)), np.array(picture()))
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
        load(reader, "s3://b/a.png", same)


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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(encode(picture(), "JPEG")[:300], "OSError: ", id="truncated JPEG"),
        pytest.param(encode(picture())[:900], "", id="truncated PNG"),
        pytest.param(encode(picture(), "WEBP")[:200], "", id="truncated WebP"),
        pytest.param(b"these are words\n" * 40, "UnidentifiedImageError: ", id="text"),
        pytest.param(b"", "UnidentifiedImageError: ", id="no bytes"),
        pytest.param(bytes(500), "UnidentifiedImageError: ", id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "", id="signature alone"),
        pytest.param(huge_png(), "DecompressionBombError: ", id="bomb"),
        pytest.param(encode(Image.new("F", (4, 4), 0.5), "TIFF"), "ValueError: floating-point pixels", id="float"),
        pytest.param(encode(Image.new("I", (4, 4), 1 << 20), "TIFF"), "ValueError: 32-bit pixels", id="32 bit"),
    ],
)
def test_a_bad_image_is_a_reason_of_one_short_line(data, reason, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    got = load(ImageReader(), str(path), same)
    assert isinstance(got, str)
    assert not got.startswith(UNREACHABLE)
    assert got.startswith(reason)
    assert "\n" not in got
    assert 5 < len(got) <= 200
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(data)


def test_an_image_that_the_transform_cannot_take_is_a_bad_one(tmp_path):
    path = tmp_path / "line.png"
    path.write_bytes(encode(picture(height=1)))

    def halve(image):
        return image.resize((image.width // 2, image.height // 2))

    assert load(ImageReader(), str(path), halve).startswith("ValueError: ")


# ---------------------------------------------------------------- every kind is RGB


def test_every_mode_becomes_rgb_of_the_right_colours():
    red = Image.new("RGB", (9, 7), (250, 10, 20))
    alpha = red.convert("RGBA")
    alpha.putalpha(128)
    kinds = {
        "RGB": encode(red),
        "palette": encode(red.convert("P", palette=Image.Palette.ADAPTIVE)),
        "RGBA": encode(alpha),
        "palette with transparency": encode(red.convert("P", palette=Image.Palette.ADAPTIVE), transparency=0),
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


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_shades_and_do_not_turn_white(format):
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    got = decode(encode(Image.fromarray(deep), format))
    assert got.mode == "RGB"
    np.testing.assert_allclose(np.array(got).astype(int), (deep >> 8)[..., None].repeat(3, axis=2), atol=1)


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
