"""Listing sources as the world has them: the right rows, or one error that names what was given. Starts no Ray."""

import io
import json
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


facts = st.tuples(st.sampled_from("xy"), st.integers(1, 2), st.integers(1, 2), st.sampled_from(["cat", None]))
rows_of = st.dictionaries(st.sampled_from([f"s{i}" for i in range(8)]), facts)


def manifest(rows: dict) -> pa.Table:
    columns = [[values[i] for values in rows.values()] for i in range(4)]  # uri, size, time, label
    return pa.table([list(rows), *columns, ["pool"] * len(rows)], schema=MANIFEST)


@given(rows_of, rows_of)
def test_what_has_grown_is_what_plain_dictionaries_say(before, now):
    change = grown(manifest(before), manifest(now))
    assert set(change.new["sample_id"].to_pylist()) == now.keys() - before.keys()
    assert set(change.gone["sample_id"].to_pylist()) == before.keys() - now.keys()
    both = now.keys() & before.keys()
    moved = {key for key in both if now[key][0] != before[key][0]}
    assert set(change.moved["sample_id"].to_pylist()) == moved
    rewritten = {key for key in both if now[key][1:3] != before[key][1:3]} - moved
    assert set(change.rewritten["sample_id"].to_pylist()) == rewritten
    relabeled = {(key, before[key][3], now[key][3]) for key in both if now[key][3] != before[key][3]}
    was, is_now = change.relabeled
    assert was["sample_id"].equals(is_now["sample_id"])
    labels = zip(was["sample_id"].to_pylist(), was["label"].to_pylist(), is_now["label"].to_pylist(), strict=True)
    assert set(labels) == relabeled


# ---------------------------------------------------------------- links


def test_each_real_file_is_listed_once_under_its_own_name_or_the_first_link_to_it(tmp_path):
    folder = write(tmp_path / "pool", "z/real.png")
    write(tmp_path, "away/a.png", "away/deep/b.png", "single.png", "pool/.hidden/h.png")
    for link, target in {
        "a/real.png": folder / "z" / "real.png",  # is listed under its own name
        "b/away": tmp_path / "away",
        "c/away again": tmp_path / "away",
        "d/a.png": tmp_path / "away" / "a.png",
        "e/one.png": tmp_path / "single.png",
        "e/two.png": tmp_path / "single.png",
        "f/h.png": folder / ".hidden" / "h.png",
        "g/up": tmp_path,  # would list the pool again, and its neighbours
        "h/inside": folder / "z",
    }.items():
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to(target)
    (tmp_path / "away" / "circle").symlink_to(tmp_path / "away")
    (folder / "i.png").symlink_to(folder / "i.png")
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["b/away/a.png", "b/away/deep/b.png", "e/one.png", "f/h.png", "z/real.png"]
    assert "7 links lead to what is listed already, such as 'a/real.png'" in said
    assert "1 links lead nowhere, such as 'i.png'" in said
    assert not any(
        isinstance(got, str) for got in load_many(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray)
    )


def test_a_folder_that_was_linked_before_is_passed_over_inside_another(tmp_path):
    folder = write(tmp_path / "pool", "z.png")
    write(tmp_path, "away/a.png", "away/deep/b.png", "away/deep/deeper/c.png")
    (folder / "first").symlink_to(tmp_path / "away" / "deep")
    (folder / "second").symlink_to(tmp_path / "away")
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["first/b.png", "first/deeper/c.png", "second/a.png", "z.png"]
    assert "such as 'second/deep'" in said


def test_a_pool_that_is_all_links_or_itself_a_link_is_a_pool(tmp_path):
    """As Hugging Face's cache and git-annex lay files out."""
    write(tmp_path, "blobs/1", "blobs/2")
    (tmp_path / "snapshot" / "cat").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "snapshot" / "cat" / f"{number}.png").symlink_to(f"../../blobs/{number}")
    (tmp_path / "snapshot" / "dog").symlink_to(tmp_path / "blobs")
    (tmp_path / "current").symlink_to("snapshot")
    listing, said = listed(tmp_path / "current", format="class_folders")
    assert ids(listing) == ["cat/1.png", "cat/2.png"]
    assert listing.rows["uri"][0].as_py() == f"{tmp_path}/current/cat/1.png"
    assert listing.rows["size_bytes"].to_pylist() == [(tmp_path / "blobs" / n).stat().st_size for n in "12"]
    assert listing.found_classes == ["cat", "dog"]
    assert "1 class folders" in said


