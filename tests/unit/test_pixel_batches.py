"""What a reading task does: batches of uris in, batches of pixels out, whatever is wrong with the images."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raykd.images.decoding import LARGE_BYTES
from raykd.images.pixel_batches import PIXEL_BATCHES, URI_BATCHES, Fetch, FetchViews, batches_of
from raykd.images.transforms import CenterCrop, RandomCrop, RandomViews


@pytest.fixture
def files(tmp_path):
    """Nine images, one broken (2), one that is not there (5), two with transparency (0, 7), one large (8)."""
    uris = []
    for i in range(9):
        image = Image.new("RGBA", (8, 8), (10 * i, 0, 0, 9 if i in (0, 7) else 255))
        if i == 8:
            image = Image.new("RGB", (800, 800), (80, 0, 0))
        path, out = tmp_path / f"{i}.{'jpg' if i == 8 else 'png'}", io.BytesIO()
        image.save(out, "JPEG" if i == 8 else "PNG")
        if i != 5:
            path.write_bytes(b"no image" if i == 2 else out.getvalue())
        uris.append(str(path))
    return uris


def asked(uris, batch_size, part=7):
    starts = [*range(0, len(uris), batch_size), len(uris)]
    lists = [pa.ListArray.from_arrays(starts, pa.array(column)) for column in (list("abcdefghi"), uris, ["pool"] * 9)]
    return pa.table([pa.array([part] * (len(starts) - 1)), *lists], schema=URI_BATCHES)


def test_every_batch_has_its_images_with_the_bad_ones_black_and_a_reason(files):
    fetch = Fetch(CenterCrop(8), (8, 8), batch_size=4)
    tables = list(fetch(asked(files, 4)))
    assert [table.num_rows for table in tables] == [1, 1, 1]
    assert all(table.schema == PIXEL_BATCHES for table in tables)
    first, second, third = batches_of(pa.concat_tables(tables), (8, 8))
    assert [first.part, len(first), len(second), len(third)] == [7, 4, 4, 1]
    assert [batch.pixels.shape for batch in (first, second, third)] == [(4, 8, 8, 3)] * 3
    assert first.sample_ids.to_pylist() == list("abcd")
    assert first.splits.to_pylist() == ["pool"] * 4
    assert first.errors.to_pylist() == [None, None, "not an image: text", None]
    assert first.bad_N.tolist() == [False, False, True, False]
    assert second.errors.to_pylist() == [None, "unreachable: not found", None, None]
    assert [int(pixel) for pixel in first.pixels[:, 0, 0, 0]] == [246, 10, 0, 30]  # 0: nearly white
    assert not second.pixels[1].any()
    assert not third.pixels[1:].any()
    assert (first.changes, second.changes, third.changes) == ({"transparency": 1}, {"transparency": 1}, {})
    assert first.crops is None


def test_batches_do_not_hang_on_how_tables_are_cut_and_joined(files):
    fetch = Fetch(CenterCrop(8), (8, 8), batch_size=4)
    whole = pa.concat_tables(fetch(asked(files, 4)))
    cut = pa.concat_tables([whole.slice(2, 1), whole.slice(0, 2)])
    for table, order in ((whole, (0, 1, 2)), (cut, (2, 0, 1)), (cut.combine_chunks(), (2, 0, 1))):
        got = [batch.pixels.tobytes() for batch in batches_of(table, (8, 8))]
        assert got == [[b.pixels.tobytes() for b in batches_of(whole, (8, 8))][i] for i in order]


def test_jpegs_are_reduced_unless_it_is_to_be_exact(files, monkeypatch):
    from raykd.images import decoding

    sizes, convert = [], decoding._as_rgb
    monkeypatch.setattr(decoding, "_as_rgb", lambda image, *more: sizes.append(image.size) or convert(image, *more))
    for exact in (False, True):
        list(Fetch(CenterCrop(8), (8, 8), batch_size=9, exact=exact)(asked(files, 9)))
    assert sizes[-1] == (800, 800)
    assert (100, 100) in sizes
    assert sizes.count((800, 800)) == 1


VIEWS = RandomViews(RandomCrop((6, 4), (0.3, 1.0), True, "bicubic"), count=3, seed=1)


def test_a_batch_of_views_has_each_image_k_times_and_its_crops_with_the_bad_ones_black(files):
    fetch = FetchViews(VIEWS, batch_size=4, exact=True)
    table = pa.concat_tables(fetch(asked(files, 4)))
    assert table.schema == PIXEL_BATCHES
    batches = list(batches_of(table, fetch.size))
    assert [(len(batch), batch.pixels.shape, batch.crops.shape) for batch in batches] == [
        (4, (12, 6, 4, 3), (4, 3, 5)), (4, (12, 6, 4, 3), (4, 3, 5)), (1, (12, 6, 4, 3), (1, 3, 5)),
    ]  # fmt: skip
    first, second, third = batches
    assert first.errors.to_pylist() == [None, None, "not an image: text", None]
    assert second.errors.to_pylist() == [None, "unreachable: not found", None, None]
    assert (first.changes, second.changes, third.changes) == ({"transparency": 1}, {"transparency": 1}, {})
    for batch, bad in ((first, 2), (second, 1)):
        assert not batch.pixels.reshape(4, 3, 6, 4, 3)[bad].any()
        assert not batch.crops[bad].any()
    assert not third.pixels[3:].any()
    with Image.open(files[8]) as image:
        pixels, crops = VIEWS(image, "i")
    np.testing.assert_array_equal(third.pixels[:3], pixels)
    np.testing.assert_array_equal(third.crops[0], crops)


def test_crops_do_not_hang_on_the_batch_they_are_read_in(files):
    def crops(batch_size):
        batches = batches_of(pa.concat_tables(FetchViews(VIEWS, batch_size)(asked(files, batch_size))), (6, 4))
        return np.concatenate([batch.crops for batch in batches])

    assert crops(4).shape == (9, 3, 5)
    for batch_size in (1, 2, 9):
        np.testing.assert_array_equal(crops(batch_size), crops(4))


def test_crops_of_a_reduced_jpeg_are_in_its_own_pixels(files):
    (batch,) = list(batches_of(pa.concat_tables(FetchViews(VIEWS, 9)(asked(files, 9))), (6, 4)))
    with Image.open(files[8]) as image:
        image.draft(None, (100, 100))
        pixels, crops = VIEWS(image, "i")
    np.testing.assert_array_equal(batch.crops[8], crops)
    np.testing.assert_array_equal(batch.pixels[24:27], pixels)
    assert crops.max() <= 100


def test_an_image_of_which_no_view_can_be_cut_has_a_reason(files, monkeypatch):
    def cut(crop, image, box, flipped):
        raise MemoryError

    monkeypatch.setattr(RandomCrop, "cut", cut)
    (batch,) = list(batches_of(pa.concat_tables(FetchViews(VIEWS, 9)(asked(files, 9))), (6, 4)))
    assert batch.errors.to_pylist()[0] == "unreachable: not enough memory"
    assert batch.bad_N.all()


def test_the_memory_that_is_declared_covers_images_cache_and_batches():
    small, large = (Fetch(CenterCrop(size), (size, size), batch_size=64) for size in (8, 336))
    assert large.batch_bytes == 64 * 336 * 336 * 3
    assert small.memory_bytes > LARGE_BYTES
    assert large.memory_bytes - small.memory_bytes == 4 * (large.batch_bytes - small.batch_bytes)
    views = FetchViews(RandomViews(RandomCrop(336, (0.5, 1.0), True), 8, 0), batch_size=8)
    assert (views.batch_bytes, views.memory_bytes) == (large.batch_bytes, large.memory_bytes)
