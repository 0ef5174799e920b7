"""Parquet as pandas, Arrow and Hugging Face write it, and what is refused by file and column. Starts no Ray."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import ids, listed, load_all, pictures, png, write_pngs
from PIL import Image

from raykd.errors import UserError
from raykd.images.stored import ImageReader


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
    pictures = load_all(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray)
    for number, picture in enumerate(pictures):
        assert np.array_equal(picture, np.asarray(Image.open(io.BytesIO(png(number)))))


def test_every_ending_of_parquet_and_no_resource_forks(tmp_path):
    for name in ("a.pq", "B.PARQUET"):
        pq.write_table(pa.table({"sample_id": [name], "image": [png()]}), tmp_path / name)
    (tmp_path / "._a.pq").write_bytes(b"\x00\x05\x16\x07")
    listing, _ = listed(tmp_path, format="parquet")
    assert sorted(ids(listing)) == ["B.PARQUET", "a.pq"]
    assert not any(isinstance(got, str) for got in load_all(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray))


def test_a_null_uri_and_a_missing_column_name_their_file(tmp_path):
    pq.write_table(pa.table({"sample_id": ["a", "b"], "where": ["x.png", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet"):
        listed(tmp_path, format="parquet", image_column=None, uri_column="where")
    pq.write_table(pa.table({"sample_id": ["a"], "image": [png()], "y": ["cat"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"sample_id": ["b"], "image": [png()]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet.*'y'|'y'.*b\.parquet"):
        listed(tmp_path, format="parquet", label_column="y")


def parquet(folder: Path, name: str = "p.parquet", **columns) -> Path:
    count = next(len(values) for values in columns.values() if values is not None)
    base = {"sample_id": [f"s{i}" for i in range(count)], "image": [png(i) for i in range(count)]}
    pq.write_table(
        pa.table({key: value for key, value in (base | columns).items() if value is not None}), folder / name
    )
    return folder / name


def test_uris_serve_as_ids_and_rows_do_where_there_are_none(tmp_path):
    write_pngs(tmp_path, "x.png", "y.png")
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
    with pytest.raises(UserError, match=r"column 'y' of .*p\.parquet is list<.*; expected a single value a row"):
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
        listed(write_pngs(tmp_path, "a.png", "b.png", "_SUCCESS"), format="parquet")


def test_without_the_usual_id_column_the_way_out_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no column 'sample_id'; it has image, y .*id_column: null makes ids"):
        listed(parquet(tmp_path, sample_id=None, y=[1]), format="parquet")


# ---------------------------------------------------------------- as Hugging Face, pandas and Spark write it


def hugging_face(folder: Path, name: str, labels: list, names: list[str] | None, kind=None) -> Path:
    """As ``datasets`` writes a shard: struct images, numbers for labels, their names in the file's metadata."""
    image = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    note = json.dumps({"info": {"features": features if names else {}}})
    table = pa.table({"image": image, "label": pa.array(labels, kind or pa.int64())})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), folder / name)
    return folder / name


HF = {"format": "parquet", "id_column": None, "label_column": "label"}


def test_the_class_names_that_hugging_face_notes_are_the_classes_and_said(tmp_path):
    hugging_face(tmp_path, "train-00000-of-00002.parquet", [2, 0, -1], ["eft", "ant", "dog"])
    hugging_face(tmp_path, "train-00001-of-00002.parquet", [None, 0], ["eft", "ant", "dog"], pa.int32())
    listing, said = listed(tmp_path, **HF)
    assert listing.rows["label"].to_pylist() == ["dog", "eft", None, None, "eft"]
    assert listing.found_classes == ["eft", "ant", "dog"]
    assert "labels: 0 = eft, 1 = ant, 2 = dog, as the file itself says (ClassLabel)" in said
    assert not any(isinstance(picture, str) for picture in pictures(listing))


def test_label_values_count_instead_of_noted_names_and_index_means_the_number_of_the_class(tmp_path):
    file = hugging_face(tmp_path, "a.parquet", [2, 0], ["eft", "ant", "dog"])
    listing, _ = listed(file, ["x", "y", "z"], **HF, label_values="index")
    assert listing.rows["label"].to_pylist() == ["z", "x"]
    assert listing.mapping == {"0": "x", "1": "y", "2": "z"}


def test_noted_names_that_do_not_fit_the_numbers_or_each_other_are_refused(tmp_path):
    file = hugging_face(tmp_path, "a.parquet", [2, 0], ["eft", "ant"])
    with pytest.raises(UserError, match=r"column 'label' of .*a\.parquet holds \['2'\]; the file names labels 0 to 1"):
        listed(file, **HF)
    hugging_face(tmp_path, "a.parquet", [1, 0], ["eft", "ant"])
    hugging_face(tmp_path, "b.parquet", [1, 0], ["ant", "eft"])
    with pytest.raises(UserError, match=r"a\.parquet and b\.parquet in .* name the numbers in 'label' differently"):
        listed(tmp_path, **HF)
    hugging_face(tmp_path, "b.parquet", [1, 0], None)
    with pytest.raises(UserError, match=r"differently .*give label_values"):
        listed(tmp_path, **HF)


@pytest.mark.parametrize(
    "note", [b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"y": {"_type": "Value"}}}}']
)
def test_another_note_is_no_class_list(note, tmp_path):
    table = pa.table({"sample_id": ["a"], "image": [png()], "y": [3]}).replace_schema_metadata({"huggingface": note})
    pq.write_table(table, tmp_path / "p.parquet")
    listing, _ = listed(tmp_path, format="parquet", label_column="y")
    assert listing.rows["label"].to_pylist() == ["3"]


