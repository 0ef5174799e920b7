"""A campaign whose student is heads alone, on stored features: the same job and outputs, and no image read again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from campaigns import lines_of, manifest_of, picks_of, table_of
from fakes import Killed, images_read, write_images
from PIL import Image

from raykd.algo.heads import Mixture, probabilities
from raykd.models.saved import NETWORK, WEIGHTS
from raykd.models.student import Student, make_backbone, weights_of

ROUNDS = range(2)
TOLERANCE = 2e-3  # of a probability: features are stored in half precision


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A checkpoint of a timm model, as if it had been trained."""
    file = tmp_path_factory.mktemp("network") / "test_resnet.safetensors"
    torch.manual_seed(5)
    module, _ = make_backbone("test_resnet")
    with torch.no_grad():
        module.train()(torch.randn(16, 3, 32, 32))
    file.write_bytes(weights_of(module))
    return file


@pytest.fixture
def pool(image_folder, tmp_path) -> Path:
    """With a truncated image."""
    folder = Path(shutil.copytree(image_folder, tmp_path / "pool"))
    (folder / "red" / "broken.png").write_bytes((folder / "red" / "000.png").read_bytes()[:600])
    return folder


@pytest.fixture
def frozen(settings, network, pool, tmp_path):
    """The settings of a campaign with a frozen student, by whose features it is given."""
    heads = {"backbone": "frozen", "steps": 40, "batch_labeled": 4, "batch_unlabeled": 8, "checkpoints": 4,
             "learning_rate": 0.01}  # fmt: skip
    given = {
        "teacher": {"pretrained": False, "hidden": 8},
        "test_resnet": {"pretrained": str(network), "image_size": 32, "predict_batch_size": 16},
    }

    def make(features: str, **changes) -> dict:
        student = heads | given[features] | {"features": features}
        campaign = {
            "student": student,
            "cache_path": str(tmp_path / "cache"),
            "pool": settings["pool"] | {"path": str(pool)},
        }
        return settings | campaign | changes

    return make


def assert_as_of_images(round_place: Path, manifest: pa.Table) -> None:
    """The deployed student says of images what the round's predictions, of features, say; a broken one has an error."""
    student = Student.load(round_place / "student")
    table = table_of(round_place / "predict")
    assert table["sample_id"].to_pylist() == sorted(manifest["sample_id"].to_pylist())
    bad = table.filter(table["error"].is_valid())
    assert bad["sample_id"].to_pylist() == ["red/broken.png"]
    assert all(np.isnan(bad[name].to_pylist()).all() for name in ("features", "ce_logits", "kd_logits"))
    table = table.filter(table["error"].is_null())
    uris = dict(zip(manifest["sample_id"].to_pylist(), manifest["uri"].to_pylist(), strict=True))
    told = probabilities(
        {name: np.array(table[name].to_pylist()) for name in ("ce_logits", "kd_logits")}, student.mixture
    )
    found = student.predict([uris[name] for name in table["sample_id"].to_pylist()])
    np.testing.assert_allclose(found, told, atol=TOLERANCE)
    assert np.ptp(told, axis=0).min() > 20 * TOLERANCE  # or any student would do
    pixels = np.stack([np.asarray(student.preprocess.clean()(Image.open(uris[name]))) for name in ["red/000.png"]])
    row = table["sample_id"].to_pylist().index("red/000.png")
    np.testing.assert_allclose(student.outputs(pixels)[0][0], table["features"][row].as_py(), rtol=5e-3, atol=5e-3)


def outcome_of(place: Path) -> dict:
    found: dict = {}
    for number in ROUNDS:
        folder = place / f"round_{number:03d}"
        found[f"picks {number}"] = picks_of(place, number)
        found[f"weights {number}"] = [(folder / name / WEIGHTS).read_bytes() for name in ("train", "student")]
        found[f"predictions {number}"] = str(table_of(folder / "predict").to_pydict())
    found["figures"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(place)]
    return found


