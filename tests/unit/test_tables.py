"""Vectors and ids between Arrow and numpy: round trips, slices, nulls, ragged rows."""

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.algo.keyed import hash_ids
from raykd.store import tables
from raykd.store.outputs import manifest_content
from raykd.store.stage_folder import fingerprint
from raykd.store.tables import MANIFEST, first_duplicates, hash_column, matrix, positions, vectors

DTYPES = [np.float16, np.float32, np.float64, np.int32, np.uint8]


def through_parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return pq.read_table(sink)


@examples(40)
@given(st.integers(0, 9), st.integers(1, 5), st.sampled_from(DTYPES), st.integers(0, 99))
def test_vectors_and_matrix_are_each_others_inverse_even_through_parquet(rows, width, dtype, seed):
    values = (np.random.default_rng(seed).normal(0, 50, (rows, width)) % 250).astype(dtype)
    column = vectors(values)
    assert column.type == pa.list_(pa.from_numpy_dtype(dtype), width)
    for back in (matrix(column), matrix(pa.chunked_array([column]))):
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, values)
    table = through_parquet(pa.table({"v": column}), row_group_size=2)
    assert table["v"].type == column.type
    np.testing.assert_array_equal(matrix(table["v"]), values)


@examples(40)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_a_slice_gives_its_own_rows(rows, start, length, variable):
    values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    column = pa.array(values.tolist(), pa.list_(pa.float32())) if variable else vectors(values)
    part = column.slice(min(start, rows), length)
    got = matrix(part)
    want = values[min(start, rows) :][:length]
    np.testing.assert_array_equal(got, want if len(want) or not variable else want.reshape(0, 3)[:, :0])
    chunked = pa.chunked_array([column.slice(0, min(start, rows)), column.slice(min(start, rows))])
    np.testing.assert_array_equal(matrix(chunked), values)
    np.testing.assert_array_equal(matrix(chunked.slice(min(start, rows), length)), got)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)])
def test_every_kind_of_list_column_is_a_matrix(kind):
    np.testing.assert_array_equal(matrix(pa.array([[1, 2], [3, 4]], kind)), np.float32([[1, 2], [3, 4]]))
    assert matrix(pa.array([], kind)).shape[0] == 0
    assert matrix(pa.chunked_array([], kind)).shape[0] == 0


def test_vectors_take_any_memory_layout_and_copy_nothing_back():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(matrix(vectors(values.T)), values.T)
    np.testing.assert_array_equal(matrix(vectors(values[::2, ::-1])), values[::2, ::-1])
    column = vectors(values)
    assert np.shares_memory(matrix(column), matrix(column))


def test_masked_rows_become_nan_and_the_others_stay():
    column = vectors(np.ones((3, 2), np.float32), np.array([False, True, False]))
    table = through_parquet(pa.table({"v": column}))
    np.testing.assert_array_equal(matrix(table["v"]), [[1, 1], [np.nan, np.nan], [1, 1]])
    assert matrix(table["v"]).dtype == np.float32


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_a_null_row_is_refused_with_its_number(kind):
    column = pa.array([[1, 2], [3, 4], None, None], kind)
    with pytest.raises(ValueError, match=r"logits: row 2 is null \(2 in all\); expected a vector in every row"):
        matrix(column, "logits")
    with pytest.raises(ValueError, match=r"logits: row 1 is null"):
        matrix(column.slice(1), "logits")
    np.testing.assert_array_equal(matrix(column.slice(0, 2)), [[1, 2], [3, 4]])


def test_ragged_rows_are_refused_with_the_first_odd_one():
    with pytest.raises(ValueError, match="probs: row 2 has 3 values, row 0 has 2; expected one length for all"):
        matrix(pa.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0, 3.0], [1.0]]), "probs")
    with pytest.raises(ValueError, match="probs: row 1 has 0 values"):
        matrix(pa.chunked_array([[[1.0, 2.0]], [[]]]), "probs")


def test_a_null_inside_a_vector_is_not_a_number():
    got = matrix(pa.array([[1.0, None], [3.0, 4.0]]))
    np.testing.assert_array_equal(got, [[1, np.nan], [3, 4]])


# ---------------------------------------------------------------- ids


@examples(40)
@given(st.lists(st.text("abé", max_size=3), max_size=20))
def test_duplicates_are_the_ids_that_occur_twice_in_order_of_appearance(ids):
    want = [name for name in dict.fromkeys(ids) if ids.count(name) > 1]
    for column in (pa.array(ids, pa.string()), pa.chunked_array([ids[:4], ids[4:]], pa.string())):
        assert first_duplicates(column) == want[:3]
        assert first_duplicates(column, 100) == want


