"""Places: the same words for a local folder and an object store; writes are whole or not at all."""

import errno
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykd.errors import StorageError, UserError
from raykd.store.place import Place


@pytest.fixture(params=["local", "file uri", "bucket"])
def folder(request, tmp_path):
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return Place.of(tmp_path) if request.param == "local" else Place.of(f"file://{tmp_path}")


# ---------------------------------------------------------------- names


def test_a_relative_path_becomes_absolute_and_home_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Place.of("runs/a").uri == str(tmp_path / "runs/a")
    assert Place.of("~/a").uri == str(tmp_path / "home/a")
    assert Place.of(tmp_path).uri == str(tmp_path)
    assert Place.of("s3://b/a").uri == "s3://b/a"
    place = Place("gs://b/a")
    assert Place.of(place) is place


@pytest.mark.parametrize(
    ("base", "name", "joined"),
    [
        ("/runs", "a", "/runs/a"),
        ("/runs", "a b#c?.json", "/runs/a b#c?.json"),
        ("s3://b/runs", "a/c.json", "s3://b/runs/a/c.json"),
        ("s3://b/runs/", "a", "s3://b/runs/a"),
        ("s3://b/runs?region=eu-west-1&scheme=https", "a", "s3://b/runs/a?region=eu-west-1&scheme=https"),
        ("s3://b", "a b#c?é%.json", "s3://b/a%20b%23c%3F%C3%A9%25.json"),
    ],
)
def test_joining_keeps_the_query_at_the_end_and_quotes_what_a_uri_cannot_hold(base, name, joined):
    place = Place(base) / name
    assert place.uri == joined
    assert place.name == name.rsplit("/", 1)[-1]


def test_the_name_is_the_last_part_without_query():
    names = {place: Place(place).name for place in ("/a/b", "/a/b/", "s3://b/c?x=1/2", "s3://b/c/?x=1", "/a/what?.txt")}
    assert list(names.values()) == ["b", "b", "c", "c", "what?.txt"]


@pytest.mark.parametrize(
    ("uri", "path", "sibling"),
    [
        ("/runs/a", "/other/b c", "/other/b c"),
        ("file:///runs/a", "/other/b c", "file:///other/b%20c"),
        ("s3://bucket/a?region=eu-west-1", "bucket/x y.jpg", "s3://bucket/x%20y.jpg?region=eu-west-1"),
        ("gs://anonymous@bucket/a", "bucket/x.jpg", "gs://anonymous@bucket/x.jpg"),
    ],
)
def test_a_sibling_is_on_the_same_filesystem(uri, path, sibling):
    assert Place(uri).sibling(path).uri == sibling


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_any_file_name_survives_the_way_through_a_uri(name):
    for uri in ("file:///runs", "s3://bucket/runs?region=eu-west-1"):
        joined = Place(uri) / name
        assert joined.path == Place(uri).path + "/" + name
        assert Place(uri).sibling(joined.path) == joined
        assert joined.name == name


