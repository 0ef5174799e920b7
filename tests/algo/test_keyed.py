"""Keyed draws: reproducible, tied to rows, uniform, independent for different keys."""

import numpy as np
import pytest

from raykd.algo import keyed

HASHES = keyed.hash_ids(f"images/{number}.jpg" for number in range(100_000))


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def assert_flat(counts: np.ndarray) -> None:
    """Within 4.5 standard deviations of what equal chances give (chi-square has mean df, variance 2 df)."""
    df = counts.size - 1
    assert abs(chi_square(counts) - df) < 4.5 * np.sqrt(2 * df)


def test_draws_are_the_same_for_ever():
    hashes = keyed.hash_ids(["a", "b"])
    assert hashes.tolist() == [3405396810240292928, 8453121595177857668]
    assert keyed.bits(hashes, 0, "random").tolist() == [17800170055405437506, 16936395856269442064]
    assert keyed.generator(0, 1, "batches").integers(1000) == 475


def test_a_draw_belongs_to_its_id_not_to_its_place():
    order = np.random.default_rng(0).permutation(len(HASHES))
    draws = keyed.uniform(HASHES, 7, "x")
    assert np.array_equal(keyed.uniform(HASHES[order], 7, "x"), draws[order])
    assert np.array_equal(np.concatenate([keyed.uniform(part, 7, "x") for part in np.array_split(HASHES, 7)]), draws)
    assert keyed.uniform(HASHES[5:6], 7, "x")[0] == draws[5]


def test_hashes_are_not_written_to():
    before = HASHES.copy()
    keyed.uniform(HASHES, 1, 2)
    assert np.array_equal(HASHES, before)


def test_draws_stay_inside_the_open_interval(monkeypatch):
    for extreme in (0, 2**64 - 1):
        monkeypatch.setattr(keyed, "bits", lambda hashes, *key, value=extreme: np.full(len(hashes), value, np.uint64))
        assert 0 < keyed.uniform(HASHES[:1])[0] < 1


@pytest.mark.parametrize("key", [(0,), (1, 2, "random"), (2**64 - 1,), (-1, "x", 10**20)])
def test_draws_are_uniform(key):
    draws = keyed.uniform(HASHES, *key)
    assert_flat(np.bincount((draws * 1000).astype(int), minlength=1000))
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 4.5 / np.sqrt(len(draws))


@pytest.mark.parametrize("bit", [0, 31, 63])
def test_every_bit_is_fair_even_for_neighbouring_hashes(bit):
    drawn = keyed.bits(np.arange(100_000, dtype=np.uint64), 3)
    assert_flat(np.bincount(((drawn >> np.uint64(bit)) & np.uint64(1)).astype(int), minlength=2))


@pytest.mark.parametrize(
    ("first", "second"),
    [((0,), (1,)), ((0, 1), (1, 0)), ((0, "a"), (0, "b")), ((5,), (5, 0)), ((0, 0), (0, 1)), ((), (0,))],
)
def test_different_keys_draw_independently(first, second):
    one, other = keyed.uniform(HASHES, *first), keyed.uniform(HASHES, *second)
    assert_flat(np.bincount((one * 20).astype(int) * 20 + (other * 20).astype(int), minlength=400))


def test_a_key_can_be_mixed_in_bit_by_bit():
    assert np.array_equal(keyed.bits(HASHES, 1, "a", 2), keyed.bits(keyed.bits(HASHES, 1, "a"), 2))


def test_numpy_integers_are_the_same_key():
    assert np.array_equal(keyed.bits(HASHES, np.int64(3)), keyed.bits(HASHES, 3))
    assert keyed.generator(np.int32(3), "x").random() == keyed.generator(3, "x").random()


def test_generators_of_different_keys_differ():
    first = {keyed.generator(*key).random() for key in [(0,), (1,), (0, 0), ("0",), (0, "a"), ("0, 'a'",)]}
    assert len(first) == 6
    assert_flat(np.bincount(keyed.generator(0, "flat").integers(100, size=100_000), minlength=100))


def test_no_ids_give_no_draws():
    assert keyed.uniform(keyed.hash_ids([]), 1).shape == (0,)
