"""Listing sources as the world has them: the right rows, or one error that names what was given. Starts no Ray."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raykd.config import Source
from raykd.errors import UserError
from raykd.images.reading import ImageReader, load_many
from raykd.images.sources import class_names, grown, list_source
from raykd.store.tables import MANIFEST


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def listed(path: Path, classes=None, split="pool", **fields):
    """The listing, and the lines that were said."""
    said: list[str] = []
    listing = list_source(Source(path=str(path), **fields), split, classes, lambda _, line: said.append(line))
    assert listing.rows.schema == MANIFEST
    return listing, "\n".join(said)


def ids(listing) -> list[str]:
    return listing.rows["sample_id"].to_pylist()


# ---------------------------------------------------------------- folders


def test_any_ending_of_a_jpeg_is_an_image_and_others_are_counted(tmp_path):
    folder = write(tmp_path, "a.jfif", "b.JPE", "c.jpg", "d.txt", "e.heic", "._c.jpg")
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["a.jfif", "b.JPE", "c.jpg"]
    assert "2 files" in said


def test_a_folder_with_no_format_that_is_read_says_what_it_holds_and_what_is_read(tmp_path):
    with pytest.raises(UserError) as caught:
        listed(write(tmp_path, "a.heic", "b.heic"), format="images")
    assert ".heic" in str(caught.value)
    assert ".jpg" in str(caught.value)


def test_links_are_followed_once_and_never_in_a_circle_and_dangling_ones_are_said(tmp_path):
    folder = write(tmp_path / "pool", "a.png", "deep/b.png")
    (folder / "deep" / "circle").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing, said = listed(folder, format="images")
    assert len(ids(listing)) == 2
    assert "gone.png" in said


def test_an_empty_class_folder_is_a_class(tmp_path):
    folder = write(tmp_path, "cat/a.png", "dog/b.png")
    (folder / "emu").mkdir()
    assert listed(folder, format="class_folders")[0].found_classes == ["cat", "dog", "emu"]


def test_a_tree_of_splits_is_not_taken_for_classes(tmp_path):
    folder = write(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "test/dog/d.png")
    with pytest.raises(UserError, match=r"are splits \(test, train, val\), not classes.*pool\.path: .*/train"):
        listed(folder, format="class_folders")


def test_a_name_that_is_not_utf_8_is_said_and_the_others_are_listed(tmp_path):
    folder = write(tmp_path, "a.png")
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as stream:
        stream.write(png())
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["a.png"]
    assert "1 names are not UTF-8" in said
    assert "caf" in said


# ---------------------------------------------------------------- Parquet


def test_whole_numbers_are_sorted_as_numbers_and_the_mapping_is_told(tmp_path):
    names = [f"class {number}" for number in range(12)]
    table = pa.table({"sample_id": [f"s{i}" for i in range(24)], "image": [png(i) for i in range(24)],
                      "y": [i % 12 for i in range(24)]})  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet")
    listing, _ = listed(tmp_path / "p.parquet", names, format="parquet", label_column="y", label_values="sorted")
    assert listing.rows["label"].to_pylist() == [names[i % 12] for i in range(24)]
    assert list(listing.mapping.items())[:3] == [("0", "class 0"), ("1", "class 1"), ("2", "class 2")]


def test_hugging_faces_columns_and_no_ids(tmp_path):
    image = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(3)],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    pq.write_table(pa.table({"image": image, "label": pa.array([0, 1, 0])}), tmp_path / "train-0.parquet")
    listing, _ = listed(tmp_path, format="parquet", id_column=None, label_column="label")
    assert len(set(ids(listing))) == 3
    pictures = load_many(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray)
    for number, picture in enumerate(pictures):
        assert np.array_equal(picture, np.asarray(Image.open(io.BytesIO(png(number)))))


def test_every_ending_of_parquet_and_no_resource_forks(tmp_path):
    for name in ("a.pq", "B.PARQUET"):
        pq.write_table(pa.table({"sample_id": [name], "image": [png()]}), tmp_path / name)
    (tmp_path / "._a.pq").write_bytes(b"\x00\x05\x16\x07")
    listing, _ = listed(tmp_path, format="parquet")
    assert sorted(ids(listing)) == ["B.PARQUET", "a.pq"]
    assert not any(
        isinstance(got, str) for got in load_many(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray)
    )


def test_a_null_uri_and_a_missing_column_name_their_file(tmp_path):
    pq.write_table(pa.table({"sample_id": ["a", "b"], "where": ["x.png", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet"):
        listed(tmp_path, format="parquet", image_column=None, uri_column="where")
    pq.write_table(pa.table({"sample_id": ["a"], "image": [png()], "y": ["cat"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"sample_id": ["b"], "image": [png()]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet.*'y'|'y'.*b\.parquet"):
        listed(tmp_path, format="parquet", label_column="y")


# ---------------------------------------------------------------- classes


def test_classes_from_a_text_file_or_a_json_list_are_the_same(tmp_path):
    (tmp_path / "c.txt").write_text("cat\n\n dog \n", "utf-8")
    (tmp_path / "c.json").write_text('[\n  "cat",\n  "dog"\n]\n', "utf-8")
    assert class_names(str(tmp_path / "c.txt"), None) == class_names(str(tmp_path / "c.json"), None) == ["cat", "dog"]


# ---------------------------------------------------------------- what has come, gone and changed


facts = st.tuples(st.sampled_from("xy"), st.integers(1, 2))
rows_of = st.dictionaries(st.sampled_from([f"s{i}" for i in range(8)]), facts)


def manifest(rows: dict) -> pa.Table:
    columns = [list(rows), [uri for uri, _ in rows.values()], [size for _, size in rows.values()]]
    count = len(rows)
    return pa.table([*columns, *[[None] * count] * 2, ["pool"] * count], schema=MANIFEST)


@given(rows_of, rows_of)
def test_what_has_grown_is_what_plain_dictionaries_say(before, now):
    change = grown(manifest(before), manifest(now))
    assert set(change.new["sample_id"].to_pylist()) == now.keys() - before.keys()
    assert set(change.gone["sample_id"].to_pylist()) == before.keys() - now.keys()
    others = {key for key in now.keys() & before.keys() if now[key] != before[key]}
    assert set(change.changed["sample_id"].to_pylist()) == others
