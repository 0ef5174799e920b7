"""From a uri to RGB pixels: files, Parquet rows, every kind of image, and every way of being broken."""

import errno
import os
import threading
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import encode, picture, same
from PIL import Image

from raykd.errors import StorageError
from raykd.images import reading
from raykd.images.decoding import UNREACHABLE, decode
from raykd.images.reading import FETCHED_AHEAD, load_many, load_one
from raykd.images.stored import ImageReader
from raykd.store.place import Place


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
        assert decode(encode(picture(), kind)).image.size == (30, 20)


def test_many_images_come_in_order_with_the_bad_ones_in_their_places(tmp_path, parquet):
    path, _ = parquet
    uris = []
    for i in range(12):
        file = tmp_path / f"{i}.png"
        file.write_bytes(encode(picture(i, height=i + 1)) if i % 5 else b"no image")
        uris.append(str(file))
    got = list(load_many(ImageReader(), uris, same))
    assert [one if isinstance(one, str) else one.height for one in got][1:5] == [2, 3, 4, 5]
    assert [i for i, one in enumerate(got) if isinstance(one, str)] == [0, 5, 10]
    rows = load_many(ImageReader(), [f"{path}#image/{row}" for row in (7, 1)], same)
    assert [np.array(row).tobytes() for row in rows] == [np.array(picture(i)).tobytes() for i in (7, 1)]
    assert list(load_many(ImageReader(), [], same)) == []


@pytest.mark.parametrize("kind", ["files", "objects"])
def test_each_image_may_have_a_transform_of_its_own(kind, tmp_path, bucket):
    places = [(bucket if kind == "objects" else Place.of(tmp_path)) / f"{i}.png" for i in range(12)]
    for i, place in enumerate(places):
        place.write_bytes(encode(picture(i)) if i != 4 else b"no image")
    transforms = [lambda image, side=i + 1: image.resize((side, 1)).width for i in range(12)]
    got = list(load_many(ImageReader(), [place.uri for place in places], transforms))
    assert [one if isinstance(one, int) else None for one in got] == [1, 2, 3, 4, None, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("kind", ["files", "Parquet", "objects"])
def test_one_image_at_a_time_is_in_memory_at_full_size(kind, tmp_path, parquet, bucket, monkeypatch):
    path, rows = parquet
    places = [(bucket if kind == "objects" else Place.of(tmp_path)) / f"{i}.png" for i in range(len(rows))]
    uris = [f"{path}#image/{row}" if kind == "Parquet" else places[row].uri for row in range(len(rows))]
    if kind != "Parquet":
        for place, row in zip(places, rows, strict=True):
            place.write_bytes(row)
    alive, most = set(), []

    def watched(encoded, shrinks=None):
        decoded = decode(encoded, shrinks)
        alive.add(id(decoded.image))
        most.append(len(alive))
        weakref.finalize(decoded.image, alive.discard, id(decoded.image))
        return decoded

    monkeypatch.setattr(reading, "decode", watched)
    small = list(load_many(ImageReader(), uris, lambda image: image.resize((2, 2))))
    assert [image.size for image in small] == [(2, 2)] * 23
    assert most == [1] * 23


def test_objects_are_fetched_ahead_side_by_side_and_only_so_many(bucket, monkeypatch):
    uris = []
    for i in range(30):
        (bucket / f"{i}.png").write_bytes(encode(picture(i)))
        uris.append((bucket / f"{i}.png").uri)
    read, fetched, both = ImageReader.read, [], threading.Barrier(2, timeout=30)

    def watched(reader, uri):
        fetched.append(uri)
        if uri in uris[:2]:
            both.wait()  # never ends unless two are fetched at once
        return read(reader, uri)

    monkeypatch.setattr(ImageReader, "read", watched)
    images = load_many(ImageReader(), uris, same)
    first = next(images)
    assert np.array_equal(np.array(first), np.array(picture(0)))
    assert len(fetched) <= FETCHED_AHEAD + 1
    assert [np.array(image).tobytes() for image in images] == [np.array(picture(i)).tobytes() for i in range(1, 30)]


# ---------------------------------------------------------------- what is not there, and storage that fails


def test_what_is_not_there_or_not_for_us_is_a_reason_of_its_own_kind_and_not_tried_again(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    reader = ImageReader(sleep=lambda wait_s: pytest.fail("waited"))
    for uri in (f"{tmp_path}/no.png", f"{tmp_path}/file/no.png", f"{tmp_path}/no.parquet#image/0"):
        assert load_one(reader, uri, same) == "unreachable: not found"

    def refuse(place):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Place, "read_bytes", refuse)
    assert load_one(reader, f"{tmp_path}/file", same) == "unreachable: permission denied"


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
        list(load_many(reader, [uri, uri], same))
    assert list(dict.fromkeys(waits)) == [1, 2, 4]  # objects are fetched side by side, two at most
    assert len(waits) <= 6
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
