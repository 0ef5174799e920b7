"""Listings compared, what the data's own labels mean, and CoOp's splits. Starts no Ray."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from fakes import listed, write_pngs
from hypothesis import given
from hypothesis import strategies as st

from raykd.errors import UserError
from raykd.images.sources import draw_splits, grown
from raykd.store.tables import MANIFEST

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


def test_a_size_or_time_that_is_not_known_is_no_change():
    before = manifest({"a": ("x", 1, 1, None), "b": ("x", None, 1, None), "c": ("x", 1, None, None)})
    now = manifest({"a": ("x", None, None, None), "b": ("x", 2, 1, None), "c": ("x", 1, 3, None)})
    assert grown(before, now).rewritten.num_rows == 0


# ---------------------------------------------------------------- CoOp


@pytest.mark.parametrize("entry", [["a.png", 0], "a.png", ["a.png", 0, 3], [], None, ["", 0, "cat"], ["a", 0, "b", 1]])
def test_an_entry_of_a_split_file_that_is_none_is_named(entry, tmp_path):
    write_pngs(tmp_path, "a.png")
    (tmp_path / "split.json").write_text(json.dumps({"train": [["a.png", 0, "cat"], entry], "val": [], "test": []}))
    with pytest.raises(
        UserError, match=r"entry 1 of 'train' in '.*split\.json' is .*expected \[path, label, class name\]"
    ):
        listed(tmp_path, format="coop_split", split_file=str(tmp_path / "split.json"))


# ---------------------------------------------------------------- splits that are drawn


def plain_splits(rows: list[dict], draws: list[float], test_share: float, val_share: float) -> list[str]:
    split = [row["split"] for row in rows]
    places = [i for i, row in enumerate(rows) if row["split"] == "pool" and row["label"] is not None]
    order = sorted(places, key=lambda i: draws[i])
    num_test, num_val = round(test_share * len(order)), round(val_share * len(order))
    for number, place in enumerate(order[: num_test + num_val]):
        split[place] = "test" if number < num_test else "val"
    return split


drawn_row = st.tuples(st.sampled_from(["pool", "pool", "val", "test"]), st.sampled_from(["cat", None]), st.floats(0, 1))


@given(st.lists(st.lists(drawn_row, max_size=9), max_size=4), st.floats(0, 0.5), st.floats(0, 0.4))
def test_drawn_splits_do_not_depend_on_chunks(chunks, test_share, val_share):
    every = [row for chunk in chunks for row in chunk]
    rows = [{"sample_id": str(i), "uri": "u", "split": row[0], "label": row[1]} for i, row in enumerate(every)]
    ends = np.cumsum([0, *map(len, chunks)])
    parts = [pa.Table.from_pylist(rows[a:b], MANIFEST) for a, b in itertools.pairwise(ends)]
    table, draws = pa.concat_tables([MANIFEST.empty_table(), *parts]), [row[2] for row in every]
    if (test_share or val_share) and not any(row["split"] == "pool" and row["label"] for row in rows):
        with pytest.raises(UserError, match="need a pool with labels"):
            draw_splits(table, np.array(draws), test_share, val_share)
        return
    found = draw_splits(table, np.array(draws), test_share, val_share)
    assert found.schema == MANIFEST
    assert found["split"].to_pylist() == plain_splits(rows, draws, test_share, val_share)
    assert found.drop_columns("split").equals(table.drop_columns("split"))
