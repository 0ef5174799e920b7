"""The teacher's table is what a plain open_clip loop gives, bad images aside; and any way to name a model works."""

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raykd.config import Teacher, load

TEMPLATES = ["a photo of a {}.", "all {}", "{} on white"]


def table_of(stage) -> pa.Table:
    return (stage.place / "data").read_table().sort_by("sample_id")


def vectors_of(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.filter(table["error"].is_null())[name].to_pylist())


def open_clip_loop(model_name: str, ids: list[str], folder: Path, classes: list[str], templates, pretrained=None):
    """Features [N, D] and logits [N, C] as open_clip's README computes them, an image at a time."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=pretrained)
    model.eval()
    tokenizer = open_clip.get_tokenizer(model_name)
    with torch.no_grad():
        texts = open_clip.build_zero_shot_classifier(model, tokenizer, classes, [t.format for t in templates])
        images = torch.stack([preprocess(Image.open(folder / name)) for name in ids])
        features = torch.cat([model.encode_image(image[None], normalize=True) for image in images])
        logits = model.logit_scale.exp() * features @ texts
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
    return features.numpy(), logits.numpy()


@pytest.fixture
def scored(seeded, finished):
    """Scores the finished campaign's pool with another teacher; returns the stage."""
    from raykd.stages import teacher

    def scored(*overrides, pool=None):
        _, campaign = seeded(*overrides)
        teacher.check_teacher(campaign.config.teacher)  # as open_campaign does: makes a model config file known
        for stage in ("teacher", "teacher_model"):
            shutil.rmtree(Path(campaign.place.path) / stage)
        return teacher.score(campaign, pool or finished.pool)

    return scored


# ---------------------------------------------------------------- the table


def test_the_table_equals_a_plain_open_clip_loop_on_the_same_checkpoint(finished):
    from raykd.stages.pool import read_classes

    table, folder = table_of(finished.teacher), Path(finished.settings["pool"]["path"])
    good = table.filter(table["error"].is_null())
    ids, classes = good["sample_id"].to_pylist(), read_classes(finished.pool)
    model = finished.settings["teacher"]["model"]
    features, logits = open_clip_loop(model, ids, folder, classes, ["a photo of a {}."])
    np.testing.assert_allclose(vectors_of(table, "logits"), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vectors_of(table, "features"), features, atol=1e-3)
    assert np.ptp(logits) > 0.5  # or any table would do


def test_features_are_float16_and_logits_float32_of_fixed_length(finished):
    schema = table_of(finished.teacher).schema
    assert schema.field("features").type == pa.list_(pa.float16(), 16)
    assert schema.field("logits").type == pa.list_(pa.float32(), 3)


def test_a_truncated_image_is_in_quarantine_and_the_others_are_all_there(finished):
    from raykd.stages.pool import read_manifest
    from raykd.stages.teacher import read_quarantine, readable

    (bad,) = read_quarantine(finished.teacher).to_pylist()
    assert bad["sample_id"] == "red/broken.png"
    assert bad["uri"] == str(Path(finished.settings["pool"]["path"]) / "red" / "broken.png")
    assert bad["reason"].startswith("OSError: ")
    rows = {row["sample_id"]: row for row in table_of(finished.teacher).to_pylist()}
    manifest = read_manifest(finished.pool)
    assert sorted(rows) == sorted(manifest["sample_id"].to_pylist())
    assert [name for name, row in rows.items() if row["error"] is not None] == ["red/broken.png"]
    assert np.isnan(rows["red/broken.png"]["features"]).all()
    assert np.isnan(rows["red/broken.png"]["logits"]).all()
    assert readable(manifest, finished.teacher).num_rows == 48
    assert finished.teacher.facts["unreadable"] == 1
    assert finished.teacher.facts["rows"] == 49
    assert "1 of 49 images cannot be read" in finished.ended.err


def test_too_many_unreadable_images_stop_it_and_bearing_more_does_not_repeat_the_pass(seeded, finished, monkeypatch):
    from raykd.stages import teacher

    monkeypatch.setattr(teacher, "stream", None)
    _, strict = seeded("max_bad_share=0.01")
    with pytest.raises(ValueError, match=r"1 of 49 .* cannot be read, more than max_bad_share=0\.01") as caught:
        teacher.score(strict, finished.pool)
    assert "'red/broken.png': OSError" in str(caught.value)
    assert str(strict.place / "teacher" / "quarantine.parquet") in str(caught.value)
    assert "raise max_bad_share" in str(caught.value)
    _, patient = seeded("max_bad_share=0.03", name="patient")
    assert teacher.score(patient, finished.pool).facts == finished.teacher.facts


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("teacher.templates=['all {}']", "templates: was ['a photo of a {}.'], now ['all {}']"),
        ("teacher.precision=bf16", "precision: was 'fp32', now 'bf16'"),
    ],
)
def test_a_table_made_for_other_prompts_or_precision_is_refused_naming_the_field(seeded, finished, override, field):
    from raykd.stages import teacher

    _, campaign = seeded(override)
    with pytest.raises(ValueError, match="was made from other inputs") as caught:
        teacher.score(campaign, finished.pool)
    assert field in str(caught.value)
    assert "nothing that is done is overwritten" in str(caught.value)


