"""An open_clip model's image tower as a student's backbone, of every family; what is no tower is said at once."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from fakes import FAMILIES, picture, write_family, write_teacher

from raykd.algo.dho import Learner
from raykd.config import StudentConfig
from raykd.errors import UserError
from raykd.models.preprocess import ABOUT
from raykd.models.student import Student, check_weights, new_student, try_student
from raykd.models.tower import fetch_tower, fetched_tower, text_rows, text_tokens, tower_size
from raykd.store.place import Place

CLASSES = ["cat", "dog"]
SIZES = {"siglip": 160, "siglip_of_shape_1": 160}  # others: 24


def config(folder: Path | str, **fields) -> StudentConfig:
    name = f"open_clip:local-dir:{folder}" if isinstance(folder, Path) else f"open_clip:{folder}"
    return StudentConfig(**({"backbone": name, "steps": 1} | fields))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def own(family, tmp_path_factory) -> Path:
    return write_family(tmp_path_factory.mktemp(family) / "own", family)


@pytest.fixture(scope="module")
def fetched(own) -> Place:
    place = Place.of(own.parent / "fetched")
    fetch_tower(config(own), place)
    return place


def images(size: int) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_tower_gives_the_models_own_embeddings(family, own, fetched):
    student = new_student(config(own), CLASSES, 0, fetched)
    clip = open_clip.create_model(f"local-dir:{own}").eval()
    pixels = images(SIZES.get(family, 24))
    with torch.inference_mode():
        expected = clip.encode_image(pixels, normalize=False)
        torch.testing.assert_close(student.model.eval()(pixels).features_ND, expected)
    assert expected.norm(dim=1).sub(1).abs().min() > 1e-3  # as they are, not brought to length 1
    about = clip.visual.preprocess_cfg
    seen = student.preprocess
    assert (seen.image_size, seen.interpolation) == (SIZES.get(family, 24), about["interpolation"])
    assert (seen.mean, seen.std) == (tuple(about["mean"]), tuple(about["std"]))


def test_a_tower_has_nothing_of_the_text_tower_and_every_part_of_it_learns(own, fetched):
    """A part without a gradient would stop workers that share a training."""
    kept = safetensors.torch.load((fetched / "open_clip_model.safetensors").read_bytes())
    assert all(name.startswith("visual.") for name in kept)
    student = new_student(config(own), CLASSES, 0, fetched)
    assert {name.removeprefix("backbone.") for name in student.model.state_dict() if "head." not in name[:8]} == {*kept}
    learner = Learner(student.model.train(), True, 0.5, 2.0)
    size, teacher = student.preprocess.image_size, torch.zeros(4, 2)
    learner(torch.randn(4, 3, size, size), torch.tensor([0, 1]), teacher[:2], teacher[2:]).total.backward()
    assert all(value.grad is not None for value in learner.parameters())


def test_a_saved_student_loads_without_its_folder_and_without_weights_from_elsewhere(
    own, fetched, tmp_path, monkeypatch
):
    student = new_student(config(own, image_size=32 if "clip" in own.parent.name[:5] else None), CLASSES, 3, fetched)
    student.save(tmp_path / "saved")
    expected = student_predictions(student)
    for name in ("create_model", "get_model_config", "load_checkpoint"):
        monkeypatch.setattr(open_clip.factory, name, None)
    loaded = Student.load(tmp_path / "saved")
    np.testing.assert_array_equal(student_predictions(loaded), expected)
    assert loaded.about() == student.about()
    assert json.loads(json.dumps(loaded.about())) == json.loads((tmp_path / "saved" / ABOUT).read_text())
    assert (loaded.backbone, loaded.preprocess) == (student.backbone, student.preprocess)
    assert "text_cfg" not in json.dumps(loaded.about())


def student_predictions(student: Student) -> np.ndarray:
    student.model.eval()
    return student.predict([picture(seed, 40 + 9 * seed, 50) for seed in range(3)])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_another_image_size_is_that_of_open_clips_own_resizing(name, tmp_path):
    own, size = write_family(tmp_path / "own", name), 48
    fetch_tower(config(own), Place.of(tmp_path / "fetched"))
    student = new_student(config(own, image_size=size), CLASSES, 0, Place.of(tmp_path / "fetched"))
    clip = open_clip.create_model(f"local-dir:{own}", force_image_size=size).eval()
    with torch.inference_mode():
        expected = clip.encode_image(images(size), normalize=False)
        torch.testing.assert_close(student.model.eval()(images(size)).features_ND, expected)
    assert student.preprocess.image_size == size


def test_a_resnets_tower_takes_its_own_size_alone_and_says_so():
    demo = config("local-dir:{raykd}/demo/teacher")
    try_student(demo)
    with pytest.raises(
        UserError, match=r"student\.image_size: .* images of 64 pixels .*that size alone.* takes 48: set"
    ):
        try_student(demo.model_copy(update={"image_size": 64}))


def test_a_tower_whose_images_are_no_squares_is_refused(tmp_path):
    own = write_teacher(tmp_path / "own", (24, 48))
    with pytest.raises(UserError, match=r"student\.backbone: its images are 24 x 48 pixels, and students see squares"):
        try_student(config(own))


def test_random_weights_need_a_config_alone(tmp_path):
    own = write_teacher(tmp_path / "own")
    (own / "open_clip_model.safetensors").unlink()
    given = config(own, pretrained=False)
    check_weights(given)
    try_student(given)
    fetch_tower(given, Place.of(tmp_path / "fetched"))
    students = [new_student(given, CLASSES, seed, Place.of(tmp_path / "fetched")) for seed in (0, 0, 1)]
    first, again, other = (student.model.backbone.state_dict()["visual.proj"] for student in students)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    about = fetched_tower(Place.of(tmp_path / "fetched"))
    assert (tower_size(about), about["preprocess_cfg"]["mean"]) == (24, [0.5, 0.4, 0.3])


# ---------------------------------------------------------------- what cannot be had


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "open_clip:ViT-B-61"}, r"unknown student\.backbone 'ViT-B-61'; did you mean 'ViT-B-16"),
        ({"backbone": "open_clip:ViT-B-61", "pretrained": False}, r"unknown student\.backbone 'ViT-B-61'; did you"),
        ({}, r"student\.pretrained: ViT-B-16 needs weights: a checkpoint file or one of openai, laion400m_e31"),
        ({"pretrained": "opena"}, r"student\.pretrained: 'opena' is no file and none of ViT-B-16's tags: openai"),
        ({"pretrained": "openai"}, r"student\.backbone: the weights 'openai' were trained with QuickGELU.* ViT-B-16-q"),
        ({"backbone": "open_clip:local-dir:/nowhere"}, r"student\.backbone: the folder '/nowhere' is not there"),
    ],
)  # fmt: skip
def test_a_tower_that_is_not_to_be_had_is_told_at_once(fields, words):
    with pytest.raises(UserError, match=words):
        check_weights(config("ViT-B-16", **fields))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.slow
def test_a_checkpoint_that_is_none_or_of_another_model_is_told_at_once(tmp_path):
    file = tmp_path / "weights.safetensors"
    given = config("ViT-B-32", pretrained=str(file))
    file.write_bytes(POINTER)
    with pytest.raises(
        UserError, match=r"student\.pretrained: .*weights\.safetensors holds no weights .*Git LFS pointer"
    ):
        check_weights(given)
    shutil.copy(write_teacher(tmp_path / "other") / "open_clip_model.safetensors", file)
    with pytest.raises(
        UserError, match=r"cannot load student 'ViT-B-32' with pretrained '.*weights\.safetensors': text pos_embed"
    ):
        check_weights(given)
    own = tmp_path / "other"
    (own / "open_clip_model.safetensors").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"student\.backbone: .*open_clip_model\.safetensors.*Git LFS pointer"):
        check_weights(config(own))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "open_clip:"}, "names no model"),
        ({"backbone": "open_clip:local-dir:t", "pretrained": "openai"}, "brings its own weights"),
        ({"backbone": "resnet18", "language_aware": True}, "whose text tower makes the heads; resnet18 has none"),
        ({"language_aware": True, "pretrained": False}, "needs a text tower that has learned something"),
    ],
)
def test_what_cannot_go_together_is_refused_with_the_config(fields, words):
    with pytest.raises(ValueError, match=words):
        config("ViT-B-16", **fields)


def test_a_timm_student_has_the_usual_preprocessing_and_a_tower_its_own():
    plain = StudentConfig(backbone="resnet18", steps=1, image_size=None)
    assert (plain.image_size, plain.interpolation) == (224, "bilinear")
    assert (config("ViT-B-16").image_size, config("ViT-B-16").interpolation) == (None, None)


def test_a_hub_that_cannot_be_reached_is_told_in_one_line_and_is_not_asked_for_what_is_fetched(fetched, monkeypatch):
    def away(*_, **__):
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", away)
    given = config("hf-hub:org/repo")
    with pytest.raises(
        UserError, match=r"^student\.backbone: cannot read the config of 'hf-hub:org/repo': Connection.*$"
    ):
        try_student(given)
    check_weights(given, fetched=True)
    try_student(given, start=fetched)


# ---------------------------------------------------------------- language-aware heads

TEXTS = [["a photo of a cat.", "a drawing of a cat."], ["a photo of a dog."]]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_begin_as_the_texts_of_the_towers_own_model_and_a_new_round_may_have_other_classes(name, tmp_path):
    own, place = write_family(tmp_path / "own", name), Place.of(tmp_path / "fetched")
    given = config(own, language_aware=True)
    check_weights(given)
    try_student(given)
    fetch_tower(given, place)
    clip = open_clip.create_model(f"local-dir:{own}").eval()
    with torch.inference_mode():
        features_PD = clip.encode_text(
            open_clip.get_tokenizer(f"local-dir:{own}")([*TEXTS[0], *TEXTS[1]]), normalize=False
        )
    expected_CD = torch.stack([features_PD[:2].mean(0), features_PD[2]])
    texts_CD = text_rows(place, text_tokens(given.tower, TEXTS), [2, 1], "cpu", batch_size=2)
    torch.testing.assert_close(torch.from_numpy(texts_CD), expected_CD)
    assert abs(np.linalg.norm(texts_CD, axis=1) - 1).min() > 1e-3  # as they are
    student = new_student(given, CLASSES, 0, place, texts_CD)
    with torch.inference_mode():
        features_ND, logits = student.model.eval()(images(SIZES.get(name, 24)))
    torch.testing.assert_close(logits["ce_logits"], features_ND @ expected_CD.T)
    cosines_NC = torch.nn.functional.cosine_similarity(features_ND[:, None], expected_CD[None], dim=-1)
    torch.testing.assert_close(logits["kd_logits"], 100 * cosines_NC, rtol=1e-4, atol=1e-4)
    student.save(tmp_path / "saved")
    loaded = Student.load(tmp_path / "saved")
    assert loaded.model.language_aware
    np.testing.assert_array_equal(student_predictions(loaded), student_predictions(student))
    more = new_student(given, ["cat", "dog", "eel"], 0, place, np.concatenate([texts_CD, texts_CD[:1]]))
    assert more.predict([picture()]).shape == (1, 3)


def test_a_tokenizer_that_cannot_be_had_is_told_with_what_to_do_and_only_where_texts_are_needed(tmp_path, monkeypatch):
    own = write_family(tmp_path / "own", "siglip")
    about = json.loads((own / "open_clip_config.json").read_text())
    about["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    (own / "open_clip_config.json").write_text(json.dumps(about))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"^student\.backbone: .* needs transformers: pip install raykd\[hf\]\. Or set "
                       r"student\.language_aware to false, which needs no texts$"):  # fmt: skip
        check_weights(config(own, language_aware=True))
    check_weights(config(own))
    fetch_tower(config(own), Place.of(tmp_path / "fetched"))
    new_student(config(own), CLASSES, 0, Place.of(tmp_path / "fetched"))
