import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raykd.config import Source
from raykd.demo import CLASSES, POOL, TEMPLATES, digits
from raykd.errors import UserError
from raykd.presets import load_preset
from raykd.store.place import Place


@pytest.fixture(scope="module")
def pool_path(tmp_path_factory):
    return digits.write_pool(tmp_path_factory.mktemp("demo") / "pool.parquet")


@pytest.fixture(scope="module")
def pool(pool_path):
    return pq.read_table(pool_path).to_pylist()


def test_pool_has_every_digit_once(pool):
    assert len(pool) == 1797
    assert [row["sample_id"] for row in pool[:2]] == ["digit-0000", "digit-0001"]
    assert len({row["sample_id"] for row in pool}) == 1797
    assert {row["label"] for row in pool} == set(CLASSES)


def test_pool_is_the_same_file_on_every_call(pool_path, tmp_path):
    again = digits.write_pool(tmp_path / "deeper" / "pool.parquet")
    assert again.read_bytes() == pool_path.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == ["pool.parquet"]


@pytest.mark.slow
def test_pool_is_left_alone_when_equal_and_replaced_when_not(tmp_path):
    path = digits.write_pool(tmp_path / "pool.parquet")
    first = path.stat()
    assert digits.write_pool(path).stat().st_ino == first.st_ino
    path.write_bytes(b"torn")
    assert digits.write_pool(path).stat().st_size == first.st_size


def test_pool_is_read_in_small_row_groups(pool_path):
    metadata = pq.read_metadata(pool_path)
    assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) == 128


def test_splits_have_their_sizes_and_every_class_in_proportion(pool):
    sizes = Counter(row["split"] for row in pool)
    assert sizes == {"test": 400, "val": 150, "pool": 1247}
    classes = Counter(row["label"] for row in pool)
    for (label, split), count in Counter((row["label"], row["split"]) for row in pool).items():
        assert abs(count - classes[label] * sizes[split] / 1797) < 1.5, (label, split)


def test_pool_says_what_to_install_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install raykd\[demo\]"):
        digits.pool_table()


# ---------------------------------------------------------------- as the source of a campaign


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(path):
    return Source(path=path, format="parquet", label_column="label", limit=9)


def test_the_demos_pool_is_made_where_it_is_read_and_not_before(pool_path, cache):
    asked = load_preset("demo").pool
    assert (asked.path, cache.exists()) == (POOL, False)  # reading a config has no effect
    made = digits.materialise(source(POOL))
    assert Path(made.path).read_bytes() == pool_path.read_bytes()
    assert Path(made.path).is_relative_to(cache)
    assert made.model_dump() == source(made.path).model_dump()  # all else stays


def test_on_a_cluster_the_demos_pool_lies_where_all_nodes_see_it_and_is_written_once(pool_path, cache, bucket):
    bucket.fs.create_dir((bucket / "demo").path)  # a real bucket needs none
    made = digits.materialise(source(POOL), bucket / "demo")
    assert Place.of(made.path).read_bytes() == pool_path.read_bytes()
    assert made.path.startswith(f"{bucket.uri.partition('?')[0]}/demo/digits.parquet")
    assert not cache.exists()
    Place.of(made.path).write_bytes(b"as it was left")
    assert digits.materialise(source(POOL), bucket / "demo").path == made.path
    assert Place.of(made.path).read_bytes() == b"as it was left"


def test_a_pool_of_the_users_own_is_left_as_it_is(cache):
    for path in ("mine.parquet", "/somewhere/mine.parquet", "s3://bucket/demo:digits"):
        assert digits.materialise(source(path)) == source(path)
    assert not cache.exists()


def test_a_demo_that_there_is_not_is_refused(cache):
    with pytest.raises(UserError, match=r"no pool 'demo:digit' comes with raykd; did you mean 'demo:digits'\?"):
        digits.materialise(source("demo:digit"))


def test_a_cache_that_cannot_be_written_is_named(cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*digits\.parquet: .*; set XDG_CACHE_HOME"):
        digits.materialise(source(POOL))


# ---------------------------------------------------------------- pictures and teacher


def test_every_image_is_a_grey_png_of_32_by_32(pool):
    for row in pool:
        image = Image.open(io.BytesIO(row["image"]))
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))


def test_teacher_folder_is_small():
    assert sum(path.stat().st_size for path in digits.TEACHER.iterdir()) < 5e6


def test_teacher_loads_as_any_open_clip_model_and_knows_most_digits(pool):
    name = f"local-dir:{digits.TEACHER}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    test = [row for row in pool if row["split"] == "test"]
    images = torch.stack([preprocess(Image.open(io.BytesIO(row["image"]))) for row in test])
    with torch.no_grad():
        tokenizer = open_clip.get_tokenizer(name)
        classifier = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSES, TEMPLATES)
        predicted = (model.encode_image(images, normalize=True) @ classifier).argmax(1).numpy()
    accuracy = np.mean([CLASSES[i] == row["label"] for i, row in zip(predicted, test, strict=True)])
    assert isinstance(model, open_clip.CLIP)
    assert 0.80 < accuracy < 0.90
