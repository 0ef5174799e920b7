"""Selection over Ray gives what the algorithm gives in one process, also when a shard is killed."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raykd.algo.heads import Mixture, probabilities
from raykd.algo.selection import kcenter
from raykd.algo.selection.kcenter import coverage_radius
from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.reference import plain_farthest_first
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import STRATEGIES, pick
from raykd.stages import pick_tables, shard_rows
from raykd.store.place import Place
from raykd.store.tables import PICKS
from raykd.store.tables import vectors as list_column

NUM_ROWS, NUM_LABELED, NUM_CLASSES, WIDTH = 200, 12, 6, 4


@pytest.fixture(scope="module")
def shard_actors(ray_cluster):
    from raykd.stages import shard_actors

    return shard_actors


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(NUM_CLASSES, 0.2), NUM_ROWS + NUM_LABELED)
    probs[50:60] = probs[0]
    features = rng.normal(size=(len(probs), WIDTH)).astype(np.float16)
    ids = [f"s{number}" for number in rng.permutation(len(probs))]
    return Rows(ids, probs, features, rng.integers(0, NUM_CLASSES, len(probs)), probs)


@pytest.fixture(scope="module")
def tables(rows, tmp_path_factory) -> tuple[str, str]:
    """Pool and labeled Parquet files as a user may have them; many row groups."""
    folder = tmp_path_factory.mktemp("tables")
    table = pa.table(
        {
            "sample_id": pa.array(rows.ids.tolist()),
            "probs": pa.array(rows.probs.tolist(), pa.list_(pa.float32())),
            "features": list_column(rows.features.astype(np.float16)),
            "label": pa.array(rows.labels.astype(np.int32)),
        }
    )
    pq.write_table(table.slice(0, NUM_ROWS).drop_columns(["label"]), folder / "pool.parquet", row_group_size=30)
    pq.write_table(table.slice(NUM_ROWS), folder / "labeled.parquet")
    return str(folder / "pool.parquet"), str(folder / "labeled.parquet")


def local(rows: Rows, name: str, budget: int, seed: int = 3):
    parts = rows.take(np.arange(NUM_ROWS)), rows.take(np.arange(NUM_ROWS, len(rows)))
    return pick(name, LocalShards.split(parts[0], 1), parts[1], budget, seed)


def same(one, other):
    return one.ids == other.ids and np.array_equal(one.distances, other.distances, equal_nan=True)


# ---------------------------------------------------------------- reading


def write_pool(path, num_rows, row_group_size, offset=0):
    ids = [f"r{number + offset:05d}" for number in range(num_rows)]
    probs = np.tile([[0.25, 0.75]], (num_rows, 1)).astype(np.float32)
    pq.write_table(pa.table({"sample_id": ids, "probs": list_column(probs)}), path, row_group_size=row_group_size)
    return ids


@pytest.mark.parametrize("row_group_size", [7, 1000], ids=["many_row_groups", "one_row_group"])
@pytest.mark.parametrize("num_shards", [1, 2, 7, 150])
def test_slices_hold_every_row_once_and_read_only_what_they_need(tmp_path, monkeypatch, num_shards, row_group_size):
    monkeypatch.setattr(shard_rows, "READ_ROWS", 5)
    (tmp_path / "deeper").mkdir()
    ids = write_pool(tmp_path / "a.parquet", 60, row_group_size)
    ids += write_pool(tmp_path / "deeper" / "b.parquet", 41, row_group_size, 60)
    source = shard_rows.PoolSource(uris=(str(tmp_path),))
    slices = shard_rows.plan(shard_rows.open_pool(source), num_shards)
    parts = [shard_rows.read_slices(source, pieces)[0] for pieces in slices]
    assert [name for part in parts for name in part.ids] == ids
    assert {len(part) for part in parts} <= {101 // num_shards, 101 // num_shards + 1}
    for pieces in slices:
        for piece in pieces:
            file = pq.ParquetFile(piece.path).metadata
            sizes = [file.row_group(group).num_rows for group in piece.row_groups]
            assert piece.skip < sizes[0]
            assert sum(sizes[:-1]) < piece.skip + piece.take <= sum(sizes)


def test_the_pool_is_what_split_error_and_the_lists_leave(tmp_path):
    logits = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    unread = np.array([False] * 6 + [True, False])
    table = pa.table(
        {
            "sample_id": list("abcdefgh"),
            "split": ["pool"] * 4 + ["test", "val", "pool", "pool"],
            "logits": list_column(logits, mask=unread),
            "features": list_column(logits.astype(np.float16), mask=unread),
            "error": [None] * 6 + ["truncated", None],
        }
    )
    Place.of(tmp_path / "teacher.parquet").write_table(table, row_group_rows=3)
    source = shard_rows.PoolSource(
        uris=(str(tmp_path / "teacher.parquet"),),
        needs=("probs", "features"),
        probs_from=("logits",),
        labeled=("h", "b"),
        excluded=("c",),
    )
    pieces = shard_rows.plan(shard_rows.open_pool(source), 1)[0]
    pool, labeled = shard_rows.read_slices(source, pieces)
    assert (pool.ids.tolist(), labeled.ids.tolist()) == (["a", "d"], ["b", "h"])
    np.testing.assert_array_equal(pool.probs, probabilities({"logits": logits[[0, 3]]}))
    np.testing.assert_array_equal(labeled.features, logits[[1, 7]].astype(np.float16).astype(np.float32))


def test_the_parts_of_a_pool_are_one_pool(tmp_path):
    ids = []
    for number in range(3):
        (tmp_path / f"part_{number}").mkdir()
        ids += write_pool(tmp_path / f"part_{number}" / "rows.parquet", 5 + number, 3, len(ids))
    uris = (str(tmp_path / "part_0"), (tmp_path / "part_1").as_uri(), str(tmp_path / "part_2" / "rows.parquet"))
    source = shard_rows.PoolSource(uris=uris)
    for num_shards in (1, 4):
        slices = shard_rows.plan(shard_rows.open_pool(source), num_shards)
        assert [name for pieces in slices for name in shard_rows.read_slices(source, pieces)[0].ids] == ids
    with pytest.raises(ValueError, match=r"no pool table at .*part_3"):
        shard_rows.open_pool(replace(source, uris=(*uris, str(tmp_path / "part_3"))))


def test_parts_on_different_filesystems_are_refused(tmp_path, monkeypatch):
    first, other = pafs.LocalFileSystem(), pafs.LocalFileSystem(use_mmap=True)
    monkeypatch.setattr(Place, "fs", property(lambda self: other if self.uri.endswith("b") else first))
    with pytest.raises(
        ValueError, match=r"a and .*b lie on different filesystems; expected all parts of the pool on one"
    ):
        shard_rows.open_pool(shard_rows.PoolSource(uris=(str(tmp_path / "a"), str(tmp_path / "b"))))


def test_a_users_own_columns_leave_no_row_out(shard_actors, tmp_path):
    ids = write_pool(tmp_path / "plain.parquet", 6, 3)
    table = pq.read_table(tmp_path / "plain.parquet")
    table = table.append_column("split", pa.array(["train", "test"] * 3))
    table = table.append_column("error", pa.array([0.1] * 6))
    pq.write_table(table, tmp_path / "pool.parquet")
    checked = pick_tables.check_request(pick_tables.Request(pool=str(tmp_path / "pool.parquet"), budget=6))
    assert pick_tables.pick_from_tables(checked, 2).ids == ids


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64(), pa.int8()], ids=str)
@pytest.mark.parametrize(
    "kind", [pa.list_, pa.large_list, lambda number: pa.list_(number, 3)], ids=["list", "large", "fixed"]
)
def test_any_list_of_numbers_is_read_from_a_path_or_a_uri(tmp_path, number, kind):
    probs = np.eye(3)[[2, 0, 1, 1]].astype(number.to_pandas_dtype())
    pq.write_table(
        pa.table({"sample_id": list("abcd"), "probs": pa.array(list(probs), kind(number))}), tmp_path / "p.parquet"
    )
    for uri in (str(tmp_path / "p.parquet"), (tmp_path / "p.parquet").as_uri()):
        source = shard_rows.PoolSource(uris=(uri,))
        slices = shard_rows.plan(shard_rows.open_pool(source), 2)
        got = [shard_rows.read_slices(source, pieces)[0].probs for pieces in slices]
        assert np.concatenate(got).dtype == (np.float16 if number == pa.float16() else np.float32)
        np.testing.assert_array_equal(np.concatenate(got), probs.astype(np.float32))


def test_vectors_too_large_for_memory_are_mapped_and_may_be_rounded(rows, tables):
    whole = shard_rows.PoolSource(uris=(tables[0],), needs=("probs", "features"), labeled=("s1", "s7"))
    mapped = replace(whole, memory_gib=1e-9)
    rounded = replace(mapped, precision="fp16")
    slices = shard_rows.plan(shard_rows.open_pool(whole), 1)[0]
    (pool, labeled), (on_disk, _), (half, half_labeled) = (
        shard_rows.read_slices(source, slices) for source in (whole, mapped, rounded)
    )
    assert not isinstance(pool.probs.base, np.memmap)
    for name in ("probs", "features"):
        assert isinstance(getattr(on_disk, name).base, np.memmap)
        np.testing.assert_array_equal(getattr(on_disk, name), getattr(pool, name))
        np.testing.assert_array_equal(getattr(half, name), getattr(pool, name).astype(np.float16))
    assert len(labeled) == len(set(rows.ids[:NUM_ROWS]) & {"s1", "s7"})
    np.testing.assert_array_equal(half_labeled.probs, labeled.probs.astype(np.float16))


# ---------------------------------------------------------------- over Ray


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_ray_picks_what_the_algorithm_picks(shard_actors, rows, tables, num_shards, monkeypatch):
    if num_shards > 1:
        monkeypatch.setattr(kcenter, "SMALL_PRODUCTS", 0)  # as large pools, not gathered in the driver
    if num_shards == 2:
        monkeypatch.setattr(shard_actors, "SHARED_BYTES", 10)  # every argument by way of the object store
    with shard_actors.open_shards(
        shard_rows.PoolSource(uris=(tables[0],), needs=("probs", "features", "vectors")), num_shards
    ) as shards:
        labeled = rows.take(np.arange(NUM_ROWS, len(rows)))
        for name in STRATEGIES:
            assert same(pick(name, shards, labeled, 40, 3), local(rows, name, 40)), name
        expected = coverage_radius(LocalShards.split(rows.take(np.arange(NUM_ROWS)), 1), labeled)
        assert coverage_radius(shards, labeled) == expected


class Killing:
    """Kills shards, with all they know, in the middle of a selection."""

    def __init__(self, shards):
        self.shards, self.num_shards, self.calls = shards, shards.num_shards, 0

    def map(self, question, *args):
        import ray

        self.calls += question is Shard.propose
        if question is Shard.propose and self.calls in (3, 8):
            ray.kill(self.shards.actors[self.calls % 2], no_restart=False)
        return self.shards.map(question, *args)


@pytest.mark.parametrize("name", ["pcoreset", "badge"])
def test_a_killed_shard_comes_back_and_the_picks_are_the_same(shard_actors, rows, tables, name, monkeypatch):
    monkeypatch.setattr(kcenter, "SMALL_PRODUCTS", 0)
    monkeypatch.setattr(kcenter, "CANDIDATES_PER_PICK", 0)  # a few rows a round
    monkeypatch.setattr(kcenter, "FEWEST_CANDIDATES", 0)
    monkeypatch.setattr(kcenter, "SPARE", 3)
    source = shard_rows.PoolSource(uris=(tables[0],), needs=STRATEGIES[name].needs)
    with shard_actors.open_shards(source, 2) as shards:
        killing = Killing(shards)
        got = pick(name, killing, rows.take(np.arange(NUM_ROWS, len(rows))), 40, 3)
    assert killing.calls > 10
    assert same(got, local(rows, name, 40))


def test_students_logits_are_mixed_and_labeled_rows_are_set_aside(shard_actors, tmp_path):
    rng = np.random.default_rng(1)
    ce, kd = rng.normal(size=(2, 60, 5)).astype(np.float32) * 3
    ids = [f"image-{number}" for number in rng.permutation(60)]
    columns = {
        "sample_id": ids,
        "split": ["pool"] * 50 + ["test"] * 10,
        "ce_logits": list_column(ce),
        "kd_logits": list_column(kd),
    }
    Place.of(tmp_path / "predict.parquet").write_table(pa.table(columns), row_group_rows=16)
    labeled_ids = [ids[7], ids[30], ids[2]]
    source = shard_rows.PoolSource(
        uris=(str(tmp_path / "predict.parquet"),),
        probs_from=("ce_logits", "kd_logits"),
        mixture=Mixture(0.3, 0.5),
        labeled=tuple(labeled_ids),
        excluded=(ids[0],),
    )
    probs = probabilities({"ce_logits": ce, "kd_logits": kd}, Mixture(0.3, 0.5))
    with shard_actors.open_shards(source, 3) as shards:
        labeled = shards.labeled({ids[7]: 4, ids[30]: 1, ids[2]: 0, "another": 2})
        got = pick("pcoreset", shards, labeled, 20, 0)
    assert labeled.ids.tolist() == labeled_ids
    assert labeled.labels.tolist() == [4, 1, 0]
    np.testing.assert_array_equal(labeled.probs, probs[[7, 30, 2]])
    pool = [row for row in range(1, 50) if ids[row] not in labeled_ids]
    expected = pick("pcoreset", LocalShards.split(Rows(np.array(ids)[pool], probs[pool]), 1), labeled, 20, 0)
    assert same(got, expected)


def test_labeled_ids_that_are_not_in_the_pool_are_named(shard_actors, tables):
    source = shard_rows.PoolSource(uris=(tables[0],), labeled=("nobody", "s1"))
    with (
        shard_actors.open_shards(source, 2) as shards,
        pytest.raises(ValueError, match=r"labeled ids are not in .*'nobody'"),
    ):
        shards.labeled()


def test_more_shards_than_rows_or_cpus_work(shard_actors, tmp_path):
    ids = write_pool(tmp_path / "pool.parquet", 5, 100)
    request = pick_tables.Request(pool=str(tmp_path / "pool.parquet"), budget=5)
    picks = pick_tables.pick_from_tables(pick_tables.check_request(request), 6)
    table = pick_tables.picks_table(picks)
    assert table.schema == PICKS
    assert table["sample_id"].to_pylist() == ids
    assert table["rank"].to_pylist() == [0, 1, 2, 3, 4]


def test_actors_end_with_the_block(shard_actors, tables):
    import ray

    with shard_actors.open_shards(shard_rows.PoolSource(uris=(tables[0],)), 2) as shards:
        actors = shards.actors
        assert len(shards.labeled({})) == 0

    def ask_until_it_ends():  # a kill takes effect a moment later
        for _ in range(10_000):
            ray.get(actors[0].ask.remote(Shard.__len__), timeout=30)

    with pytest.raises(ray.exceptions.RayActorError):
        ask_until_it_ends()


def test_a_readers_error_arrives_as_it_was_raised(shard_actors, tmp_path):
    lists = pa.array([[0.5, 0.5], [0.5, 0.5], [1.0]])
    pq.write_table(pa.table({"sample_id": ["a", "b", "c"], "probs": lists}), tmp_path / "pool.parquet")
    request = pick_tables.Request(pool=str(tmp_path / "pool.parquet"), strategy="entropy", budget=1)
    with pytest.raises(ValueError, match=r"^probs of 'c' has 1 values, that of 'a' has 2; expected one length"):
        pick_tables.pick_from_tables(pick_tables.check_request(request), 1)
    with pytest.raises(ValueError, match=r"probs differ in length \(the pool: 1, 2\)"):
        pick_tables.pick_from_tables(pick_tables.check_request(request), 3)


def test_shards_are_opened_once_for_the_radius_and_the_picks(shard_actors, rows, tables, monkeypatch):
    """One set of shards, which hold probabilities and features, serves one selection after another."""
    labeled_ids, labels = tuple(rows.ids[:9].tolist()), dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    fetched, joined = [], shard_actors.joined
    monkeypatch.setattr(shard_actors, "joined", lambda *args: fetched.append(1) or joined(*args))
    pool, given = rows.take(np.arange(9, NUM_ROWS)), rows.take(np.arange(9))
    local = LocalShards.split(pool, 1)
    source = shard_rows.PoolSource(uris=(tables[0],), needs=("probs", "features"), labeled=labeled_ids)
    for small_products in (2**28, 0):
        monkeypatch.setattr(kcenter, "SMALL_PRODUCTS", small_products)
        with shard_actors.open_shards(source, 3) as shards:
            assert sum(shards.sizes()) == NUM_ROWS - 9
            assert coverage_radius(shards, shards.labeled()) == coverage_radius(local, given)
            more = ("falcun", "spread", "probcover", "uherding", "typiclust")
            for name in ("pcoreset", "badge", "coreset", "class_balanced", *more, "pcoreset"):
                got = pick(name, shards, shards.labeled(labels), 30, 3)
                assert same(got, pick(name, local, given, 30, 3)), name
            assert got.distances[0] == coverage_radius(shards, shards.labeled())
    assert len(fetched) == 2


# ---------------------------------------------------------------- selection alone


def test_raw_vectors_are_a_strategy_and_a_spelling(shard_actors, tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    for name, part in (("pool", slice(0, 30)), ("labeled", slice(30, 40))):
        ids = [f"{name}{number}" for number in range(len(x[part]))]
        pq.write_table(pa.table({"sample_id": ids, "probs": list_column(x[part])}), tmp_path / f"{name}.parquet")
    request = pick_tables.Request(
        pool=str(tmp_path / "pool.parquet"), labeled=str(tmp_path / "labeled.parquet"), budget=8
    )
    cap = Cap(limit=1, cosine=0.999, column="probs")
    for asked in (
        replace(request, strategy="farthest"),
        replace(request, space="raw"),
        replace(request, space="raw", cap=cap),
    ):
        got = pick_tables.pick_from_tables(pick_tables.check_request(asked), 1)
        expected = plain_farthest_first([f"pool{number}" for number in range(30)], x[:30], x[30:], 8)
        assert list(zip(got.ids, got.distances.tolist(), strict=True)) == expected
    with pytest.raises(ValueError, match=r"probs (hold the negative value|sum to)"):
        pick_tables.pick_from_tables(pick_tables.check_request(request), 1)
    with pytest.raises(ValueError, match="strategy 'entropy' with space 'raw'; expected pcoreset"):
        pick_tables.check_request(replace(request, strategy="entropy", space="raw"))


def test_the_labeled_table_is_read_once(shard_actors, tables, monkeypatch):
    request = pick_tables.Request(pool=tables[0], labeled=tables[1], strategy="class_balanced", budget=7)
    checked = pick_tables.check_request(request)
    assert checked.labeled.labels is not None
    monkeypatch.setattr(pick_tables, "open_table", None)
    assert len(pick_tables.pick_from_tables(checked, 2).ids) == 7
