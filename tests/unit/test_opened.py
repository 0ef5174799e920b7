"""The model in a folder is found, whatever folder it is; what is none is told with what was looked for."""

import json
import shutil

import numpy as np
import pytest
from fakes import CLASSES, picture, tiny_student

from raykd.errors import UserError
from raykd.models.opened import find_model, open_model
from raykd.models.saved import WEIGHTS
from raykd.stages.classify import named_model
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder


@pytest.fixture
def campaign(tmp_path):
    """Of three rounds, the last one not finished."""
    (tmp_path / "campaign.json").write_text("{}")
    for number, classes in enumerate((["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"])):
        folder = tmp_path / f"round_{number:03d}"
        tiny_student(classes).save(folder / "student")
        if number < 2:
            with StageFolder(Place.of(folder / "evaluate"), "evaluate", 1).writing():
                pass
    return tmp_path


def test_of_a_campaign_it_is_the_student_of_the_last_finished_round(campaign):
    found = named_model(str(campaign))
    assert found.place == Place.of(campaign / "round_001" / "student")
    assert found.classes == ["a", "b", "c"]
    for folder in (campaign / "round_002" / "student", campaign / "round_002"):
        assert named_model(str(folder)).place == Place.of(campaign / "round_002" / "student")
    shutil.rmtree(campaign / "round_000" / "evaluate")
    with pytest.raises(UserError, match=r"--model: no round of the campaign in .* is finished yet"):
        named_model(str(campaign))


def test_its_files_alone_are_the_model_on_a_disk_and_in_a_bucket(tmp_path, bucket):
    student = tiny_student(CLASSES)
    student.model.eval()
    for place in (Place.of(tmp_path / "s"), bucket / "s"):
        student.save(place)
        (place / "notes.txt").write_bytes(b"mine")
        found = find_model(place)
        assert (found.classes, found.preprocess) == (CLASSES, student.preprocess)
        assert found.words == "test_resnet, heads: dho"
        for file in found.files:
            (Place.of(tmp_path / "copy") / file).write_bytes((place / file).read_bytes())
        opened = open_model(Place.of(tmp_path / "copy"))
        pixels = np.asarray(picture(0, 32, 32))[None]
        np.testing.assert_array_equal(opened.probabilities(pixels), student.probabilities(pixels))
        features_ND, probs_NC = opened.with_features(pixels)
        assert features_ND.shape == (1, 96)
        np.testing.assert_array_equal(probs_NC, student.probabilities(pixels))


def test_half_a_student_is_told_by_what_is_missing(tmp_path):
    tiny_student(CLASSES).save(tmp_path)
    about, weights = tmp_path / "student.json", tmp_path / WEIGHTS
    whole, data = about.read_text(), weights.read_bytes()
    for change, words in (
        (lambda: weights.write_bytes(data[:-1]), "it is cut off"),
        (weights.unlink, f"and no {WEIGHTS}"),
        (lambda: about.write_text(json.dumps({"backbone": "x", "heads": "ce"})), "'classes' is missing"),
        (lambda: about.write_text(whole[:50]), "is not JSON"),
        (about.unlink, "holds nothing; looked for student.json"),
    ):
        change()
        with pytest.raises(UserError, match=words):
            find_model(Place.of(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; looked for"):
        find_model(Place.of(tmp_path / "file"))
