"""raykd trains as the papers' formulas say: step by step the losses of a plain PyTorch loop that is written from them.

The loop shares the batches (``BatchPlan``), the first weights and the data with raykd, and nothing else: losses by hand
(PAPERS.md 1.2), torch's AdamW and its schedulers (1.4). All in float64, so that what differs is not rounding.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from fakes import write_family
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LambdaLR, LinearLR

from raykd.algo.batches import BatchPlan
from raykd.algo.dho import StudentNet
from raykd.algo.heads import HEADS
from raykd.config import StudentConfig
from raykd.models.student import new_student
from raykd.models.tower import fetch_tower
from raykd.models.training import Targets, TrainingSettings, reproducible, train_student
from raykd.models.training_data import TrainingFeatures
from raykd.presets import load_preset
from raykd.store.place import Place

NUM, LABELED, CLASSES, STEPS, RISING, KEY = 40, 9, 3, 20, 6, (3, 1)
WIDTH, SIZE = 6, 24


class InFloat64(TrainingFeatures):
    def to_input(self, batch):
        return batch.double()


def settings_of(preset: str) -> TrainingSettings:
    """The preset's own, but for a small number of steps and images: fewer labels than a batch takes."""
    student = load_preset(preset).student
    names = ("forward", "loss_ce_weight", "distill_temperature", "learning_rate", "weight_decay", "schedule", "warmup")
    return TrainingSettings(
        steps=STEPS, key=KEY, batch_labeled=12, batch_unlabeled=12,
        warmup_steps=None if student.warmup_steps is None else RISING,
        **{name: getattr(student, name) for name in names},
    )  # fmt: skip


def problem(shape: tuple[int, ...]) -> tuple[np.ndarray, Targets]:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, NUM)
    data = rng.normal(size=(NUM, *shape)).astype(np.float32)
    data[np.arange(NUM), classes] += 1
    teacher = rng.normal(0, 2, (NUM, CLASSES)).astype(np.float16)
    teacher[np.arange(NUM), classes] += 3
    return data, Targets(classes[:LABELED], teacher)


def raykds(model: StudentNet, data: np.ndarray, targets: Targets, settings: TrainingSettings):
    with reproducible(1, torch.device("cpu")):
        return train_student(model.double(), InFloat64(data), targets, settings, lambda *_: None)


# ---------------------------------------------------------------- the plain loop


def divergence(teacher_NC, student_NC, temperature):
    p_NC, q_NC = (torch.softmax(logits / temperature, dim=1) for logits in (teacher_NC, student_NC))
    return (p_NC * (p_NC.log() - q_NC.log())).sum(dim=1).mean()


def linear(optimizer):
    """transformers.get_linear_schedule_with_warmup, as DHO/train_others.py calls it: 10 % of the steps."""
    rising = int(0.1 * STEPS)
    return LambdaLR(optimizer, lambda s: s / rising if s < rising else (STEPS - s) / (STEPS - rising))


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, T_max=STEPS)


def semi_supervised(optimizer):
    rise = LinearLR(optimizer, start_factor=0.01, end_factor=1.0, total_iters=RISING)
    return ChainedScheduler([rise, CosineAnnealingLR(optimizer, T_max=STEPS - RISING)])


PAPERS = {  # schedule, learning rate, weight decay, whether in one pass
    "dho_small": (linear, 1e-3, 1e-2, False),
    "dho_imagenet": (cosine, 1e-3, 1e-2, True),
    "dho_vlm": (semi_supervised, 5e-5, 5e-2, True),
}


def plain_loop(preset, parts, heads, data, targets):
    """Lines as raykd writes them.

    Args:
        parts: ``backbone`` and the heads, by the column of logits that each gives; each a module or function.
    """
    schedule, rate, decay, stacked = PAPERS[preset]
    modules = [part for part in vars(parts).values() if isinstance(part, nn.Module)]
    parameters = [value for module in modules for value in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.999), weight_decay=decay)
    scheduler, plan, lines = schedule(optimizer), BatchPlan(LABELED, NUM - LABELED, 12, 12, KEY), []
    images_N, teacher_NC = torch.from_numpy(data).double(), torch.from_numpy(targets.teacher_NC).double()
    labels_L, head_of = torch.from_numpy(targets.labels_L), vars(parts)
    for step in range(STEPS):
        labeled, unlabeled = torch.from_numpy(plan.labeled(step)), torch.from_numpy(plan.unlabeled(step)) + LABELED
        if heads == "ce":  # no distillation: no other images
            z_l = parts.backbone(images_N[labeled])
        elif stacked:
            z_l, z_u = parts.backbone(torch.cat([images_N[labeled], images_N[unlabeled]])).split([12, 12])
        else:
            z_l = parts.backbone(images_N[labeled])
            z_u = parts.backbone(images_N[unlabeled])
        terms, ce, kl = [], None, (None, None)
        if (for_labels := {"dho": "ce_logits", "ce": "ce_logits", "ce+kd": "logits"}.get(heads)) is not None:
            chosen = torch.softmax(head_of[for_labels](z_l), dim=1)[torch.arange(12), labels_L[labeled]]
            ce = -chosen.log().mean()
            terms.append(ce)
        if (for_teacher := {"dho": "kd_logits", "kd": "kd_logits", "ce+kd": "logits"}.get(heads)) is not None:
            given = ((labeled, z_l), (unlabeled, z_u))
            kl = [divergence(teacher_NC[of], head_of[for_teacher](z), 2.0) for of, z in given]
            terms.append(4 * sum(kl))  # temperature squared; the two means are added
        loss = 0.5 * terms[0] + 0.5 * terms[1] if len(terms) == 2 else terms[0]
        found = {"loss": loss, "ce": ce, "kl_labeled": kl[0], "kl_unlabeled": kl[1]}
        lines.append({name: None if value is None else float(value.detach()) for name, value in found.items()})
        lines[-1]["learning_rate"] = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return lines


