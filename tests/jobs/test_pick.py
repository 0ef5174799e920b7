"""The job for people who already have probabilities: its fixed interface, and a clear error for each bad input."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(ray_cluster, monkeypatch, capsys):
    """Runs the job in this process, on the session's Ray: exit code, stdout, stderr."""
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    import pick

    def run(*args):
        try:
            pick.main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def make_table(num_rows, prefix, seed, kind=None, num_classes=4):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, 0.4), num_rows).astype(np.float32)
    columns = {
        "sample_id": pa.array([f"{prefix}{number}" for number in range(num_rows)]),
        "probs": pa.array(probs.astype((kind or pa.list_(pa.float32())).value_type.to_pandas_dtype()).tolist(), kind),
        "features": pa.array(rng.normal(size=(num_rows, 3)).tolist()),
    }
    return pa.table(columns)


@pytest.fixture
def given(tmp_path):
    pool, labeled = make_table(50, "p", 0), make_table(6, "l", 1)
    labeled = labeled.append_column("label", pa.array([0, 1, 2, 3, 0, 1], pa.int64()))
    write = Tables(tmp_path)
    write(pool=pool, labeled=labeled)
    return write


class Tables:
    """The job's tables, and its arguments."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, **tables):
        for name, table in tables.items():
            pq.write_table(table, self.folder / f"{name}.parquet", row_group_size=16)

    def change(self, name, column, values):
        table = pq.read_table(self.folder / f"{name}.parquet")
        at = table.schema.get_field_index(column)
        self(**{name: table.set_column(at, column, values(table[column].to_pylist()))})

    def arguments(self, **changed):
        args = {
            "pool": self.folder / "pool.parquet",
            "labeled": self.folder / "labeled.parquet",
            "strategy": "pcoreset",
            "budget": 10,
            "shards": 1,
            "seed": 0,
            "out": self.folder / "picks.parquet",
        } | changed
        return [text for name, value in args.items() if value is not None for text in (f"--{name}", value)]

    def picks(self):
        return pq.read_table(self.folder / "picks.parquet")


# ---------------------------------------------------------------- what it does


@pytest.mark.parametrize(
    ("strategy", "labeled"),
    [
        ("badge", True),
        ("class_balanced", True),
        ("coreset", False),
        ("entropy", True),
        ("falcun", False),
        ("pcoreset", False),
        ("probcover", False),
        ("random", True),
        ("spread", True),
        ("typiclust", False),
        ("uherding", True),
    ],
)
def test_it_writes_picks_in_order(run, given, strategy, labeled):
    changed = {} if labeled else {"labeled": None}
    code, out, err = run(*given.arguments(strategy=strategy, shards=1, **changed))
    assert (code, err) == (0, "")
    assert f"{strategy}: 10 of 50 rows, {6 if labeled else 0} labeled" in out
    assert str(given.folder / "picks.parquet") in out
    table = given.picks()
    assert table.schema.names == ["sample_id", "rank", "distance", "probability"]
    assert table["rank"].to_pylist() == list(range(10))
    assert (table["probability"].null_count < 10) == (strategy in ("falcun", "random"))
    ids = table["sample_id"].to_pylist()
    assert len(set(ids)) == 10
    assert set(ids) <= {f"p{number}" for number in range(50)}
    assert sorted(path.name for path in given.folder.iterdir()) == ["labeled.parquet", "picks.parquet", "pool.parquet"]


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.list_(pa.float64(), 4)], ids=str)
def test_any_list_of_floats_is_read(run, given, kind):
    given(pool=make_table(50, "p", 0, kind))
    assert run(*given.arguments())[0] == 0
    pool, labeled = (pq.read_table(given.folder / f"{name}.parquet") for name in ("pool", "labeled"))
    probs, centers = (np.array(table["probs"].to_pylist(), np.float32).astype(float) for table in (pool, labeled))
    nearest = np.linalg.norm(probs[:, None] - centers, axis=2).min(axis=1)
    assert given.picks()["sample_id"][0].as_py() == f"p{nearest.argmax()}"
    assert given.picks()["distance"][0].as_py() == pytest.approx(nearest.max(), abs=1e-9)


def test_picks_do_not_depend_on_shards_or_on_the_order_of_rows(run, given):
    run(*given.arguments())
    expected = given.picks()
    pool = pq.read_table(given.folder / "pool.parquet")
    given(pool=pool.take(np.random.default_rng(0).permutation(50)))
    (given.folder / "picks.parquet").unlink()
    run(*given.arguments(shards=3))
    assert given.picks().equals(expected)


def test_distances_are_nan_where_they_mean_nothing(run, given):
    run(*given.arguments(strategy="entropy"))
    assert all(math.isnan(distance) for distance in given.picks()["distance"].to_pylist())


def test_from_the_shell_it_starts_ray_by_itself(given):
    """The interface as the README gives it; and an error that costs no Ray."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def shell(**changed):
        command = [sys.executable, "jobs/pick.py", *map(str, given.arguments(**changed))]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)

    done = shell()
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert given.picks().num_rows == 10
    refused = shell(strategy="pcorset", out=given.folder / "other.parquet")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --strategy: unknown strategy 'pcorset'; did you mean 'pcoreset'?")
    assert "Traceback" not in refused.stderr


# ---------------------------------------------------------------- what it refuses


