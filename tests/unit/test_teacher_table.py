"""A teacher that is a table: which tables are read, that a softmax gives them back, and how each bad one is refused."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from profiles import examples

from raykd.algo.heads import softmax
from raykd.errors import UserError
from raykd.models import teacher_table
from raykd.models.teacher_table import TeacherTable, missing_ids
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder
from raykd.store.tables import vectors

CLASSES = ["cat", "dog", "bird"]
PROBS = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.125, 0.125, 0.75]]


def lists(rows, kind=None) -> pa.Array:
    return pa.array([None if row is None else list(row) for row in rows], pa.list_(kind or pa.float64()))


def names(count: int) -> list[str]:
    return [f"s{i}" for i in range(count)]


def write(path: Path, metadata=None, /, **columns) -> Path:
    """A Parquet file; ``sample_id`` is made where it is not given."""
    count = len(next(iter(columns.values())))
    table = pa.table({"sample_id": names(count)} | columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path)
    return path


def opened(path, classes=CLASSES, renamed=None) -> TeacherTable:
    return TeacherTable.open(str(path), classes, renamed or {})


def read(path, classes=CLASSES, renamed=None) -> dict[str, list[float]]:
    """Probabilities by id."""
    found = {}
    table = opened(path, classes, renamed)
    for ids, logits_nC in table.logits():
        assert logits_nC.dtype == np.float32
        assert logits_nC.shape == (len(ids), len(classes))
        found |= dict(zip(ids.to_pylist(), softmax(logits_nC).tolist(), strict=True))
    assert list(found) == table.ids().to_pylist()
    return found


def refused(path, classes=CLASSES, renamed=None) -> str:
    """What is said of a table, whether at once or when its rows are read."""

    def read_all():
        for _ in opened(path, classes, renamed).logits():
            pass

    with pytest.raises(UserError) as error:
        read_all()
    assert str(error.value).count("teacher.table") == 1
    return str(error.value)


def refused_at_once(path, classes=CLASSES, renamed=None) -> str:
    with pytest.raises(UserError) as error:
        opened(path, classes, renamed)
    assert str(error.value).count("teacher.table") == 1
    return str(error.value)


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


# ---------------------------------------------------------------- the numbers


@st.composite
def probability_tables(draw):
    """Probabilities of any size, zeros, and rows that are all in one class."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 9)))
    weights = draw(hnp.arrays(np.float64, shape, elements=st.one_of(st.just(0.0), st.floats(1e-30, 1.0))))
    weights[weights.sum(axis=1) == 0, 0] = 1
    return weights / weights.sum(axis=1, keepdims=True)


@examples(100)
@given(probs=probability_tables(), fixed=st.booleans(), kind=st.sampled_from([np.float32, np.float64]))
def test_a_softmax_of_the_logits_gives_any_table_of_probabilities_back(tmp_path_factory, probs, fixed, kind):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    stored = probs.astype(kind)
    write(path, probs=vectors(stored) if fixed else lists(stored.tolist(), pa.from_numpy_dtype(kind)))
    classes = names(probs.shape[1])
    ((_, logits_nC),) = opened(path, classes).logits()
    assert np.isfinite(logits_nC).all()
    np.testing.assert_allclose(softmax(logits_nC), probs, rtol=1e-5, atol=1.2e-38)
    # in float32, as a GPU computes it: no power is 0, nor (but for rounding) a subnormal
    assert np.exp(logits_nC).min() >= np.finfo(np.float32).tiny * (1 - 1e-5)
    powers = np.exp(logits_nC - logits_nC.max(axis=1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), probs, rtol=2e-5, atol=1e-6)


def test_float16_probabilities_of_a_thousand_classes_are_taken_and_sum_to_one_again(tmp_path):
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(0, 4, (64, 1000)))
    half = probs.astype(np.float16)
    off = np.abs(half.astype(np.float64).sum(axis=1) - 1).max()
    assert 0 < off < 5e-3
    write(tmp_path / "t.parquet", probs=vectors(half))
    found = np.array(list(read(tmp_path / "t.parquet", names(1000)).values()))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(found, probs, atol=1e-3)


