"""The teacher's opinion is what open_clip says of the stored features; and no change of mind reads an image."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

TEMPLATES = ["a photo of a {}.", "all {}", "{} on white"]


def table_of(opinion) -> pa.Table:
    return pa.concat_tables([part.place.read_table() for part in opinion.parts]).sort_by("sample_id")


def readable_logits(opinion) -> tuple[list[str], np.ndarray]:
    table = table_of(opinion)
    table = table.filter(table["error"].is_null())
    return table["sample_id"].to_pylist(), np.array(table["logits"].to_pylist())


def open_clip_logits(model_name: str, ids: list[str], folder: Path, classes, templates, pretrained=None) -> np.ndarray:
    """Logits [N, C] as open_clip's README computes them, an image at a time."""
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
    return logits.numpy()


@pytest.fixture
def opinion(seeded):
    """The teacher's opinion of the finished campaign's images under another config."""
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool
    from raykd.stages.teacher import teach

    def opinion(*overrides, name="run"):
        _, campaign = seeded(*overrides, name=name)
        pool = list_pool(campaign)
        return teach(campaign, pool, encode(campaign, pool))

    return opinion


def test_logits_are_those_of_a_plain_open_clip_loop(finished):
    ids, logits = readable_logits(finished.teacher)
    folder, model = Path(finished.settings["pool"]["path"]), finished.settings["teacher"]["model"]
    expected = open_clip_logits(model, ids, folder, list(finished.pool.classes), ["a photo of a {}."])
    assert len(ids) == 48
    assert np.ptp(expected) > 0.5  # or any table would do
    np.testing.assert_allclose(logits, expected, atol=0.05)  # features are rounded to 11 bits, times a scale of 14
    assert table_of(finished.teacher).schema.field("logits").type == pa.list_(pa.float32(), 3)


def test_logits_are_exactly_those_of_the_stored_features(finished):
    """So a second computation, years later, gives the same."""
    import io

    features = pa.concat_tables([part.place.read_table(["sample_id", "features", "error"]) for part in
                                 finished.encoded.parts]).sort_by("sample_id")  # fmt: skip
    features = features.filter(features["error"].is_null())
    x = np.array(features["features"].to_pylist(), np.float16).astype(np.float64)
    (folder,) = {part.place.uri.rpartition("/")[0] for part in finished.teacher.parts}
    classes = np.load(io.BytesIO((Path(folder) / "classes" / "classes.npy").read_bytes()))
    scale = json.loads((Path(folder) / "classes" / "_DONE.json").read_text())["facts"]["scale"]
    expected = scale * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ classes.T.astype(np.float64)
    ids, logits = readable_logits(finished.teacher)
    assert ids == features["sample_id"].to_pylist()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_an_image_that_cannot_be_read_has_a_reason_and_no_opinion(finished):
    rows = {row["sample_id"]: row for row in table_of(finished.teacher).to_pylist()}
    assert sorted(rows) == sorted(finished.pool.manifest["sample_id"].to_pylist())
    assert [name for name, row in rows.items() if row["error"] is not None] == ["red/broken.png"]
    assert np.isnan(rows["red/broken.png"]["logits"]).all()


@pytest.mark.parametrize(
    ("override", "classes"),
    [
        (f"teacher.templates={json.dumps(TEMPLATES)}", ["blue", "green", "red"]),
        ("classes=[blue, green, red, purple]", ["blue", "green", "red", "purple"]),
        ("labels.renamed={red: crimson}", ["blue", "green", "crimson"]),
        ("labels.renamed={red: warm, green: warm}", ["blue", "warm"]),
        ("classes=[red, blue, green]", ["red", "blue", "green"]),
    ],
)
def test_a_change_of_mind_reads_no_image_and_leaves_the_old_opinion(
    opinion, finished, no_image_is_read, override, classes
):
    changed = opinion(override, "labels.start=none")
    assert list(changed.classes) == classes
    ids, logits = readable_logits(changed)
    assert logits.shape == (48, len(classes))
    assert changed.fingerprint != finished.teacher.fingerprint
    templates = TEMPLATES if "templates" in override else ["a photo of a {}."]
    folder, model = Path(finished.settings["pool"]["path"]), finished.settings["teacher"]["model"]
    expected = open_clip_logits(model, ids, folder, classes, templates)
    np.testing.assert_allclose(logits, expected, atol=0.05)
    again = readable_logits(opinion(override, "labels.start=none", name="again"))
    assert again[0] == ids
    assert np.array_equal(again[1], logits)


