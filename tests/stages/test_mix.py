"""The mixture's search on Ray Tune gives what a plain loop over the grid gives; without validation it stays put."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raykd.algo.heads import CE_WEIGHTS, TEMPERATURES, Mixture, probabilities
from raykd.config import load
from raykd.store.tables import MANIFEST, vectors

NUM, CLASSES = 120, 5


@pytest.fixture(scope="module")
def logits():
    """Two heads, each right on its own kind of image, so that neither alone is best; labels int [N]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, NUM)
    ce, kd = rng.normal(size=(2, NUM, CLASSES)).astype(np.float32)
    kd[np.arange(NUM), labels] += 2.0
    ce[np.arange(NUM), labels] += np.where(np.arange(NUM) < NUM // 4, 4.0, 0.0)
    return ce, 3 * kd, labels


@pytest.fixture
def campaign(settings):
    from raykd.stages.campaign import Campaign
    from raykd.stages.progress import Progress
    from raykd.store.place import Place

    config = load(settings)
    return Campaign(config, Place.of(config.storage_path), Progress("lines", io.StringIO()))


def brute_force(ce, kd, labels) -> dict[tuple[float, float], int]:
    """How many images each point of the papers' grid gets right."""
    points = [(w, t) for w in CE_WEIGHTS for t in TEMPERATURES]
    logits = {"ce_logits": ce, "kd_logits": kd}
    return {p: int((probabilities(logits, Mixture(*p)).argmax(axis=1) == labels).sum()) for p in points}


def test_the_search_finds_the_best_point_of_a_plain_loop_over_the_grid(ray_cluster, campaign, logits):
    from raykd.stages import mix

    right = brute_force(*logits)
    default = (1.0, 1.0)
    assert max(right.values()) > right[default] + 10  # or the default would stay
    point, reason = mix.search(campaign, 0, *logits, default)
    assert right[point] == max(right.values())
    gain = (right[point] - right[default]) / NUM
    assert reason.startswith(f"searched 147 mixtures on {NUM} validation images: {gain:+.3f} ± ")
    assert not list(Path((campaign.place / "ray_tune").path).iterdir())


def test_several_trials_find_what_one_finds(ray_cluster, campaign, logits, monkeypatch):
    """Blocks of the grid cover it, and ties between blocks go where ties within one go."""
    from raykd.stages import mix

    ran, real = [], mix.tune.Tuner.fit

    def fit(tuner):
        results = real(tuner)
        ran.append(len(results))
        return results

    monkeypatch.setattr(mix.tune.Tuner, "fit", fit)
    one = mix.search(campaign, 0, *logits, (0.9, 4.0))
    monkeypatch.setattr(mix, "WORK_A_TRIAL", 147 * NUM * CLASSES / 5)
    assert mix.search(campaign, 1, *logits, (0.9, 4.0)) == one
    assert ran == [1, 5]


def test_a_gain_that_may_be_luck_leaves_the_default(ray_cluster, campaign, logits):
    from raykd.stages import mix

    few = [part[:4] for part in logits]
    point, reason = mix.search(campaign, 0, *few, (0.5, 1.0))
    assert point == (0.5, 1.0)
    assert "on 4 validation images" in reason
    assert reason.endswith("within one standard error, so the default stays")


# ---------------------------------------------------------------- the stage


@pytest.fixture
def stages(campaign, logits):
    """Pool, training and predictions of a round as their stages leave them; called with the split of each image."""
    from raykd.algo.dho import DualHead
    from raykd.models.student import Preprocess, Student, make_backbone
    from raykd.store.stage_folder import Stage

    ce, kd, labels = logits
    names = [f"class {c}" for c in range(CLASSES)]

    def make(splits, labeled=True):
        order = np.random.default_rng(1).permutation(NUM)
        ids = np.array([f"s{i:03d}" for i in range(NUM)])
        place = campaign.place
        manifest = {
            "sample_id": ids[order], "uri": ids[order], "size_bytes": np.zeros(NUM, int),
            "label": [names[labels[i]] if labeled else None for i in order], "split": [splits[i] for i in order],
        }  # fmt: skip
        (place / "pool" / "manifest.parquet").write_table(pa.table(manifest, schema=MANIFEST))
        (place / "pool" / "classes.json").write_json(names)
        student = Student(DualHead(*make_backbone("test_vit"), CLASSES), "test_vit", names, Preprocess(160, (0,), (1,)))
        student.save(place / "train")
        table = {"sample_id": ids, "split": splits, "ce_logits": vectors(ce), "kd_logits": vectors(kd)}
        table["error"] = pa.nulls(NUM, pa.string())
        (place / "predict" / "data" / "part.parquet").write_table(pa.table(table))
        return [Stage(place / name, {"made": 1}) for name in ("pool", "train", "predict")]

    return make


def test_without_a_validation_split_the_mixture_is_fixed_and_a_line_says_so(campaign, stages, monkeypatch):
    from raykd.models.student import Student
    from raykd.stages import mix

    monkeypatch.setattr(mix, "search", None)
    stage = mix.mix(campaign, 0, *stages(["pool", "test"] * (NUM // 2)))
    assert stage.facts["reason"] == "fixed: there is no validation split to search on"
    student = Student.load(stage.place)
    assert (student.ce_weight, student.temperature) == (0.5, 1.0)
    said = campaign.progress.stream.getvalue()
    assert "ce_weight 0.5, temperature 1 (fixed: there is no validation split to search on)" in said


def test_a_validation_split_without_labels_is_none(campaign, stages, monkeypatch):
    from raykd.stages import mix

    monkeypatch.setattr(mix, "search", None)
    stage = mix.mix(campaign, 0, *stages(["val"] * NUM, labeled=False))
    assert stage.facts["reason"] == "fixed: there is no validation split to search on"


def test_the_search_sees_the_validation_images_alone_each_with_its_own_label(campaign, stages, logits, monkeypatch):
    from raykd.models.student import Student
    from raykd.stages import mix

    seen = {}

    def search(campaign, round, ce, kd, labels, default):
        seen.update(ce=ce, kd=kd, labels=labels, default=default)
        return (0.25, 2.0), "as told"

    monkeypatch.setattr(mix, "search", search)
    splits = ["pool", "val", "test"] * (NUM // 3)
    trained = stages(splits)
    stage = mix.mix(campaign, 3, *trained)
    val = np.array(splits) == "val"
    for name, expected in zip(("ce", "kd", "labels"), logits, strict=True):
        assert np.array_equal(seen[name], expected[val])
    assert seen["default"] == (0.5, 1.0)
    student = Student.load(stage.place)
    assert (student.ce_weight, student.temperature) == (0.25, 2.0)
    assert (stage.place / "model.safetensors").read_bytes() == (
        campaign.place / "train" / "model.safetensors"
    ).read_bytes()
    monkeypatch.setattr(mix, "search", None)
    assert mix.mix(campaign, 3, *trained).facts == stage.facts


def test_a_search_that_is_off_leaves_the_configured_mixture(settings, campaign, stages, monkeypatch):
    import dataclasses

    from raykd.stages import mix

    monkeypatch.setattr(mix, "search", None)
    config = load(settings, ["mixture.search=false", "mixture.ce_weight=0.4", "mixture.temperature=0.5"])
    stage = mix.mix(dataclasses.replace(campaign, config=config), 0, *stages(["val"] * NUM))
    assert stage.facts["reason"] == "fixed: mixture.search is off"
    assert (stage.facts["ce_weight"], stage.facts["temperature"]) == (0.4, 0.5)
