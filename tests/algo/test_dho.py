"""The loss of DHO against plain loops, and which head learns from what."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raykd.algo.dho import Learner, Outputs, StudentNet, distillation_loss, softened_kl
from raykd.algo.heads import HEADS


def loop_softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [x / math.fsum(powers) for x in powers]


def loop_kl(teacher, student, temperature):
    """KL(teacher || student), mean over rows, one number at a time."""
    total = 0.0
    for t_row, s_row in zip(teacher.tolist(), student.tolist(), strict=True):
        p = loop_softmax([x / temperature for x in t_row])
        q = loop_softmax([x / temperature for x in s_row])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(teacher)


def loop_loss(ce, labels, teacher_l, kd_l, teacher_u, kd_u, weight, temperature):
    rows = zip(ce.tolist(), labels.tolist(), strict=True)
    cross_entropy = -sum(math.log(loop_softmax(row)[y]) for row, y in rows) / len(labels)
    distillation = loop_kl(teacher_l, kd_l, temperature) + loop_kl(teacher_u, kd_u, temperature)
    return weight * cross_entropy + (1 - weight) * temperature**2 * distillation


def outputs(rows, num_classes, seed, requires_grad=False):
    draw = torch.Generator().manual_seed(seed)
    ce, kd = (torch.randn(rows, num_classes, generator=draw, dtype=torch.float64) * 3 for _ in range(2))
    logits = {"ce_logits": ce.requires_grad_(requires_grad), "kd_logits": kd.requires_grad_(requires_grad)}
    return Outputs(torch.zeros(rows, 1), logits)


def dho_loss(*args):
    return distillation_loss(*args).total


def teacher_logits(rows, num_classes, seed):
    return torch.randn(rows, num_classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4


# ---------------------------------------------------------------- loss


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 7), st.integers(2, 6), st.floats(0, 1), st.floats(0.3, 5), st.integers(0, 2**20)
)
def test_loss_equals_a_plain_loop(num_l, num_u, num_classes, weight, temperature, seed):
    labeled, unlabeled = outputs(num_l, num_classes, seed), outputs(num_u, num_classes, seed + 1)
    teacher_l, teacher_u = teacher_logits(num_l, num_classes, seed + 2), teacher_logits(num_u, num_classes, seed + 3)
    labels = torch.arange(num_l) * 7 % num_classes
    loss = distillation_loss(labeled, labels, teacher_l, unlabeled, teacher_u, weight, temperature)
    got = loss.total
    ce, kd, kd_u = labeled.logits["ce_logits"], labeled.logits["kd_logits"], unlabeled.logits["kd_logits"]
    want = loop_loss(ce, labels, teacher_l, kd, teacher_u, kd_u, weight, temperature)
    assert got.shape == ()
    assert float(got) == pytest.approx(want, rel=1e-9, abs=1e-12)
    only_labels = loop_loss(ce, labels, teacher_l, kd, teacher_u, kd_u, 1.0, temperature)
    assert float(loss.ce) == pytest.approx(only_labels, rel=1e-9, abs=1e-12)
    for part, teacher, out in ((loss.kl_labeled, teacher_l, labeled), (loss.kl_unlabeled, teacher_u, unlabeled)):
        kl = loop_kl(teacher, out.logits["kd_logits"], temperature)
        assert float(part) == pytest.approx(kl, rel=1e-9, abs=1e-12)


def test_loss_defaults_are_the_papers_half_and_temperature_two():
    labeled, unlabeled, labels = outputs(3, 4, 0), outputs(5, 4, 1), torch.tensor([0, 3, 1])
    teacher = teacher_logits(3, 4, 2), teacher_logits(5, 4, 3)
    default = dho_loss(labeled, labels, teacher[0], unlabeled, teacher[1])
    assert default == dho_loss(labeled, labels, teacher[0], unlabeled, teacher[1], 0.5, 2.0)


def test_distillation_is_the_divergence_from_teacher_to_student_and_not_the_other_way():
    teacher, student = teacher_logits(6, 5, 0), teacher_logits(6, 5, 1)
    forward, backward = loop_kl(teacher, student, 2.0), loop_kl(student, teacher, 2.0)
    assert abs(forward - backward) > 0.05
    assert float(softened_kl(teacher, student, 2.0)) == pytest.approx(forward, rel=1e-9)


def test_distillation_is_zero_only_where_student_and_teacher_agree_up_to_a_constant():
    teacher = teacher_logits(6, 5, 0)
    assert float(softened_kl(teacher, teacher + 3.0, 2.0)) == pytest.approx(0, abs=1e-12)
    assert float(softened_kl(teacher, teacher * 1.1, 2.0)) > 1e-3


def test_distillation_carries_the_square_of_the_temperature():
    labeled, unlabeled, labels = outputs(3, 4, 0), outputs(5, 4, 1), torch.tensor([0, 3, 1])
    teacher_l, teacher_u = teacher_logits(3, 4, 2), teacher_logits(5, 4, 3)
    for temperature in (1.0, 2.0, 3.0):
        bare = softened_kl(teacher_l, labeled.logits["kd_logits"], temperature)
        bare = bare + softened_kl(teacher_u, unlabeled.logits["kd_logits"], temperature)
        loss = dho_loss(labeled, labels, teacher_l, unlabeled, teacher_u, 0.0, temperature)
        assert float(loss / bare) == pytest.approx(temperature**2, rel=1e-12)


def test_distillation_doubles_when_the_unlabeled_batch_equals_the_labeled_one():
    batch, labels, teacher = outputs(4, 5, 0), torch.tensor([0, 1, 2, 3]), teacher_logits(4, 5, 1)
    both = dho_loss(batch, labels, teacher, batch, teacher, 0.0, 2.0)
    assert float(both) == pytest.approx(2 * 4 * loop_kl(teacher, batch.logits["kd_logits"], 2.0), rel=1e-9)


def test_each_divergence_is_averaged_over_its_own_batch():
    batch, labels, teacher = outputs(4, 5, 0), torch.tensor([0, 1, 2, 3]), teacher_logits(4, 5, 1)
    thrice = Outputs(batch.features_ND.repeat(3, 1), {k: v.repeat(3, 1) for k, v in batch.logits.items()})
    once = dho_loss(batch, labels, teacher, batch, teacher)
    assert float(dho_loss(batch, labels, teacher, thrice, teacher.repeat(3, 1))) == pytest.approx(
        float(once), rel=1e-12
    )


def test_temperature_does_not_touch_the_cross_entropy():
    labeled, unlabeled, labels = outputs(3, 4, 0), outputs(5, 4, 1), torch.tensor([0, 3, 1])
    teacher = teacher_logits(3, 4, 2), teacher_logits(5, 4, 3)
    losses = {float(dho_loss(labeled, labels, teacher[0], unlabeled, teacher[1], 1.0, t)) for t in (0.5, 2.0, 9.0)}
    assert len(losses) == 1


def test_loss_is_finite_for_a_certain_teacher_and_a_certain_student():
    logits = {"ce_logits": torch.tensor([[0.0, 300.0]]), "kd_logits": torch.tensor([[500.0, -500.0]])}
    labeled = Outputs(torch.zeros(1, 1), logits)
    loss = dho_loss(labeled, torch.tensor([0]), torch.tensor([[-800.0, 800.0]]), labeled, torch.tensor([[0.0, 800.0]]))
    assert torch.isfinite(loss)


# ---------------------------------------------------------------- who learns from what


def gradients(labels, teacher_u_seed=5, unlabeled_seed=6, weight=0.5):
    """Of a small dual-head model on one step: by parameter name."""
    torch.manual_seed(0)
    model = StudentNet(nn.Linear(6, 4), 4, 3).double()
    draw = torch.Generator().manual_seed(1)
    labeled = model(torch.randn(5, 6, generator=draw, dtype=torch.float64))
    unlabeled = model(torch.randn(7, 6, generator=torch.Generator().manual_seed(unlabeled_seed), dtype=torch.float64))
    teacher_l, teacher_u = teacher_logits(5, 3, 4), teacher_logits(7, 3, teacher_u_seed)
    dho_loss(labeled, torch.tensor(labels), teacher_l, unlabeled, teacher_u, weight).backward()
    return {name: value.grad for name, value in model.named_parameters()}


def test_logits_of_unlabeled_rows_from_the_ce_head_get_exactly_zero_gradient():
    labeled, unlabeled = outputs(3, 4, 0, requires_grad=True), outputs(5, 4, 1, requires_grad=True)
    dho_loss(labeled, torch.tensor([0, 3, 1]), teacher_logits(3, 4, 2), unlabeled, teacher_logits(5, 4, 3)).backward()
    assert unlabeled.logits["ce_logits"].grad is None or not unlabeled.logits["ce_logits"].grad.any()
    assert unlabeled.logits["kd_logits"].grad.abs().sum(1).min() > 0
    assert labeled.logits["ce_logits"].grad.abs().sum(1).min() > 0
    assert labeled.logits["kd_logits"].grad.abs().sum(1).min() > 0


def test_ce_head_learns_the_same_whatever_the_unlabeled_images_and_their_teacher_are():
    one, other = (gradients([0, 1, 2, 0, 1], **seeds) for seeds in ({}, {"teacher_u_seed": 50, "unlabeled_seed": 60}))
    for name in ("ce_head.weight", "ce_head.bias"):
        assert torch.equal(one[name], other[name])
    assert not torch.equal(one["kd_head.weight"], other["kd_head.weight"])


def test_kd_head_learns_the_same_whatever_the_labels_are():
    one, other = gradients([0, 1, 2, 0, 1]), gradients([2, 2, 0, 1, 0])
    for name in ("kd_head.weight", "kd_head.bias"):
        assert torch.equal(one[name], other[name])
    assert not torch.equal(one["ce_head.weight"], other["ce_head.weight"])


def test_both_heads_reach_the_backbone():
    full, only_ce, only_kd = (gradients([0, 1, 2, 0, 1], weight=w)["backbone.weight"] for w in (0.5, 1.0, 0.0))
    assert only_ce.any()
    assert only_kd.any()
    torch.testing.assert_close(full, 0.5 * only_ce + 0.5 * only_kd)


def test_model_has_two_heads_with_bias_on_one_feature():
    model = StudentNet(nn.Identity(), 6, 3)
    images = torch.randn(4, 6)
    out = model(images)
    assert torch.equal(out.features_ND, images)
    torch.testing.assert_close(out.logits["ce_logits"], images @ model.ce_head.weight.T + model.ce_head.bias)
    torch.testing.assert_close(out.logits["kd_logits"], images @ model.kd_head.weight.T + model.kd_head.bias)
    assert not torch.equal(model.ce_head.weight, model.kd_head.weight)


# ---------------------------------------------------------------- one head


def of_kind(heads, seed=0):
    """A labeled and an unlabeled batch of a student of that kind, labels, and the teacher on both."""
    batches = [outputs(rows, 4, seed + i) for i, rows in enumerate((3, 5))]
    names = {"ce_logits": "ce_logits", "kd_logits": "kd_logits", "logits": "ce_logits"}
    batches = [Outputs(b.features_ND, {column: b.logits[names[column]] for column in HEADS[heads]}) for b in batches]
    return batches[0], torch.tensor([0, 3, 1]), teacher_logits(3, 4, 7), batches[1], teacher_logits(5, 4, 8)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_heads_loss_is_its_closed_form(weight, temperature):
    labeled, labels, teacher_l, unlabeled, teacher_u = of_kind("ce+kd")
    one, other = labeled.logits["logits"], unlabeled.logits["logits"]
    want = loop_loss(one, labels, teacher_l, one, teacher_u, other, weight, temperature)
    both = distillation_loss(labeled, labels, teacher_l, unlabeled, teacher_u, weight, temperature)
    assert float(both.total) == pytest.approx(want, rel=1e-9)

    ce = distillation_loss(*of_kind("ce"), weight, temperature)
    assert float(ce.total) == pytest.approx(
        loop_loss(one, labels, teacher_l, one, teacher_u, other, 1.0, 2.0), rel=1e-9
    )
    assert ce.total is ce.ce
    assert (ce.kl_labeled, ce.kl_unlabeled) == (None, None)

    labeled, labels, teacher_l, unlabeled, teacher_u = of_kind("kd")
    kd = distillation_loss(labeled, labels, teacher_l, unlabeled, teacher_u, weight, temperature)
    want = loop_kl(teacher_l, labeled.logits["kd_logits"], temperature)
    want += loop_kl(teacher_u, unlabeled.logits["kd_logits"], temperature)
    assert float(kd.total) == pytest.approx(temperature**2 * want, rel=1e-9)
    assert kd.ce is None


def test_a_head_of_labels_alone_needs_neither_teacher_nor_unlabeled_images():
    labeled, labels, *_ = of_kind("ce")
    assert distillation_loss(labeled, labels, None, None, None).total == distillation_loss(*of_kind("ce")).total


def test_a_head_of_the_teacher_alone_never_sees_a_label():
    labeled, _, *rest = of_kind("kd")
    losses = {float(distillation_loss(labeled, torch.tensor(y), *rest).total) for y in ([0, 3, 1], [2, 2, 2])}
    assert len(losses) == 1


@pytest.mark.parametrize("heads", HEADS)
def test_a_students_modules_are_named_after_its_columns_and_its_gradients_reach_the_backbone(heads):
    torch.manual_seed(0)
    model = StudentNet(nn.Linear(6, 4), 4, 3, heads)
    assert set(dict(model.named_children())) - {"backbone"} == {c.replace("logits", "head") for c in HEADS[heads]}
    labeled, unlabeled = model(torch.randn(5, 6)), model(torch.randn(7, 6))
    assert tuple(labeled.logits) == HEADS[heads]
    teacher = teacher_logits(5, 3, 1).float(), teacher_logits(7, 3, 2).float()
    distillation_loss(labeled, torch.tensor([0, 1, 2, 0, 1]), teacher[0], unlabeled, teacher[1]).total.backward()
    assert all(value.grad.any() for value in model.parameters())


def test_rows_of_outputs_are_rows_of_each_part():
    out = outputs(5, 3, 0)
    part = out.rows(slice(1, 3))
    assert torch.equal(part.features_ND, out.features_ND[1:3])
    assert all(torch.equal(part.logits[name], value[1:3]) for name, value in out.logits.items())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_a_learners_loss_is_that_of_its_batch_in_two_parts(heads, stacked):
    torch.manual_seed(0)
    model = StudentNet(nn.Linear(6, 4), 4, 3, heads).double()
    learner = Learner(model, stacked, 0.3, 1.5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    images = torch.randn(12 if learner.needs_teacher else 5, 6, dtype=torch.float64)
    teacher = teacher_logits(5, 3, 1), teacher_logits(7, 3, 2)
    want = distillation_loss(model(images[:5]), labels, teacher[0], model(images[5:]), teacher[1], 0.3, 1.5)
    got = learner(images, labels, *teacher)
    assert [part is None for part in got] == [part is None for part in want]
    for one, other in zip(got, want, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other)
    assert learner.needs_teacher == (heads != "ce")
