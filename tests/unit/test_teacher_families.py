"""Each family of open_clip's models, tiny and random, scores classes as open_clip's own functions say. Starts no Ray.

Every model goes through open_clip's own loading twice: from the user's files, and from the folder that we fetch.
"""

import io
import json
import re
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from fakes import FAMILIES, SIGLIP_PREPROCESS, picture, write_family
from PIL import Image

from raykd.algo.heads import probabilities
from raykd.config import TeacherConfig
from raykd.errors import UserError
from raykd.images.transforms import ClipPreprocess
from raykd.models.teacher import (
    ImageTower,
    check_teacher,
    check_towers,
    encode_texts,
    fetch_weights,
    load_model,
    published_preprocess,
    read_clip_preprocess,
    tokenizer_of,
    tokens_of,
)
from raykd.store.place import Place

CLASSES = ["cat", "hot_dog", "old car", "a tree, seen from below, in a long and rainy November night, twice"]
TEMPLATES = ["a photo of a {}.", "all {}", "{} ON white"]
TEXTS = [[template.replace("{}", name.replace("_", " ")) for template in TEMPLATES] for name in CLASSES]
CLASS_OF = {"clip": open_clip.CLIP, "coca": open_clip.CoCa}  # others: CustomTextCLIP
BIASED = ("siglip", "siglip_of_shape_1")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def own(family, tmp_path_factory) -> Path:
    """The user's folder of a family's model."""
    return write_family(tmp_path_factory.mktemp(family) / "own", family)


@pytest.fixture(scope="module")
def theirs(own):
    """The model as open_clip gives it, its preprocessing and its tokenizer."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{own}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{own}")


@pytest.fixture(scope="module")
def config(own) -> TeacherConfig:
    config = TeacherConfig(model=f"local-dir:{own}", templates=TEMPLATES)
    check_teacher(config)
    return config


@pytest.fixture(scope="module")
def fetched(config, own) -> Place:
    place = Place.of(own.parent / "fetched")
    fetch_weights(config, place)
    return place


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [picture(seed, height, width) for seed, (height, width) in enumerate([(170, 200), (300, 180), (60, 60)])]


@pytest.fixture(scope="module")
def expected_logits(theirs, images) -> np.ndarray:
    """[N, C] by open_clip's README, an image at a time."""
    model, preprocess, tokenizer = theirs
    with torch.inference_mode():
        names = [name.replace("_", " ") for name in CLASSES]
        classes_DC = open_clip.build_zero_shot_classifier(model, tokenizer, names, [t.format for t in TEMPLATES])
        features_ND = torch.cat([model.encode_image(preprocess(image)[None], normalize=True) for image in images])
        logits_NC = model.logit_scale.exp() * features_ND @ classes_DC
        return (logits_NC if model.logit_bias is None else logits_NC + model.logit_bias).numpy()


def pixels_of(fetched: Place, images) -> np.ndarray:
    """uint8 [n, H, W, 3], as the encoder gets them."""
    preprocess = ClipPreprocess(read_clip_preprocess(fetched))
    return np.stack([np.asarray(preprocess(image)) for image in images])


def same_weights(first, second) -> None:
    assert type(first) is type(second)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


# ---------------------------------------------------------------- loading


@pytest.mark.slow
def test_a_fetched_model_loads_as_the_class_that_its_config_says_with_the_same_numbers(family, fetched, theirs):
    model = load_model(fetched, "fp32", "cpu")
    assert type(model) is CLASS_OF.get(family, open_clip.CustomTextCLIP)
    same_weights(model, theirs[0])
    first, second = (json.dumps(it.visual.preprocess_cfg) for it in (model, theirs[0]))  # tuples or lists
    assert first == second
    assert (model.logit_bias is not None) == (family in BIASED)
    assert tuple(model.logit_scale.shape) == ((1,) if family == "siglip_of_shape_1" else ())