def test_sums_are_taken_within_a_two_hundredth_and_not_beyond(tmp_path):
    for off in (-0.0049, 0.0049):
        found = read(write(tmp_path / "t.parquet", probs=lists([[0.5, 0.25, 0.25 + off]])))["s0"]
        np.testing.assert_allclose(found, np.array([0.5, 0.25, 0.25 + off]) / (1 + off), rtol=1e-6)
    for off in (-0.0051, 0.0051):
        says(refused(write(tmp_path / "t.parquet", probs=lists([[0.5, 0.25, 0.25 + off]]))), f"sum to {1 + off:.6g}")


def test_logits_come_out_as_they_are(tmp_path):
    rows = [[-3.5, 2.0, 0.25], [100.0, -100.0, 0.0]]
    for kind in (pa.float16(), pa.float32(), pa.float64(), pa.list_(pa.float32(), 3)):
        column = pa.array(rows, kind) if pa.types.is_fixed_size_list(kind) else lists(rows, kind)
        ((ids, found),) = opened(write(tmp_path / "t.parquet", logits=column)).logits()
        assert ids.to_pylist() == ["s0", "s1"]
        assert found.tolist() == rows
        assert found.dtype == np.float32


def test_logits_are_taken_where_both_are_there(tmp_path):
    path = write(tmp_path / "t.parquet", probs=lists([[1, 0, 0]]), logits=lists([[0, np.log(2), np.log(5)]]))
    np.testing.assert_allclose(read(path)["s0"], [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)


def test_whole_numbers_are_numbers_too(tmp_path):
    found = read(write(tmp_path / "t.parquet", probs=lists([[0, 1, 0], [1, 0, 0]], pa.int64())))
    np.testing.assert_allclose(list(found.values()), [[0, 1, 0], [1, 0, 0]], atol=1e-37)


# ---------------------------------------------------------------- ids and files


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["a", "b", "c"]),
        pa.array(["a", "b", "c"], pa.large_string()),
        pa.array(["a", "b", "c"]).dictionary_encode(),
        pa.array([7, -1, 2**40]),
        pa.array([7, 1, 255], pa.uint8()),
        pa.array([7, 1, 7000]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_any_kind_become_text(tmp_path, ids):
    write(tmp_path / "t.parquet", sample_id=ids, probs=lists(PROBS))
    table = opened(tmp_path / "t.parquet")
    assert table.ids().type == pa.string()
    assert table.ids().to_pylist() == [str(value) for value in ids.to_pylist()]
    assert [name for batch, _ in table.logits() for name in batch.to_pylist()] == table.ids().to_pylist()


def test_a_folder_is_one_table_whatever_its_files_are_called(tmp_path):
    for number, name in enumerate(("a.parquet", "b.pq", "deep/C.PARQUET")):
        write(tmp_path / name, sample_id=[f"r{number}"], probs=lists([PROBS[number]]))
    write(tmp_path / "empty.parquet", probs=lists([]))
    (tmp_path / "._a.parquet").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.parquet").write_text("no table")
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "x.parquet").write_text("not finished")
    (tmp_path / "README.txt").write_text("no table")
    said = []
    table = TeacherTable.open(str(tmp_path), CLASSES, {}, lambda topic, line: said.append(line))
    assert table.num_rows == 3
    found = read(tmp_path)
    assert sorted(found) == ["r0", "r1", "r2"]
    np.testing.assert_allclose([found[f"r{n}"] for n in range(3)], PROBS, atol=1e-7)
    assert [line for line in said if "passed over" in line]


def test_a_bucket_is_read_as_a_disk_is(bucket, tmp_path):
    here = write(tmp_path / "t.parquet", probs=lists(PROBS))
    (bucket / "a.parquet").write_bytes(here.read_bytes())
    for path in (bucket.uri, (bucket / "a.parquet").uri):
        assert read(path) == read(here)
        assert list(opened(path).identity) == ["a.parquet"]


def test_a_table_travels_by_pickle(tmp_path):
    table = pickle.loads(pickle.dumps(opened(write(tmp_path / "t.parquet", probs=lists(PROBS)))))
    assert table.ids().to_pylist() == names(3)


