"""The images of a simulation: variants of the pool, and tables of anybody's features."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import CLASSES, small_problem, write_small

from raykd.errors import UserError
from raykd.simulation.definition import SetConfig
from raykd.simulation.problem import given_tables, tailed_counts, variant
from raykd.store.place import Place
from raykd.store.tables import vectors


@pytest.fixture
def tables(tmp_path):
    write_small(tmp_path)
    return tmp_path


def counts(problem) -> list[int]:
    return np.bincount(problem.labels_N[problem.pool], minlength=len(problem.classes)).tolist()


def test_tables_become_a_problem_row_by_row(tables):
    problem, given = small_problem(tables), pq.read_table(tables / "pool.parquet").sort_by("sample_id")
    assert problem.ids[problem.pool].tolist() == given["sample_id"].to_pylist()
    assert [CLASSES[label] for label in problem.labels_N[problem.pool]] == given["label"].to_pylist()
    np.testing.assert_array_equal(problem.features_ND[problem.pool], np.array(given["features"].to_pylist(), "f2"))
    np.testing.assert_array_equal(problem.logits_NC[problem.pool], np.array(given["logits"].to_pylist(), "f4"))
    assert (len(problem.val), len(problem.test)) == (15, 30)
    assert problem.texts.scale == 5.0


def test_a_long_tail_is_geometric_and_leaves_test_and_val_whole(tables):
    whole = small_problem(tables)
    tail = variant(whole, SetConfig(long_tailed=4), seed=0)
    assert counts(tail) == [20, 10, 5]
    np.testing.assert_array_equal(tail.ids[tail.test], whole.ids[whole.test])
    np.testing.assert_array_equal(tail.ids[tail.val], whole.ids[whole.val])
    where = np.searchsorted(whole.ids[whole.pool].astype(str), tail.ids[tail.pool].astype(str))
    np.testing.assert_array_equal(whole.features_ND[whole.pool][where], tail.features_ND[tail.pool])
    again, other = (variant(whole, SetConfig(long_tailed=4), seed) for seed in (0, 1))
    assert again.ids.tolist() == tail.ids.tolist() != other.ids.tolist()
    assert sum(part.stop - part.start for part in tail.parts) == len(tail.ids)


@pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0, 100.0])
def test_no_class_is_asked_for_more_images_than_it_has(ratio):
    rng = np.random.default_rng(int(ratio))
    for _ in range(20):
        have = rng.integers(1, 50, 7)
        left = tailed_counts(have, ratio)
        assert ((left >= 1) & (left <= have)).all()
        assert (np.diff(left) <= 0).all()
    assert tailed_counts(np.array([30, 30, 0, 30]), 1.0).tolist() == [30, 30, 0, 30]


def test_a_missing_class_has_no_image_in_the_pool_and_is_still_a_class_that_is_tested(tables):
    some = variant(small_problem(tables), SetConfig(missing=["bee"], long_tailed=4), seed=0)
    assert counts(some) == [20, 0, 5]
    assert some.classes == tuple(CLASSES)
    assert np.bincount(some.labels_N[some.test]).tolist() == [10, 10, 10]


def test_a_missing_class_that_is_none_is_refused_and_so_is_a_pool_without_images(tables):
    with pytest.raises(UserError, match=r"'bea' is no class; did you mean 'bee'\?"):
        variant(small_problem(tables), SetConfig(missing=["bea"]), seed=0)
    with pytest.raises(UserError, match="no image is left"):
        variant(small_problem(tables), SetConfig(missing=CLASSES), seed=0)


def change(file, **columns) -> None:
    table = pq.read_table(file)
    for name, values in columns.items():
        table = table.drop_columns(name)
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, file)


MISTAKES = {  # what is done to the folder, and what is said of it
    "no classes": (lambda at: (at / "classes.json").unlink(), "no classes.json"),
    "no test": (lambda at: (at / "test.parquet").unlink(), r"no test\.parquet"),
    "a class twice": (lambda at: (at / "classes.json").write_text(json.dumps(["a", "a"])), "different names"),
    "no logits": (lambda at: change(at / "val.parquet", logits=None), "no column 'logits'"),
    "unknown label": (
        lambda at: change(at / "val.parquet", label=pa.array(["dog"] * 15)),
        "label 'dog', which is none",
    ),
    "other width": (
        lambda at: change(at / "val.parquet", features=vectors(np.ones((15, 5)))),
        r"features of widths \[5, 6\]",
    ),
    "too few logits": (lambda at: change(at / "test.parquet", logits=vectors(np.ones((30, 2)))), "logits of 2 classes"),
    "not finite": (
        lambda at: change(at / "test.parquet", features=vectors(np.full((30, 6), 1e9))),
        "the features of '.*' are not finite",
    ),
    "an id twice": (
        lambda at: change(at / "val.parquet", sample_id=pa.array(["a"] * 15)),
        "'a' is there more than once",
    ),
    "other texts": (lambda at: np.savez(at / "texts.npz", directions_CD=np.ones((3, 4)), scale=1), r"shape \(3, 4\)"),
    "no texts": (lambda at: (at / "texts.npz").write_text("x"), "expected a NumPy .npz"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_tables_that_do_not_fit_are_refused_with_what_is_wrong(mistake, tables):
    spoil, said = MISTAKES[mistake]
    spoil(tables)
    with pytest.raises(UserError, match=said):
        given_tables(Place.of(tables))