@pytest.mark.slow
def test_a_model_config_file_and_a_checkpoint_file_give_the_same_model(family, theirs, tmp_path, monkeypatch):
    file = tmp_path / f"tiny-{family.replace('siglip', 'sigmoid')}.json"
    file.write_text(json.dumps(FAMILIES[family]))
    weights = tmp_path / "weights.pt"
    torch.save({"state_dict": theirs[0].state_dict()}, weights)
    config = TeacherConfig(model=file.stem, model_config_file=str(file), pretrained=str(weights))
    check_teacher(config)
    fetched = Place.of(tmp_path / "fetched")
    fetch_weights(config, fetched)
    tokens = tokens_of(config.open_clip_name, TEXTS)
    assert torch.equal(tokens, theirs[2]([text for own in TEXTS for text in own]))
    monkeypatch.delitem(open_clip.factory._MODEL_CONFIGS, file.stem)  # as in a worker, to which nobody told of the file
    same_weights(load_model(fetched, "fp32", "cpu"), theirs[0])
    assert encode_texts(fetched, tokens, [3] * 4, "cpu")[0].shape == (4, FAMILIES[family]["embed_dim"])
    with pytest.raises(
        UserError, match=f"unknown teacher.model '{file.stem}'"
    ):  # open_clip would take CLIP's tokenizer
        tokens_of(config.open_clip_name, TEXTS)
    kept = json.loads((tmp_path / "fetched" / "open_clip_config.json").read_text())["model_cfg"]
    assert kept == FAMILIES[family]


# ---------------------------------------------------------------- towers


@pytest.mark.slow
def test_image_features_are_open_clips(fetched, theirs, images):
    model, preprocess, _ = theirs
    with torch.inference_mode():
        expected = model.encode_image(torch.stack(list(map(preprocess, images))), normalize=True).numpy()
    found = ImageTower(fetched, "fp32", "cpu", 1).features(pixels_of(fetched, images))
    assert np.ptp(expected, axis=0).max() > 0.01  # the images differ to the model
    np.testing.assert_allclose(found, expected, atol=1e-3)  # rounded to float16


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_image_features_in_half_precision_are_nearly_those_of_single(precision, fetched, images):
    pixels = pixels_of(fetched, images)
    found, expected = (ImageTower(fetched, it, "cpu", 1).features(pixels).astype(float) for it in (precision, "fp32"))
    np.testing.assert_allclose((found * expected).sum(axis=1), 1, atol=0.01)


@pytest.mark.slow
def test_texts_have_the_length_and_the_end_that_the_text_tower_expects(family, config, theirs):
    """CoCa's CLS token has a place of its own beside the text's, so no text loses its end to it."""
    tokens = tokens_of(config.open_clip_name, TEXTS)
    length = FAMILIES[family]["text_cfg"]["context_length"]
    assert tokens.shape == (len(CLASSES) * len(TEMPLATES), length)
    tower = getattr(theirs[0], "text", theirs[0])
    assert tower.positional_embedding.shape[0] == length + (family == "coca")
    ends = open_clip.SimpleTokenizer().eot_token_id
    assert ((tokens == ends).sum(dim=1) == 1).all()
    assert tokens[-1, -1] == ends  # the longest is cut, and ends all the same
    assert torch.equal(tokens, theirs[2]([text for own in TEXTS for text in own]))
    assert "ON" in TEXTS[0][2]
    assert torch.equal(tokens[2], theirs[2]([TEXTS[0][2].lower()])[0])
    canonical = torch.equal(tokens[0], theirs[2](["a photo of a cat"])[0])
    assert canonical == (family in BIASED)  # SigLIP's tokenizer_kwargs: without punctuation


def test_open_clips_coca_takes_76_tokens_beside_the_cls_token():
    tokenizer = tokenizer_of("coca_ViT-B-32")
    long = tokenizer(["word " * 200])
    assert long.shape == (1, 76)
    assert long[0, -1] == tokenizer.eot_token_id


