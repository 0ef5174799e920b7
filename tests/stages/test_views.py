"""Views are Pillow's crops through a plain open_clip loop; a round reads only the images that are new."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from fakes import images_read, killed_after, listed, picture, write_teacher
from PIL import Image, ImageOps

from raykd.config import TeacherConfig
from raykd.errors import UserError
from raykd.store.place import Place
from raykd.store.tables import VIEWS, checked, matrix


@pytest.fixture
def pool(tmp_path) -> Path:
    """Ten pictures of noise of many shapes (``f`` a large JPEG), and ``k``, which is truncated."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for number, name in enumerate("abcdefghij"):
        large = name == "f"
        image = picture(number, *((300, 400) if large else (60 - 4 * number, 20 + 5 * number)))
        image.save(folder / (f"{name}.jpg" if large else f"{name}.png"))
    (folder / "k.png").write_bytes((folder / "a.png").read_bytes()[:600])
    return folder


@pytest.fixture
def encode(ray_cluster, pool, teacher_folder, tmp_path):
    """Views of the images of these names, a string for each table; what was said is in ``encode.said``."""
    from raykd.stages.progress import Progress
    from raykd.stages.session import Session
    from raykd.stages.views import encode_views
    from raykd.stages.weights import fetch_teacher
    from raykd.stages.work import Work

    rows = listed(pool, format="images")[0].rows
    work = Work(place=Place.of(tmp_path / "run"), progress=Progress("lines", io.StringIO()), session=Session())

    def encode(*names: str, teacher=teacher_folder, at="views", batch_size=16, replicas=1, **options):
        options = {"views": 3, "area": (0.3, 1.0), "flip": True, "seed": 0, "max_bad_share": 0.5} | options
        options = {"shared": False, "decode": "exact"} | options
        config = TeacherConfig(model=f"local-dir:{teacher}", batch_size=batch_size, replicas=replicas)
        tables = [
            rows.filter(pa.array([Path(i).stem in some for i in rows["sample_id"].to_pylist()])) for some in names
        ]
        return encode_views(work, tables, fetch_teacher(work, config), config, at=work.place / at, **options)

    encode.said = work.progress.stream
    return encode


@pytest.fixture
def read_images(monkeypatch) -> list[str]:
    """The images that Ray Data is given to read, as they come."""
    return images_read(monkeypatch, lambda uri: Path(uri).stem)


def rows_of(views) -> dict[str, dict]:
    """Each image's row."""
    found = {}
    for part in views.parts:
        table = checked(part.place.read_table(VIEWS.names), VIEWS)
        crops_NK5 = matrix(table["crops"]).reshape(table.num_rows, views.num_views, 5)
        features_NKD = matrix(table["features"]).reshape(table.num_rows, views.num_views, -1)
        for name, error, crops_K5, features_KD in zip(
            table["sample_id"].to_pylist(), table["error"].to_pylist(), crops_NK5, features_NKD, strict=True
        ):
            assert name not in found
            found[name] = {"error": error, "crops": crops_K5, "features": features_KD}
    return found


def crops_of(views) -> dict[str, list]:
    return {name: row["crops"].tolist() for name, row in rows_of(views).items()}


def bits_of(views) -> dict[str, bytes]:
    return {name: row["features"].tobytes() for name, row in rows_of(views).items()}


# ---------------------------------------------------------------- the features