def test_rows_come_a_few_thousand_at_a_time_and_in_the_order_of_the_ids(tmp_path):
    count = 2 * teacher_table.READ_ROWS + 5
    probs = softmax(np.random.default_rng(0).normal(size=(count, 3)))
    for number, part in enumerate(np.array_split(np.arange(count), 3)):
        write(tmp_path / f"{number}.parquet", sample_id=[f"s{i}" for i in part], probs=vectors(probs[part]))
    table = opened(tmp_path)
    batches = list(table.logits())
    assert max(len(ids) for ids, _ in batches) <= teacher_table.READ_ROWS
    assert [name for ids, _ in batches for name in ids.to_pylist()] == table.ids().to_pylist() == names(count)
    np.testing.assert_allclose(softmax(np.concatenate([each for _, each in batches])), probs, rtol=1e-5)


@pytest.mark.slow
def test_one_large_row_group_does_not_come_into_memory_as_a_whole(tmp_path):
    rows, width = 60_000, 400  # 96 MB
    values = np.random.default_rng(0).random((rows, width), np.float32)
    values /= values.sum(axis=1, keepdims=True)
    table = pa.table({"sample_id": names(rows), "probs": vectors(values)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows, use_dictionary=False, compression="none")
    del table, values
    pa.default_memory_pool().release_unused()
    before, most = pa.total_allocated_bytes(), 0
    for _ in opened(tmp_path / "t.parquet", names(width)).logits():
        most = max(most, pa.total_allocated_bytes() - before)
    assert print(most / 2**20) or most < 60 * 2**20


def test_the_identity_is_plain_and_changes_with_the_files(tmp_path):
    write(tmp_path / "a.parquet", probs=lists(PROBS))
    before = opened(tmp_path).identity
    assert json.loads(json.dumps(before)) == before
    assert opened(tmp_path).identity == before
    assert before == {
        "a.parquet": [(tmp_path / "a.parquet").stat().st_size, (tmp_path / "a.parquet").stat().st_mtime_ns]
    }
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    touched = opened(tmp_path).identity
    assert touched != before
    write(tmp_path / "b.parquet", sample_id=["x"], probs=lists([[1, 0, 0]]))
    assert opened(tmp_path).identity != touched


# ---------------------------------------------------------------- names of classes


def scored(folder: Path, classes: list[str], **columns) -> Path:
    """What jobs/score.py leaves."""
    with StageFolder(Place.of(folder), "scores", 1).writing() as out:
        write(Path(out.place.path) / "part_00000.parquet", **columns)
        out.facts["classes"] = classes
    return folder


def test_a_table_of_jobs_score_is_matched_by_name(tmp_path):
    folder = scored(tmp_path / "scores", ["bird", "cat", "dog"], probs=lists([[0.75, 0.125, 0.125]]))
    for path in (folder, folder / "part_00000.parquet"):
        np.testing.assert_allclose(read(path)["s0"], [0.125, 0.125, 0.75], rtol=1e-6)
        assert "_DONE.json" in opened(path).identity
    says(refused_at_once(folder, ["cat", "dog"]), "'bird' is none here")


def test_names_in_the_metadata_count_and_go_before_those_beside_the_file(tmp_path):
    said = {"classes": json.dumps(["dog", "bird", "cat"])}
    path = write(tmp_path / "t.parquet", said, probs=lists([[0.125, 0.75, 0.125]]))
    np.testing.assert_allclose(read(path)["s0"], [0.125, 0.125, 0.75], rtol=1e-6)
    with StageFolder(Place.of(tmp_path / "scores"), "scores", 1).writing() as out:
        (Path(out.place.path) / "t.parquet").write_bytes(path.read_bytes())
        out.facts["classes"] = CLASSES
    np.testing.assert_allclose(read(tmp_path / "scores")["s0"], [0.125, 0.125, 0.75], rtol=1e-6)


def test_each_file_has_its_own_order(tmp_path):
    write(tmp_path / "a.parquet", {"classes": json.dumps(CLASSES)}, sample_id=["a"], probs=lists([[0.5, 0.25, 0.25]]))
    write(
        tmp_path / "b.parquet",
        {"classes": json.dumps(CLASSES[::-1])},
        sample_id=["b"],
        probs=lists([[0.5, 0.25, 0.25]]),
    )
    found = read(tmp_path)
    np.testing.assert_allclose([found["a"], found["b"]], [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_a_column_a_class_is_what_predict_proba_gives(tmp_path, kind):
    columns = {"bird": [0.25, 0.0], "path": ["x", "y"], "cat": [0.5, 1.0], "dog": [0.25, 0.0], "loss": [7.0, np.nan]}
    typed = {name: pa.array(values, None if name == "path" else kind) for name, values in columns.items()}
    found = read(write(tmp_path / "t.parquet", **typed))
    np.testing.assert_allclose(list(found.values()), [[0.5, 0.25, 0.25], [1, 0, 0]], atol=1e-7)


def test_class_names_with_dots_are_columns_of_their_own(tmp_path):
    path = write(tmp_path / "t.parquet", **{"St": [0.5], "St. Bernard": [0.25], "St. Bernard.": [0.25]})
    np.testing.assert_allclose(read(path, ["St. Bernard", "St", "St. Bernard."])["s0"], [0.25, 0.5, 0.25], rtol=1e-6)


def test_probabilities_of_classes_that_became_one_add(tmp_path):
    renamed = {"tabby": "cat", "tomcat": "cat", "pup": "dog"}
    values = {"tabby": 0.25, "bird": 0.25, "cat": 0.125, "pup": 0.125, "tomcat": 0.25}
    as_columns = write(tmp_path / "c.parquet", **{name: [value] for name, value in values.items()})
    as_vector = write(tmp_path / "v.parquet", {"classes": json.dumps(list(values))}, probs=lists([values.values()]))
    for path in (as_columns, as_vector):
        np.testing.assert_allclose(read(path, renamed=renamed)["s0"], [0.625, 0.125, 0.25], rtol=1e-6)


@examples(50)
@given(
    logits=hnp.arrays(np.float64, (3, 5), elements=st.floats(-300, 300)),
    belongs=st.permutations([0, 0, 1, 1, 2]),
)
def test_logits_of_classes_that_became_one_are_those_of_the_sum(tmp_path_factory, logits, belongs):
    old = [f"old {m}" for m in range(5)]
    renamed = {name: CLASSES[c] for name, c in zip(old, belongs, strict=True)}
    if abs(logits.sum(axis=1) - 1).max() < 0.01:
        logits -= 1
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    write(path, {"classes": json.dumps(old)}, logits=lists(logits.tolist()))
    expected = np.stack([softmax(logits)[:, np.array(belongs) == c].sum(axis=1) for c in range(3)], axis=1)
    np.testing.assert_allclose(list(read(path, renamed=renamed).values()), expected, rtol=1e-4, atol=1e-30)


# ---------------------------------------------------------------- no table


def test_nothing_there_is_said_with_what_was_expected(tmp_path):
    says(refused_at_once(tmp_path / "none.parquet"), "nothing at", "none.parquet", "sample_id and probs or logits")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"sample_id,cat,dog,bird\na,0.5,0.25,0.25\n", "it is text"),
        (b"", "empty"),
        (b"PAR1" + b"\0" * 100, "cannot be read as Parquet"),
    ],
)
def test_what_is_no_parquet_is_called_what_it_is(tmp_path, data, what):
    (tmp_path / "t.parquet").write_bytes(data)
    for path in (tmp_path / "t.parquet", tmp_path):
        says(refused_at_once(path), "t.parquet", what, "to_parquet")


