"""Which images make a batch, for how long, and at what learning rate."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, SequentialLR

from raykd.algo.batches import BatchPlan, learning_rate, num_steps

SCHEDULES = ("linear", "cosine", "constant")
TABLE_5_5 = {  # classes: steps of round 0, of round 15, of all 16 rounds (PAPERS.md 5.5); labels are C, 2C ... 16C
    "caltech101": (100, 400, 5000, 44000),
    "dtd": (47, 200, 2400, 21600),
    "eurosat": (10, 200, 600, 6000),
    "fgvc_aircraft": (100, 400, 5000, 44000),
    "food101": (101, 400, 5200, 44600),
    "oxford_flowers": (102, 400, 5200, 44800),
    "oxford_pets": (37, 200, 2000, 17400),
    "stanford_cars": (196, 800, 9800, 84800),
    "sun397": (397, 1400, 20000, 170600),
    "ucf101": (101, 400, 5200, 44600),
}


def plan(labeled=10, unlabeled=23, batch_labeled=4, batch_unlabeled=5, key=(0, 0)):
    return BatchPlan(labeled, unlabeled, batch_labeled, batch_unlabeled, key)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 5))
def test_every_unlabeled_image_comes_once_a_pass_however_steps_and_passes_straddle(unlabeled, batch, seed):
    p = plan(unlabeled=unlabeled, batch_unlabeled=batch, key=(seed, 1))
    steps = math.ceil(3 * unlabeled / batch)
    stream = np.concatenate([p.unlabeled(step) for step in range(steps)])
    assert {len(p.unlabeled(step)) for step in range(steps)} == {batch}
    for number in range(len(stream) // unlabeled):
        assert sorted(stream[number * unlabeled : (number + 1) * unlabeled]) == list(range(unlabeled))
    rest = stream[len(stream) // unlabeled * unlabeled :]
    assert len(set(rest.tolist())) == len(rest)


def test_a_batch_larger_than_the_pool_holds_every_image_as_often_as_it_fits():
    counts = Counter(plan(unlabeled=7, batch_unlabeled=24).unlabeled(0).tolist())
    assert set(counts) == set(range(7))
    assert set(counts.values()) == {3, 4}


def test_passes_are_shuffled_anew():
    p = plan(unlabeled=50, batch_unlabeled=50)
    first, second = p.unlabeled(0), p.unlabeled(1)
    assert list(first) != list(range(50))
    assert list(first) != list(second)


def test_labeled_images_are_drawn_with_replacement_and_all_weigh_the_same():
    p = plan(labeled=37, batch_labeled=64)
    counts = np.bincount(np.concatenate([p.labeled(step) for step in range(2000)]), minlength=37)
    assert len(counts) == 37
    expected = 2000 * 64 / 37
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert (
        chi_square < 80
    )  # 36 degrees of freedom: more than that once in 30,000; padding from the front gives thousands
    assert len(set(p.labeled(0).tolist())) < 37  # 64 draws of 37 without replacement would show all of them first


def test_labeled_indices_fill_the_batch_even_when_there_is_one_image():
    assert plan(labeled=1, batch_labeled=6).labeled(3).tolist() == [0] * 6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.integers(1, 60), st.integers(1, 70))
def test_a_training_that_resumes_sees_what_it_would_have_seen(step, unlabeled, batch):
    went_on, resumed = (plan(unlabeled=unlabeled, batch_unlabeled=batch, key=(3, 2)) for _ in range(2))
    for before in range(max(0, step - 3), step):
        went_on.labeled(before), went_on.unlabeled(before), went_on.augmentation_seeds(before)
    for draw in ("labeled", "unlabeled", "augmentation_seeds"):
        np.testing.assert_array_equal(getattr(went_on, draw)(step), getattr(resumed, draw)(step))


def test_going_back_a_step_gives_the_same_batch():
    p = plan()
    first = [p.unlabeled(step).tolist() for step in range(12)]
    assert [p.unlabeled(step).tolist() for step in reversed(range(12))] == first[::-1]


@pytest.mark.parametrize("draw", ["labeled", "unlabeled", "augmentation_seeds"])
def test_other_seeds_rounds_and_steps_give_other_draws(draw):
    keys = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (2, 0)]
    drawn = [tuple(getattr(plan(1000, 1000, 50, 50, key), draw)(step)) for key in keys for step in (0, 1)]
    assert len(set(drawn)) == len(drawn)


def test_augmentation_has_a_seed_of_its_own_for_every_image_of_every_batch():
    seeds = np.concatenate([plan().augmentation_seeds(step) for step in range(100)])
    assert len(seeds) == 900
    assert len(set(seeds.tolist())) == 900
    assert seeds.min() >= 0


# ---------------------------------------------------------------- length


@pytest.mark.parametrize("dataset", TABLE_5_5)
def test_steps_are_those_of_the_papers_released_schedule(dataset):
    classes, first, last, in_all = TABLE_5_5[dataset]
    steps = [
        num_steps(plan(labeled=classes * round, batch_labeled=64), None, passes_labeled=200, passes_unlabeled=None)
        for round in range(1, 17)
    ]
    assert (steps[0], steps[-1], sum(steps)) == (first, last, in_all)


def test_imagenet_trains_twenty_passes_over_the_reduced_pool():
    p = plan(labeled=1000, unlabeled=99_000, batch_labeled=256, batch_unlabeled=256)
    assert num_steps(p, None, None, 20) == 20 * 386


def test_steps_may_be_given_and_a_pool_smaller_than_a_batch_still_trains():
    assert num_steps(plan(), 17, None, None) == 17
    assert num_steps(plan(unlabeled=3, batch_unlabeled=64), None, None, 5) == 5


# ---------------------------------------------------------------- learning rate


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(SCHEDULES))
def test_learning_rate_stays_between_zero_and_its_peak(steps, warmup, schedule):
    rising = int(warmup * steps)
    rates = [learning_rate(step, steps, rising, schedule) for step in range(steps)]
    assert min(rates) >= 0
    assert max(rates) <= 1
    assert all(a < b for a, b in pairwise(rates[: rising + 1]))
    assert all(a >= b for a, b in pairwise(rates[rising:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_linearly_from_zero_to_the_peak(schedule):
    rates = [learning_rate(step, 200, 20, schedule) for step in range(21)]
    np.testing.assert_allclose(rates, np.arange(21) / 20)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak(schedule):
    assert learning_rate(0, 50, 0, schedule) == 1.0


def test_schedules_have_their_closed_forms():
    for step in range(20, 200):
        done = (step - 20) / 180
        assert learning_rate(step, 200, 20, "linear") == pytest.approx(1 - done)
        assert learning_rate(step, 200, 20, "cosine") == pytest.approx((1 + math.cos(math.pi * done)) / 2)
        assert learning_rate(step, 200, 20, "constant") == 1
    assert learning_rate(199, 200, 20, "linear") == pytest.approx(1 / 180)  # the last step still learns


def test_linear_schedule_equals_the_references_get_linear_schedule_with_warmup():
    """transformers.get_linear_schedule_with_warmup, as PCoreSet's code calls it."""
    steps, warmup = 400, 40
    for step in range(steps):
        if step < warmup:
            want = step / max(1, warmup)
        else:
            want = max(0.0, (steps - step) / max(1, steps - warmup))
        assert learning_rate(step, steps, warmup, "linear") == pytest.approx(want)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_single_step_can_be_trained(schedule):
    assert learning_rate(0, 1, 0, schedule) == 1
    assert 0 <= learning_rate(0, 1, 1, schedule) <= 1


