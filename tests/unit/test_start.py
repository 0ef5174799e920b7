"""The papers' start: some images of each class, drawn by key, as many as there are."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from raykd.errors import UserError
from raykd.stages.budget import check_budgets, num_drawn
from raykd.stages.select import some_per_class

COUNTS = {"cat": 9, "dog": 2, "eel": 5, "no class of ours": 4}


def start(shots, seed=0, counts=COUNTS, order=0):
    """The ids that are drawn, and what is said."""
    labels = [name for name, count in counts.items() for _ in range(count)]
    rows = pa.table({"sample_id": [f"{name}{n}" for n, name in enumerate(labels)], "label": labels})
    rows = rows.take(np.random.default_rng(order).permutation(len(rows)))
    config = SimpleNamespace(
        seed=seed, rounds=1, labels=SimpleNamespace(shots=shots, start="one_per_class", audit_share=0),
        selection=SimpleNamespace(budget=None),
    )  # fmt: skip
    said: list[str] = []
    campaign = SimpleNamespace(
        config=config, say=lambda _, text: said.append(text), num_done=0, labels_before=None
    )  # fmt: skip
    pool = SimpleNamespace(classes=("cat", "dog", "eel"), split=lambda name: rows)
    picked = some_per_class(campaign, pool, SimpleNamespace(readable=lambda table: table))
    assert picked["rank"].to_pylist() == list(range(len(picked)))
    assert num_drawn(campaign, pool) == len(picked)
    check_budgets(campaign, pool, len(rows))
    return picked["sample_id"].to_pylist(), said


def of(ids, name):
    return sum(each.startswith(name) for each in ids)


def test_one_shot_is_one_image_of_each_class_in_their_order():
    ids, said = start(1)
    assert [each[:3] for each in ids] == ["cat", "dog", "eel"]
    assert said == []


def test_a_class_with_fewer_images_gives_what_it_has_and_that_is_said():
    ids, said = start(4)
    assert [of(ids, name) for name in COUNTS] == [4, 2, 4, 0]
    assert len(set(ids)) == 10
    assert said == ["of 1 of 3 classes fewer than 4 images can be read, such as 'dog' with 2: all of theirs are taken"]


@pytest.mark.parametrize("seed", range(3))
def test_fewer_shots_are_the_beginning_of_more_whatever_the_order_of_the_rows(seed):
    most = start(9, seed)[0]
    for shots in range(1, 9):
        ids = start(shots, seed, order=shots)[0]
        assert ids == most[: len(ids)]
    assert most != start(9, seed + 10)[0]


def test_a_class_without_an_image_that_can_be_read_is_named():
    with pytest.raises(UserError, match="no image of 'eel' can be read; use start: none"):
        start(2, counts={"cat": 2, "dog": 1})