def test_the_same_mind_computes_nothing(opinion, finished, no_image_is_read, monkeypatch):
    from raykd.stages import teacher, zero_shot

    monkeypatch.setattr(zero_shot, "encode_texts", None)
    monkeypatch.setattr(teacher, "each_part", None)
    assert opinion().scores == finished.teacher.scores


def test_its_scores_are_those_of_the_test_split(finished):
    rows = {row["sample_id"]: row for row in table_of(finished.teacher).to_pylist()}
    classes = list(finished.pool.classes)
    test = [row for row in finished.pool.split("test").to_pylist() if rows[row["sample_id"]]["error"] is None]
    right = [classes[int(np.argmax(rows[row["sample_id"]]["logits"]))] == row["label"] for row in test]
    assert finished.teacher.scores["accuracy"] == pytest.approx(np.mean(right))


def test_a_siglip_like_model_from_config_and_checkpoint_files_gets_its_bias(opinion, finished, tmp_path):
    from fakes import write_siglip

    from raykd.config import TeacherConfig
    from raykd.models.teacher import check_teacher

    config, weights = write_siglip(tmp_path)
    check_teacher(TeacherConfig(model="tiny-sigmoid", model_config_file=str(config), pretrained=str(weights)))
    found = opinion(
        "teacher.model=tiny-sigmoid", f"teacher.model_config_file={config}", f"teacher.pretrained={weights}",
        f"teacher.templates={json.dumps(TEMPLATES)}", "teacher.batch_size=20",
    )  # fmt: skip
    ids, logits = readable_logits(found)
    folder = Path(finished.settings["pool"]["path"])
    expected = open_clip_logits("tiny-sigmoid", ids, folder, list(found.classes), TEMPLATES, str(weights))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=0.05)
    assert logits.mean() < -10


def test_classes_that_are_one_to_the_teacher_are_refused_by_name():
    from raykd.stages.zero_shot import check_classes

    directions = np.eye(4, dtype=np.float32)[[0, 1, 2, 1]]
    with pytest.raises(ValueError, match="classes 'crane' and 'Crane' are the same text to the teacher"):
        check_classes(["boat", "crane", "dock", "Crane"], directions)
    check_classes(["boat", "crane", "dock"], directions[:3])
    check_classes(["boat"], directions[:1])


def test_texts_and_descriptions_stand_in_for_a_classs_name_and_no_image_is_read(opinion, finished, no_image_is_read):
    """As open_clip embeds them, a class at a time."""
    import open_clip

    own = {"red": ["crimson", "hot_lava"], "green": {"descriptions": ["leaves in May."]}, "blue": []}
    found = opinion(f"classes={json.dumps(own)}", "labels.start=none")
    assert list(found.classes) == ["red", "green", "blue"]
    texts = [
        ["a photo of a crimson.", "a photo of a hot lava."],
        ["a photo of a green.", "leaves in May."],
        ["a photo of a blue."],
    ]
    model, _, preprocess = open_clip.create_model_and_transforms(finished.settings["teacher"]["model"])
    tokenizer = open_clip.get_tokenizer(finished.settings["teacher"]["model"])
    ids, logits = readable_logits(found)
    folder = Path(finished.settings["pool"]["path"])
    with torch.no_grad():
        means = [model.eval().encode_text(tokenizer(prompts), normalize=True).mean(dim=0) for prompts in texts]
        classes = torch.nn.functional.normalize(torch.stack(means), dim=1)
        images = torch.stack([preprocess(Image.open(folder / name)) for name in ids])
        expected = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ classes.T
    np.testing.assert_allclose(logits, expected.numpy(), atol=0.05)
    plain = opinion("classes=[red, green, blue]", "labels.start=none", name="plain")
    assert plain.fingerprint != found.fingerprint
    assert not np.allclose(readable_logits(plain)[1], logits, atol=0.05)


# ---------------------------------------------------------------- what it says against the class list


