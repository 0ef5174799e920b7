"""A cell is a campaign: the same picks, mixtures and figures, from the same features, under the same seed."""

import numpy as np
import pytest
from campaigns import lines_of, picks_of
from small import frozen_digits, perfect

from raykd.config import load
from raykd.presets import demo
from raykd.simulation.cell import run_cell
from raykd.simulation.problem import problem_tables, read_problem, write_problem
from raykd.store.place import Place

KINDS = {  # of campaigns
    "pcoreset": {},
    "badge, gda": {"selection": {"strategy": "badge", "budget": 20}, "teacher": {"rule": "gda"}, "seed": 3},
    "cold, one head, a pool that moves the teacher": {
        "labels": {"oracle": "simulated", "start": "none"},
        "selection": {"strategy": "coreset", "budget": 20},
        "teacher": {"stat_a": True},
        "student": {"backbone": "frozen", "steps": 30, "learning_rate": 0.003, "hidden": 16, "heads": "ce+kd"},
    },
}


@pytest.fixture(scope="module")
def problem(ray_cluster, tmp_path_factory):
    """The digits' features, from the stages of a campaign, through files."""
    from raykd.stages.campaign import open_campaign
    from raykd.stages.encode import encode
    from raykd.stages.few_shot import texts_of
    from raykd.stages.pool import list_pool
    from raykd.stages.teacher import teach

    folder = tmp_path_factory.mktemp("digits")
    with open_campaign(load(frozen_digits(folder / "first", folder / "cache"))) as campaign:
        pool = list_pool(campaign)
        encoded = encode(campaign, pool)
        teacher = teach(campaign, pool, encoded)
    tables, teachers = problem_tables(pool, encoded, teacher)
    place = Place.of(folder / "problem")
    write_problem(place, tables, teacher.classes, texts_of(teacher.texts), teachers)
    return read_problem(place), folder / "cache"


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_gives_what_a_campaign_gives(kind, problem, run_job, tmp_path):
    images, cache = problem
    values = frozen_digits(tmp_path / "run", cache)
    for name, value in KINDS[kind].items():
        values[name] = demo()[name] | value if name in ("selection", "teacher") else value
    ended = run_job(values, "rounds=3")
    assert ended.code == 0, ended.err
    config = load(values)
    cell = run_cell(images, config, perfect(images), 3)
    asked = cell[-1].answered.rows
    for number, (after, line) in enumerate(zip(cell, lines_of(tmp_path / "run"), strict=True)):
        picks = picks_of(tmp_path / "run", number)
        before = len(cell[number - 1].answered.rows) if number else 0
        assert images.ids[asked[before : before + len(picks)]].tolist() == picks
        row, mixture = after.row, line["mixture"]
        assert after.mixture.calibration == pytest.approx(mixture["calibration"], rel=1e-9)
        if len(after.logits) > 1:
            assert (row["ce_weight"], row["temperature"]) == (mixture["ce_weight"], mixture["temperature"])
        for name in ("ce_head", "kd_head", "teacher"):
            value = line["accuracy"][name]
            assert row[name] == value if value is not None else np.isnan(row[name]), name
        assert row["accuracy"] == line["accuracy"]["mixture"]
        for name in ("macro_accuracy", "log_loss", "ece", "coverage_radius"):
            assert row[name] == pytest.approx(line[name], rel=1e-9), name
        assert row["labels"] == line["num_labeled"] == row["spent"]
    assert np.ptp([after.row["accuracy"] for after in cell]) > 0
