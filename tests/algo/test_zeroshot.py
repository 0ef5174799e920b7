"""Prompts, class embeddings and logits: those of open_clip itself, on a tiny model made on the spot."""

import itertools
import math

import numpy as np
import open_clip
import pytest
import torch
from open_clip.loss import SigLipLoss
from open_clip.model import CLIP

from raykd.algo.heads import probabilities
from raykd.algo.prompts import TEMPLATE_SETS, ClassTexts, check_apart, classes_of, prompts, templates
from raykd.algo.zeroshot import class_embeddings, zero_shot_logits

CLASSES = ["cat", "hot_dog", "old car", "tree", "a_b_c"]
PAPERS = {  # PAPERS.md 2.2
    "caltech101": ["a photo of a {}."],
    "dtd": ["{} texture."],
    "eurosat": ["a centered satellite photo of {}."],
    "fgvc_aircraft": ["a photo of a {}, a type of aircraft."],
    "food101": ["a photo of {}, a type of food."],
    "oxford_flowers": ["a photo of a {}, a type of flower."],
    "oxford_pets": ["a photo of a {}, a type of pet."],
    "stanford_cars": ["a photo of a {}."],
    "sun397": ["a photo of a {}."],
    "ucf101": ["a photo of a person doing {}."],
    "imagenet_7": [
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ],
}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.SimpleTokenizer(context_length=24)


@pytest.mark.parametrize("chosen", ["simple", "imagenet_7", "dtd", ["a {}", "{} again"]])
@torch.inference_mode()
def test_class_embeddings_equal_open_clips_own_zero_shot_classifier(clip, tokenizer, chosen):
    chosen = templates(chosen)
    names = [name.replace("_", " ") for name in CLASSES]
    want = open_clip.build_zero_shot_classifier(clip, tokenizer, names, [t.format for t in chosen], device="cpu")
    texts = [text for own in prompts(CLASSES, chosen) for text in own]
    got = class_embeddings(clip.encode_text(tokenizer(texts)), [len(chosen)] * len(CLASSES))
    assert got.shape == (5, 24)
    torch.testing.assert_close(got, want.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(5))


@torch.inference_mode()
def test_class_embeddings_do_not_see_the_length_of_a_prompts_embedding():
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([0.1, 7.0, 30.0, 1.0, 2.0, 0.5])[:, None]
    torch.testing.assert_close(class_embeddings(features * lengths, [2, 4]), class_embeddings(features, [2, 4]))


def test_class_embeddings_average_each_classs_own_prompts_in_a_loop():
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = [[0], [1, 2, 3], [4, 5]]
    for found, own in zip(class_embeddings(features, [1, 3, 2]), rows, strict=True):
        mean = sum(features[p] / features[p].norm() for p in own) / len(own)
        torch.testing.assert_close(found, mean / mean.norm())


@torch.inference_mode()
def test_logits_equal_the_models_own_forward_pass(clip, tokenizer):
    images, texts = torch.randn(3, 3, 16, 16), tokenizer([text for (text,) in prompts(CLASSES, templates("simple"))])
    want = clip.get_logits(images, texts)[0]
    classes = class_embeddings(clip.encode_text(texts), [1] * 5)
    scale = float(clip.logit_scale.exp())
    torch.testing.assert_close(zero_shot_logits(clip.encode_image(images), classes, scale), want, rtol=1e-4, atol=1e-4)


def test_logits_are_scale_times_cosine_plus_bias():
    images = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    want = torch.tensor([[60.0, 80.0, 100.0], [0.0, -100.0, -80.0]])
    torch.testing.assert_close(zero_shot_logits(images, classes, 100.0), want)
    torch.testing.assert_close(zero_shot_logits(images * 9, classes, 50.0, -12.5), want / 2 - 12.5)


def test_siglips_bias_changes_its_sigmoid_and_not_the_softmax():
    images = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    classes = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    bare, biased = (zero_shot_logits(images, classes, math.exp(2.3), bias) for bias in (0.0, -10.0))
    torch.testing.assert_close(bare.softmax(1), biased.softmax(1))
    torch.testing.assert_close(biased.sigmoid(), (bare - 10).sigmoid())


