"""A student saved and loaded is the same student; its preprocessing is torchvision's."""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T

from raykd.algo.dho import StudentNet
from raykd.algo.heads import HEADS, Mixture, probabilities
from raykd.config import StudentConfig
from raykd.errors import UserError
from raykd.models.preprocess import ABOUT, Preprocess, read_preprocess
from raykd.models.saved import WEIGHTS, deploy
from raykd.models.student import (
    Student,
    check_backbone,
    check_weights,
    initial_backbone,
    load_weights,
    make_backbone,
    normalised,
    preprocess_of,
    try_student,
)
from raykd.store.place import Place

CLASSES = ["cat", "dog", "é"]
BACKBONES = ["test_resnet", "mobilenetv3_small_050", "test_vit", "test_efficientnet"]


def make_student(backbone="test_resnet", size=32, mixture=None, heads="dho"):
    torch.manual_seed(0)
    module, width = make_backbone(backbone)
    model = StudentNet(module, width, len(CLASSES), heads)
    with torch.no_grad():  # running statistics that a fresh model does not have
        model.train()(torch.randn(8, 3, size, size))
    return Student(model.eval(), backbone, CLASSES, preprocess_of(module, size, "bicubic"), mixture or Mixture())


def pictures(num=4):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + 7 * i, 61 - 5 * i, 3), dtype=np.uint8)) for i in range(num)]


@pytest.fixture(scope="module")
def student():
    return make_student(mixture=Mixture(0.3, 0.75))


# ---------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("kind", ["path", "string", "bucket"])
def test_a_loaded_student_predicts_the_same_bits(student, kind, tmp_path, request):
    place = {"path": tmp_path / "x", "string": str(tmp_path / "y")}.get(kind) or request.getfixturevalue("bucket") / "s"
    student.save(place)
    loaded = Student.load(place)
    np.testing.assert_array_equal(loaded.predict(pictures()), student.predict(pictures()))
    assert (loaded.backbone, loaded.classes, loaded.preprocess) == ("test_resnet", CLASSES, student.preprocess)
    assert loaded.mixture == Mixture(0.3, 0.75)
    assert not loaded.model.training
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == safetensors.torch.save(
        {name: value.contiguous() for name, value in student.model.state_dict().items()}
    )


def test_a_saved_student_is_two_files_that_people_can_read(student, tmp_path):
    student.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS, ABOUT]
    about = json.loads((tmp_path / ABOUT).read_text("utf-8"))
    assert about["classes"] == CLASSES
    assert about["mixture"] == {"ce_weight": 0.3, "temperature": 0.75, "calibration": 1.0}
    assert about["preprocess"]["image_size"] == 32
    state = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert {"ce_head.weight", "ce_head.bias", "kd_head.weight", "kd_head.bias"} <= set(state)


def test_predictions_are_the_mixture_of_the_heads_on_the_clean_crop(student):
    images = pictures()
    crop = T.Compose([T.Resize(32, T.InterpolationMode.BICUBIC), T.CenterCrop(32), T.ToTensor()])
    normal = T.Normalize(student.preprocess.mean, student.preprocess.std)
    with torch.inference_mode():
        out = student.model(torch.stack([normal(crop(image)) for image in images]))
    logits = {column: value.numpy() for column, value in out.logits.items()}
    want = probabilities(logits, Mixture(0.3, 0.75))
    got = student.predict(images)
    assert got.shape == (4, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)


def test_gray_and_transparent_pictures_can_be_predicted(student):
    image = pictures(1)[0]
    assert student.predict([image.convert("L"), image.convert("RGBA")]).shape == (2, 3)


@pytest.mark.parametrize("heads", HEADS)
def test_a_student_of_each_kind_is_saved_with_it_and_predicts(heads, tmp_path):
    student = make_student(heads=heads)
    student.save(tmp_path)
    assert json.loads((tmp_path / ABOUT).read_text("utf-8"))["heads"] == heads
    loaded = Student.load(tmp_path)
    assert loaded.columns == HEADS[heads]
    np.testing.assert_array_equal(loaded.predict(pictures()), student.predict(pictures()))
    pixels = np.stack([np.array(student.preprocess.clean()(image)) for image in pictures()])
    features, logits = loaded.outputs(pixels)
    assert tuple(logits) == HEADS[heads]
    assert features.dtype == np.float32
    np.testing.assert_array_equal(loaded.predict(pictures()), probabilities(logits, Mixture()))


