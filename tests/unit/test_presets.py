"""The experiments that come with raykd: what they name is there, and the papers' are the papers'."""

import copy
from pathlib import Path

import open_clip
import pytest
import timm

from raykd.errors import UserError
from raykd.images.class_lists import class_list
from raykd.models.teacher import check_teacher
from raykd.presets import PRESETS, load_preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_models_that_exist(name):
    given = load_preset(name)
    if tower := given.student.tower:
        check_teacher(tower)
    else:
        assert timm.is_model(given.student.backbone.split(".")[0])
    if not given.teacher.model.startswith("local-dir:"):
        assert given.teacher.pretrained in open_clip.list_pretrained_tags_by_model(given.teacher.model)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_its_command_its_hardware_and_its_score_or_that_it_was_not_run(name):
    said = PRESETS[name].__doc__
    assert said.count("--preset " + name) == 1
    assert "Hardware: " in said
    assert ("Score: " in said) != ("Not run yet" in said)


def test_presets_are_made_anew_for_each_call():
    before = copy.deepcopy(PRESETS["caltech101"]())
    load_preset("caltech101", ["student.learning_rate=9", "pool.path=elsewhere"])
    assert PRESETS["caltech101"]() == before


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown preset 'caltech'; did you mean 'caltech101'\?"):
        load_preset("caltech")
    with pytest.raises(
        UserError, match="unknown preset 'x'; known: caltech101, caltech101_few_shot, demo, dho_imagenet, dho_small, "
    ):
        load_preset("x")


def assert_papers_student(student):
    """What the two protocols of the papers' code share."""
    assert (student.loss_ce_weight, student.distill_temperature) == (0.5, 2.0)
    assert (student.learning_rate, student.weight_decay) == (1e-3, 1e-2)
    assert (student.image_size, student.crop_area, student.flip) == (224, (0.5, 1.0), True)


def test_caltech101_is_the_papers_protocol_for_small_datasets():
    given = load_preset("caltech101")
    assert_papers_student(given.student)
    assert given.rounds == 16  # labels C, 2C ... 16C
    assert given.selection.budget is None  # B = C
    assert (given.labels.oracle, given.labels.start) == ("simulated", "one_per_class")
    assert given.student.backbone == "resnet18.tv_in1k"
    assert (given.student.passes_labeled, given.student.steps) == (200, None)
    assert (given.student.batch_labeled, given.student.batch_unlabeled) == (64, 64)
    assert (given.student.schedule, given.student.warmup) == ("linear", 0.1)
    assert (given.student.forward, given.student.interpolation) == ("separate", "bilinear")
    assert given.student.num_workers == 1  # BatchNorm over 64
    assert (given.mixture.ce_weight, given.mixture.temperature, given.mixture.search) == (0.5, 1.0, False)
    assert (given.selection.strategy, given.selection.mixture) == ("pcoreset", "round")
    assert (given.teacher.model, given.teacher.pretrained) == ("RN50-quickgelu", "openai")
    assert given.pool.format == "coop_split"


def test_imagenet_is_the_papers_protocol():
    given = load_preset("imagenet")
    assert_papers_student(given.student)
    assert given.rounds == 8
    assert given.selection.budget == 1000
    names = zip(given.classes, open_clip.IMAGENET_CLASSNAMES, strict=True)
    renamed = {number: pair for number, pair in enumerate(names) if pair[0] != pair[1]}
    assert renamed == {744: ("projectile", "missile"), 836: ("sunglass", "sunglasses")}
    assert len(class_list(given.classes, None)) == 1000  # open_clip has two names twice
    assert given.pool.limit == 100_000
    assert (given.labels.oracle, given.labels.start) == ("simulated", "one_per_class")
    assert given.student.backbone == "resnet50"
    assert given.student.passes_unlabeled == 20
    assert (given.student.batch_labeled, given.student.batch_unlabeled) == (256, 256)
    assert (given.student.schedule, given.student.warmup) == ("cosine", 0.0)
    assert (given.student.forward, given.student.interpolation) == ("stacked", "bicubic")
    assert given.student.batch_labeled // given.student.num_workers == 64  # BatchNorm over 64 + 64 a replica
    assert (given.mixture.ce_weight, given.mixture.temperature, given.mixture.search) == (0.4, 0.5, False)
    assert given.selection.mixture == (0.5, 1.0)  # queried with another combination than it is evaluated with
    assert (given.teacher.model, given.teacher.pretrained, given.teacher.templates) == (
        "RN50-quickgelu",
        "openai",
        "imagenet_7",
    )


