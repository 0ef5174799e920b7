"""What looks wrong with a class list, against plain loops and lists that are wrong on purpose."""

import itertools
import math

import numpy as np
import pytest

from raykd.algo.class_list import CLOSE, close_pairs, first_choices, neutral_margins


def directions(seed: int, count: int, width: int = 64, cone: float = 0.0) -> np.ndarray:
    """Random unit vectors; with ``cone`` most of each is the same, as of a CLIP's texts."""
    rng = np.random.default_rng(seed)
    shared = np.zeros(width)
    shared[0] = cone * math.sqrt(width)
    rows = rng.normal(size=(count, width)) + shared
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def loop_pairs(classes_CD, neutral_D, close):
    """Distances over their root mean square, a pair at a time."""
    texts = [*classes_CD.astype(float), neutral_D.astype(float)]
    squares = {
        (i, j): float(((texts[i] - texts[j]) ** 2).sum()) for i, j in itertools.combinations(range(len(texts)), 2)
    }
    usual = math.sqrt(sum(squares.values()) / len(squares))
    found = [(i, j, math.sqrt(s) / usual) for (i, j), s in squares.items() if j < len(classes_CD)]
    return sorted((f for f in found if f[2] < close), key=lambda f: f[2])


@pytest.mark.parametrize(("count", "cone", "close"), [(2, 0, 0.9), (7, 0, 1.0), (40, 2, 1.0), (40, 0, 0.95)])
def test_close_pairs_are_those_of_a_plain_loop(count, cone, close):
    texts = directions(count, count + 1, cone=cone)
    got, want = close_pairs(texts[:-1], texts[-1], close), loop_pairs(texts[:-1], texts[-1], close)
    assert [pair[:2] for pair in got] == [pair[:2] for pair in want]
    np.testing.assert_allclose([pair.share for pair in got], [pair[2] for pair in want], rtol=1e-4)


@pytest.mark.parametrize("cone", [0.0, 1.0, 3.0])
def test_a_pair_that_nearly_coincides_is_found_in_a_wide_and_in_a_narrow_cone_and_no_other(cone):
    """In the narrow one every cosine is above 0.89: no threshold on cosines would do for both."""
    texts = directions(1, 31, cone=cone)
    assert close_pairs(texts[:-1], texts[-1]) == []
    twin = texts[4] + 0.1 * (texts[9] - texts[4])
    texts[20] = twin / np.linalg.norm(twin)
    (pair,) = close_pairs(texts[:-1], texts[-1])
    assert (pair.first, pair.second) == (4, 20)
    assert 0 < pair.share < CLOSE


def test_two_classes_alone_are_measured_by_the_neutral_text():
    texts = directions(2, 3)
    assert close_pairs(texts[:2], texts[2]) == []
    near = texts[0] + 0.05 * texts[1]
    (pair,) = close_pairs(np.stack([texts[0], near / np.linalg.norm(near)]), texts[2])
    assert (pair.first, pair.second) == (0, 1)
    assert close_pairs(texts[:1], texts[2]) == []


def test_many_classes_go_by_blocks(monkeypatch):
    texts = directions(3, 60)
    texts[50] = texts[10]
    texts[11] = texts[10]
    whole = close_pairs(texts[:-1], texts[-1])
    assert [pair[:2] for pair in whole] == [(10, 11), (10, 50), (11, 50)]
    import raykd.algo.class_list as module

    monkeypatch.setattr(module, "BLOCK", 61 * 7)
    assert [pair[:2] for pair in close_pairs(texts[:-1], texts[-1])] == [pair[:2] for pair in whole]


def test_a_teacher_to_which_all_is_one_has_no_pair_that_stands_out():
    assert close_pairs(np.ones((3, 1), np.float32), np.ones(1, np.float32)) == []


def test_counts_of_parts_add_up_to_those_of_the_whole():
    logits = np.random.default_rng(0).normal(size=(50, 6))
    logits[:, 2] = -9
    whole = first_choices(logits)
    assert whole.tolist() == [sum(row.argmax() == c for row in logits) for c in range(6)]
    assert whole[2] == 0
    np.testing.assert_array_equal(first_choices(logits[:13]) + first_choices(logits[13:]), whole)
    assert first_choices(logits[:0]).tolist() == [0] * 6


def test_an_image_of_no_class_is_nearer_to_the_neutral_text_than_to_any_class():
    """Texts share a cone; an image shows its class' direction, or something else that no class has."""
    texts = directions(5, 9, width=256, cone=1.0)
    own = texts - texts.mean(axis=0)
    rng = np.random.default_rng(1)
    shown = rng.integers(0, 8, 40)
    inside = texts.mean(axis=0) + own[shown] + 0.02 * rng.normal(size=(40, 256))
    outside = texts.mean(axis=0) - own[:8].sum(axis=0) + 0.02 * rng.normal(size=(40, 256))
    margins = [neutral_margins(images @ texts[:8].T, images @ texts[8]) for images in (inside, outside)]
    assert (margins[0] < 0).all()
    assert (margins[1] > 0).all()
    logits = np.array([[1.0, 3.0], [2.0, 0.0]])
    assert neutral_margins(logits, np.array([3.5, 1.0])).tolist() == [0.5, -1.0]