@examples(40)
@given(st.lists(st.text("abé", max_size=3), max_size=20, unique=True), st.data())
def test_positions_are_where_each_id_stands(ids, data):
    wanted = data.draw(st.lists(st.sampled_from(ids), max_size=10)) if ids else []
    for column in (pa.array(ids, pa.string()), pa.chunked_array([ids[:4], ids[4:]], pa.string())):
        for form in (wanted, pa.array(wanted, pa.string()), pa.chunked_array([wanted], pa.string())):
            got = positions(form, column, "the table")
            assert got.dtype == np.int64
            assert [ids[i] for i in got] == wanted


def test_an_id_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"4 of 5 ids are not in the pool, first: 'x', 'y', 'z'$"):
        positions(["a", "x", "y", "z", "w"], pa.array(["a", "b"]), "the pool")


# ---------------------------------------------------------------- schemas


def declared() -> dict[str, dict[str, str | None]]:
    """The table in the module's docstring: by schema, its columns and, of vectors, their kind."""
    body = re.split(r"^=+ =+$", tables.__doc__, flags=re.MULTILINE)[1]
    rows = re.findall(r"^([A-Z]+) +(.+(?:\n +.+)*)", body, re.MULTILINE)
    found = {}
    for name, text in rows:
        text = re.sub(r"\([^()]*\)|:.*", "", " ".join(text.split()))
        parts = [part.split() for part in text.split(",") if not part.strip().startswith("and ")]
        found[name] = {words[0]: words[1].split("[")[0] if len(words) > 1 else None for words in parts}
    return found


def test_the_table_of_schemas_in_the_docstring_is_what_they_are():
    schemas = {name: value for name, value in vars(tables).items() if isinstance(value, pa.Schema)}
    said = declared()
    assert said.keys() == schemas.keys()
    kinds = {"f16": pa.list_(pa.float16()), "f32": pa.list_(pa.float32()), "i32": pa.list_(pa.int32())}
    for name, schema in schemas.items():
        assert list(said[name]) == schema.names, name
        vectors_said = {column: kinds[kind] for column, kind in said[name].items() if kind}
        assert vectors_said == {field.name: field.type for field in schema if field.type in kinds.values()}, name


def test_a_table_with_other_columns_than_its_schema_is_our_own_mistake():
    good = tables.PICKS.empty_table()
    assert tables.checked(good, tables.PICKS) is good
    wide = pa.table(
        {"sample_id": ["a"], "error": pa.array([None], pa.string()), "features": vectors(np.ones((1, 7), "f2"))}
    )
    assert tables.checked(wide, tables.ENCODED) is wide
    for bad in (good.drop_columns("rank"), good.select(["rank", "sample_id", "distance"]), wide):
        with pytest.raises(AssertionError, match="is not"):
            tables.checked(bad, tables.PICKS)


# ---------------------------------------------------------------- the whole pool is never Python strings at once

texts = st.text(st.characters(codec="utf-8"), max_size=4)
chunks_of = st.lists(st.lists(texts, max_size=7), max_size=4)


@examples(60)
@given(chunks_of, st.integers(1, 5), st.integers(0, 3))
def test_hashes_of_a_column_are_those_of_its_strings_whatever_its_chunks(chunks, rows, skipped):
    column = pa.chunked_array(chunks, pa.string()).slice(skipped)
    found = hash_column(column, rows)
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, hash_ids(column.to_pylist()))
    if len(column):
        np.testing.assert_array_equal(hash_column(column.combine_chunks(), rows), found)


def test_hashes_of_a_column_go_through_a_run_of_it_at_a_time(monkeypatch):
    given, hashed = [], tables.hash_ids
    monkeypatch.setattr(tables, "hash_ids", lambda ids: (given.append(len(ids)), hashed(ids))[1])
    hash_column(pa.chunked_array([["a"] * 5, ["b"] * 6]), 4)
    assert given == [4, 4, 3]


def plain_content(table: pa.Table) -> str:
    """As it was first written: campaigns that are there already have these names."""
    rows = [[row[name] or "" for name in ("sample_id", "uri", "label", "split")] for row in table.to_pylist()]
    hashes = hash_ids(["\n".join(row) for row in rows])
    return fingerprint([len(rows), int(np.bitwise_xor.reduce(hashes)), int(hashes.sum(dtype=np.uint64))])


manifest_row = st.tuples(texts, texts, st.none() | texts, st.sampled_from(tables.SPLITS))


@examples(60)
@given(st.lists(st.lists(manifest_row, max_size=7), max_size=4), st.integers(1, 5))
def test_the_content_of_a_manifest_does_not_depend_on_chunks(chunks, rows):
    parts = [
        pa.Table.from_pylist(
            [dict(zip(("sample_id", "uri", "label", "split"), row, strict=True)) for row in chunk], MANIFEST
        )
        for chunk in chunks
    ]
    table = pa.concat_tables([MANIFEST.empty_table(), *parts])
    assert manifest_content(table, rows) == manifest_content(table.combine_chunks()) == plain_content(table)