def test_demo_is_a_whole_small_campaign():
    given = load_preset("demo")
    assert given.labels.oracle == "simulated"
    assert given.student.pretrained is False  # no download
    assert given.teacher.model.startswith("local-dir:{raykd}/")  # the same in every checkout and job
    assert Path(given.teacher.open_clip_name.removeprefix("local-dir:")).is_dir()
    assert len(given.classes) == 10


@pytest.mark.parametrize(("name", "ce_weight"), [("caltech101", 0.5), ("imagenet", 0.2)])
def test_the_few_shot_setting_is_the_other_one_with_activekds_clap_and_its_share_of_the_ce_head(name, ce_weight):
    """PAPERS.md 1.5 and 2.4; only what depends on the teacher is another."""
    plain, few_shot = load_preset(name), load_preset(f"{name}_few_shot")
    assert (few_shot.teacher.rule, few_shot.teacher.clap, few_shot.teacher.views) == ("clap", "activekd", 20)
    assert few_shot.mixture.ce_weight == ce_weight
    for part in ("student", "selection", "labels", "pool", "rounds", "classes", "seed"):
        assert getattr(few_shot, part) == getattr(plain, part)
    assert plain.teacher.rule == "zero_shot"


# ---------------------------------------------------------------- DHO without active learning


@pytest.mark.parametrize("name", ["dho_small", "dho_imagenet", "dho_vlm"])
def test_dhos_own_settings_are_one_training_on_some_labels_of_each_class(name):
    """PAPERS.md 1.4 and 1.5."""
    given = load_preset(name)
    assert (given.rounds, given.labels.start, given.labels.oracle) == (1, "one_per_class", "simulated")
    assert given.labels.shots == {"dho_small": 16, "dho_imagenet": 16, "dho_vlm": 13}[name]
    assert (given.student.loss_ce_weight, given.student.distill_temperature) == (0.5, 2.0)
    assert (given.student.crop_area, given.student.flip, given.student.heads) == ((0.5, 1.0), True, "dho")


def test_dho_small_is_the_small_datasets_training_with_a_searched_mixture():
    given, active = load_preset("dho_small"), load_preset("caltech101")
    assert (given.student, given.teacher, given.pool) == (active.student, active.teacher, active.pool)
    assert (given.mixture.search, given.mixture.ce_weight, given.mixture.temperature) == ("grid", 0.5, 1.0)


def test_dho_imagenet_is_imagenets_training_on_the_whole_pool():
    given, active = load_preset("dho_imagenet"), load_preset("imagenet")
    assert (given.student, given.teacher, given.mixture) == (active.student, active.teacher, active.mixture)
    assert (given.pool.limit, given.pool.path) == (None, active.pool.path)


def test_dho_vlm_is_the_semi_supervised_setting():
    given = load_preset("dho_vlm")
    student = given.student
    assert (student.language_aware, student.tower.model, student.pretrained) == (True, "ViT-B-16-quickgelu", "openai")
    assert (student.learning_rate, student.weight_decay) == (5e-5, 5e-2)
    assert (student.schedule, student.warmup, student.warmup_steps) == ("semi_supervised", None, 5000)
    assert (student.passes_unlabeled, student.forward, student.interpolation) == (32, "stacked", "bicubic")
    assert (given.mixture.ce_weight, given.mixture.temperature, given.mixture.search) == (0.5, 0.5, False)
    assert given.teacher.templates == "imagenet_7"
