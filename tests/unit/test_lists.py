"""Lists of images in CSV, TSV and JSONL, as spreadsheets and scripts write them. Starts no Ray."""

import codecs
import io

import pytest
from fakes import ids, listed, pictures, write_pngs
from hypothesis import given
from hypothesis import strategies as st

from raykd.errors import UserError
from raykd.images import columns, lists
from raykd.images.delimited import lines_of
from raykd.store.place import Place


@pytest.fixture
def listing(tmp_path):
    """The listing of a list with that content beside a.png, b.png and c.png, and what was said."""
    write_pngs(tmp_path, "a.png", "deep/b.png", "c, d.png")

    def listing(content: str | bytes, name: str = "list.csv", **fields):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return listed(tmp_path / name, format="list", **fields)

    return listing


SAME = {
    "comma": ("path,label\na.png,cat\ndeep/b.png,dog\n", "list.csv"),
    "semicolon, BOM, CRLF": (codecs.BOM_UTF8 + b"Path;label\r\na.png;cat\r\ndeep/b.png;dog\r\n", "L.CSV"),
    "tab": ("label\tfile_name\ncat\ta.png\ndog\tdeep/b.png\n", "list.tsv"),
    "quotes and blanks": ('"path", "label"\n"a.png", "cat "\n\n "deep/b.png", dog,\n', "list.csv"),
    "JSONL": ('{"path": "a.png", "label": "cat"}\n\n{"label": "dog", "path": "deep/b.png", "n": 1}\n', "list.jsonl"),
    "an empty line first": ("\n\npath,label\na.png,cat\ndeep/b.png,dog\n", "list.csv"),
}


@pytest.mark.parametrize("written", SAME.values(), ids=SAME)
def test_a_list_is_read_from_whatever_wrote_it_and_paths_begin_at_its_folder(written, listing, tmp_path):
    found, said = listing(*written, label_column="label")
    assert ids(found) == ["a.png", "deep/b.png"]
    assert found.rows["uri"].to_pylist() == [f"{tmp_path}/a.png", f"{tmp_path}/deep/b.png"]
    assert found.rows["label"].to_pylist() == ["cat", "dog"]
    assert not any(isinstance(picture, str) for picture in pictures(found))
    assert "paths are taken from column" in said


def test_ids_splits_absolute_paths_and_uris_are_taken_as_they_stand_there(listing, tmp_path):
    found, _ = listing(
        f'where,key,part\n{tmp_path}/a.png,1,train\ns3://b/x y.png,"2,5",test\n"c, d.png",é,val\n',
        uri_column="where", id_column="key", split_column="part",
    )  # fmt: skip
    assert ids(found) == ["1", "2,5", "é"]
    assert found.rows["uri"].to_pylist() == [f"{tmp_path}/a.png", "s3://b/x y.png", f"{tmp_path}/c, d.png"]
    assert found.rows["split"].to_pylist() == ["pool", "test", "val"]


def test_a_list_in_a_bucket_is_relative_to_its_folder(bucket):
    (bucket / "list.csv").write_bytes(b"path\na b.png\n")
    found, _ = listed((bucket / "list.csv").uri, format="list")
    assert found.rows["uri"].to_pylist() == ["mock://bucket/folder/a%20b.png?region=eu-west-1"]


def test_numbers_of_jsonl_become_text_and_empty_labels_none(listing):
    found, said = listing(
        '{"path": "a.png", "y": 3}\n{"path": "b.png", "y": 4.0}\n{"path": "c", "y": ""}\n{"path": "d"}\n', "l.jsonl",
        label_column="y",
    )  # fmt: skip
    assert found.rows["label"].to_pylist() == ["3", "4", None, None]
    assert "1 of 4 labels in" in said


def test_a_column_of_ids_that_is_not_used_is_said(listing):
    _, said = listing("path,sample_id\na.png,7\n")
    assert "its column sample_id is taken by id_column: sample_id" in said