def test_a_deployed_student_has_the_same_weights_and_another_mixture(student, tmp_path):
    student.save(tmp_path / "trained")
    deploy(Place.of(tmp_path / "trained"), Place.of(tmp_path / "student"), Mixture(0.9, 2.0))
    loaded = Student.load(tmp_path / "student")
    assert loaded.mixture == Mixture(0.9, 2.0)
    assert (tmp_path / "student" / WEIGHTS).read_bytes() == (tmp_path / "trained" / WEIGHTS).read_bytes()
    assert loaded.about() == student.about() | {"mixture": {"ce_weight": 0.9, "temperature": 2.0, "calibration": 1.0}}


def test_a_saved_students_preprocessing_can_be_read_and_it_be_deployed_without_torch(student, tmp_path):
    student.save(tmp_path / "trained")
    code = (
        "import sys; from raykd.algo.heads import Mixture; from raykd.models.preprocess import read_preprocess; "
        "from raykd.models.saved import deploy; from raykd.store.place import Place; "
        f"trained = Place({str(tmp_path / 'trained')!r}); print(read_preprocess(trained)); "
        f"deploy(trained, Place({str(tmp_path / 'student')!r}), Mixture()); "
        "assert not {'torch', 'torchvision', 'timm', 'ray'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == repr(student.preprocess) == repr(read_preprocess(Place.of(tmp_path / "trained")))


def test_predicting_nothing_gives_nothing_and_threads_are_as_before(student):
    assert student.predict([]).shape == (0, 3)
    before = torch.get_num_threads()
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    student.outputs(pixels, num_threads=1)
    assert torch.get_num_threads() == before


def test_a_student_whose_layers_share_their_tensors_is_saved_whole(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    module[3].weight = module[2].weight
    student = Student(StudentNet(module, 6, 3), "tied", CLASSES, Preprocess(2, (0.5,) * 3, (0.5,) * 3))
    student.save(tmp_path)
    state = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert state.keys() == student.model.state_dict().keys()
    assert torch.equal(state["backbone.2.weight"], state["backbone.3.weight"])


# ---------------------------------------------------------------- backbones


@pytest.mark.parametrize("name", BACKBONES)
def test_the_width_is_that_of_the_features_and_survives_a_round_trip(name, tmp_path):
    module, width = make_backbone(name)
    size = 160 if name == "test_vit" else 32
    assert module.eval()(torch.zeros(2, 3, size, size)).shape == (2, width)
    student = make_student(name, size)
    student.save(tmp_path)
    np.testing.assert_array_equal(Student.load(tmp_path).predict(pictures(2)), student.predict(pictures(2)))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnt18", "resnet18"),
        ("mobilenetv3_smal_050", "mobilenetv3_small_050"),
        ("resnet18.tv_in1", "resnet18.tv_in1k"),
    ],
)
def test_an_unknown_backbone_or_tag_names_the_nearest(name, nearest):
    for call in (check_backbone, make_backbone, lambda name: initial_backbone(name, False)):
        with pytest.raises(
            ValueError, match=rf"student.backbone: timm has no model '{name}'; did you mean '{nearest}'"
        ):
            call(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.tv_in1k", "test_resnet.r160_in1k", "test_vit2"])
def test_known_backbones_with_and_without_tag_pass(name):
    check_backbone(name)


def test_random_weights_follow_torchs_seed():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(next(initial_backbone("test_resnet", False).parameters()).detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# ---------------------------------------------------------------- weights from a file


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    full = make_backbone("test_resnet")[0].state_dict()
    return full | {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}  # a classifier, to be left out


@pytest.mark.parametrize("form", ["a.safetensors", "plain.pth", "state_dict.pth", "model.pt", "module.pth"])
def test_weights_load_from_any_usual_checkpoint(form, state, tmp_path):
    path = tmp_path / form
    if form == "a.safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "module.pth":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if form == "plain.pth" else {path.stem: state, "epoch": 3}, path)
    loaded = initial_backbone("test_resnet", str(path)).state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, state[name]), name


def test_a_checkpoint_of_timms_training_script_is_loaded_with_its_averaged_weights(state, tmp_path):
    """Its ``args`` are a namespace, and what it measured are numpy's numbers."""
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    args = argparse.Namespace(model="test_resnet", lr=np.float64(0.1), out=pathlib.Path("/tmp/x"), betas=[0.9, 0.99])
    checkpoint = {
        "epoch": 3, "arch": "test_resnet", "version": 2, "args": args, "metric": np.float32(81.5), "best": np.int64(7),
        "state_dict": state, "state_dict_ema": {f"_orig_mod.{name}": value for name, value in averaged.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.01)}]},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "ema.pth.tar")
    loaded = initial_backbone("test_resnet", str(tmp_path / "ema.pth.tar")).state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in loaded.items())
    del checkpoint["state_dict_ema"]
    torch.save(checkpoint, tmp_path / "plain.pth.tar")
    loaded = initial_backbone("test_resnet", str(tmp_path / "plain.pth.tar")).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