# ---------------------------------------------------------------- against torch's own schedulers


def torchs(steps, scheduler_of):
    """The factors of the steps as a scheduler of torch gives them, which is asked for the next one after each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = scheduler_of(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("steps", "rising"), [(200, 20), (50, 25), (40, 0), (3, 1)])
def test_the_semi_supervised_schedule_is_torchs_linear_rise_chained_with_its_cosine(steps, rising):
    """DHO/train_imgnet_semi.py:168-171. (Of more warm-up than half, torch's chain forgets the rise where it was 0.)"""

    def chained(optimizer):
        cosine = CosineAnnealingLR(optimizer, T_max=steps - rising)
        return ChainedScheduler([LinearLR(optimizer, 0.01, 1.0, rising), cosine]) if rising else cosine

    expected = torchs(steps, chained)
    found = [learning_rate(step, steps, rising, "semi_supervised") for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_semi_supervised_rate_rises_again_over_the_last_steps_as_many_as_the_warm_up_has():
    rates = np.array([learning_rate(step, 200, 20, "semi_supervised") for step in range(201)])
    assert rates[0] == 0.01
    assert rates.argmax() == 20
    assert rates[180] == pytest.approx(0, abs=1e-15)
    assert (np.diff(rates[180:]) > 0).all()
    assert rates[200] == pytest.approx((1 - math.cos(math.pi * 20 / 180)) / 2)


def test_the_cosine_without_warm_up_is_torchs():
    expected = torchs(90, lambda optimizer: CosineAnnealingLR(optimizer, T_max=90))
    found = [learning_rate(step, 90, 0, "cosine") for step in range(90)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_linear_rise_and_fall_is_that_of_two_of_torchs_linear_schedulers():
    def two(optimizer):
        up, down = LinearLR(optimizer, 1e-9, 1.0, 20), LinearLR(optimizer, 1.0, 0.0, 180)
        return SequentialLR(optimizer, [up, down], milestones=[20])

    found = [learning_rate(step, 200, 20, "linear") for step in range(200)]
    np.testing.assert_allclose(found, torchs(200, two), rtol=1e-6, atol=1e-8)
