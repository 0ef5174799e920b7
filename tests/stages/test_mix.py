"""The mixture's search on Ray Tune gives what a plain loop over the grid gives; without validation it stays put.

So does the calibration.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import new_campaign

from raykd.algo.calibration import fit_calibration
from raykd.algo.heads import Mixture, probabilities
from raykd.algo.metrics import log_loss
from raykd.algo.mixture_search import CE_WEIGHTS, TEMPERATURES
from raykd.store.outputs import MANIFEST_FILE, Deployed, Pool, Predictions, Trained
from raykd.store.stage_folder import Done
from raykd.store.tables import MANIFEST, vectors

NUM, CLASSES = 120, 5
COLUMNS = ("ce_logits", "kd_logits")


@pytest.fixture(scope="module")
def logits():
    """Two heads, each right on its own kind of image, so that neither alone is best; labels int [N]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, NUM)
    ce, kd = rng.normal(size=(2, NUM, CLASSES)).astype(np.float32)
    kd[np.arange(NUM), labels] += 2.0
    ce[np.arange(NUM), labels] += np.where(np.arange(NUM) < NUM // 4, 4.0, 0.0)
    return {"ce_logits": ce, "kd_logits": 3 * kd}, labels


@pytest.fixture
def campaign(settings):
    return new_campaign(settings)


def brute_force(logits, labels) -> dict[Mixture, int]:
    """How many images each point of the papers' grid gets right."""
    points = [Mixture(w, t) for w in CE_WEIGHTS for t in TEMPERATURES]
    return {point: int((probabilities(logits, point).argmax(axis=1) == labels).sum()) for point in points}


def test_the_search_finds_the_best_point_of_a_plain_loop_over_the_grid(ray_cluster, campaign, logits):
    from raykd.stages import mix

    right = brute_force(*logits)
    default = Mixture(1.0, 1.0)
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
    one = mix.search(campaign, 0, *logits, Mixture(0.9, 4.0))
    monkeypatch.setattr(mix, "WORK_A_TRIAL", 147 * NUM * CLASSES / 5)
    assert mix.search(campaign, 1, *logits, Mixture(0.9, 4.0)) == one
    assert ran == [1, 5]


def test_a_gain_that_may_be_luck_leaves_the_default(ray_cluster, campaign, logits):
    from raykd.stages import mix

    few = {name: part[:4] for name, part in logits[0].items()}
    point, reason = mix.search(campaign, 0, few, logits[1][:4], Mixture(0.5, 1.0))
    assert point == Mixture(0.5, 1.0)
    assert "on 4 validation images" in reason
    assert reason.endswith("within one standard error, so the default stays")


# ---------------------------------------------------------------- the stage


@pytest.fixture
def stages(campaign, logits):
    """Pool, training and predictions of a round as their stages leave them; called with the split of each image."""
    columns, labels = logits
    names = [f"class {c}" for c in range(CLASSES)]

    def make(splits, labeled=True, columns=columns):
        order = np.random.default_rng(1).permutation(NUM)
        ids = np.array([f"s{i:03d}" for i in range(NUM)])
        place = campaign.place
        manifest = {
            "sample_id": ids[order], "uri": ids[order], "size_bytes": np.zeros(NUM, int),
            "mtime_ns": np.zeros(NUM, int),
            "label": [names[labels[i]] if labeled else None for i in order], "split": [splits[i] for i in order],
        }  # fmt: skip
        (place / "pool" / MANIFEST_FILE).write_table(pa.table(manifest, schema=MANIFEST))
        write_student(place / "train", names)
        table = {"sample_id": ids, "split": splits, "error": pa.nulls(NUM, pa.string())}
        table |= {name: vectors(logits_NC) for name, logits_NC in columns.items()}
        (place / "predict" / "part.parquet").write_table(pa.table(table))
        facts = {"classes": names, "columns": list(columns), "loss": 1.0}
        return (
            Pool((Done(place / "pool", "pool"),), tuple(names)),
            Trained(Done(place / "train", "train", facts)),
            Predictions((Done(place / "predict", "predict"),), tuple(columns), tuple(names), "train"),
        )

    def write_student(place, names):
        from fakes import tiny_student

        tiny_student(names).save(place)

    return make


def mixture_of(place) -> Mixture:
    from raykd.models.student import Student

    return Student.load(place).mixture


@pytest.fixture
def no_search(monkeypatch):
    from raykd.stages import mix

    monkeypatch.setattr(mix, "search", lambda *_: pytest.fail("a search"))


def test_without_a_validation_split_the_mixture_is_fixed_and_a_line_says_so(campaign, stages, no_search):
    from raykd.stages import mix

    deployed = mix.mix(campaign, 0, *stages(["pool", "test"] * (NUM // 2)))
    assert deployed.reason == "fixed: there is no validation split to search on"
    assert mixture_of(deployed.place) == deployed.mixture == Mixture(0.5, 1.0)
    said = campaign.progress.stream.getvalue()
    assert "ce_weight 0.5, temperature 1 (fixed: there is no validation split to search on)" in said
    assert "calibration temperature 1 (none: there is no validation split to calibrate by)" in said
    assert deployed.num_validation == 0


def test_a_validation_split_without_labels_is_none(campaign, stages, no_search):
    from raykd.stages import mix

    deployed = mix.mix(campaign, 0, *stages(["val"] * NUM, labeled=False))
    assert deployed.reason == "fixed: there is no validation split to search on"


def test_one_head_has_nothing_to_mix(campaign, stages, logits, no_search):
    from raykd.stages import mix

    one = {"ce_logits": logits[0]["ce_logits"]}
    deployed = mix.mix(campaign, 0, *stages(["val"] * NUM, columns=one))
    assert deployed.reason == "one head: nothing to mix"
    assert deployed.mixture == Mixture(0.5, 1.0, fit_calibration(one, Mixture(), logits[1]))
    assert deployed.mixture.calibration > 1.5  # of random logits
    assert deployed.num_validation == NUM  # they have cost what they cost


def test_the_search_sees_the_validation_images_alone_each_with_its_own_label(campaign, stages, logits, monkeypatch):
    from raykd.stages import mix

    seen = {}

    def search(campaign, number, columns, labels, default):
        seen.update(columns, labels=labels, default=default)
        return Mixture(0.25, 2.0), "as told"

    monkeypatch.setattr(mix, "search", search)
    splits = ["pool", "val", "test"] * (NUM // 3)
    trained = stages(splits)
    deployed = mix.mix(campaign, 3, *trained)
    val = np.array(splits) == "val"
    for name, expected in (logits[0] | {"labels": logits[1]}).items():
        assert np.array_equal(seen[name], expected[val])
    assert seen["default"] == Mixture(0.5, 1.0)
    mine = {name: part[val] for name, part in logits[0].items()}
    found = fit_calibration(mine, Mixture(0.25, 2.0), logits[1][val])
    assert mixture_of(deployed.place) == deployed.mixture == Mixture(0.25, 2.0, found)
    assert found != pytest.approx(1, abs=0.1)
    before, after = (log_loss(probabilities(mine, Mixture(0.25, 2.0, c)), logits[1][val]) for c in (1.0, found))
    assert deployed.calibrated == f"on 40 validation labels: log-loss {before:.3f} → {after:.3f}"
    assert f"log-loss {before:.3f} -> {after:.3f})" in campaign.progress.stream.getvalue()
    assert (deployed.place / "model.safetensors").read_bytes() == (
        campaign.place / "train" / "model.safetensors"
    ).read_bytes()
    monkeypatch.setattr(mix, "search", None)
    assert mix.mix(campaign, 3, *trained).done.facts == deployed.done.facts


def test_a_search_that_is_off_leaves_the_configured_mixture(settings, campaign, stages, no_search):
    from raykd.stages import mix

    parts = stages(["val"] * NUM)
    other = new_campaign(settings, "mixture.search=false", "mixture.ce_weight=0.4", "mixture.temperature=0.5")
    deployed = mix.mix(other, 0, *parts)
    assert deployed.reason == "fixed: mixture.search is off"
    assert deployed.mixture.uncalibrated == Mixture(0.4, 0.5)
    assert deployed.mixture.calibration != 1


def test_without_calibration_probabilities_are_the_papers_and_no_validation_label_is_spent(
    settings, stages, campaign, no_search
):
    from raykd.stages import mix

    parts = stages(["val"] * NUM)
    deployed = mix.mix(new_campaign(settings, "mixture.search=false", "mixture.calibrate=false"), 0, *parts)
    assert mixture_of(deployed.place) == deployed.mixture == Mixture(0.5, 1.0)
    assert deployed.calibrated == "none: mixture.calibrate is off"
    assert deployed.num_validation == 0


def test_a_student_of_an_older_campaign_is_not_calibrated():
    facts = {"ce_weight": 0.4, "temperature": 0.5, "reason": "searched", "num_validation": 150}
    deployed = Deployed(Done("place", "student", facts))
    assert deployed.mixture == Mixture(0.4, 0.5)
    assert deployed.calibrated == "none: made by an older raykd"