# ---------------------------------------------------------------- folders, once more


def test_what_macos_adds_to_an_archive_is_no_class(tmp_path):
    folder = write(tmp_path, "cat/a.png", "dog/b.png", "__MACOSX/cat/._a.png", ".git/x.png")
    listing, said = listed(folder, format="class_folders")
    assert listing.found_classes == ["cat", "dog"]
    assert said == ""


def test_class_folders_that_are_numbers_come_by_number(tmp_path):
    folder = write(tmp_path, *(f"{number}/a.png" for number in range(12)))
    names = [f"digit {number}" for number in range(12)]
    listing, _ = listed(folder, names, format="class_folders", label_values="sorted")
    assert listing.mapping == {str(number): names[number] for number in range(12)}
    assert listed(folder, format="class_folders")[0].found_classes == [str(number) for number in range(12)]
    assert dict(zip(ids(listing), listing.rows["label"].to_pylist(), strict=True))["10/a.png"] == "digit 10"


def test_an_empty_class_folder_counts_in_label_values(tmp_path):
    folder = write(tmp_path, "n01/a.png", "n03/b.png")
    (folder / "n02").mkdir()
    listing, _ = listed(folder, ["x", "y", "z"], format="class_folders", label_values="sorted")
    assert listing.rows["label"].to_pylist() == ["x", "z"]


@pytest.mark.parametrize(
    "names", [["train/a.png", "val/b.png"], ["train/cat/a.png"], ["val/cat/a.png", "test/x/b.png"]]
)
def test_folders_that_are_all_named_like_splits_are_refused(names, tmp_path):
    with pytest.raises(UserError, match=r"test: the folders of .* are splits .*Give test\.path: "):
        listed(write(tmp_path, *names), split="test", format="class_folders")