@pytest.mark.parametrize("features", ["teacher", "test_resnet"])
def test_a_campaign_that_is_killed_in_a_training_goes_on_to_the_same_and_another_on_its_cache_reads_no_image(
    features, frozen, run_job, tmp_path, monkeypatch
):
    from raykd.models import training_data
    from raykd.stages import train_loop

    settings, packed = frozen(features), train_loop.packed
    trainings = []

    def killed(state):
        trainings.append(state["step"])
        if trainings == [10, 20, 30, 40, 10, 20]:
            raise Killed
        return packed(state)

    monkeypatch.setattr(
        training_data.TrainingImages, "__init__", lambda *_, **__: pytest.fail("an image was to be trained on")
    )
    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "packed", killed)
        with pytest.raises(Killed):
            run_job(settings)
    read = images_read(monkeypatch)
    went_on = run_job(settings, "progress=lines")
    assert went_on.code == 0, went_on.err
    place = tmp_path / "run"
    assert len(lines_of(place)) == 2
    for number in ROUNDS:
        assert_as_of_images(place / f"round_{number:03d}", manifest_of(place))
    files = [place / f"round_{number:03d}" / "student" / NETWORK for number in ROUNDS]
    assert os.path.samefile(*files)
    assert not (place / "round_000" / "train" / NETWORK).exists()
    assert read == []
    if features == "teacher":
        return  # as tests of other students show: the teacher's features are found in a cache

    alone = run_job(settings | {"storage_path": str(tmp_path / "alone")})
    assert alone.code == 0, alone.err
    one, other = outcome_of(place), outcome_of(tmp_path / "alone")
    for key in one:
        assert one[key] == other[key], key
    assert read == []


def test_new_images_are_seen_by_the_network_of_a_rounds_own_student_whatever_the_next_one_is(
    frozen, run_job, pool, tmp_path, monkeypatch
):
    first = run_job(frozen("teacher", rounds=1))
    assert first.code == 0, first.err
    write_images(tmp_path / "more", 2, seed=7)
    for name in ("blue", "red"):
        shutil.copy(tmp_path / "more" / name / "001.png", pool / name / "100.png")
    monkeypatch.setattr("raykd.stages.map_images.PART_ROWS", 10**6)
    read = images_read(monkeypatch, lambda uri: f"{Path(uri).parent.name}/{Path(uri).name}")
    second = run_job(frozen("test_resnet"), "selection.mixture=[0.5,1.0]")
    assert second.code == 0, second.err
    place = tmp_path / "run"
    manifest = pa.concat_tables([manifest_of(place), pq.read_table(place / "pool" / "part_001" / "manifest.parquet")])
    for number in ROUNDS:
        assert_as_of_images(place / f"round_{number:03d}", manifest)
    new = ["blue/100.png", "red/100.png"]
    by_teacher, by_old, by_new = new, new, sorted(manifest["sample_id"].to_pylist())
    assert sorted(read) == sorted([*by_teacher, *by_old, *by_new])
    one, other = (Student.load(place / f"round_{number:03d}" / "student") for number in ROUNDS)
    assert one.backbone.startswith("open_clip:")
    assert other.backbone == "test_resnet"


def test_with_a_table_for_a_teacher_what_cannot_be_read_is_known_before_anything_is_picked(
    frozen, run_job, tmp_path, pool
):
    ids = [str(file.relative_to(pool)) for file in sorted(pool.glob("*/*.png"))]
    probs = np.random.default_rng(0).dirichlet([1, 1, 1], len(ids))
    pq.write_table(pa.table({"sample_id": ids, "probs": probs.tolist()}), tmp_path / "opinion.parquet")
    teacher = {"rule": "table", "table": str(tmp_path / "opinion.parquet")}
    ended = run_job(frozen("test_resnet", rounds=1, teacher=teacher), "progress=lines")
    assert ended.code == 0, ended.err
    place = tmp_path / "run"
    assert pq.read_table(place / "quarantine.parquet")["sample_id"].to_pylist() == ["red/broken.png"]
    assert "student features" in ended.err
    assert "1 of 49 images cannot be read and are left out" in ended.err
    assert_as_of_images(place / "round_000", manifest_of(place))
    assert Student.load(place / "round_000" / "student").mixture.uncalibrated == Mixture()