def test_a_file_that_is_damaged_within_says_which(tmp_path):
    path = write(tmp_path / "t.parquet", probs=lists([[0.5, 0.25, 0.25]] * 1000))
    data = bytearray(path.read_bytes())
    data[4:-600] = bytes(len(data) - 604)
    path.write_bytes(data)
    says(refused(path), "t.parquet cannot be read as Parquet")


def test_a_folder_without_parquet_says_what_it_holds(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    says(refused_at_once(tmp_path), "no Parquet file", "1 .csv")


def test_a_table_without_rows_is_refused(tmp_path):
    says(refused_at_once(write(tmp_path / "t.parquet", probs=lists([]))), "no rows", str(tmp_path))


# ---------------------------------------------------------------- wrong columns


def test_without_sample_id_the_columns_are_listed_and_the_nearest_named(tmp_path):
    pq.write_table(pa.table({"sampleid": ["a"], "probs": lists([[1, 0, 0]])}), tmp_path / "t.parquet")
    says(refused_at_once(tmp_path / "t.parquet"), "no column 'sample_id'", "did you mean 'sampleid'?", "'probs'")


def test_ids_that_are_no_text_and_no_whole_numbers_are_refused(tmp_path):
    says(
        refused_at_once(write(tmp_path / "t.parquet", sample_id=[1.0], probs=lists([[1, 0, 0]]))), "sample_id", "double"
    )


def test_a_table_without_any_opinion_says_what_it_has(tmp_path):
    message = refused_at_once(write(tmp_path / "t.parquet", score=[0.1], path=["x"]))
    says(message, "no column probs or logits", "'cat', 'dog', 'bird'", "'score', 'path'")


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("column", ["probs", "logits"])
def test_another_number_of_classes_is_refused(tmp_path, column, fixed):
    rows = np.array([[-0.5, 1.5], [0.5, 0.5]])
    values = vectors(rows) if fixed else lists(rows)
    says(refused_at_once(write(tmp_path / "t.parquet", **{column: values})), column, "has 2 numbers; expected 3")


def test_other_classes_are_named_both_ways(tmp_path):
    said = {"classes": json.dumps(["cat", "dgo", "bird"])}
    message = refused_at_once(write(tmp_path / "t.parquet", said, probs=lists(PROBS)))
    says(message, "it lacks 'dog'", "'dgo' is none here", "did you mean 'dog'?", "labels.renamed")
    assert read(tmp_path / "t.parquet", renamed={"dgo": "dog"}).keys() == set(names(3))


def test_a_missing_column_of_a_class_is_named_with_the_nearest(tmp_path):
    message = refused_at_once(write(tmp_path / "t.parquet", cat=[0.5], dogs=[0.25], bird=[0.25]))
    says(message, "none for 'dog'", "did you mean 'dogs'?", "2 of 3")


@pytest.mark.parametrize("said", ["cat,dog,bird", '{"cat": 0}', "[0, 1, 2]"])
def test_metadata_that_is_no_list_of_names_is_refused(tmp_path, said):
    says(
        refused_at_once(write(tmp_path / "t.parquet", {"classes": said}, probs=lists(PROBS))),
        "expected a JSON list",
        said,
    )


def test_names_that_repeat_and_names_of_another_number_are_refused(tmp_path):
    said = {"classes": json.dumps(["cat", "dog", "bird", "cat"])}
    says(refused_at_once(write(tmp_path / "t.parquet", said, probs=lists(PROBS))), "'cat' twice")
    said = {"classes": json.dumps(CLASSES)}
    says(refused_at_once(write(tmp_path / "t.parquet", said, probs=lists([[0.5, 0.5]]))), "has 2 numbers; expected 3")


@pytest.mark.parametrize("column", [["[0.5, 0.5, 0]"], [0.5], [["a", "b", "c"]]])
def test_a_vector_column_of_another_type_is_refused(tmp_path, column):
    says(refused_at_once(write(tmp_path / "t.parquet", probs=column)), "'probs'", "expected a list of numbers")


def test_a_class_column_of_text_is_refused(tmp_path):
    says(refused_at_once(write(tmp_path / "t.parquet", cat=["0.5"], dog=[0.5], bird=[0.0])), "'cat'", "string")


def test_columns_that_are_there_twice_are_refused(tmp_path):
    probs = lists([[1, 0, 0]])
    pq.write_table(pa.table([["a"], probs, probs], names=["sample_id", "probs", "probs"]), tmp_path / "t.parquet")
    says(refused_at_once(tmp_path / "t.parquet"), "'probs' more than once")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"logits": lists([[1, 2, 3]])}, "has a column logits, a.parquet has a column probs"),
        ({"cat": [1.0], "dog": [0.0], "bird": [0.0]}, "has a column for each class, a.parquet has a column probs"),
        (
            {"sample_id": [1], "probs": lists([[1, 0, 0]])},
            "has whole numbers as sample_id, a.parquet has text",
        ),
    ],
)
def test_a_file_of_another_schema_is_named(tmp_path, other, what):
    write(tmp_path / "a.parquet", probs=lists(PROBS))
    write(tmp_path / "b.parquet", **other)
    says(refused_at_once(tmp_path), "b.parquet", what)


