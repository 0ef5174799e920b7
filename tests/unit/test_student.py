"""A student saved and loaded is the same student; its preprocessing is torchvision's."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import transforms as T

from raykd.algo.dho import DualHead
from raykd.algo.heads import Mixture, probabilities
from raykd.models.student import (
    ABOUT,
    WEIGHTS,
    Preprocess,
    Student,
    check_backbone,
    initial_backbone,
    load_weights,
    make_backbone,
    preprocess_of,
)

CLASSES = ["cat", "dog", "é"]
BACKBONES = ["test_resnet", "mobilenetv3_small_050", "test_vit", "test_efficientnet"]


def make_student(backbone="test_resnet", size=32, mixture=Mixture()):
    torch.manual_seed(0)
    module, width = make_backbone(backbone)
    model = DualHead(module, width, len(CLASSES))
    with torch.no_grad():  # running statistics that a fresh model does not have
        model.train()(torch.randn(8, 3, size, size))
    return Student(model.eval(), backbone, CLASSES, preprocess_of(module, size, "bicubic"), mixture)


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
    assert about["mixture"] == {"ce_weight": 0.3, "temperature": 0.75}
    assert about["preprocess"]["image_size"] == 32
    state = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert {"ce_head.weight", "ce_head.bias", "kd_head.weight", "kd_head.bias"} <= set(state)


def test_predictions_are_the_mixture_of_the_heads_on_the_clean_crop(student):
    images = pictures()
    crop = T.Compose([T.Resize(32, T.InterpolationMode.BICUBIC), T.CenterCrop(32), T.ToTensor()])
    normal = T.Normalize(student.preprocess.mean, student.preprocess.std)
    with torch.inference_mode():
        out = student.model(torch.stack([normal(crop(image)) for image in images]))
    logits = {"ce_logits": out.ce_logits_NC.numpy(), "kd_logits": out.kd_logits_NC.numpy()}
    want = probabilities(logits, Mixture(0.3, 0.75))
    got = student.predict(images)
    assert got.shape == (4, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)


def test_gray_and_transparent_pictures_can_be_predicted(student):
    image = pictures(1)[0]
    assert student.predict([image.convert("L"), image.convert("RGBA")]).shape == (2, 3)


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
        with pytest.raises(ValueError, match=rf"unknown student.backbone '{name}'; timm has .*{nearest}"):
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
    got = Preprocess(32, mean, std).normalise(pixels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_augmentation_is_drawn_from_torchs_seed_and_crops_within_its_area():
    preprocess, image = Preprocess(32, (0.5,) * 3, (0.5,) * 3), pictures(1)[0]
    augment = preprocess.augmented((0.5, 1.0), flip=True)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(augment(image).tobytes())
    assert drawn[0] == drawn[1] != drawn[2]
    left = Image.fromarray(
        np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    )  # dark left, light right
    whole = preprocess.augmented((1.0, 1.0), flip=False)
    for seed in range(20):
        torch.manual_seed(seed)
        row = np.array(whole(left))[16, :, 0].astype(int)
        assert (np.diff(row) >= 0).all()  # never flipped
    flipped = preprocess.augmented((0.5, 1.0), flip=True)
    torch.manual_seed(0)
    signs = {int(np.sign(np.diff(np.array(flipped(left))[16, :, 0].astype(int)).sum())) for _ in range(20)}
    assert signs == {-1, 1}


def test_preprocessing_takes_the_backbones_own_mean_and_deviation():
    plain = preprocess_of(make_backbone("resnet18")[0], 224, "bilinear")
    assert plain == Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
