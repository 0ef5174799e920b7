"""A campaign whose student is a CLIP image tower, with heads that begin as texts: two rounds, deployed, run again."""

import json
import shutil

import numpy as np
from campaigns import lines_of, table_of
from fakes import write_teacher
from PIL import Image

from raykd.models.student import Student


def test_a_towers_student_is_trained_predicts_and_is_deployed_and_its_own_folder_is_needed_no_more(
    run_job, settings, image_folder, tmp_path
):
    own = write_teacher(tmp_path / "own", 32)
    settings["student"] |= {
        "backbone": f"open_clip:local-dir:{own}", "pretrained": True, "image_size": None, "language_aware": True,
        "forward": "stacked",
    }  # fmt: skip
    ended = run_job(settings)
    assert ended.code == 0, ended.err
    place = tmp_path / "run"
    assert [line["num_labeled"] for line in lines_of(place)] == [3, 6]
    (model,) = place.glob("student_model/*")  # one for both rounds
    (texts,) = place.glob("student_texts/*/texts.npy")
    assert (model / "open_clip_model.safetensors").exists()
    texts_CD = np.load(texts)
    assert texts_CD.shape == (3, 16)
    shutil.rmtree(own)
    for number in range(2):
        student = Student.load(place / f"round_{number:03d}" / "student")
        about = json.loads((place / f"round_{number:03d}" / "student" / "student.json").read_text())
        assert (about["language_aware"], about["preprocess"]["image_size"]) == (True, 32)
        assert "text_cfg" not in json.dumps(about)
        rows_CD = student.model.ce_head.weight.detach().numpy()
        assert 0 < np.abs(rows_CD - texts_CD).max() < 0.05  # each round's began there, and it has learned something
        table = table_of(place / f"round_{number:03d}" / "predict")
        ids = table["sample_id"].to_pylist()[:4]
        clean = student.preprocess.clean()
        pixels = np.stack([np.asarray(clean(Image.open(image_folder / name).convert("RGB"))) for name in ids])
        _, logits = student.outputs(pixels)
        for column, found in logits.items():
            np.testing.assert_allclose(found, table[column].to_pylist()[:4], rtol=1e-4, atol=1e-3)
    again = run_job(settings)  # all is done: nothing of the folder is looked for
    assert again.code == 0, again.err