def test_files_with_odd_names_can_be_listed_and_read_through_a_uri(tmp_path):
    for name in ("a b.jpg", "c#1.jpg", "d%20.jpg", "é?.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    place = Place.of(f"file://{tmp_path}")
    found = [place.sibling(info.path) for info in place.files()]
    assert [file.name for file in found] == ["a b.jpg", "c#1.jpg", "d%20.jpg", "é?.jpg"]
    assert [file.read_bytes().decode() for file in found] == [file.name for file in found]


@pytest.mark.parametrize("uri", ["http://x/y.jpg", "nosuch://x"])
def test_an_unknown_filesystem_is_refused_with_the_known_ones(uri):
    with pytest.raises(ValueError, match=rf"cannot reach '{uri}'.*expected a local path, s3://"):
        Place(uri).exists()


def test_a_place_travels_by_its_uri_alone(tmp_path):
    place = Place.of(tmp_path)
    place.exists()  # caches a filesystem
    again = pickle.loads(pickle.dumps(place))
    assert again == place
    assert vars(again) == {"uri": str(tmp_path)}
    assert again.exists()


# ---------------------------------------------------------------- reading and writing


def test_bytes_json_and_tables_come_back_as_they_went(folder):
    (folder / "a.bin").write_bytes(b"\x00\xff")
    (folder / "b.json").write_json({"name": "é", "n": [1, 2.5, None]})
    table = pa.table({"sample_id": ["x", "y"], "n": [1, 2]})
    (folder / "c.parquet").write_table(table)
    assert (folder / "a.bin").read_bytes() == b"\x00\xff"
    assert (folder / "b.json").read_json() == {"name": "é", "n": [1, 2.5, None]}
    assert "é" in (folder / "b.json").read_bytes().decode()
    assert (folder / "c.parquet").read_table().equals(table)
    assert (folder / "c.parquet").read_table(["n"]).column_names == ["n"]
    assert [info.base_name for info in folder.files()] == ["a.bin", "b.json", "c.parquet"]
    assert (folder / "a.bin").exists()
    assert not (folder / "zzz").exists()
    assert folder.is_dir()
    assert not (folder / "a.bin").is_dir()


def test_writing_replaces_the_whole_file(folder):
    (folder / "a").write_bytes(b"a long first version")
    (folder / "a").write_bytes(b"short")
    assert (folder / "a").read_bytes() == b"short"
    assert len(folder.files()) == 1


def test_writing_makes_missing_folders(tmp_path):
    (Place.of(tmp_path) / "x/y/z.json").write_json(1)
    assert json.loads((tmp_path / "x/y/z.json").read_text()) == 1


def test_a_write_killed_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    place = Place.of(tmp_path) / "a.parquet"
    place.write_table(pa.table({"n": [1]}))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            place.write_table(pa.table({"n": [2]}))
    assert place.read_table()["n"].to_pylist() == [1]
    assert Place.of(tmp_path).read_table()["n"].to_pylist() == [1]  # what was left aside is not taken for data


def test_a_reader_never_sees_a_half_written_file(tmp_path, monkeypatch):
    """At the moment of the rename the new bytes are complete, beside the old ones."""
    place = Place.of(tmp_path) / "a"
    place.write_bytes(b"old")
    rename, seen = os.replace, []

    def watch(source, target):
        with open(source, "rb") as new, open(target, "rb") as old:
            seen.append((new.read(), old.read(), os.path.dirname(source) == os.path.dirname(target)))
        rename(source, target)

    monkeypatch.setattr(os, "replace", watch)
    place.write_bytes(b"new" * 1000)
    assert seen == [(b"new" * 1000, b"old", True)]


def test_a_folder_of_parquet_is_one_table_in_the_order_of_its_file_names(folder):
    folder.fs.create_dir((folder / "data/deep").path, recursive=True)
    for name, values in (("b.parquet", [3, 4]), ("a.parquet", [1, 2]), ("deep/c.parquet", [5])):
        (folder / "data" / name).write_table(pa.table({"n": values}))
    (folder / "data/notes.txt").write_bytes(b"not Parquet")
    assert (folder / "data").read_table()["n"].to_pylist() == [1, 2, 3, 4, 5]


def test_a_folder_without_parquet_says_so(folder):
    folder.fs.create_dir((folder / "data").path)
    with pytest.raises(ValueError, match=r"no Parquet file \(\*\.parquet\) in .*data"):
        (folder / "data").parquet()


def test_row_groups_have_the_rows_asked_for(tmp_path):
    place = Place.of(tmp_path) / "a.parquet"
    place.write_table(pa.table({"n": np.arange(10)}), row_group_rows=4)
    (fragment,) = place.parquet().get_fragments()
    assert [group.num_rows for group in fragment.row_groups] == [4, 4, 2]


def test_listing_goes_as_deep_as_asked_and_a_missing_folder_is_empty(folder):
    folder.fs.create_dir((folder / "x").path)
    (folder / "x/b").write_bytes(b"")
    (folder / "a").write_bytes(b"")
    assert [info.base_name for info in folder.files()] == ["a"]
    assert [info.base_name for info in folder.files(recursive=True)] == ["a", "b"]
    assert (folder / "nowhere").files() == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; expected JSON: it was cut off or changed"),
        (b'{"a": ', "is not JSON (Expecting value: line 1 column 7 (char 6))"),
        (b'"\xe9"', "is not JSON ('utf-8' codec"),
    ],
)
def test_a_json_file_that_is_none_is_told_with_its_name_and_what_to_do(tmp_path, content, words):
    file = Place.of(tmp_path / "_DONE.json")
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        file.read_json()
    assert f"{file} {words}" in str(error.value)
    assert "Put a whole copy back, or move its folder away" in str(error.value)


def test_whether_a_file_can_be_written_is_tried_and_leaves_nothing(tmp_path):
    Place.of(tmp_path / "deeper" / "picks.parquet").check_writable()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*/file/picks\.parquet: a file is where its folder should"):
        Place.of(tmp_path / "file" / "picks.parquet").check_writable()


def test_a_write_that_fails_names_its_file_and_leaves_no_part_of_it(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as error:
        Place.of(tmp_path / "a.bin").write_bytes(b"x")
    assert error.value.filename == str(tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []
