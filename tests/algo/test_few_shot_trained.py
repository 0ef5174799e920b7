"""CLAP and Tip-Adapter-F against plain loops in float64 and first steps in closed form; folds see no own label."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from raykd.algo.errors import UserError
from raykd.algo.few_shot import trained
from raykd.algo.few_shot.honest import fitted
from raykd.algo.few_shot.kernels import cache, tip
from raykd.algo.few_shot.rules import fit_rule
from raykd.algo.few_shot.support import Support, Texts
from raykd.algo.few_shot.trained import (
    ACTIVEKD_CLAP,
    FOLDS,
    PUBLISHED_CLAP,
    ClapSettings,
    anchors,
    clap,
    clap_batches,
    clap_rates,
    folds,
    held_out_logits,
    keys_scorer,
    prototypes,
    prototypes_scorer,
    tip_f,
    tip_f_batches,
)

SCALE, WIDTH = 100.0, 64
LONG = replace(PUBLISHED_CLAP, epochs=40)
RULES = {"clap": clap, "tip_f": tip_f}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Cone:
    """Images and texts as of CLIP: all in a narrow cone, with a gap between the two."""

    def __init__(self, seed=0, num_classes=20):
        self.draws = np.random.default_rng(seed)
        self.num_classes = num_classes
        self.around = 1.5 * self.direction() + 0.7 * self.direction(num_classes)
        self.gap = 0.7 * self.direction()
        self.texts = unit(self.around + 0.6 * self.noise(num_classes))

    def direction(self, *shape):
        return unit(self.draws.normal(size=(*shape, WIDTH)))

    def noise(self, *shape):
        return self.draws.normal(size=(*shape, WIDTH)) / np.sqrt(WIDTH)

    def images(self, labels):
        return unit(self.around[labels] + self.gap + self.noise(len(labels)))

    def support(self, labels, views=0, lengths=8.0):
        features = self.images(labels)
        of_views = unit(features[:, None] + 0.3 * self.noise(len(labels), views)) if views else None
        return Support(features, labels, Texts(self.texts, SCALE, np.full(self.num_classes, lengths)), of_views)


def labels_of(*counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.fixture
def support():
    return Cone(num_classes=5).support(labels_of(6, 3, 1, 0, 4))


def finite(scorer, support):
    return np.isfinite(scorer.logits(support.features_ND)).all()


# ---------------------------------------------------------------- CLAP


def plain_clap(support, settings, batches, rates):
    """The formula, in float64, with momentum by hand."""
    texts = support.texts
    start = torch.tensor(texts.directions_CD * texts.lengths_C[:, None])
    rows = torch.tensor(support.seen_NVD.reshape(-1, WIDTH))
    labels = torch.tensor(np.repeat(support.labels_N, support.seen_NVD.shape[1]))
    holds = torch.tensor(anchors(support, settings.clean_anchors))
    moved, speed = start.clone().requires_grad_(), torch.zeros_like(start)
    for batch, rate in zip(batches, rates, strict=True):
        logits = SCALE * rows[batch] @ (moved / moved.norm(dim=1, keepdim=True)).T
        loss = F.cross_entropy(logits, labels[batch]) + (holds * ((moved - start) ** 2).sum(dim=1)).mean()
        (slope,) = torch.autograd.grad(loss, moved)
        speed = 0.9 * speed + slope
        moved = (moved - rate * speed).detach().requires_grad_()
    return moved.detach().numpy()


@pytest.mark.parametrize("settings", [LONG, replace(ACTIVEKD_CLAP, epochs=40)])
@pytest.mark.parametrize("views", [0, 3])
def test_clap_is_a_plain_loop_over_its_formula(settings, views):
    support = Cone(num_classes=5).support(labels_of(6, 30, 1, 0, 43), views)
    batches = clap_batches(80, max(views, 1), settings)
    want = plain_clap(support, settings, batches, clap_rates(len(batches), settings))
    assert np.abs(prototypes(support, settings) - want).max() < 1e-5
    assert np.abs(want - 8 * support.texts.directions_CD).max() > 0.01  # and it moved


def test_clap_takes_all_rows_in_one_batch_where_they_fit_so_no_order_matters(support):
    rates = [1e-5, *(0.05 * (1 + np.cos(np.pi * (epoch - 1) / 40)) for epoch in range(1, 40))]
    want = plain_clap(support, LONG, [np.arange(14)] * 40, rates)
    assert np.abs(prototypes(support, LONG) - want).max() < 1e-5


def test_claps_first_step_is_the_closed_form_of_its_slope():
    support = Cone(num_classes=5).support(labels_of(6, 3, 1, 0, 4), lengths=0.01)  # short texts are turned far
    probs = torch.softmax(torch.tensor(support.text_logits_NC), dim=1).numpy()
    texts = support.texts.directions_CD
    pulls = (probs - support.one_hot_NC).T @ support.features_ND / 14
    across = pulls - (pulls * texts).sum(axis=1, keepdims=True) * texts  # along a text nothing changes
    want = 0.01 * texts - 1e-5 * SCALE / 0.01 * across
    moved = prototypes(support, replace(PUBLISHED_CLAP, epochs=1))
    assert np.abs(moved - want).max() < 1e-5 * np.abs(want - 0.01 * texts).max() + 1e-7


def test_an_anchor_is_the_mean_probability_of_the_classs_labels_and_elsewhere_the_mean_of_the_others():
    support = Cone(num_classes=5).support(labels_of(6, 3, 1, 0, 4), views=3)
    for clean, seen in ((True, support.features_ND[:, None]), (False, support.views_NVD)):
        want = [[] for _ in range(5)]
        for label, views in zip(support.labels_N, seen, strict=True):
            for view in views:
                likely = np.exp(SCALE * view @ support.texts.directions_CD.T)
                want[label].append(likely[label] / likely.sum())
        means = [np.mean(own) if own else None for own in want]
        means[3] = np.mean([mean for mean in means if mean is not None])
        assert anchors(support, clean) == pytest.approx(means)


def test_strong_anchors_leave_the_texts_where_they_are(support, monkeypatch):
    settings = replace(PUBLISHED_CLAP, learning_rate=0.001)
    free = prototypes(support, settings)
    monkeypatch.setattr(trained, "anchors", lambda support, clean: np.full(5, 1000.0))
    start, held = 8 * support.texts.directions_CD, prototypes(support, settings)
    assert np.abs(held - start).max() < 0.05 * np.abs(free - start).max()


def test_texts_of_unknown_length_have_length_one():
    support = Cone(num_classes=5).support(labels_of(6, 3, 1, 0, 4), lengths=1.0)
    unknown = replace(support, texts=replace(support.texts, lengths_C=None))
    assert np.array_equal(prototypes(unknown, LONG), prototypes(support, LONG))


def test_an_epoch_of_clap_is_as_many_rows_as_images_none_twice():
    for count, views, num_batches, size in ((600, 1, 2, 256), (600, 20, 2, 256), (10, 1, 1, 10), (20, 20, 1, 256)):
        batches = clap_batches(count, views, LONG)
        assert [len(rows) for rows in batches] == [size] * num_batches * 40
        epochs = [np.concatenate(batches[at : at + num_batches]) for at in range(0, len(batches), num_batches)]
        assert all(len(set(epoch)) == num_batches * size for epoch in epochs)
        assert {row % views for row in epochs[0]} == set(range(views))  # views of images, not images first
        assert not np.array_equal(epochs[0], epochs[1])
    assert set(np.concatenate(clap_batches(300, 1, LONG))) == set(range(300))


def test_activekds_clap_draws_with_replacement_and_drops_what_does_not_fill_a_batch():
    batches = clap_batches(37, 2, ACTIVEKD_CLAP)
    assert [len(rows) for rows in batches] == [64] * (300 * 37 // 64)
    assert set(np.concatenate(batches)) == set(range(74))


def test_claps_learning_rates_are_those_of_torchs_own_schedules():
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(other, 300)
    want = [1e-5, 1e-5]
    for _ in range(299):
        want += 2 * falls.get_last_lr()
        other.step()
        falls.step()
    assert clap_rates(600, PUBLISHED_CLAP) == pytest.approx(want)

    linear = clap_rates(100, ACTIVEKD_CLAP)
    want = [0.01 * (step / 10 if step < 10 else (100 - step) / 90) for step in range(100)]
    assert linear == pytest.approx(want)
    assert clap_rates(4, ACTIVEKD_CLAP) == pytest.approx([0, 0.01 * 3 / 3.6, 0.01 * 2 / 3.6, 0.01 / 3.6])


def test_clap_says_which_setting_is_odd():
    with pytest.raises(UserError, match="schedule 'cosin' is unknown; known: cosine, linear"):
        ClapSettings(schedule="cosin")
    with pytest.raises(UserError, match="batch_size is 0; expected a number above 0"):
        ClapSettings(batch_size=0)


@pytest.mark.slow
def test_refit_trains_clap_by_the_settings_it_is_given(support):
    features = support.features_ND
    as_activekd = fit_rule("clap", support, ACTIVEKD_CLAP)
    by_hand = fitted("clap", support, partial(clap, settings=ACTIVEKD_CLAP))
    assert np.array_equal(as_activekd.scorer.logits(features), by_hand.scorer.logits(features))
    assert not np.array_equal(as_activekd.scorer.logits(features), fit_rule("clap", support).scorer.logits(features))


# ---------------------------------------------------------------- Tip-Adapter-F


def plain_tip_f(support, beta, strength, batches):
    """Keys, in float64: the formula class by class, AdamW by hand."""
    rows, views = torch.tensor(support.seen_NVD.reshape(-1, WIDTH)), support.seen_NVD.shape[1]
    labels = torch.tensor(np.repeat(support.labels_N, views))
    keys = torch.tensor(cache(support)[0])
    stand_ins = keys[len(support.labels_N) :]
    keys = keys[: len(support.labels_N)].requires_grad_()
    texts, empty = torch.tensor(support.texts.directions_CD), np.flatnonzero(support.counts_C == 0)
    first, second = torch.zeros_like(keys), torch.zeros_like(keys)
    for step, batch in enumerate(batches):
        near = torch.exp(-2 * beta * (1 - rows[batch] @ keys.T))
        of_stand_ins = torch.exp(-2 * beta * (1 - rows[batch] @ stand_ins.T))
        of_classes = [
            of_stand_ins[:, list(empty).index(label)] if label in empty else near[:, support.labels_N == label].mean(1)
            for label in range(support.num_classes)
        ]
        logits = SCALE * rows[batch] @ texts.T + strength * torch.stack(of_classes, dim=1)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels[batch]), keys)
        rate = 1e-3 * (1 + np.cos(np.pi * step / len(batches))) / 2
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        along = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-4)
        keys = (keys * (1 - rate * 0.01) - rate * along).detach().requires_grad_()
    return keys.detach().numpy()


@pytest.mark.parametrize(("labels", "views"), [(labels_of(6, 3, 1, 0, 4), 0), (labels_of(200, 60, 1, 0, 40), 3)])
def test_tip_adapter_f_is_a_plain_loop_over_its_formula(labels, views):
    support = Cone(num_classes=5).support(labels, views)
    count = len(labels)
    want = plain_tip_f(support, 1.5, 12.0, tip_f_batches(count, max(views, 1)))
    got = keys_scorer(support, 1.5, 12.0)
    start_keys, start_values = cache(support)
    assert np.abs(got.keys_MD[:count] - want).max() < 2e-5
    assert np.abs(want - start_keys[:count]).max() > 1e-3  # and they moved
    assert np.array_equal(got.keys_MD[count:], start_keys[count:].astype(np.float32))  # what stands in did not
    assert got.values_MC == pytest.approx(12 * start_values)


def test_tip_adapter_fs_first_step_moves_every_number_of_a_key_by_the_learning_rate_at_most(support, monkeypatch):
    """AdamW's first step is rate * slope / (|slope| + eps), after a decay of rate * 0.01."""
    monkeypatch.setattr(trained, "TIP_F_EPOCHS", 1)
    beta, strength, (keys, values), features = 1.5, 12.0, cache(support), support.features_ND
    near = np.exp(-2 * beta * (1 - features @ keys.T))
    logits = support.text_logits_NC + strength * near @ values
    wrong = (torch.softmax(torch.tensor(logits), dim=1).numpy() - support.one_hot_NC) / len(features)
    slope = (2 * beta * strength * near * (wrong @ values.T)).T[:14] @ features
    want = keys[:14] * (1 - 1e-5) - 1e-3 * slope / (np.abs(slope) + 1e-4)
    assert keys_scorer(support, beta, strength).keys_MD[:14] == pytest.approx(want, abs=2e-6)


def test_tip_adapter_f_starts_as_tip_adapter(support, monkeypatch):
    monkeypatch.setattr(trained, "TIP_F_RATE", 0.0)
    before = fitted("tip", support, tip)
    (learned,) = tip_f(support)
    untempered = before.scorer.times(before.chosen["temperature"])
    features = Cone(seed=1, num_classes=5).images(labels_of(9, 9, 9, 9, 9))
    assert learned.texts.logits(features) == pytest.approx(untempered.logits(features), abs=1e-4)
    assert learned.chosen == {name: before.chosen[name] for name in ("beta", "strength")}


def test_an_epoch_of_tip_adapter_f_has_every_image_once_in_some_view():
    batches = tip_f_batches(300, 4)
    assert [len(rows) for rows in batches] == [256, 44] * 20
    epochs = [np.concatenate(batches[at : at + 2]) for at in range(0, 40, 2)]
    assert all(sorted(epoch // 4) == list(range(300)) for epoch in epochs)
    assert all(100 < (np.concatenate(epochs) % 4 == view).sum() / 12 < 150 for view in range(4))


# ---------------------------------------------------------------- both


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_folds_are_as_large_as_each_other_in_all_and_in_each_class(labels):
    found, labels = folds(np.array(labels)), np.array(labels)
    for part in (found, *(found[labels == label] for label in set(labels))):
        sizes = np.bincount(part, minlength=FOLDS)
        assert sizes.max() - sizes.min() <= 1
    assert set(found) == set(range(min(FOLDS, len(labels))))


@pytest.mark.parametrize("views", [0, 2])
def test_a_held_out_label_is_scored_by_a_teacher_of_the_other_folds(views):
    support = Cone(num_classes=5).support(labels_of(6, 3, 1, 0, 4), views)
    (learned,) = clap(support, LONG)
    own = folds(support.labels_N)
    for fold in range(FOLDS):
        others = prototypes_scorer(support.some(np.flatnonzero(own != fold)), LONG)
        want = others.logits(support.features_ND[own == fold])  # of the images as they are, not of their views
        assert np.array_equal(learned.texts_NC[own == fold], want)


@pytest.mark.parametrize(
    "train", [partial(prototypes_scorer, settings=LONG), partial(keys_scorer, beta=1.5, strength=12.0)]
)
def test_a_held_out_label_does_not_hang_on_itself(train):
    support = Cone(num_classes=5).support(labels_of(6, 3, 1, 0, 4))
    before = held_out_logits(support, train)
    for last, other in ((5, 1), (8, 2), (9, 4)):  # the last of its class becomes the first of the next: same folds
        changed = support.labels_N.copy()
        changed[last] = other
        after = held_out_logits(replace(support, labels_N=changed), train)
        assert np.array_equal(folds(changed), folds(support.labels_N))
        assert np.array_equal(after[last], before[last])
        assert not np.array_equal(after, before)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "labels", [labels_of(0, 1, 0, 0, 0), labels_of(0, 2), labels_of(0, 0, 7, 0, 0), labels_of(1, 1, 1, 1, 1)]
)
def test_few_labels_or_those_of_one_class_give_finite_logits(rule, labels):
    support = Cone(num_classes=5).support(labels)
    (learned,) = RULES[rule](support)
    assert finite(learned.texts, support)
    assert learned.texts_NC.shape == (len(labels), 5)
    assert np.isfinite(learned.texts_NC).all()
    assert finite(fit_rule(rule, support).scorer, support)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_images_that_are_all_the_same_give_finite_logits(rule):
    cone = Cone(num_classes=5)
    support = Support(np.tile(cone.images([1]), (9, 1)), labels_of(3, 4, 2), Texts(cone.texts, SCALE))
    assert finite(fit_rule(rule, support).scorer, support)


def test_images_that_are_almost_the_same_give_finite_logits():
    cone = Cone(num_classes=5)
    nearly = cone.images([1]) + 1e-3 * cone.noise(300)
    support = Support(nearly, labels_of(100, 150, 50), Texts(cone.texts, SCALE))
    teacher = fit_rule("tip_f", support)
    assert teacher.chosen["beta"] > 10 * trained.NARROW
    assert finite(teacher.scorer, support)
    assert np.isfinite(teacher.losses_M).all()


def test_one_label_left_out_leaves_the_texts(support):
    alone = support.some(np.array([3]))
    (learned,) = clap(alone)
    assert np.array_equal(learned.texts_NC, alone.text_logits_NC)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_same_labels_give_the_same_teacher_and_torchs_own_draws_are_left_alone(rule):
    support = Cone().support(labels_of(*[15] * 20), views=2)  # several batches an epoch
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = fit_rule(rule, support, LONG)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = fit_rule(rule, support, LONG)
    assert first.chosen == again.chosen
    assert np.array_equal(first.scorer.logits(support.features_ND), again.scorer.logits(support.features_ND))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_number_of_threads_changes_rounding_at_most(rule):
    settings = replace(PUBLISHED_CLAP, epochs=5)
    support, threads, logits = Cone().support(labels_of(*[15] * 20)), torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            logits.append(fit_rule(rule, support, settings).scorer.logits(support.features_ND))
    finally:
        torch.set_num_threads(threads)
    assert logits[0] == pytest.approx(logits[1], abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_with_lopsided_labels_no_class_is_lost(rule, seed):
    cone = Cone(seed)
    support = cone.support(labels_of(*[0] * 5, *[1] * 5, *[4] * 5, *[20] * 5))
    labels = labels_of(*[50] * 20)
    images = cone.images(labels)
    before, after = (
        (logits.argmax(axis=1) == labels).reshape(20, 50).mean(axis=1)
        for logits in (images @ cone.texts.T, fit_rule(rule, support).scorer.logits(images))
    )
    assert (after > before - 0.3).all()
    assert after.min() > 0
    assert after.mean() > before.mean()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("views", [0, 4])
def test_eight_labels_a_class_beat_zero_shot(rule, views):
    gains, held_out_gains = [], []
    for seed in range(3):
        cone = Cone(seed)
        support = cone.support(labels_of(*[8] * 20), views)
        labels = labels_of(*[50] * 20)
        images = cone.images(labels)
        teacher = fit_rule(rule, support)
        right = teacher.scorer.logits(images).argmax(axis=1) == labels
        gains.append(right.mean() - ((images @ cone.texts.T).argmax(axis=1) == labels).mean())
        held_out_gains.append(teacher.before["log_loss"] - teacher.after["log_loss"])
    assert min(gains) > 0.01
    assert min(held_out_gains) > 0