def test_a_table_made_for_other_classes_is_refused_naming_them(seeded, finished, monkeypatch):
    from raykd.stages import teacher

    _, campaign = seeded()
    monkeypatch.setattr(teacher, "read_classes", lambda pool: ["crimson", "green", "blue"])
    with pytest.raises(ValueError, match=r"classes: was .*'red'.*, now .*'crimson'"):
        teacher.score(campaign, finished.pool)


def test_the_bits_do_not_depend_on_replicas_or_on_the_manifests_order(scored, finished):
    from raykd.stages.pool import read_manifest

    table = read_manifest(finished.pool)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    pool = types.SimpleNamespace(facts=finished.pool.facts, place=ShuffledPlace(finished.pool.place, shuffled))
    again = scored("teacher.replicas=2", pool=pool)
    once, twice = (table_of(stage) for stage in (finished.teacher, again))
    assert once.drop_columns(["features", "logits"]).equals(twice.drop_columns(["features", "logits"]))
    for name in ("features", "logits"):  # NaN where an image cannot be read
        np.testing.assert_array_equal(np.array(once[name].to_pylist()), np.array(twice[name].to_pylist()))
    assert again.fingerprint == finished.teacher.fingerprint


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (["b"], r"2 of 3 images were not written, first 'a'"),
        (["c", "b", "a", "b"], r"1 of 3 images were written more than once, first 'b'"),
        (["a", "d", "b", "c"], r"1 of 3 images were written, but never asked for, first 'd'"),
        (["a", "b", "d"], r"1 of 3 images were not written, first 'c'"),
        (["a", "b", "c", None], "1 of 3 images were written, but never asked for, first None"),
        ([], "3 of 3 images were not written, first 'a'"),
    ],
)
def test_ids_that_are_missing_doubled_or_foreign_are_named(written, words):
    from raykd.stages.map_images import check_ids

    given = pa.chunked_array([["c"], ["a", "b"]])
    check_ids(given, pa.chunked_array([["b", "c"], ["a"]]))
    with pytest.raises(ValueError, match=words):
        check_ids(given, pa.chunked_array([pa.array(written, pa.string())]))


def careless(replica: type, change) -> type:
    """A Replica that makes a mistake with one image."""

    class Careless(replica):
        def __call__(self, batch):
            table = super().__call__(batch)
            is_it = np.array(table["sample_id"].to_pylist()) == "green/004.png"
            return change(table, is_it) if is_it.any() else table

    return Careless


def test_a_teachers_table_that_has_an_image_twice_is_not_kept(scored, finished, monkeypatch, tmp_path):
    from raykd.stages import teacher

    twice = careless(teacher.Replica, lambda table, is_it: pa.concat_tables([table, table.filter(pa.array(is_it))]))
    monkeypatch.setattr(teacher, "Replica", twice)
    with pytest.raises(ValueError, match=r"1 of 49 .* more than once, first 'green/004\.png'; .*run the same command"):
        scored()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"campaign.json", "pool", "teacher_model"}


def test_predictions_that_lack_an_image_are_not_kept(seeded, finished, monkeypatch, tmp_path):
    from raykd.stages import predict

    losing = careless(predict.Replica, lambda table, is_it: table.filter(pa.array(~is_it)))
    monkeypatch.setattr(predict, "Replica", losing)
    _, campaign = seeded()
    with pytest.raises(ValueError, match=r"1 of 48 images were not written, first 'green/004\.png'"):
        predict.score(campaign, 0, finished.pool, finished.teacher, finished.rounds[0].trained)
    assert not list((tmp_path / "run" / "round_000").iterdir())


def with_lost_images(pool, split, count):
    """The pool stage, as if some of a split's images had been moved away."""
    from raykd.stages.pool import read_manifest

    rows = read_manifest(pool).to_pylist()
    for row in [row for row in rows if row["split"] == split][:count]:
        row["uri"] += ".moved"
    table = pa.Table.from_pylist(rows, read_manifest(pool).schema)
    return types.SimpleNamespace(place=ShuffledPlace(pool.place, table), facts=pool.facts, fingerprint=pool.fingerprint)


def test_images_that_are_away_stop_the_teacher_with_nothing_kept_so_that_they_can_be_put_back(
    scored, finished, tmp_path
):

    away = with_lost_images(finished.pool, "test", 3)
    with pytest.raises(
        ValueError, match=r"teacher: 3 of \d+ test images cannot be read now, more than max_bad_share=0\.05"
    ):
        scored("max_bad_share=0.05", pool=away)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"campaign.json", "pool", "teacher_model"}