@pytest.mark.parametrize("size", [24, (16, 32)])
def test_features_equal_pillows_crops_through_a_plain_open_clip_loop(encode, pool, tmp_path, size):
    import open_clip
    from torchvision.transforms.functional import normalize, to_tensor

    teacher = write_teacher(tmp_path / "teacher", size)
    rows = rows_of(encode("abcdefghij", teacher=teacher, batch_size=7))
    height, width = (size, size) if isinstance(size, int) else size
    model = open_clip.create_model(f"local-dir:{teacher}").eval()
    seen = set()
    assert len(rows) == 10
    for name, row in rows.items():
        with Image.open(pool / name) as image:
            for (*box, flipped), features_D in zip(row["crops"].tolist(), row["features"], strict=True):
                assert 0 <= box[0] < box[2] <= image.width
                assert 0 <= box[1] < box[3] <= image.height
                view = image.crop(box).resize((width, height), Image.Resampling.BICUBIC)
                view = ImageOps.mirror(view) if flipped else view
                pixels = normalize(to_tensor(view), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
                with torch.no_grad():
                    expected_D = model.encode_image(pixels[None], normalize=True)[0].numpy()
                np.testing.assert_allclose(features_D, expected_D, atol=1e-3)
                seen.add((*box, flipped))
    assert len(seen) == 30  # no two alike, or the order of views would not be tested


def test_features_come_in_the_order_that_is_asked_for_with_nan_for_what_cannot_be_read(encode):
    views = encode("abk", "cd")
    rows = rows_of(views)
    ids = pa.chunked_array([["d.png", "k.png"], ["a.png"]])
    features_NKD = views.features(ids)
    assert (features_NKD.dtype, features_NKD.shape) == (np.float16, (3, 3, 16))
    np.testing.assert_array_equal(features_NKD, [rows[name]["features"] for name in ids.to_pylist()])
    assert np.isnan(features_NKD[1]).all()
    assert np.isfinite(features_NKD[[0, 2]]).all()
    assert rows["k.png"]["error"] == "truncated: the file ends before the image does"
    assert not rows["k.png"]["crops"].any()
    assert "1 images cannot be read and have no views, first 'k.png': truncated" in encode.said.getvalue()
    with pytest.raises(UserError, match=r"1 of 2 ids are not in the table, first: 'e\.png'"):
        views.features(pa.chunked_array([["a.png", "e.png"]]))


def test_one_view_without_flips(encode):
    views = encode("abcdefghij", views=1, flip=False)
    assert views.features(pa.chunked_array([["a.png"]])).shape == (1, 1, 16)
    many = encode("abcdefghij", views=8)
    flips = [crop[4] for crops in crops_of(many).values() for crop in crops]
    assert 20 < sum(flips) < 60
    for name, (crop,) in crops_of(views).items():
        assert crop == [*crops_of(many)[name][0][:4], 0]


# ---------------------------------------------------------------- what they hang on


def test_crops_hang_on_no_batch_no_round_and_no_order(encode):
    plain = encode("abcdefghij")
    for batch_size in (1, 2, 64):
        other = encode("abcdefghij", batch_size=batch_size, at=f"views_{batch_size}")
        assert crops_of(other) == crops_of(plain)
        for name, row in rows_of(other).items():
            np.testing.assert_allclose(row["features"], rows_of(plain)[name]["features"], atol=1e-3)
    assert crops_of(encode("jc", "ba", "defghi", at="rounds")) == crops_of(plain)


def test_the_bits_do_not_depend_on_where_and_on_how_many_replicas_it_runs(encode, monkeypatch):
    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "BLOCK_ROWS", 5)
    here = encode("abcdefghij")
    monkeypatch.setattr(map_images, "FLOW_BYTES", 1000)  # Ray cuts its blocks wherever it can
    there = encode("abcdefghij", replicas=[2, 2], at="there")
    assert bits_of(there) == bits_of(here)
    assert crops_of(there) == crops_of(here)
    assert [part.fingerprint for part in there.parts] == [part.fingerprint for part in here.parts]


def test_other_draws_are_other_parts_and_a_batch_size_is_not(encode, read_images):
    first = encode("ab")
    assert encode("ab", batch_size=5).parts == first.parts
    assert len(read_images) == 2
    for number, other in enumerate(({"seed": 1}, {"area": (0.5, 1.0)}, {"flip": False}, {"views": 2}), 2):
        found = encode("ab", **other)
        assert not set(found.parts) & set(first.parts)
        assert len(read_images) == 2 * number
    assert crops_of(encode("ab", seed=1)) != crops_of(first)


# ---------------------------------------------------------------- parts


def test_a_later_round_reads_only_the_images_that_are_new(encode, read_images):
    first = encode("abc")
    assert sorted(read_images) == ["a", "b", "c"]
    read_images.clear()
    second = encode("abc", "jd")
    assert sorted(read_images) == ["d", "j"]
    assert second.parts[0] == first.parts[0]
    read_images.clear()
    assert encode("abc", "jd").parts == second.parts
    assert read_images == []
    assert {name: bits_of(second)[name] for name in bits_of(first)} == bits_of(first)
    assert second.features(pa.chunked_array([["j.png", "a.png"]])).shape == (2, 3, 16)


def test_after_a_kill_the_parts_that_are_complete_are_not_read_again(encode, read_images):
    undisturbed = encode("ab", "cde", "fg", at="undisturbed")
    with killed_after(1, "views"):
        encode("ab", "cde", "fg")
    read_images.clear()
    views = encode("ab", "cde", "fg")
    assert sorted(read_images) in (list("cdefg"), list("abfg"), list("abcde"))  # but for the part that was complete
    assert bits_of(views) == bits_of(undisturbed)


def test_images_that_are_away_stop_it_and_can_be_put_back(encode, pool, read_images):
    (pool / "b.png").rename(pool / "b.away")
    with pytest.raises(UserError, match=r"views: 1 of 4 pool images cannot be read now, more than max_bad_share=0\.1"):
        encode("ab", "cd", max_bad_share=0.1)
    (pool / "b.away").rename(pool / "b.png")
    read_images.clear()
    views = encode("ab", "cd", max_bad_share=0.1)
    assert sorted(read_images) == ["a", "b"]
    assert np.isfinite(views.features(pa.chunked_array([["b.png"]]))).all()