@pytest.mark.parametrize(
    ("content", "fields", "words"),
    [
        ("", {}, "is empty; expected a header line"),
        ("a.png,cat\nb.png,dog\n", {}, r"no column called uri, .*it has a\.png, cat\. The first line must name"),
        ("path,url\na,b\n", {}, "'path', 'url' all look like paths; .*uri_column"),
        ("path,lable\na.png,cat\n", {"label_column": "label"}, "no column 'label'; did you mean 'lable'?"),
        ("path,path\na,b\n", {}, "'path' more than once"),
        ("path,label\na.png,cat,dog\n", {}, "line 2: 3 cells under a header of 2"),
        ('path,label\na.png,cat\n"b.png,dog\n', {}, "line 3: the row that begins here is not CSV"),
        ("path,label\na.png,cat\n\n,dog\n", {}, "have no path, first line 4; every image"),
        ("path,key\na.png,1\nb.png,\n", {"id_column": "key"}, "have no key, first line 3"),
        ("path,part\na.png,holdout\n", {"split_column": "part"}, r"holds 'holdout'; expected pool, train"),
        (b"path\ncaf\xe9.png\n", {}, r"is not UTF-8 \(byte 8\)"),
        ("path\na.png\n".encode("utf-16"), {}, "perhaps UTF-16"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_by_file_and_line(content, fields, words, listing):
    with pytest.raises(UserError, match=rf"list\.csv.*{words}"):
        listing(content, **fields)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", r"line 2: \[1\]; expected an object"),
        ('{"path": ["x"]}', r"path in line 2 of .* is \['x'\]; expected text"),
        ('{"other": 1}', "have no path, first line 2"),
    ],
)
def test_a_line_of_jsonl_that_is_none_is_named(line, words, listing):
    with pytest.raises(UserError, match=words):
        listing('{"path": "a.png"}\n' + line + "\n", "list.jsonl")


@pytest.mark.parametrize("name", ["list.txt", "list.parquet", "list"])
def test_a_list_of_another_kind_is_refused_with_the_kinds_there_are(name, listing):
    with pytest.raises(UserError, match=r"is no list by its name; expected a file that ends in \.csv, \.tsv, \.jsonl"):
        listing("path\na.png\n", name)


def test_a_list_with_a_header_only_is_refused(listing):
    with pytest.raises(UserError, match=r"list\.csv has no row"):
        listing("path,label\n", label_column="label")


# ---------------------------------------------------------------- long lists: a run of lines at a time


@given(st.text('ab,"\r\n\u2028\x0b ', max_size=20))
def test_lines_end_where_python_ends_those_of_a_file_of_csv(text):
    assert list(lines_of(text)) == list(io.StringIO(text, newline=""))


@given(st.text('{}"a\r\n\u2028 ', max_size=20))
def test_lines_of_jsonl_are_numbered_by_line_feeds(text):
    texts = [line for line in enumerate(text.split("\n"), 1) if line[1].strip()]
    numbers = []
    try:
        numbers += [number for number, _ in lists.objects(text, Place("list.jsonl"))]
    except UserError as error:
        assert f"line {texts[len(numbers)][0]}" in str(error)  # noqa: PT017
        numbers += [number for number, _ in texts[len(numbers) :]]
    assert numbers == [number for number, _ in texts]


@pytest.mark.parametrize("written", SAME.values(), ids=SAME)
def test_a_list_is_the_same_however_many_lines_are_taken_at_a_time(written, listing, monkeypatch):
    whole, _ = listing(*written, label_column="label")
    for module in (lists, columns):
        monkeypatch.setattr(module, "RUN_ROWS", 1)
    assert listing(*written, label_column="label")[0].rows.equals(whole.rows)


@pytest.mark.parametrize("rows", [1, 2, 99])
def test_what_is_wrong_first_in_the_first_column_is_said(rows, listing, monkeypatch):
    monkeypatch.setattr(lists, "RUN_ROWS", rows)
    content = '{"path": "a.png", "label": []}\n\n{"path": "b.png"}\n{"path": {}, "label": "cat"}\n{"path": []}\n'
    with pytest.raises(UserError, match="path in line 4 of"):
        listing(content, "list.jsonl", label_column="label")