def refused(run, given, message, **changed):
    out = given.folder / "picks.parquet"
    before = out.read_bytes() if out.exists() else None
    code, _, err = run(*given.arguments(**changed))
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert (out.read_bytes() if out.exists() else None) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pool": "nowhere.parquet"}, "no pool table at"),
        ({"labeled": "nowhere.parquet"}, "no labeled table at"),
        ({"pool": __file__}, "cannot read pool table"),
        ({"strategy": "pcorset"}, "unknown strategy 'pcorset'; did you mean 'pcoreset'?"),
        ({"budget": 0}, "budget is 0; expected at least 1"),
        ({"budget": 51}, "budget 51 is larger than the pool: there are 50 rows"),
        ({"shards": 0}, "shards is 0; expected at least 1"),
    ],
)
def test_a_bad_argument_is_refused(run, given, changed, message):
    refused(run, given, message, **changed)


def test_an_existing_out_is_never_overwritten(run, given):
    (given.folder / "picks.parquet").write_bytes(b"mine")
    refused(run, given, "picks.parquet exists; give another --out")


def test_an_out_that_cannot_be_written_is_told_before_the_work(run, given, monkeypatch):
    """Or the picks of hours would be lost."""
    from raykd.stages import pick_tables

    monkeypatch.setattr(pick_tables, "pick_from_tables", None)  # no picking
    (given.folder / "file").write_text("")
    code, _, err = run(*given.arguments(out=given.folder / "file" / "picks.parquet"))
    assert code == 2
    assert f"error: cannot write {given.folder}/file/picks.parquet: a file is where its folder should be" in err


@pytest.mark.parametrize("changed", [{"duplicate-cosine": 0.9}, {"duplicate-column": "probs"}])
def test_what_a_cap_counts_wants_the_cap(run, given, changed):
    refused(run, given, "say what --max-duplicates counts; give that too", **changed)


def test_a_strategys_options_and_a_balance_are_the_jobs_too(run, given):
    def ids(**changed):
        (given.folder / "picks.parquet").unlink(missing_ok=True)
        code, _, err = run(*given.arguments(**changed), *(["--balance"] if balance else []))
        assert (code, err) == (0, "")
        return given.picks()["sample_id"].to_pylist()

    balance = False
    plain = ids(strategy="spread", score="entropy", apart=0, column="probs")
    assert plain == ids(strategy="entropy")
    assert plain != ids(strategy="spread", score="entropy", apart=1, column="probs")
    balance = True
    assert plain != ids(strategy="entropy")


def test_an_option_that_the_strategy_does_not_look_at_is_refused(run, given):
    refused(run, given, "strategy 'pcoreset' does not look at gamma; leave it out, or choose falcun", gamma=2)
    refused(run, given, "--apart: Input should be less than or equal to 2", strategy="spread", apart=3)


def test_a_missing_column_is_refused_with_those_there(run, given):
    pool = pq.read_table(given.folder / "pool.parquet")
    given(pool=pool.drop_columns(["features"]))
    refused(run, given, "has no column 'features'; it has: sample_id, probs", strategy="coreset")
    given(pool=pool.rename_columns(["id", "probs", "features"]))
    refused(run, given, "has no column 'sample_id'; it has: id, probs, features")
    given(pool=pool, labeled=pq.read_table(given.folder / "labeled.parquet").drop_columns(["label"]))
    refused(run, given, "has no column 'label'; it has: sample_id, probs, features", strategy="class_balanced")
    assert run(*given.arguments())[0] == 0  # pcoreset reads no labels


def test_probabilities_that_are_none_are_refused_with_their_ids(run, given):
    given.change("pool", "probs", lambda rows: pa.array([[math.nan, 1, 0, 0], *rows[1:20], [0.5, 0, 0, 0], *rows[21:]]))
    refused(
        run, given, "2 vectors in the pool cannot be used, first: 'p0': probs hold NaN or infinity; 'p20': probs sum to"
    )
    refused(run, given, "2 vectors in the pool cannot be used", strategy="badge", shards=2)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (lambda rows: pa.array([*rows[:30], [0.5, 0.5], *rows[31:]]), "probs of 'p30' has 2 values, that of 'p"),
        (lambda rows: pa.array([*rows[:30], None, *rows[31:]]), "probs of 'p30' is null; expected a vector"),
        (lambda rows: pa.array([*rows[:30], [0.5, None, 0.5, 0.0], *rows[31:]]), "'p30': probs hold NaN"),
        (
            lambda rows: pa.array([row[0] for row in rows]),
            "column 'probs' is of type double; expected a list of numbers",
        ),
    ],
)
def test_vectors_that_are_no_vectors_are_refused(run, given, column, message):
    given.change("pool", "probs", column)
    refused(run, given, message)


def test_ids_that_occur_twice_are_refused(run, given):
    given.change("pool", "sample_id", lambda ids: pa.array([*ids[:49], "p0"]))
    refused(run, given, "1 ids occur more than once in the pool, first: 'p0'")
    given.change("pool", "sample_id", lambda ids: pa.array([*ids[:49], "l3"]))
    refused(run, given, "1 ids are both in the pool and among the labeled rows, first: 'l3'")
    given.change("pool", "sample_id", lambda ids: pa.array([*ids[:49], None]))
    refused(run, given, "sample_id is null in 1 rows")


def test_labels_that_are_no_class_are_refused(run, given):
    given.change("labeled", "label", lambda labels: pa.array([*labels[:4], 4, -1]))
    refused(run, given, "2 labels are out of range, first: 'l4' has 4, 'l5' has -1; expected class indices 0 to 3")
    given.change("labeled", "label", lambda labels: pa.array([*labels[:5], None]))
    refused(run, given, "expected a class index (an integer) in every row")
    given.change("labeled", "label", lambda labels: pa.array(["cat"] * 6))
    refused(run, given, "column 'label' of")


def test_pool_and_labeled_rows_of_different_length_are_refused(run, given):
    given(labeled=make_table(6, "l", 1, num_classes=5).append_column("label", pa.array([0] * 6)))
    refused(run, given, "probs differ in length (the pool: 4; the labeled rows: 5)")