# ---------------------------------------------------------------- wrong rows

GOOD = [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("column", "row", "what"),
    [
        ("probs", None, "has no probs (null)"),
        ("logits", None, "has no logits (null)"),
        ("probs", [0.5, 0.5], "has 2 numbers; expected 3"),
        ("probs", [0.5, np.nan, 0.5], "has NaN or null in probs[1]"),
        ("probs", [0.5, None, 0.5], "has NaN or null in probs[1]"),
        ("logits", [0.5, 0.0, -np.inf], "has -inf in logits[2]; expected a finite number"),
        ("logits", [1e300, 0.0, 0.0], "has 1e+300 in logits[0]"),
        ("probs", [0.5, -0.25, 0.75], "has -0.25 in probs[1]; expected a probability"),
        ("probs", [2.0, 1.0, 0.5], "sum to 3.5; expected 1"),
        ("probs", [2.0, 1.0, 0.5], "If these are logits, or logarithms, name the column logits"),
        ("probs", [-2.0, -1.0, -0.5], "If these are logits, or logarithms, name the column logits"),
        ("probs", [50.0, 25.0, 24.9], "sum to 99.9; expected 1, give or take 0.005. These are percent"),
        ("probs", [0.0, 0.0, 0.0], "sum to 0; expected 1"),
    ],
)
@pytest.mark.parametrize("before", [0, 5000])
def test_a_bad_row_is_named_wherever_it_is(tmp_path, column, row, what, before):
    good = GOOD if column == "probs" else [1.0, 2.0, 3.0]
    write(tmp_path / "a.parquet", sample_id=["first"], **{column: lists([good])})
    path = write(tmp_path / "b.parquet", **{column: lists([good] * before + [row, good])})
    message = refused(tmp_path)
    says(message, f"row {before} of {path}", f"'s{before}'", what)
    if not before:
        assert refused_at_once(path) == message


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (None, "has NaN or null in column 'dog'"),
        (np.inf, "has inf in column 'dog'"),
        (-0.5, "has -0.5 in column 'dog'; expected a probability"),
        (0.75, "sum to 1.5; expected 1, give or take 0.005. If the table has columns of more classes"),
    ],
)
def test_a_bad_number_in_a_column_of_a_class_is_named(tmp_path, bad, what):
    path = write(tmp_path / "t.parquet", cat=[0.5, 0.5], dog=pa.array([0.25, bad]), bird=[0.25, 0.25])
    says(refused_at_once(path), f"row 1 of {path} (sample_id 's1')", what)