@pytest.mark.slow
def test_class_embeddings_scale_and_bias_are_open_clips(family, fetched, config, theirs):
    model, _, tokenizer = theirs
    names = [name.replace("_", " ") for name in CLASSES]
    expected = open_clip.build_zero_shot_classifier(model, tokenizer, names, [t.format for t in TEMPLATES])
    tokens, counts = tokens_of(config.open_clip_name, TEXTS), [len(TEMPLATES)] * len(CLASSES)
    classes_CD, _, scale, bias = encode_texts(fetched, tokens, counts, "cpu", batch_size=5)
    np.testing.assert_allclose(classes_CD, expected.T.numpy(), atol=1e-5)
    assert [type(scale), type(bias)] == [float, float]
    with torch.inference_mode():
        assert scale == pytest.approx(float(model.logit_scale.exp()))
        assert bias == (pytest.approx(float(model.logit_bias)) if family in BIASED else 0.0)
        assert (abs(bias) > 5) == (family in BIASED)


# ---------------------------------------------------------------- a class list


@pytest.fixture(scope="module")
def opinion(own, fetched, config, images):
    """Through the stage's own functions, with features as they are stored."""
    from raykd.stages.progress import Progress
    from raykd.stages.session import Session
    from raykd.stages.work import Work
    from raykd.stages.zero_shot import embed_classes, opinion_of, rule_of
    from raykd.store.tables import ENCODED, vectors

    place = Place.of(own.parent / "work")
    work = Work(place=place, progress=Progress("none", io.StringIO()), session=Session())
    rule = rule_of("tiny", CLASSES, {}, TEMPLATES)
    texts = embed_classes(work, config, rule, {}, place / "classes", fetched)
    features = ImageTower(fetched, "fp32", "cpu", 1).features(pixels_of(fetched, images))
    ids = [f"{n}.png" for n in range(len(images))]
    table = pa.table({"sample_id": ids, "error": pa.nulls(len(ids), pa.string()), "features": vectors(features)})
    (place / "part").write_table(table.cast(ENCODED))
    return opinion_of(place / "part", texts, 1)


@pytest.mark.slow
def test_a_class_list_is_scored_as_open_clip_scores_it(family, opinion, expected_logits):
    assert np.ptp(expected_logits, axis=1).min() > 0.05  # the classes differ to the model
    np.testing.assert_allclose(opinion.logits_NC, expected_logits, atol=0.02)
    found = probabilities({"logits": opinion.logits_NC})
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    fits = torch.from_numpy(expected_logits).double().sigmoid().numpy()
    odds = fits / (1 - fits)  # the rule: each text for itself, given that exactly one fits
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), rtol=0.05)
    np.testing.assert_allclose(found, torch.from_numpy(expected_logits).softmax(dim=1).numpy(), rtol=0.05)
    assert (fits.sum(axis=1) < 0.1).all() == (family in BIASED)  # so sigmoids alone would be no probabilities


@pytest.mark.slow
def test_logits_of_single_prompts_are_the_models_own(fetched, config, theirs, images):
    """``get_logits`` where there is one (CoCa has none), and what ``forward`` gives to the loss."""
    from raykd.algo.zeroshot import zero_shot_logits

    model, preprocess, tokenizer = theirs
    texts = [own[0] for own in TEXTS[: len(images)]]  # CoCa's captions go pair by pair
    pixels, tokens = torch.stack(list(map(preprocess, images))), tokenizer(texts)
    features = torch.from_numpy(ImageTower(fetched, "fp32", "cpu", 1).features(pixels_of(fetched, images))).float()
    classes_CD, _, scale, bias = encode_texts(
        fetched, tokens_of(config.open_clip_name, [[t] for t in texts]), [1] * len(texts), "cpu"
    )
    found = zero_shot_logits(features, torch.from_numpy(classes_CD), scale, bias)
    with torch.inference_mode():
        output = model(pixels, tokens)
        if isinstance(output, dict):
            output = [output[key] for key in ("image_features", "text_features", "logit_scale")]
        expected = output[2] * output[0] @ output[1].T + (output[3] if len(output) > 3 else 0)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
        if hasattr(model, "get_logits"):
            torch.testing.assert_close(found, model.get_logits(pixels, tokens)[0], atol=0.02, rtol=0)


# ---------------------------------------------------------------- preprocessing of a checkpoint file