@pytest.mark.parametrize("bias", [0.0, -1.5, -10.0, 4.0])
@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_probabilities_are_those_of_independent_sigmoids_given_that_exactly_one_class_is_right(num_classes, bias):
    """By brute force: all 2^C outcomes, each text fits or does not; those with one fit are kept."""
    generator = torch.Generator().manual_seed(num_classes)
    images, classes = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, num_classes))
    logits_NC = zero_shot_logits(images, torch.nn.functional.normalize(classes, dim=1), 3.0, bias).numpy()
    expected_NC = np.zeros_like(logits_NC)
    for n, logits_C in enumerate(logits_NC):
        fits_C = [1 / (1 + math.exp(-logit)) for logit in logits_C]
        total = 0.0
        for outcome in itertools.product([False, True], repeat=num_classes):
            chance = math.prod(fit if yes else 1 - fit for fit, yes in zip(fits_C, outcome, strict=True))
            total += chance
            if sum(outcome) == 1:
                expected_NC[n, outcome.index(True)] += chance
        assert total == pytest.approx(1)
    expected_NC /= expected_NC.sum(axis=1, keepdims=True)
    found_NC = probabilities({"logits": logits_NC})
    np.testing.assert_allclose(found_NC, expected_NC, rtol=1e-5)
    np.testing.assert_allclose(found_NC, probabilities({"logits": logits_NC - bias}), rtol=1e-5)


@torch.inference_mode()
def test_the_sigmoid_of_a_logit_is_what_open_clips_siglip_was_trained_to_say():
    """Its loss is the log-loss of exactly these probabilities, text by text: a pair fits, any other does not."""
    generator = torch.Generator().manual_seed(4)
    images, classes = (torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1) for _ in range(2))
    scale, bias = 6.0, -2.0
    fits_NC = zero_shot_logits(images, classes, scale, bias).sigmoid()
    pairs = torch.eye(5, dtype=torch.bool)
    expected = -torch.where(pairs, fits_NC, 1 - fits_NC).log().sum() / len(images)
    found = SigLipLoss()(images, classes, torch.tensor(scale), torch.tensor(bias))
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", PAPERS)
def test_template_sets_are_the_papers(name):
    assert templates(name) == PAPERS[name]


def test_every_template_set_passes_its_own_check():
    for name, chosen in TEMPLATE_SETS.items():
        assert templates(list(chosen)) == templates(name)