def test_a_few_that_are_away_are_in_quarantine_as_not_found(scored, finished):
    from raykd.stages.teacher import read_quarantine

    bad = read_quarantine(scored("max_bad_share=0.5", pool=with_lost_images(finished.pool, "test", 2)))
    assert sorted(bad["reason"].to_pylist())[1:] == ["unreachable: not found"] * 2


def test_a_split_that_went_away_after_the_teacher_stops_the_predictions(seeded, finished, tmp_path):
    from raykd.stages import predict

    _, campaign = seeded("max_bad_share=0.2")
    away = with_lost_images(finished.pool, "val", 4)
    with pytest.raises(ValueError, match=r"round 0 predict: 4 of \d+ val images cannot be read now"):
        predict.score(campaign, 0, away, finished.teacher, finished.rounds[0].trained)
    assert not list((tmp_path / "run" / "round_000").iterdir())


def test_classes_that_are_one_to_the_teacher_are_refused_by_name():
    from raykd.stages.teacher import check_classes

    directions = np.eye(4, dtype=np.float32)[[0, 1, 2, 1]]
    with pytest.raises(ValueError, match="classes 'crane' and 'Crane' are the same text to the teacher"):
        check_classes(["boat", "crane", "dock", "Crane"], directions)
    check_classes(["boat", "crane", "dock"], directions[:3])
    check_classes(["boat"], directions[:1])


class ShuffledPlace:
    """A pool stage's folder whose manifest has its rows in another order."""

    def __init__(self, place, table) -> None:
        self.place, self.table = place, table

    def __truediv__(self, name):
        if name == "manifest.parquet":
            return types.SimpleNamespace(read_table=lambda: self.table)
        return self.place / name


# ---------------------------------------------------------------- ways to name a model


@pytest.fixture
def siglip(tmp_path) -> tuple[Path, Path]:
    """A model config file and a checkpoint file of a SigLIP-like model: separate text tower, sigmoid bias."""
    import open_clip
    import safetensors.torch

    model = {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(1)
    state = open_clip.model.CustomTextCLIP(**model).state_dict()
    state["logit_bias"] -= 2.5
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "tiny-sigmoid.json").write_text(json.dumps(model | {"custom_text": True}))
    return tmp_path / "tiny-sigmoid.json", tmp_path / "weights.safetensors"


def test_a_siglip_like_model_from_config_and_checkpoint_files_gets_its_bias(scored, siglip, finished):
    from raykd.stages.pool import read_classes

    config, weights = siglip
    stage = scored(
        "teacher.model=tiny-sigmoid", f"teacher.model_config_file={config}", f"teacher.pretrained={weights}",
        f"teacher.templates={json.dumps(TEMPLATES)}", "teacher.batch_size=20",
    )  # fmt: skip
    table, folder = table_of(stage), Path(finished.settings["pool"]["path"])
    ids = table.filter(table["error"].is_null())["sample_id"].to_pylist()
    assert len(ids) == 48
    classes = read_classes(finished.pool)
    features, logits = open_clip_loop("tiny-sigmoid", ids, folder, classes, TEMPLATES, str(weights))
    np.testing.assert_allclose(vectors_of(table, "logits"), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vectors_of(table, "features"), features, atol=1e-3)
    assert logits.mean() < -10


def test_the_weights_are_fetched_once_into_the_campaigns_folder(finished):
    model = finished.place / "teacher_model"
    assert {file.name for file in model.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "_DONE.json",
    }  # fmt: skip
    about = json.loads((model / "open_clip_config.json").read_text())
    assert about["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]


@pytest.fixture
def fetching(settings):
    """Fetches the model of a campaign of its own; called with overrides."""
    from raykd.stages import teacher
    from raykd.stages.campaign import Campaign
    from raykd.stages.progress import Progress
    from raykd.store.place import Place

    def fetch(*overrides):
        campaign = Campaign(load(settings, overrides), Place.of(settings["storage_path"]), Progress("none"))
        teacher.check_teacher(campaign.config.teacher)
        return teacher.fetch_model(campaign)

    return fetch


def change_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_checkpoint_of_the_same_size_with_other_weights_is_refused(fetching, siglip):
    config, weights = siglip
    given = ("teacher.model=tiny-sigmoid", f"teacher.model_config_file={config}", f"teacher.pretrained={weights}")
    first = fetching(*given)
    assert fetching(*given).facts == first.facts
    change_a_bit(weights)
    with pytest.raises(ValueError, match=r"files\.weights\.safetensors: was '\w{64}', now '\w{64}'\. Put these back"):
        fetching(*given)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_a_local_folder_with_another_model_in_it_is_refused(fetching, teacher_folder, tmp_path, name):
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "mine"))
    first = fetching(f"teacher.model=local-dir:{folder}")
    (folder / "notes.txt").write_text("not read by open_clip")
    assert fetching(f"teacher.model=local-dir:{folder}").facts == first.facts
    if name.endswith(".json"):
        (folder / name).write_text((folder / name).read_text().replace("0.25", "0.26"))
    else:
        change_a_bit(folder / name)
    with pytest.raises(ValueError, match=rf"files\.{name}: was '"):
        fetching(f"teacher.model=local-dir:{folder}")