def test_its_check_counts_the_pool_images_that_can_be_read(finished):
    ids, logits = readable_logits(finished.teacher)
    in_pool = np.isin(ids, finished.pool.split("pool")["sample_id"].to_pylist())
    check, classes = finished.teacher.check, list(finished.pool.classes)
    assert check["num_images"] == in_pool.sum() == 28
    first = logits[in_pool].argmax(axis=1)
    assert check["never"] == [name for c, name in enumerate(classes) if not (first == c).any()]

    place = Path(finished.teacher.parts[0].place.uri).parent / "classes"
    marker = json.loads((place / "_DONE.json").read_text())
    table = table_of(finished.teacher)
    features = np.array(table.filter(table["error"].is_null())["features"].to_pylist(), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    margins = (marker["facts"]["scale"] * features @ np.load(place / "neutral.npy") - logits.max(axis=1))[in_pool]
    assert np.abs(margins).min() > 1e-4  # so rounding decides none
    assert check["num_like_none"] == (margins > 0).sum()
    plainest = np.array(ids)[in_pool][np.argsort(-margins)][: min(5, check["num_like_none"])]
    assert check["examples"] == list(plainest)


def test_the_neutral_text_is_one_more_class_to_the_teacher(finished):
    ids, _ = readable_logits(finished.teacher)
    folder, model = Path(finished.settings["pool"]["path"]), finished.settings["teacher"]["model"]
    expected = open_clip_logits(model, ids, folder, ["something"], ["a photo of a {}."])[:, 0]
    place = Path(finished.teacher.parts[0].place.uri).parent / "classes"
    table = table_of(finished.teacher)
    features = np.array(table.filter(table["error"].is_null())["features"].to_pylist(), np.float32)
    scale = json.loads((place / "_DONE.json").read_text())["facts"]["scale"]
    np.testing.assert_allclose(scale * features @ np.load(place / "neutral.npy"), expected, atol=0.05)


def test_counts_of_parts_add_up_and_the_plainest_examples_of_all_are_shown():
    from raykd.stages.zero_shot import class_check

    many = [[0.5, "b"], [0.3, "c"], [0.2, "d"], [0.1, "e"]]
    parts = (
        {"first_choices_C": [2, 0, 1], "num_like_none": 40, "examples": many},
        {"first_choices_C": [0, 0, 97], "num_like_none": 2, "examples": [[0.9, "a"], [0.25, "f"]]},
    )
    assert class_check(["cat", "tomcat", "owl"], [["cat", "tomcat", 0.1]], parts) == {
        "num_images": 100, "never": ["tomcat"], "close": [("cat", "tomcat", 0.1)], "num_like_none": 42,
        "examples": ["a", "b", "c", "f", "d"],
    }  # fmt: skip


def test_a_class_list_that_is_wrong_is_told_in_three_lines_at_most_and_once(
    seeded, no_image_is_read, finished, monkeypatch
):
    """Names that the tokenizer reads almost alike, in templates that say much besides: known from their cosines."""
    from raykd.models.teacher import TextEmbeddings
    from raykd.stages import teacher, zero_shot
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool

    def alike(folder, tokens, num_prompts, device):
        rows = np.eye(16, dtype=np.float32)[[0, 1, 2, 3]]
        rows[1] = (rows[0] + 0.1 * rows[1]) / np.sqrt(1.01)  # green is red, nearly
        rows[2] = -features.mean(axis=0) / np.linalg.norm(features.mean(axis=0))  # blue is what no image is
        rows[3] = -rows[2]  # and "something" what every image is
        return TextEmbeddings(rows, np.ones(len(rows), np.float32), 100.0, 0.0)

    features = np.concatenate([np.array(part.place.read_table()["features"].to_pylist(), np.float32) for part in
                               finished.encoded.parts])  # fmt: skip
    features = features[np.isfinite(features).all(axis=1)]
    monkeypatch.setattr(zero_shot, "encode_texts", alike)
    _, campaign = seeded("classes=[red, green, blue]", 'teacher.templates=["{}!"]', "labels.start=none")
    pool = list_pool(campaign)
    encoded = encode(campaign, pool)
    check = teacher.teach(campaign, pool, encoded).check
    assert "blue" in check["never"]
    assert [pair[:2] for pair in check["close"]] == [("red", "green")]
    assert check["num_like_none"] == check["num_images"] == 28
    lines = [line for line in campaign.progress.stream.getvalue().splitlines() if line.startswith("teacher ")]
    assert len(lines) == 3
    assert "'red' and 'green'" in lines[1]
    assert "100.0% of the pool looks like none of the classes" in lines[2]
    assert teacher.teach(campaign, pool, encoded).check == check
    assert campaign.progress.stream.getvalue().count("looks like none of") == 1
