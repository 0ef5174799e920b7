"""An exported student says what the student says, and what does not is never left behind."""

import importlib.util
import json

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import nn

from raykd.algo.dho import StudentNet
from raykd.algo.heads import HEADS, Mixture
from raykd.errors import UserError
from raykd.models.export import Deployable, check_installed, check_same, mixed_in_torch, open_written, write_checked
from raykd.models.student import Student, make_backbone, normalised, preprocess_of, set_image_size

CLASSES = ["cat", "dog", "é"]
MIXTURE = Mixture(0.3, 0.75, 1.7)


def make_student(backbone="test_resnet", size=32, mixture=MIXTURE, heads="dho"):
    torch.manual_seed(0)
    module, width = make_backbone(backbone)
    set_image_size(module, size)
    model = StudentNet(module, width, len(CLASSES), heads)
    with torch.no_grad():  # running statistics that a fresh model does not have; heads that are sure of something
        model.train()(torch.randn(8, 3, size, size))
        for parameter in model.parameters():
            if parameter.shape[0] == len(CLASSES):
                parameter.mul_(6)
    return Student(model.eval(), backbone, CLASSES, preprocess_of(module, size, "bicubic"), mixture)


def pixels(num=7, size=32):
    return np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


# ---------------------------------------------------------------- the network in one piece


@pytest.mark.slow
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mixture", [MIXTURE, Mixture(0, 2), Mixture(1, 2, 0.3), Mixture(0.5, 0.5, 0.2)])
def test_the_network_in_one_piece_gives_the_students_probabilities(heads, mixture):
    student = make_student(heads=heads, mixture=mixture)
    probs_NC = Deployable(student)(torch.from_numpy(pixels()))
    assert probs_NC.dtype == torch.float32
    assert np.ptp(student.probabilities(pixels()), axis=0).max() > 0.01  # it says something of them
    np.testing.assert_allclose(probs_NC.detach().numpy(), student.probabilities(pixels()), atol=1e-6)


def test_a_calibration_finds_something_to_divide_where_a_probability_rounds_to_zero():
    both = [torch.tensor([[0.0, 300.0, 0.0]]), torch.tensor([[0.0, 300.0, 0.0]])]
    probs_NC = mixed_in_torch(both, Mixture(0.5, 1.0, 300.0))
    want_C = np.exp([-1, 0, -1])
    np.testing.assert_allclose(probs_NC.numpy()[0], want_C / want_C.sum(), atol=1e-6)


# ---------------------------------------------------------------- written, and held against the student


def written(student, kind, folder, **more):
    folder.mkdir(exist_ok=True)
    return write_checked(student, kind, folder, pixels(16, student.preprocess.image_size), **more)


@pytest.fixture(scope="module")
def student():
    return make_student()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
@pytest.mark.parametrize("heads", ["dho", "ce+kd"])
def test_plain_timm_loads_what_is_written_with_the_heads_in_one_classifier(backbone, heads, tmp_path):
    student = make_student(backbone, size=48, heads=heads)
    facts = written(student, "timm", tmp_path)
    assert facts["gate"]["num_images"] == 16
    assert facts["gate"]["max_difference"] <= 1e-5
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.num_classes == len(CLASSES) * len(HEADS[heads])
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert saved["raykd"]["classes"] == CLASSES
    assert saved.get("label_names") == (CLASSES if heads == "ce+kd" else None)
    if heads == "dho":
        bias = model.get_classifier().bias.detach()
        torch.testing.assert_close(bias[:3], student.model.ce_head.bias)
        torch.testing.assert_close(bias[3:], student.model.kd_head.bias / MIXTURE.temperature)


def test_timm_makes_the_students_pixels_from_what_the_folder_says(student, tmp_path):
    written(student, "timm", tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    rng = np.random.default_rng(1)
    for height, width in ((40, 61), (32, 32), (301, 97), (33, 200)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = normalised(torch.from_numpy(np.array(student.preprocess.clean()(image))[None]), student.preprocess)
        torch.testing.assert_close(transform(image)[None], ours, atol=1e-5, rtol=0)  # a level is about 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_network_in_one_file_takes_batches_of_any_size(student, kind, tmp_path):
    facts = written(student, kind, tmp_path)
    assert facts["gate"] | {"max_difference": 0} == {
        "num_images": 16, "batches": (1, 2, 7), "max_difference": 0, "num_ties": 0
    }  # fmt: skip
    np.testing.assert_allclose(open_written(kind, tmp_path)(pixels(5)), student.probabilities(pixels(5)), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [facts["weights"]]


@pytest.mark.slow
def test_an_exporter_that_writes_another_model_is_found_out(student, tmp_path, monkeypatch):
    real, tried = torch.onnx.export, []

    def wrong(model, *args, dynamo, **more):
        tried.append(dynamo)
        if dynamo in bad:
            model.model.ce_head.weight.data[0] += 0.05
            return real(model, *args, dynamo=False, dynamic_axes={"pixels": {0: "n"}}, **CHOSEN)
        return real(model, *args, dynamo=dynamo, **more)

    CHOSEN = {"input_names": ["pixels"], "output_names": ["probabilities"]}
    monkeypatch.setattr(torch.onnx, "export", wrong)
    bad = {True}
    facts = written(student, "onnx", tmp_path)
    assert tried == [True, False]
    assert facts["exporter"] == "torch.onnx.export(dynamo=False)"
    assert "differs by" in facts["why"]
    bad = {True, False}
    with pytest.raises(UserError, match=r"(?s)dynamo=True.*differs by.*dynamo=False.*differs by"):
        written(student, "onnx", tmp_path)


def test_other_weights_no_numbers_and_the_batch_of_the_example_alone_do_not_pass(student):
    right = student.probabilities

    def turned(probs_NC):
        return np.roll(probs_NC, 1, axis=1)

    assert check_same(student, right, pixels(16)).max_difference < 1e-6
    for ask, message in (
        (lambda x: turned(right(x)), "differs by"),
        (lambda x: right(x) * np.nan, "differs by nan"),
        (lambda x: right(x)[:1], "gives"),
        (lambda x: right(x) if len(x) <= 2 else turned(right(x)), "at batch 7"),
    ):
        with pytest.raises(UserError, match=message):
            check_same(student, ask, pixels(16))


def test_what_of_two_likeliest_classes_wins_is_open_only_where_they_tie():
    class Fixed:
        def probabilities(self, x):
            return np.repeat(np.float32([[0.50003, 0.49997]]), len(x), axis=0)

    gate = check_same(Fixed(), lambda x: np.repeat(np.float32([[0.49999, 0.50001]]), len(x), axis=0), pixels(9))
    assert gate.num_ties == 9


@pytest.mark.parametrize("what", ["head", "backbone", "tensors", "classifier"])
def test_a_student_that_is_no_plain_timm_model_is_refused_with_what_works(what, tmp_path):
    student, reason = make_student(), "linear"
    if what == "head":
        student.model.kd_head = nn.Sequential(nn.Linear(student.model.kd_head.in_features, 3))
    elif what == "backbone":
        student.backbone, reason = "open_clip:ViT-B-32", "timm cannot make"
    elif what == "tensors":
        student.backbone, reason = "test_resnet", "tensors"
        student.model.backbone.add_module("more", nn.Linear(2, 2))
    else:
        student.backbone = "test_byobnet"
    with pytest.raises(UserError, match=f"{reason}.*take --format onnx or torch"):
        written(student, "timm", tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_command_that_brings_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    check_installed("timm")
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'raykd\[export\]'"):
        check_installed("onnx")
