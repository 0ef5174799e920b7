"""How long a campaign takes, from a made-up probe; and how far off that was."""

import json
import re

import pytest

from raykd.planning import PLAN_FILE, Counts, clock_words, plan_error, plan_table, stage_plans, write_plan
from raykd.presets import load_preset
from raykd.store.place import Place

PROBE = {
    "images": 200, "read_s": 0.01, "read_bytes": 1e5, "teacher_s": 0.02, "teacher_width": 512, "student_read_s": 0.01,
    "student_s": 0.002, "student_width": 128, "step_s": 0.5, "pick_row_s": 1e-8, "cores": 8,
}  # fmt: skip
COUNTS = Counts(images=100_000, pool=90_000, classes=10, readers=8, steps=(100, 100, 300), is_local=False)


def by_name(config, probe=PROBE, counts=COUNTS):
    return {each.name: each for each in stage_plans(config, probe, counts)}


def config(*overrides):
    return load_preset("demo", list(overrides))


def test_the_slower_of_reading_and_teacher_sets_the_pace():
    plan = by_name(config())
    assert plan["encode"].seconds[0] == pytest.approx(100_000 * 0.02, rel=0.02)
    more = by_name(config("teacher.replicas=16", "teacher.num_gpus=1"))["encode"]
    assert more.seconds[0] == pytest.approx(100_000 * 0.01 / 8, rel=0.2)  # now eight readers do
    assert more.gpu_hours == pytest.approx(16 * more.seconds[0] / 3600)
    assert plan["encode"].gpu_hours == 0


def test_bytes_are_those_of_the_tables():
    plan = by_name(config())
    assert plan["encode"].written_bytes == 100_000 * 512 * 2
    assert plan["teacher"].written_bytes == 100_000 * 10 * 4
    assert plan["predict"].written_bytes == 3 * 100_000 * (128 * 2 + 2 * 10 * 4)
    assert plan["encode"].read_bytes == 100_000 * 1e5
    assert plan["predict"].read_bytes == 3 * 100_000 * 1e5


def test_a_round_trains_its_own_steps():
    seconds = by_name(config())["train"].seconds
    assert len(seconds) == 3
    assert seconds[2] - seconds[0] == pytest.approx(200 * 0.5)


def test_on_one_machine_reading_and_model_share_the_cores():
    counts = Counts(100_000, 90_000, 10, 2, (1, 1, 1), True)
    plan = by_name(config(), {**PROBE, "cores": 2, "read_s": 0.02}, counts)
    assert plan["encode"].seconds[0] == pytest.approx(100_000 * (0.02 + 0.02) / 2, rel=0.01)


def test_a_brought_table_and_heads_alone_look_at_no_image():
    given = config("teacher.rule=table", "teacher.table=t.parquet", "teacher.model=null")
    assert "encode" not in by_name(given, {**PROBE, "teacher_width": 0})
    plan = by_name(config("student.backbone=frozen"), {**PROBE, "student_read_s": 0.0, "student_s": 0.0})
    assert plan["predict"].read_bytes == plan["train"].read_bytes == 0


def test_the_table_has_a_line_a_stage_and_one_of_all():
    lines = plan_table(stage_plans(config(), PROBE, COUNTS)).splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "encode", "teacher", "select", "train", "predict", "all"]
    assert re.search(r"train +3  65 s to 2.7 min", plan_table(stage_plans(config(), {**PROBE, "step_s": 0.49}, COUNTS)))


def test_seconds_in_words():
    assert [clock_words(each) for each in (0.31, 52, 186, 8640)] == ["0.31 s", "52 s", "3.1 min", "2.4 h"]


# ---------------------------------------------------------------- how far off


def mark(folder, seconds):
    folder.mkdir(parents=True)
    marker = {"fingerprint": "f", "facts": {"seconds": seconds}, "settings": {}, "made_from": {}}
    (folder / "_DONE.json").write_text(json.dumps(marker))


def test_a_plan_is_compared_with_what_the_rounds_took(tmp_path):
    place = Place.of(tmp_path)
    write_plan(place, stage_plans(config(), {**PROBE, "step_s": 0.0}, COUNTS), {"made": "now"})
    assert plan_error(place) == []  # no round is done
    for number in range(2):
        round_folder = tmp_path / f"round_{number:03d}"
        for stage in ("select", "label", "train", "evaluate"):
            mark(round_folder / stage, 48.0)
        mark(round_folder / "predict" / "aaaa", 20.0)
        mark(round_folder / "predict" / "bbbb", 30.0)  # of parts that began together the longest
    mark(tmp_path / "encode" / "cccc", 4000.0)
    said = {line.partition(":")[0]: line for line in plan_error(place)}
    assert said["train"] == "train: planned 32 s, took 96 s (+200%)"
    assert "took 60 s" in said["predict"]
    assert said["encode"].endswith("took 1.1 h (+98%)") or "took 66.7 min" in said["encode"]
    assert "teacher" not in said  # nothing of it is there
    assert "all" in said


def test_a_plan_leaves_a_new_folder_new(tmp_path):
    from raykd.stages.campaign import read_history

    write_plan(Place.of(tmp_path / "run"), [], {})
    assert (tmp_path / "run" / PLAN_FILE).exists()
    assert read_history(Place.of(tmp_path / "run")) == []