def test_a_files_name_by_content_is_that_of_all_its_pieces(tmp_path, monkeypatch):
    from raykd.stages import campaign

    file = tmp_path / "weights.pth"
    file.write_bytes(bytes(range(256)) * 5)
    monkeypatch.setattr(campaign, "PIECE_BYTES", 100)
    assert campaign.sha256_of(str(file)) == hashlib.sha256(bytes(range(256)) * 5).hexdigest()


def check(**given) -> str:
    from raykd.stages.teacher import check_teacher

    with pytest.raises(ValueError) as caught:  # noqa: PT011  (each test looks at the words)
        check_teacher(Teacher(**given))
    return str(caught.value)


def test_an_unknown_model_is_refused_with_the_nearest_names():
    message = check(model="ViT-B-23", pretrained="openai")
    assert "unknown teacher.model 'ViT-B-23'" in message
    assert "ViT-B-32" in message


def test_an_unknown_tag_is_refused_with_the_known_ones():
    message = check(model="ViT-B-32", pretrained="opneai")
    assert "'opneai' is no file and none of ViT-B-32's tags" in message
    assert "laion2b_s34b_b79k" in message


def test_a_model_without_weights_is_refused_with_the_known_tags():
    message = check(model="ViT-B-32")
    assert "needs weights" in message
    assert "openai" in message


def test_missing_files_and_folders_are_named(tmp_path):
    assert "no open_clip_config.json in the folder" in check(model=f"local-dir:{tmp_path}")
    message = check(model="mine", model_config_file=str(tmp_path / "mine.json"))
    assert f"teacher.model_config_file: no file '{tmp_path / 'mine.json'}'" in message


def test_a_checkpoint_that_does_not_fit_or_is_none_is_refused(siglip, tmp_path):
    import safetensors.torch

    from raykd.stages.teacher import check_teacher, resolve

    config, weights = siglip
    given = Teacher(model="tiny-sigmoid", model_config_file=str(config), pretrained=str(weights))
    check_teacher(given)
    state = safetensors.torch.load_file(weights)
    del state["text.ln_final.weight"]
    safetensors.torch.save_file(state, weights)
    with pytest.raises(ValueError, match=r"(?s)cannot load teacher 'tiny-sigmoid' with pretrained .*ln_final"):
        resolve(given)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(config, empty / "open_clip_config.json")
    with pytest.raises(ValueError, match="cannot load teacher"):
        resolve(Teacher(model=f"local-dir:{empty}"))


def test_a_quickgelu_mismatch_is_refused_before_the_weights_are_fetched(settings, monkeypatch):
    """The commonest mistake: OpenAI's weights were trained with QuickGELU, which the model ViT-B-32 has not."""
    import open_clip

    from raykd.stages.campaign import check_names
    from raykd.stages.teacher import check_teacher

    monkeypatch.setattr(open_clip.factory, "download_pretrained", None)
    config = load(settings, ["teacher.model=ViT-B-32", "teacher.pretrained=openai"])
    with pytest.raises(ValueError, match=r"QuickGELU.* use ViT-B-32-quickgelu"):
        check_names(config)
    check_teacher(Teacher(model="ViT-B-32-quickgelu", pretrained="openai"))
    check_teacher(Teacher(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))


def test_unknown_template_sets_are_refused_before_any_work(settings):
    from raykd.stages.campaign import check_names

    with pytest.raises(ValueError, match=r"unknown template set 'imagenet_8'; known: .*imagenet_80"):
        check_names(load(settings, ["teacher.templates=imagenet_8"]))


def test_the_manifest_is_not_read_again_once_the_table_is_there(seeded, finished, monkeypatch):
    from raykd.stages import teacher

    _, campaign = seeded()
    monkeypatch.setattr(teacher, "read_manifest", None)
    assert teacher.score(campaign, finished.pool).facts == finished.teacher.facts
    assert pq.read_metadata(finished.place / "teacher" / "quarantine.parquet").num_rows == 1


def test_a_tokenizer_that_needs_transformers_says_so(monkeypatch):
    from raykd.stages.teacher import tokenizer_of

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install raykd\[hf\]"):
        tokenizer_of("ViT-B-16-SigLIP")