def test_imagenet_80_is_openais_ensemble():
    chosen = templates("imagenet_80")
    assert len(set(chosen)) == 80
    assert [t.replace("{}", "dog") for t in chosen] == [t("dog") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert templates(chosen) == chosen


def test_prompts_go_class_by_class_and_underscores_become_spaces():
    assert prompts(["hot_dog", "cat"], ["a {}.", "the {}"]) == [
        ["a hot dog.", "the hot dog"],
        ["a cat.", "the cat"],
    ]


def test_prompts_take_names_with_braces_and_templates_with_underscores_as_they_are():
    assert prompts(["{}", "a{0}"], ["my_{} {x}"]) == [["my_{} {x}"], ["my_a{0} {x}"]]


def test_an_unknown_template_set_is_told_with_the_nearest_or_those_there_are():
    with pytest.raises(ValueError, match=r"unknown template set 'imagenet7'; did you mean 'imagenet_7'\?"):
        templates("imagenet7")
    with pytest.raises(ValueError, match=r"unknown template set 'x'; known: caltech101, .*imagenet_80.*"):
        templates("x")


@pytest.mark.parametrize(("bad", "count"), [("a photo", 0), ("{} and {}", 2), ("{0} only", 0)])
def test_a_template_without_exactly_one_hole_is_refused(bad, count):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        templates(["a {}.", bad])
    assert repr(bad) in str(error.value)
    assert f"holds {count} of '{{}}'" in str(error.value)


def test_no_template_at_all_is_refused():
    with pytest.raises(ValueError, match="no prompt templates given"):
        templates([])


def test_texts_of_a_classs_own_stand_in_for_its_name_and_descriptions_are_whole_prompts():
    own = {"n02": ClassTexts(("tabby", "old_cat")), "dog": ClassTexts(descriptions=("it barks {}.",))}
    assert prompts(["n02", "dog", "cow"], ["a {}.", "the {}"], own) == [
        ["a tabby.", "the tabby", "a old cat.", "the old cat"],
        ["a dog.", "the dog", "it barks {}."],
        ["a cow.", "the cow"],
    ]
    assert prompts(["x"], ["a {}."], {"x": ClassTexts((), ("only this",))}) == [["only this"]]


# ---------------------------------------------------------------- classes from plain data

CAT = ClassTexts(("tabby", "tomcat"), ("it meows.",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["cat", "dog"], {"cat": ClassTexts(), "dog": ClassTexts()}),
        ([" cat ", 7], {"cat": ClassTexts(), "7": ClassTexts()}),
        ({"cat": ["tabby", "tomcat", "tabby"], "dog": []}, {"cat": ClassTexts(CAT.texts), "dog": ClassTexts()}),
        ({"cat": "tabby", "dog": None, 3: []}, {"cat": ClassTexts(("tabby",)), "dog": ClassTexts(), "3": ClassTexts()}),
        ({"cat": {"texts": CAT.texts, "descriptions": "it meows."}, "dog": {}}, {"cat": CAT, "dog": ClassTexts()}),
        ([{"name": "cat", "synonyms": [*CAT.texts], "prompts": ["it meows."]}, "x"], {"cat": CAT, "x": ClassTexts()}),
        ([{"cat": ["tabby"]}, {"dog": []}], {"cat": ClassTexts(("tabby",)), "dog": ClassTexts()}),
        ({"10": "k", **{str(i): chr(97 + i) for i in range(10)}}, dict.fromkeys("abcdefghijk", ClassTexts())),
        ({0: "cat", 1: "dog"}, {"cat": ClassTexts(), "dog": ClassTexts()}),
        ({"0": ["zero"], "1": ["one"]}, {"0": ClassTexts(("zero",)), "1": ClassTexts(("one",))}),
        ({"train": "i/train", "val": "v", "names": {0: "cat", 1: "x"}}, {"cat": ClassTexts(), "x": ClassTexts()}),
        ({"cat": {"texts": [], "descriptions": ["it meows."]}}, {"cat": ClassTexts((), ("it meows.",))}),
    ],
)  # fmt: skip
def test_classes_are_taken_from_any_plain_shape(given, expected):
    assert classes_of(given) == expected
    assert list(classes_of(given)) == list(expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, r"int \(3\); expected names"),
        (["cat", None], "entry 1 is None; expected a name"),
        (["cat", True], "entry 1 is True; .*YAML reads yes, no"),
        (["cat", 1.5], "entry 1 is 1.5"),
        (["cat", " "], "entry 1 is ' '"),
        (["cat", ["dog"]], "entry 1 is .*'dog'"),
        ([{"cat": [], "dog": []}], "entry 0 is"),
        (["cat", "dog", "cat "], "'cat' is there more than once"),
        ({"1": [], 1: []}, "'1' is there more than once"),
        ({"cat": [1]}, r"'cat' has \[1\]; expected a text"),
        ({"cat": [""]}, "none of them empty"),
        ({"cat": {"text": ["a"]}}, "'cat' has the key 'text'; did you mean 'texts'?"),
        ({"cat": {"texts": ["a"], "synonyms": ["b"]}}, "'cat' has the key 'synonyms'"),
        ({"cat": {"texts": []}}, "'cat' has neither texts nor descriptions"),
        ({"nc": 80, "names": 3}, "'nc' has 80"),
    ],
)
def test_plain_data_that_names_no_classes_is_refused_by_entry(given, words):
    with pytest.raises(ValueError, match=words):
        classes_of(given)


@pytest.mark.parametrize("other", ["Cat fish", "cat  fish", "cat_fish", "ＣＡＴ fish", "CAT_FISH"])  # noqa: RUF001
def test_classes_that_differ_in_nothing_the_teacher_sees_are_refused_unless_their_texts_do(other):
    classes = dict.fromkeys(["cat fish", "dog", other], ClassTexts())
    with pytest.raises(ValueError, match=f"'cat fish' and '{other}' differ in nothing that the teacher sees"):
        check_apart(classes)
    check_apart(classes | {other: ClassTexts(("wels",))})
    check_apart(classes | {other: ClassTexts(descriptions=("a fish with a beard.",))})
    with pytest.raises(ValueError, match="differ in nothing"):
        check_apart({"a": ClassTexts(("same",)), "b": ClassTexts(("Same",))})