def test_a_class_may_be_called_like_a_split_beside_others(tmp_path):
    folder = write(tmp_path, "train/a.png", "car/b.png")
    assert listed(folder, format="class_folders")[0].found_classes == ["car", "train"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder, scandir = write(tmp_path, "a.png", "closed/b.png"), os.scandir

    def closed(path):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot list .*/closed: Permission denied"):
        listed(folder, format="images")


def test_a_bucket_is_listed_as_a_disk_is(bucket, tmp_path):
    names = ["cat/a.png", "cat/b.png", "dog/c.PNG", ".hidden/d.png", "dog/._c.png", "dog/notes.txt"]
    write(tmp_path, *names)
    for name in names:
        bucket.fs.create_dir((bucket / name).path.rpartition("/")[0], recursive=True)
        (bucket / name).write_bytes((tmp_path / name).read_bytes())
    (there, said), (here, _) = (listed(where, format="class_folders") for where in (bucket.uri, tmp_path))
    for column in ("sample_id", "size_bytes", "label", "split"):
        assert there.rows[column] == here.rows[column]
    assert there.found_classes == here.found_classes == ["cat", "dog"]
    assert "(1 .txt), such as 'dog/notes.txt'" in said
    assert not any(isinstance(got, str) for got in load_many(ImageReader(), there.rows["uri"].to_pylist(), np.asarray))


# ---------------------------------------------------------------- Parquet, once more


def parquet(folder: Path, name: str = "p.parquet", **columns) -> Path:
    count = next(len(values) for values in columns.values() if values is not None)
    base = {"sample_id": [f"s{i}" for i in range(count)], "image": [png(i) for i in range(count)]}
    pq.write_table(
        pa.table({key: value for key, value in (base | columns).items() if value is not None}), folder / name
    )
    return folder / name


def test_uris_serve_as_ids_and_rows_do_where_there_are_none(tmp_path):
    write(tmp_path, "x.png", "y.png")
    file = parquet(tmp_path, sample_id=None, where=["x.png", str(tmp_path / "y.png")])
    fields = {"format": "parquet", "id_column": None}
    assert ids(listed(file, **fields)[0]) == ["p.parquet/000000000", "p.parquet/000000001"]
    assert ids(listed(file, **fields, split="val")[0]) == ["val/p.parquet/000000000", "val/p.parquet/000000001"]
    by_uri, _ = listed(file, **fields, image_column=None, uri_column="where")
    assert ids(by_uri) == ["x.png", str(tmp_path / "y.png")]
    assert by_uri.rows["uri"].to_pylist() == [f"{tmp_path}/x.png", f"{tmp_path}/y.png"]


def test_uris_in_a_bucket_are_relative_to_their_file(bucket, tmp_path):
    table = pa.table({"sample_id": ["a", "b", "c"], "where": ["a b.png", "/x/b.png", "s3://other/c.png"]})
    bucket.fs.create_dir((bucket / "deep").path)
    (bucket / "deep" / "p.parquet").write_table(table)
    listing, _ = listed(bucket.uri, format="parquet", image_column=None, uri_column="where")
    assert listing.rows["uri"].to_pylist() == [
        "mock://bucket/folder/deep/a%20b.png?region=eu-west-1", "/x/b.png", "s3://other/c.png",
    ]  # fmt: skip


@pytest.mark.parametrize("lacking", [None, ""])
@pytest.mark.parametrize("column", ["sample_id", "where"])
def test_rows_without_id_or_uri_are_named(lacking, column, tmp_path):
    values = ["a", lacking, lacking]
    columns = {"sample_id": ["1", "2", "3"], "where": ["x", "y", "z"], column: values}
    file = parquet(tmp_path, **columns)
    with pytest.raises(
        UserError, match=rf"2 of 3 rows of .*p\.parquet have no {column}, first row 1 \(counted from 0\)"
    ):
        listed(file, format="parquet", image_column=None, uri_column="where")


def test_whole_numbers_with_gaps_are_whole_numbers_and_no_label_where_there_is_none(tmp_path):
    """pandas makes 1.0 and NaN of them."""
    labels = pa.array([2.0, float("nan"), 10.0, None, 1.0], pa.float64())
    listing, _ = listed(
        parquet(tmp_path, y=labels), list("abc"), format="parquet", label_column="y", label_values="sorted"
    )
    assert listing.mapping == {"1": "a", "2": "b", "10": "c"}
    assert listing.rows["label"].to_pylist() == ["b", None, "c", None, "a"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["b", "a", None]).dictionary_encode(), ["b", "a", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([1.5, 2.0, None]), ["1.5", "2", None]),
        (pa.array(["a", "", None]), ["a", None, None]),
        (pa.array([None] * 3), [None] * 3),
        (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    ],
    ids=["categories", "yes and no", "fractions", "empty", "none", "large"],
)
def test_labels_of_any_kind_become_text(labels, expected, tmp_path):
    listing, said = listed(parquet(tmp_path, y=labels), format="parquet", label_column="y")
    assert listing.rows["label"].to_pylist() == expected
    assert ("empty text; taken as no label" in said) == ("" in labels.to_pylist())


def test_labels_that_are_lists_are_refused_by_file_and_column(tmp_path):
    with pytest.raises(UserError, match=r"column 'y' of .*p\.parquet is list<.*cannot be text"):
        listed(parquet(tmp_path, y=[[1], [2]]), format="parquet", label_column="y")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a.png"], "holds text; for paths or URIs give it as uri_column, and image_column: null"),
        ([[1, 2]], "is list<.*expected encoded images"),
        ([{"data": b"x"}], "is struct<.*expected encoded images"),
        ([7], "is int64; expected encoded images"),
    ],
)
def test_an_image_column_that_holds_something_else_is_refused(column, words, tmp_path):
    with pytest.raises(UserError, match=rf"pool\.image_column: 'image' of .*p\.parquet {words}"):
        listed(parquet(tmp_path, image=column), format="parquet")