def test_a_frame_of_pandas_is_read_with_its_index_as_ids(tmp_path):
    metadata = {"pandas": json.dumps({"index_columns": ["__index_level_0__"]})}
    columns = {"image": [png(0), png(1)], "y": pa.array([1.0, float("nan")]), "__index_level_0__": ["p", "q"]}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "p.parquet")
    listing, _ = listed(tmp_path, format="parquet", id_column="__index_level_0__", label_column="y")
    assert (ids(listing), listing.rows["label"].to_pylist()) == (["p", "q"], ["1", None])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([png(0), png(1)], pa.large_binary()),
        pa.array([png(0), png(0)]).dictionary_encode(),
        pa.array([{"path": None, "bytes": png(0)}] * 2, pa.struct({"path": pa.string(), "bytes": pa.large_binary()})),
        pa.array([png(0), png(1)], pa.binary_view()),
    ],
    ids=["large", "dictionary", "struct of large", "view"],
)  # fmt: skip
def test_bytes_of_any_type_are_images(column, tmp_path):
    listing, _ = listed(parquet(tmp_path, image=column, sample_id=["a", "b"]), format="parquet")
    assert np.array_equal(pictures(listing)[0], np.asarray(Image.open(io.BytesIO(png(0)))))


@pytest.mark.parametrize(
    "column", [[[137, 80]], pa.array([[[1, 2], [3, 4]]]), pa.array([[1.0] * 4], pa.list_(pa.float32(), 4))]
)
def test_pixels_and_bytes_as_numbers_are_refused_in_words(column, tmp_path):
    with pytest.raises(UserError, match="lists of numbers are pixels, or bytes that were not written as such"):
        listed(parquet(tmp_path, image=column, sample_id=["a"]), format="parquet")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None], pa.float16()), ["1", None]),
        (pa.array([1.0, float("nan"), 1.0]).dictionary_encode(), ["1", None, "1"]),
        (pa.array([18000], pa.date32()), ["2019-04-14"]),
        (pa.array(["1.50"]).cast(pa.decimal128(5, 2)), ["1.50"]),
        (pa.array([b"cat"]), ["cat"]),
        (pa.array([200], pa.uint8()), ["200"]),
        (pa.array([1 << 60]), [str(1 << 60)]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
    ids=str,
)
def test_labels_of_every_type_are_text(values, expected, tmp_path):
    listing, _ = listed(parquet(tmp_path, y=values, image=[png()] * len(values)), format="parquet", label_column="y")
    assert listing.rows["label"].to_pylist() == expected


@pytest.mark.parametrize("values", [pa.array([b"\xff"]), pa.array([{"a": 1}]), pa.array([[1]])], ids=str)
def test_labels_that_cannot_be_text_are_refused_by_column_and_file(values, tmp_path):
    with pytest.raises(UserError, match=r"column 'y' of .*p\.parquet is .*(cannot be text|expected a single value)"):
        listed(parquet(tmp_path, y=values), format="parquet", label_column="y")


def test_an_id_that_is_nan_is_none(tmp_path):
    file = parquet(tmp_path, sample_id=pa.array([1.0, float("nan")]))
    with pytest.raises(UserError, match=r"1 of 2 rows .*have no sample_id, first row 1"):
        listed(file, format="parquet")


@pytest.mark.parametrize("fields", [{}, {"id_column": None}, {"image_column": None, "uri_column": "where"}])
def test_a_file_without_rows_or_row_groups_adds_none(fields, tmp_path):
    schema = pa.schema([("sample_id", pa.string()), ("image", pa.binary()), ("where", pa.string()), ("y", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "b.parquet", schema):
        pass
    columns = {"format": "parquet", "label_column": "y", **fields}
    with pytest.raises(UserError, match=r"no row in the 2 Parquet files of .*, such as 'a.parquet'"):
        listed(tmp_path, **columns)
    parquet(tmp_path, "c.parquet", y=["cat"], where=["c.png"])
    assert listed(tmp_path, **columns)[0].rows["label"].to_pylist() == ["cat"]


def test_files_of_different_types_and_columns_that_are_not_used_are_one_source(tmp_path):
    parquet(tmp_path, "a.parquet", y=[1], extra=["x"])
    parquet(tmp_path, "b.parquet", y=["one"], sample_id=pa.array([7]), image=pa.array([png(3)], pa.large_binary()))
    listing, _ = listed(tmp_path, format="parquet", label_column="y")
    assert ids(listing) == ["s0", "7"]
    assert listing.rows["label"].to_pylist() == ["1", "one"]


def test_column_names_with_dots_are_names_and_repeated_ones_are_refused(tmp_path):
    file = parquet(tmp_path, **{"a.b": ["cat"], "id.x": ["7"]})
    listing, _ = listed(file, format="parquet", label_column="a.b", id_column="id.x")
    assert (ids(listing), listing.rows["label"].to_pylist()) == (["7"], ["cat"])
    table = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array([png()]), pa.array(["b"])], ["sample_id", "image", "sample_id"]
    )
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet has 'sample_id' more than once"):
        listed(tmp_path, format="parquet")


def test_strange_names_of_files_and_ids_stay_as_they_are(tmp_path):
    names = ["a b", "c#d/0", "e?f", "g%20h", "i\nj", "🐈", "é"]
    folder = tmp_path / "odd #1? 100% 🐈"
    folder.mkdir()
    listing, _ = listed(parquet(folder, "x#y z.parquet", sample_id=names), format="parquet")
    assert ids(listing) == names
    assert not any(isinstance(picture, str) for picture in pictures(listing))