def assert_same_lines(found, expected):
    assert len(found) == len(expected) == STEPS
    for step, (line, want) in enumerate(zip(found, expected, strict=True)):
        for name, value in want.items():
            if value is None:
                assert line[name] is None, (step, name)
            else:
                assert line[name] == pytest.approx(value, rel=1e-6, abs=1e-9), (step, name)
    losses = [line["loss"] for line in expected]
    assert min(np.abs(np.diff(losses))) > 1e-5  # or a training that stands still would do


# ---------------------------------------------------------------- step by step


def plain_backbone() -> nn.Module:
    """BatchNorm: whether labeled and unlabeled images go through it in one pass or in two makes a difference."""
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU())


@pytest.mark.slow
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("preset", ["dho_small", "dho_imagenet"])
def test_each_steps_losses_are_those_of_a_plain_loop(preset, heads):
    data, targets = problem((WIDTH,))
    torch.manual_seed(0)
    model = StudentNet(plain_backbone(), 8, CLASSES, heads).double()
    parts = SimpleNamespace(backbone=plain_backbone().double())
    parts.backbone.load_state_dict(model.backbone.state_dict())
    for column in HEADS[heads]:
        head = nn.Linear(8, CLASSES).double()
        head.load_state_dict(model.get_submodule(column.replace("logits", "head")).state_dict())
        setattr(parts, column, head)
    expected = plain_loop(preset, parts, heads, data, targets)
    assert_same_lines(raykds(model, data, targets, settings_of(preset)), expected)
    for name, value in parts.backbone.state_dict().items():  # BatchNorm's statistics, too
        torch.testing.assert_close(model.backbone.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    other = {"dho_small": "stacked", "dho_imagenet": "separate"}[preset]
    if heads != "ce":
        torch.manual_seed(0)
        again = StudentNet(plain_backbone(), 8, CLASSES, heads)
        different = raykds(again, data, targets, replace(settings_of(preset), forward=other))
        assert different[0]["loss"] != pytest.approx(expected[0]["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["dho", "ce+kd"])
def test_a_language_aware_towers_losses_are_those_of_a_plain_loop_over_open_clips_model(heads, tmp_path):
    """Heads begin as the mean, not normalised, of the texts of the model's own; the KD head is a cosine over 0.01."""
    own = write_family(tmp_path / "own", "clip")
    texts = [["a cat", "a photo of a cat"], ["a dog"], ["an eel", "a photo of an eel"]]
    clip = open_clip.create_model(f"local-dir:{own}").double().train()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{own}")
    with torch.no_grad():
        rows_CD = torch.stack([clip.encode_text(tokenizer(each)).mean(dim=0) for each in texts])
    named = f"open_clip:local-dir:{own}"
    config = StudentConfig(backbone=named, language_aware=True, heads=heads, steps=1)
    fetch_tower(config, Place.of(tmp_path / "fetched"))
    model = new_student(
        config, ["cat", "dog", "eel"], 0, Place.of(tmp_path / "fetched"), rows_CD.numpy()
    ).model.double()
    with torch.no_grad():
        model.begin_as_texts(rows_CD)  # in float64
    linear_head = nn.Linear(16, CLASSES).double()
    with torch.no_grad():
        linear_head.weight.copy_(rows_CD)
        linear_head.bias.zero_()
    rows = nn.ParameterList([nn.Parameter(rows_CD.clone())])

    def cosine_head(z_ND):
        lengths_NC = z_ND.norm(dim=1)[:, None] * rows[0].norm(dim=1)[None]
        return z_ND @ rows[0].T / lengths_NC / 0.01

    parts = SimpleNamespace(backbone=clip.visual, rows=rows)
    if heads == "dho":
        parts.ce_logits, parts.kd_logits = linear_head, cosine_head
    else:
        parts.logits = cosine_head
    data, targets = problem((3, SIZE, SIZE))
    expected = plain_loop("dho_vlm", parts, heads, data, targets)
    assert_same_lines(raykds(model, data, targets, settings_of("dho_vlm")), expected)
    rates = [line["learning_rate"] for line in expected]
    assert rates[0] == pytest.approx(5e-7)
    assert rates[-1] > rates[-3]  # it rises again at the end