def test_bytes_given_as_uris_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"uri_column: 'image' .* is binary; .*bytes belong to image_column"):
        listed(parquet(tmp_path, y=[1]), format="parquet", image_column=None, uri_column="image")


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really", png()])
def test_a_file_that_is_no_parquet_is_named(content, tmp_path):
    parquet(tmp_path, "a.parquet", y=[1])
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.parquet cannot be read as Parquet"):
        listed(tmp_path, format="parquet")


def test_a_parquet_file_under_another_ending_is_refused_as_its_rows_could_not_be_named(tmp_path):
    with pytest.raises(UserError, match=r"no Parquet file by its name; expected \.parquet, \.parq, \.pq"):
        listed(parquet(tmp_path, "table.bin", y=[1]), format="parquet")


def test_a_folder_without_parquet_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match=r"no Parquet file .*it holds 2 \.png, 1 without ending"):
        listed(write(tmp_path, "a.png", "b.png", "_SUCCESS"), format="parquet")


def test_without_the_usual_id_column_the_way_out_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no column 'sample_id'; it has image, y .*id_column: null makes ids"):
        listed(parquet(tmp_path, sample_id=None, y=[1]), format="parquet")


# ---------------------------------------------------------------- CoOp


@pytest.mark.parametrize("entry", [["a.png", 0], "a.png", ["a.png", 0, 3], [], None, ["", 0, "cat"], ["a", 0, "b", 1]])
def test_an_entry_of_a_split_file_that_is_none_is_named(entry, tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "split.json").write_text(json.dumps({"train": [["a.png", 0, "cat"], entry], "val": [], "test": []}))
    with pytest.raises(
        UserError, match=r"entry 1 of 'train' in '.*split\.json' is .*expected \[path, label, class name\]"
    ):
        listed(tmp_path, format="coop_split", split_file=str(tmp_path / "split.json"))


# ---------------------------------------------------------------- class files


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("c.json", b'["cat", ', "is not JSON"),
        ("c.json", b'{"0": "cat"}', "holds JSON that is no list of names"),
        ("c.txt", b'{"0": "cat"}', "holds JSON that is no list of names"),
        ("c.json", b'["cat", 3]', "holds JSON that is no list of names"),
        ("c.json", b'["cat", ""]', "holds JSON that is no list of names"),
        ("c.yaml", b"- cat\n- dog\n", "is YAML"),
        ("c.csv", b"0,cat\n1,dog\n", "is CSV"),
        ("c.txt", b"caf\xe9\n", r"is not UTF-8 \(byte 3\)"),
        ("c.txt", b"", "expected at least two"),
        ("c.json", b'["cat", "cat"]', "there more than once"),
    ],
)
def test_a_class_file_that_is_something_else_is_refused(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"classes: .*{words}"):
        class_names(str(tmp_path / name), None)


def test_names_with_brackets_and_commas_are_names(tmp_path):
    (tmp_path / "c.txt").write_text("[other]\ncrane, bird\n")
    assert class_names(str(tmp_path / "c.txt"), None) == ["[other]", "crane, bird"]
    with pytest.raises(UserError, match=r"classes: '.*' is a folder; give a text file"):
        class_names(str(tmp_path), None)


# ---------------------------------------------------------------- the same every time


def test_a_listing_is_sorted_whatever_order_the_disk_gives(tmp_path, monkeypatch):
    folder = write(tmp_path, "b/2.png", "a/10.png", "a/9.png", "c.png", "B.png")
    first, scandir = listed(folder, format="images")[0], os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Backwards([*scandir(path)][::-1]))
    second, _ = listed(folder, format="images")
    assert ids(first) == ids(second) == sorted(ids(first))
    assert first.rows == second.rows


def test_a_size_or_time_that_is_not_known_is_no_change():
    before = manifest({"a": ("x", 1, 1, None), "b": ("x", None, 1, None), "c": ("x", 1, None, None)})
    now = manifest({"a": ("x", None, None, None), "b": ("x", 2, 1, None), "c": ("x", 1, 3, None)})
    assert grown(before, now).rewritten.num_rows == 0