@pytest.mark.parametrize(("factor", "what"), [(1, "holds probabilities"), (100, "holds percents")])
@pytest.mark.parametrize("first", [1.0, 1.01])
def test_probabilities_and_percents_that_are_called_logits_are_refused(tmp_path, factor, what, first):
    """Also when rounding has a row sum to a little more."""
    rows = [[factor * p * (first if n == 0 else 1.0) for p in row] for n, row in enumerate(PROBS)]
    says(refused_at_once(write(tmp_path / "t.parquet", logits=lists(rows))), what, "Name the column probs")


def test_null_ids_and_repeated_ids_are_refused_by_row(tmp_path):
    path = write(tmp_path / "t.parquet", sample_id=["a", None, "c"], probs=lists(PROBS))
    says(refused_at_once(path), "sample_id is null in row 1", "t.parquet")
    path = write(tmp_path / "t.parquet", sample_id=["a", "b", "c"], probs=lists(PROBS))
    write(tmp_path / "u.parquet", sample_id=["d", "c", "b"], probs=lists(PROBS))
    table = opened(tmp_path)
    with pytest.raises(UserError) as error:
        table.ids()
    says(str(error.value), "'b' is in 2 rows", "row 1 of t.parquet and row 2 of u.parquet")


# ---------------------------------------------------------------- against the pool


def test_ids_that_the_table_lacks_come_in_the_pools_order():
    ids, wanted = (pa.chunked_array([list(each)], pa.string()) for each in ("dbax", "zabcd"))
    assert missing_ids(ids, wanted, Place.of("t.parquet")).to_pylist() == ["z", "c"]
    assert missing_ids(ids, ids, Place.of("t.parquet")).to_pylist() == []
    assert missing_ids(ids, ids.slice(0, 0), Place.of("t.parquet")).to_pylist() == []


def test_another_scheme_of_ids_is_shown_side_by_side():
    ids, wanted = pa.chunked_array([["0001", "0002", "0003"]]), pa.chunked_array([["cat/1.jpg", "cat/2.jpg", "z"]])
    with pytest.raises(UserError) as error:
        missing_ids(ids, wanted, Place.of("t.parquet"))
    says(str(error.value), "none of 3 images", "t.parquet", "such as '0001', '0002'", "pool 'cat/1.jpg', 'cat/2.jpg'")