class Mine:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint ran')",)


def test_a_checkpoint_with_other_objects_is_refused_and_runs_nothing(state, tmp_path):
    torch.save({"state_dict": state, "config": Mine()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"is not a checkpoint: it holds Python objects beside its tensors"):
        initial_backbone("test_resnet", str(tmp_path / "w.pth"))


def test_safetensors_are_known_behind_a_query(state, bucket):
    (bucket / "w.safetensors").write_bytes(safetensors.torch.save(state))
    module = make_backbone("test_resnet")[0]
    load_weights(module, (bucket / "w.safetensors").uri)
    assert torch.equal(next(module.parameters()), state[next(iter(module.state_dict()))])


def test_weights_that_do_not_fit_are_refused_with_the_first_odd_tensor(state, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"w\.safetensors' does not fit the backbone: \d+ of \d+ tensors.*, first '"):
        initial_backbone("test_vit", str(path))
    first = next(iter(state))
    safetensors.torch.save_file(state | {first: torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=rf"1 of \d+ tensors are missing or of another shape, first '{first}'"):
        initial_backbone("test_resnet", str(path))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"these are words")
    with pytest.raises(ValueError, match=rf"{name}' is not a checkpoint"):
        initial_backbone("test_resnet", str(tmp_path / name))


def test_a_checkpoint_that_is_no_mapping_and_a_missing_file_are_refused_by_name(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds a list; expected tensors by name"):
        initial_backbone("test_resnet", str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match=r"no file '.*nowhere\.pth'; give a checkpoint"):
        initial_backbone("test_resnet", str(tmp_path / "nowhere.pth"))


# ---------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (32, 32), (10, 10), (33, 500)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_clean_crop_is_the_centre_square_of_the_resized_short_side(size, interpolation):
    image = pictures(1)[0].resize(size)
    got = Preprocess(32, (0.5,) * 3, (0.5,) * 3, interpolation).clean()(image)
    assert got.size == (32, 32)
    want = T.Compose([T.Resize(32, T.InterpolationMode(interpolation)), T.CenterCrop(32)])(image)
    assert got.tobytes() == want.tobytes()


def test_normalising_equals_torchvisions_to_tensor_and_normalize():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = [image.resize((24, 20)) for image in pictures()]
    want = torch.stack([T.Normalize(mean, std)(T.ToTensor()(image)) for image in images])
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images]))
    got = normalised(pixels, Preprocess(32, mean, std))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_augmentation_is_drawn_from_its_seed_and_crops_within_its_area():
    preprocess, image = Preprocess(32, (0.5,) * 3, (0.5,) * 3), pictures(1)[0]
    augment = preprocess.augmented((0.5, 1.0), flip=True)
    drawn = [augment(image, seed).tobytes() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    left = Image.fromarray(
        np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    )  # dark left, light right
    whole = preprocess.augmented((1.0, 1.0), flip=False)
    for seed in range(20):
        row = np.array(whole(left, seed))[16, :, 0].astype(int)
        assert (np.diff(row) >= 0).all()  # never flipped
    flipped = preprocess.augmented((0.5, 1.0), flip=True)
    signs = {int(np.sign(np.diff(np.array(flipped(left, seed))[16, :, 0].astype(int)).sum())) for seed in range(20)}
    assert signs == {-1, 1}


def test_preprocessing_takes_the_backbones_own_mean_and_deviation():
    plain = preprocess_of(make_backbone("resnet18")[0], 224, "bilinear")
    assert plain == Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


# ---------------------------------------------------------------- tried in the first seconds


def config(**fields):
    return StudentConfig(**({"backbone": "test_resnet", "image_size": 32, "steps": 1, "pretrained": False} | fields))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("forward", ["separate", "stacked"])
def test_a_student_that_works_passes_and_leaves_torchs_draws_alone(heads, forward):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    try_student(config(heads=heads, forward=forward))
    assert torch.equal(torch.rand(3), expected)


def test_an_image_size_that_the_backbone_does_not_take_is_refused_with_the_one_that_it_takes():
    with pytest.raises(
        UserError, match=r"student\.image_size: levit_128s does not take images of 128 .*image_size to 224"
    ):
        try_student(config(backbone="levit_128s", image_size=128))


def test_a_backbone_that_fails_at_any_size_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("raykd.models.student.weights_of", lambda module: b"")
    with pytest.raises(
        UserError, match=r"student\.backbone: test_resnet cannot be trained here: .*; choose another model"
    ):
        try_student(config())


def test_one_image_a_worker_is_refused_only_where_batch_norm_cannot_take_it():
    with pytest.raises(UserError, match=r"student\.batch_labeled=4 over num_workers=4 .* test_resnet .*at least 8"):
        try_student(config(batch_labeled=4, num_workers=4))
    with pytest.raises(UserError, match=r"student\.batch_unlabeled=1 over num_workers=1 .*at least 2"):
        try_student(config(batch_unlabeled=1))
    with pytest.raises(UserError, match=r"labeled=1 and student\.batch_unlabeled=3 over num_workers=3 .*at least 6"):
        try_student(config(batch_labeled=1, batch_unlabeled=3, forward="stacked", num_workers=[1, 3]))
    with pytest.raises(UserError, match=r"labeled=3 over num_workers=1 in 3 parts gives .*at least 6$"):
        try_student(config(batch_labeled=3, accumulate=3))
    try_student(config(batch_labeled=4, num_workers=4, sync_batchnorm=True))
    try_student(config(batch_labeled=1, batch_unlabeled=5, forward="stacked", num_workers=3))
    try_student(config(batch_unlabeled=1, heads="ce"))
    try_student(config(batch_labeled=1, batch_unlabeled=1, forward="stacked"))
    try_student(config(batch_labeled=1, image_size=160))
    try_student(config(backbone="test_vit", batch_labeled=1))


def test_an_unknown_backbone_is_refused_before_anything_is_built():
    with pytest.raises(UserError, match="did you mean 'test_resnet'"):
        try_student(config(backbone="test_resnt"))


def test_weights_are_looked_at_before_they_are_needed(tmp_path):
    check_weights(config(pretrained=False))
    check_weights(config(backbone="resnet18", pretrained=True))
    with pytest.raises(UserError, match="timm has no weights for 'efficientnet_l2'"):
        check_weights(config(backbone="efficientnet_l2", pretrained=True))
    with pytest.raises(UserError, match=r"no file '.*nowhere\.pth'"):
        check_weights(config(pretrained=str(tmp_path / "nowhere.pth")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS"),
        (b"<!DOCTYPE html><title>404</title>", "HTML"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_weights_file_that_is_something_else_is_told_as_what_it_is(name, data, words, tmp_path):
    from raykd.config import StudentConfig
    from raykd.models.student import check_weights

    (tmp_path / name).write_bytes(data)
    config = StudentConfig(backbone="test_resnet", pretrained=str(tmp_path / name), steps=1)
    with pytest.raises(UserError, match=words) as caught:
        check_weights(config)
    assert "student.pretrained: " in str(caught.value)
    assert "weights_only" not in str(caught.value)
