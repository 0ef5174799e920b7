"""The mixture's search on Ray Tune gives what a plain loop gives; it looks at nothing else than what may choose."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import new_campaign

from raykd.algo.audit import chooses
from raykd.algo.calibration import fit_calibration
from raykd.algo.heads import Mixture, probabilities
from raykd.algo.keyed import hash_ids
from raykd.algo.metrics import log_loss
from raykd.algo.mixture_search import CE_WEIGHTS, TEMPERATURES, point_scores
from raykd.errors import UserError
from raykd.store.outputs import LABELS_FILE, MANIFEST_FILE, Deployed, Labels, Pool, Predictions, Trained
from raykd.store.stage_folder import Done
from raykd.store.tables import LABELS, MANIFEST, SPLITS, vectors

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


def test_the_search_finds_the_best_point_of_a_plain_loop_over_the_grid(ray_cluster, settings, logits):
    from raykd.stages import mix

    campaign = new_campaign(settings, "mixture.ce_weight=1.0")
    right = brute_force(*logits)
    default = Mixture(1.0, 1.0)
    assert max(right.values()) > right[default] + 10  # or the default would stay
    point, reason = mix.search(campaign, 0, *logits, "validation")
    assert right[point] == max(right.values())
    gain = (right[point] - right[default]) / NUM
    assert reason.startswith(f"searched 147 mixtures on {NUM} validation images: {gain:+.3f} ± ")
    assert not list(Path((campaign.place / "ray_tune").path).iterdir())


def test_several_trials_find_what_one_finds(ray_cluster, settings, logits, monkeypatch):
    """Blocks of the grid cover it, and ties between blocks go where ties within one go."""
    from raykd.stages import mix

    ran, real = [], mix.tune.Tuner.fit

    def fit(tuner):
        results = real(tuner)
        ran.append(len(results))
        return results

    monkeypatch.setattr(mix.tune.Tuner, "fit", fit)
    campaign = new_campaign(settings, "mixture.ce_weight=0.9", "mixture.temperature=4")
    one = mix.search(campaign, 0, *logits, "validation")
    monkeypatch.setattr(mix, "WORK_A_TRIAL", 147 * NUM * CLASSES / 5)
    assert mix.search(campaign, 1, *logits, "validation") == one
    assert ran == [1, 5]


KINDS = {  # of search: what is set, and how many points are tried
    "points": (["mixture.points=[[0,1],[0.3,2],[0.6,0.5]]"], 4),
    "random": (["mixture.search=random", "mixture.trials=30"], 31),
    "optuna": (["mixture.search=optuna", "mixture.trials=30"], 31),
}


@pytest.mark.parametrize("objective", ["accuracy", "log_loss", "calibration"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_search_for_any_objective_finds_a_mixture_that_is_better_than_the_default(
    ray_cluster, settings, logits, kind, objective
):
    from raykd.stages import mix

    if kind == "optuna":
        pytest.importorskip("optuna")
    changes, count = KINDS[kind]
    campaign = new_campaign(settings, "mixture.ce_weight=1", f"mixture.objective={objective}", *changes)
    point, reason = mix.search(campaign, 0, *logits, "audited")
    scores = point_scores(*logits, np.array([[point.ce_weight, point.temperature], [1.0, 1.0]]), objective)
    assert scores[0] > scores[1]
    assert reason.startswith(f"searched {count} mixtures")
    assert f" on {NUM} audited images: " in reason
    assert mix.search(campaign, 0, *logits, "audited")[0] == point


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["mixture.points=[[0.5,0]]"], "mixture.points"),
        (["mixture.points=[[1.5,1]]"], "mixture.points"),
        (["mixture.points=[]"], "mixture.points"),
        (["mixture.trials=9"], "trials is for search: random or optuna"),
        (["mixture.search=random", "mixture.points=[[0.5,1]]"], "points is for search: grid"),
        (["mixture.search=false", "mixture.trials=9"], "search: false would not look at it"),
        (["mixture.objective=f1"], "mixture.objective"),
    ],
)
def test_a_point_out_of_range_and_what_a_search_would_not_look_at_are_refused(settings, changes, problem):
    with pytest.raises(UserError, match=problem):
        new_campaign(settings, *changes)


def test_a_search_that_was_on_is_the_grid(settings):
    assert new_campaign(settings, "mixture.search=true").config.mixture.search == "grid"


def test_a_gain_that_may_be_luck_leaves_the_default(ray_cluster, campaign, logits):
    from raykd.stages import mix

    few = {name: part[:4] for name, part in logits[0].items()}
    point, reason = mix.search(campaign, 0, few, logits[1][:4], "validation")
    assert point == Mixture(0.5, 1.0)
    assert "on 4 validation images" in reason
    assert reason.endswith("within one standard error, so the default stays")


# ---------------------------------------------------------------- the stage


@pytest.fixture
def stages(campaign, logits):
    """Pool, training and predictions of a round as their stages leave them; called with the split of each image."""
    columns, labels = logits
    names = [f"class {c}" for c in range(CLASSES)]

    def make(splits, labeled=True, columns=columns, answers=()):
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
        counts = {split: splits.count(split) for split in SPLITS}
        given = [(ids[i], names[labels[i]], "label", role) for i, role in answers]
        rows = [dict(zip(LABELS.names, row, strict=True)) for row in given]
        (place / "label" / LABELS_FILE).write_table(pa.Table.from_pylist(rows, LABELS))
        return (
            Pool((Done(place / "pool", "pool", counts),), tuple(names)),
            Labels(Done(place / "label", "label")),
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

    def search(campaign, number, columns, labels, which):
        seen.update(columns, labels=labels, which=which)
        return Mixture(0.25, 2.0), "as told"

    monkeypatch.setattr(mix, "search", search)
    splits = ["pool", "val", "test"] * (NUM // 3)
    trained = stages(splits, answers=[(i, "audit") for i in range(0, NUM, 3)])  # which are not looked at then
    deployed = mix.mix(campaign, 3, *trained)
    val = np.array(splits) == "val"
    for name, expected in (logits[0] | {"labels": logits[1]}).items():
        assert np.array_equal(seen[name], expected[val])
    assert seen["which"] == "validation"
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


def test_without_validation_it_sees_the_audited_images_that_may_choose_and_no_other(
    campaign, stages, logits, monkeypatch
):
    """No test image, none that the student was trained on, and none of those that measure."""
    from raykd.stages import mix

    seen = {}

    def search(campaign, number, columns, labels, which):
        seen.update(columns, labels=labels, which=which)
        return Mixture(0.25, 2.0), "as told"

    monkeypatch.setattr(mix, "search", search)
    monkeypatch.setattr(mix, "FEWEST_AUDITED", 5)
    splits = ["pool", "pool", "pool", "test"] * (NUM // 4)
    answers = [(i, ["audit", "train", "audit"][i % 4]) for i in range(NUM) if splits[i] == "pool"]
    deployed = mix.mix(campaign, 0, *stages(splits, answers=answers))
    ids = np.array([f"s{i:03d}" for i in range(NUM)])
    may = chooses(hash_ids(ids), campaign.config.seed)
    mine = np.array([i for i, role in answers if role == "audit" and may[i]])
    assert 5 <= len(mine) < NUM // 2 - 5
    for name, expected in (logits[0] | {"labels": logits[1]}).items():
        assert np.array_equal(seen[name], expected[mine])
    assert (seen["which"], deployed.by_audit, deployed.num_validation) == ("audited", True, 0)
    assert deployed.calibrated.startswith(f"on {len(mine)} audited labels: log-loss ")

    monkeypatch.setattr(mix, "search", lambda *_: pytest.fail("a search on too few"))
    monkeypatch.setattr(mix, "FEWEST_AUDITED", len(mine) + 1)
    few = mix.mix(campaign, 1, *stages(splits, answers=answers))
    assert few.mixture == Mixture(0.5, 1.0)
    assert not few.by_audit
    assert few.reason == (
        f"fixed: there is no validation split and {len(mine)} of {len(mine) + 1} audited images to search on"
    )


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