def test_images_for_a_checkpoint_file_of_a_known_siglip_are_prepared_as_for_its_published_weights():
    """open_clip itself takes OpenAI's mean and the short side for any file."""
    weights = "weights.pt"
    found = published_preprocess(TeacherConfig(model="ViT-B-16-SigLIP", pretrained=weights))
    assert found == SIGLIP_PREPROCESS | {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert published_preprocess(TeacherConfig(model="ViT-B-16-SigLIP", pretrained="webli")) is None
    assert published_preprocess(TeacherConfig(model="ViT-L-14", pretrained=weights)) is None  # they disagree
    assert published_preprocess(TeacherConfig(model="tiny-unknown", pretrained=weights)) is None


def test_a_published_preprocessing_goes_into_the_fetched_folder(monkeypatch, tmp_path):
    folder = write_family(tmp_path / "own", "custom_text")
    file = tmp_path / "tiny-published.json"
    file.write_text(json.dumps(FAMILIES["custom_text"]))
    weights = str(folder / "open_clip_model.safetensors")
    config = TeacherConfig(model=file.stem, model_config_file=str(file), pretrained=weights)
    check_teacher(config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, file.stem, {"webli": SIGLIP_PREPROCESS})
    fetch_weights(config, Place.of(tmp_path / "fetched"))
    found = read_clip_preprocess(Place.of(tmp_path / "fetched"))
    assert {key: found[key] for key in SIGLIP_PREPROCESS} == SIGLIP_PREPROCESS
    assert found["size"] == [24, 24]


# ---------------------------------------------------------------- what is no teacher


def refused(folder: Path, changed: dict, family="custom_text") -> str:
    """What is said of a model whose config is changed; its weights are those of the changed config."""
    cfg = FAMILIES[family]
    cfg = cfg | {key: cfg[key] | value if isinstance(value, dict) else value for key, value in changed.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, family, cfg)
        write_family(folder, family)
    config = TeacherConfig(model=f"local-dir:{folder}")
    check_teacher(config)
    with pytest.raises(UserError) as caught:
        fetch_weights(config, Place.of(folder.parent / "out"))
    assert not (folder.parent / "out").exists()
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text_cfg": {"pool_type": "none"}}, r"makes no embedding, one vector, of each text: .*shape \[1, 12, 16\]"),
        ({"text_cfg": {"output_tokens": True}}, r"of each text: .*text_cfg"),
        ({"vision_cfg": {"output_tokens": True}}, r"of each image: .*vision_cfg"),
        ({"vision_cfg": {"pool_type": "none"}}, r"of each image: it is of shape .*vision_cfg"),
        ({"text_cfg": {"proj_type": "none", "width": 32}}, "image vectors are 16 wide and its text vectors 32"),
        ({"text_cfg": {"vocab_size": 400}}, r"gives tokens up to 49407, its text tower knows 400"),
    ],
)
def test_a_model_that_makes_no_embeddings_is_refused_when_it_is_fetched(changed, words, tmp_path):
    message = refused(tmp_path / "own", changed)
    assert re.match(rf"teacher\.model: .*{words}", message, re.DOTALL), message


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_vocabulary_that_is_too_small_is_told_of_each_family(name, tmp_path):
    message = refused(tmp_path / "own", {"text_cfg": {"vocab_size": 400}}, name)
    assert "its tokenizer gives tokens up to 49407, its text tower knows 400: they do not belong together" in message


def test_a_model_without_a_single_scale_is_refused():
    model, tokens = open_clip.CoCa(**{k: v for k, v in FAMILIES["coca"].items() if k != "custom_text"}), torch.zeros(1)
    for scale in (torch.nn.Parameter(torch.ones(2)), None):
        model.logit_scale = scale
        with pytest.raises(UserError, match=r"teacher\.model: CoCa has no single logit_scale"):
            check_towers(model, tokens)


def test_weights_with_a_bias_that_the_config_has_not_are_told_what_to_add(tmp_path):
    """As open_clip trains with ``--siglip``: the bias is an argument there, and in no config."""
    folder = write_family(tmp_path / "own", "siglip")
    about = json.loads((folder / "open_clip_config.json").read_text())
    del about["model_cfg"]["init_logit_bias"]
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match='have a logit_bias: put "init_logit_bias": -10 into'):
        fetch_weights(TeacherConfig(model=f"local-dir:{folder}"), Place.of(tmp_path / "out"))
