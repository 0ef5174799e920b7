"""The job that predicts without a campaign: the student's own predictions, by parts."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from fakes import CLASSES, ended, images_read, killed_after, tiny_student

from raykd.models.student import Student

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("student")
    tiny_student(CLASSES).save(folder)
    return folder


@pytest.fixture(scope="module")
def run(ray_cluster, student):
    """Runs the job in this process, on the session's Ray: exit code, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        import predict

    def run(*args):
        model = () if "--model" in args else ("--model", student)
        return ended(predict.main, [*args, *model, "--batch-size", 16])

    return run


def table_of(out):
    return pads.dataset(out).to_table().sort_by("sample_id")


def test_the_table_is_what_the_student_itself_predicts_here_and_in_actors(run, image_folder, student, tmp_path):
    pool = shutil.copytree(image_folder, tmp_path / "pool")
    (pool / "red" / "broken.png").write_bytes((pool / "red" / "000.png").read_bytes()[:600])
    code, said = run("--pool", pool, "--out", tmp_path / "p", "--features")
    assert code == 0, said
    table = table_of(tmp_path / "p")
    assert table.column_names == ["sample_id", "uri", "label", "prediction", "confidence", "probs", "features"]
    assert table.num_rows == 48
    want_NC = Student.load(student).predict(table["uri"].to_pylist())
    probs_NC = np.array(table["probs"].to_pylist(), np.float32)
    np.testing.assert_allclose(probs_NC, want_NC, atol=1e-6)
    np.testing.assert_array_equal(table["confidence"], probs_NC.max(axis=1))
    assert table["prediction"].to_pylist() == [CLASSES[c] for c in probs_NC.argmax(axis=1)]
    assert np.isfinite(np.array(table["features"].to_pylist())).all()
    labels = [name.split("/")[0] for name in table["sample_id"].to_pylist()]
    assert table["label"].to_pylist() == labels
    right = np.mean([p == label for p, label in zip(table["prediction"].to_pylist(), labels, strict=True)])
    assert f"right on {right:.1%} of the 48 that have a label" in said
    (bad,) = pq.read_table(tmp_path / "p.cache" / "quarantine.parquet").to_pylist()
    assert (bad["sample_id"], bad["reason"].split(":")[0]) == ("red/broken.png", "truncated")
    code, said = run("--pool", pool, "--out", tmp_path / "actors", "--features", "--replicas", "[1, 1]")
    assert code == 0, said
    assert table_of(tmp_path / "actors").equals(table)


def test_a_killed_run_goes_on_and_a_finished_table_is_only_looked_at(run, image_folder, student, tmp_path, monkeypatch):
    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "PART_ROWS", 10)
    given = ["--pool", image_folder, "--out", tmp_path / "p", "--top", 2]
    with killed_after(3, "predict"):
        run(*given)
    assert not (tmp_path / "p").exists()
    read = images_read(monkeypatch)
    assert run(*given)[0] == 0
    assert len(read) == 48 - 3 * 10
    before = table_of(tmp_path / "p")
    assert before.column_names == ["sample_id", "uri", "label", "prediction", "confidence", "top"]
    probs_NC = Student.load(student).predict(before["uri"].to_pylist())
    for guesses, probs_C in zip(before["top"].to_pylist(), probs_NC, strict=True):
        assert [guess["label"] for guess in guesses] == [CLASSES[c] for c in np.argsort(-probs_C)[:2]]
        np.testing.assert_allclose([guess["p"] for guess in guesses], np.sort(probs_C)[:0:-1], atol=1e-6)
    monkeypatch.setattr(map_images, "make_parts", lambda *_: pytest.fail("a finished table was made again"))
    assert run(*given)[0] == 0
    other = tiny_student(CLASSES)
    other.model.ce_head.bias.data += 1
    other.save(tmp_path / "other")
    for options, what in (
        (["--model", tmp_path / "other"], "model"),
        (["--top", 0], "top"),
        (["--features"], "features"),
    ):
        code, said = run(*given, *options)
        assert code == 2
        assert f"holds another table: of other {what}; give another --out" in said
    assert table_of(tmp_path / "p").equals(before)


def test_labels_that_are_no_class_of_the_student_stay_and_count_for_nothing(run, image_folder, tmp_path):
    pool = shutil.copytree(image_folder, tmp_path / "pool")
    (pool / "red").rename(pool / "crimson")
    code, said = run("--pool", pool, "--format", "class_folders", "--out", tmp_path / "p", "--top", 0)
    assert code == 0, said
    assert "16 labels are no class of the model, such as 'crimson'" in said
    assert "of the 32 that have a label" in said
    table = table_of(tmp_path / "p")
    assert table.column_names == ["sample_id", "uri", "label", "prediction", "confidence"]
    assert set(table["label"].to_pylist()) == {"crimson", "green", "blue"}


def test_what_is_no_student_is_told_with_what_was_looked_for_and_nothing_is_written(run, image_folder, tmp_path):
    given = ["--pool", image_folder, "--out", tmp_path / "p"]
    for model, words in (
        (image_folder, "holds blue, green, red; looked for student.json"),
        ("nowhere", "is not there"),
    ):
        code, said = run(*given, "--model", model)
        assert code == 2
        assert "error: --model: " in said
        assert words in said
        assert "Traceback" not in said
    assert not list(tmp_path.iterdir())
