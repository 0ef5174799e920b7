"""The drawn start: some images of each class."""

import numpy as np
import pytest

from raykd.algo.keyed import hash_ids, uniform
from raykd.algo.selection.start import some_of_each_class


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_images_of_each_class_with_the_lowest_draws_class_after_class_shot_after_shot(seed):
    rng = np.random.default_rng(seed)
    ids = [f"image {number}" for number in rng.permutation(40)]
    labels = np.where(rng.random(40) < 0.1, -1, rng.integers(0, 3, 40))
    draws = uniform(hash_ids(ids), seed, "start")
    wanted = []
    for shot in range(20):
        for label in range(3):
            mine = sorted((draw, name) for draw, name, of in zip(draws, ids, labels, strict=True) if of == label)
            wanted += [name for _, name in mine[shot : shot + 1]]
    found = [ids[place] for place in some_of_each_class(hash_ids(ids), labels, 3, 20, seed)]
    assert found == wanted
    assert [ids[place] for place in some_of_each_class(hash_ids(ids), labels, 3, 2, seed)] == wanted[:6]
    order = rng.permutation(40)
    again = some_of_each_class(hash_ids(ids)[order], labels[order], 3, 20, seed)
    assert [ids[order[place]] for place in again] == wanted
