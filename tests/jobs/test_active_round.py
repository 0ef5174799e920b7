"""The main job: what it leaves behind, and that stopping it anywhere and running it again changes nothing of it."""

import csv
import html
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from campaigns import Reached, fill, labels_of, lines_of, manifest_of, picks_of, table_of
from fakes import Killed
from PIL import Image

from raykd.algo.heads import Mixture, probabilities
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import STRATEGIES
from raykd.algo.selection.strategies import pick as pick_in_process
from raykd.config import STRATEGY_OPTIONS
from raykd.errors import StorageError
from raykd.labels.ledger import Ledger
from raykd.models.student import Student
from raykd.store.lock import only_job
from raykd.store.place import Place
from raykd.store.stage_folder import MARKER, Writing

ROOT = Path(__file__).parents[2]
EACH = ["select", "ask", "label", "train", "predict", "student", "evaluate"]
FOLDERS = [
    "pool/part_000", "teacher_model/*", "encode/*", "teacher/*/classes", "teacher/*/scores/*",
    *(f"round_{number:03d}/{'predict/*' if name == 'predict' else name}" for number in range(2) for name in EACH),
]  # fmt: skip
STAGES = ["pool part_000", "teacher model", "encode", "teacher", "teacher", "teacher"]  # in the order they are made


def stages_of(rounds: int = 2) -> list[str]:
    """All folders in the order they are made, by the names that messages give them."""
    return [*STAGES, *(f"round {number} {name}" for number in range(rounds) for name in EACH)]


def outcome_of(place: Path, rounds: int) -> dict:
    """All that the first rounds of a campaign are for, without times and names of files."""
    picks = [name for number in range(rounds) for name in picks_of(place, number)]
    ledger = Ledger(Place.of(place) / "ledger").read()
    found: dict = {"ledger": ledger.filter(pc.is_in(ledger["sample_id"], pa.array(picks))).to_pydict()}
    for number in range(rounds):
        folder = place / f"round_{number:03d}"
        found[f"picks {number}"] = pq.read_table(folder / "select" / "picks.parquet").to_pydict()["sample_id"]
        found[f"labels {number}"] = labels_of(place, number)
        for name in ("train", "student"):
            found[f"{name} {number}"] = [(folder / name / file).read_bytes() for file in
                                         ("model.safetensors", "student.json")]  # fmt: skip
        found[f"predict {number}"] = table_of(folder / "predict").to_pydict()
    lines = lines_of(place)[:rounds]
    found["metrics"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return found


def assert_same_outcome(place: Path, finished, rounds: int) -> None:
    """A campaign of so many rounds ended as the finished one's first rounds did; it has nothing besides."""
    ledger = Ledger(Place.of(place) / "ledger").read()["sample_id"].to_pylist()
    assert ledger == [name for number in range(rounds) for name in picks_of(place, number)]
    assert len(lines_of(place)) == rounds
    here, there = outcome_of(place, rounds), outcome_of(finished.place, rounds)
    for key in there:
        assert here[key] == there[key], key


def tree(place: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time and size."""
    files = [file for file in place.rglob("*") if file.is_file()]
    return {str(file.relative_to(place)): (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


# ---------------------------------------------------------------- two rounds, end to end


def test_every_stage_is_there_and_complete_and_nothing_else_is_left(finished):
    for pattern in FOLDERS:
        (folder,) = finished.place.glob(pattern)
        marker = json.loads((folder / MARKER).read_text())
        assert marker["stage"] in stages_of()
        assert marker["made_from"]["version"] >= 1
        assert marker["facts"]["seconds"] >= 0
    assert len(list(finished.place.rglob(MARKER))) == len(stages_of())
    top = {"campaign.json", "status.json", "pool", "teacher_model", "encode", "teacher", "ledger", "round_000",
           "round_001", "ray_train", "ray_tune", "metrics.jsonl", "report.html", "quarantine.parquet"}  # fmt: skip
    assert {path.name for path in finished.place.iterdir()} == top
    for number in range(2):
        assert sorted(path.name for path in (finished.place / f"round_{number:03d}").iterdir()) == sorted(EACH)
    assert not list((finished.place / "ray_train").iterdir())
    assert not list((finished.place / "ray_tune").iterdir())


def test_the_campaigns_file_has_the_resolved_config_versions_and_commit(finished):
    (about,) = json.loads((finished.place / "campaign.json").read_text())["history"]
    assert about["before_round"] == 0
    assert about["config"]["selection"] == {
        "strategy": "pcoreset", "budget": 3, "mixture": "round", "shards": 1, "num_cpus": 0.1, "num_gpus": 0.0,
        "max_duplicates": None, "duplicate_cosine": None, "duplicate_column": "features", "precision": "fp32",
        "memory_gib": None, "balance": False, **dict.fromkeys(STRATEGY_OPTIONS),
    }  # fmt: skip
    assert about["versions"]["ray"]
    assert about["commit"] is None or len(about["commit"].rstrip("+")) == 40
    assert "storage_path" not in about["fixed"]


def test_a_script_can_ask_how_it_ended(finished):
    status = json.loads((finished.place / "status.json").read_text())
    assert (status["state"], status["rounds"], status["rounds_done"]) == ("finished", 2, 2)
    assert {status[name] for name in ("round", "stage", "waiting_for", "message")} == {None}
    last = lines_of(finished.place)[-1]
    figures = status["figures"]
    assert (figures["round"], figures["labels"], figures["accuracy"]) == (1, 6, last["accuracy"]["mixture"])
    for name in ("labels_spent", "measured_on", "interval", "at_least", "forecast", "price"):
        assert figures[name] == last[name]
    assert [line.split()[0] for line in figures["words"]] == ["at", "no"]  # at least ...; no forecast: ...


def test_metrics_has_a_line_a_round_with_what_was_learned(finished):
    lines = lines_of(finished.place)
    assert [line["round"] for line in lines] == [0, 1]
    assert [line["num_labeled"] for line in lines] == [3, 6]
    assert [sum(line["labels_C"]) for line in lines] == [3, 6]
    assert [line["outcomes"]["label"] for line in lines] == [3, 3]
    for line in lines:
        assert line["num_test"] == 10
        assert set(line["accuracy"]) == {"mixture", "ce_head", "kd_head", "teacher"}
        assert set(line["seconds"]) == {*EACH, "mix"} - {"ask", "student"}
        assert 0 <= line["ece"] <= 1
        assert 0 < line["coverage_radius"] < 1.5
        assert len(line["recall_C"]) == 3
        assert line["labels_spent"] == {"training": line["num_labeled"], "audit": 0, "validation": 10}
        assert set(line["mixture"]) == {"ce_weight", "temperature", "calibration", "reason", "calibrated"}
        assert line["mixture"]["calibrated"].startswith("on 10 validation labels: log-loss ")
        assert line["log_loss"] > 0
        assert {type(line[name]) for name in ("ece_uncalibrated", "log_loss_uncalibrated")} == {float}
        assert line["label_doubts"]["num_labels"] == line["num_labeled"]
        low, high = line["interval"]
        assert 0 <= low <= line["accuracy"]["mixture"] <= high <= 1
    assert lines[0]["change"] is None
    change, accuracies = lines[1]["change"], [line["accuracy"]["mixture"] for line in lines]
    assert change["gain"] == pytest.approx(accuracies[1] - accuracies[0])
    assert change["won"] - change["lost"] == round(10 * change["gain"])
    assert change["low"] <= change["gain"] <= change["high"]
    assert change["num_test"] == 10
    assert lines[0]["accuracy"]["teacher"] == lines[1]["accuracy"]["teacher"]


def test_the_deployed_student_predicts_and_scores_what_the_metrics_say(finished):
    rows = manifest_of(finished.place).to_pylist()
    rows = [row for row in rows if row["split"] == "test"]
    for number, line in enumerate(lines_of(finished.place)):
        student = Student.load(finished.place / f"round_{number:03d}" / "student")
        probs = student.predict([Image.open(row["uri"]) for row in rows])
        assert probs.shape == (10, 3)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
        right = [student.classes[best] == row["label"] for best, row in zip(probs.argmax(axis=1), rows, strict=True)]
        assert line["accuracy"]["mixture"] == pytest.approx(np.mean(right))


def test_what_is_wrong_on_test_lies_beside_the_metrics(finished):
    for number, line in enumerate(lines_of(finished.place)):
        place = finished.place / f"round_{number:03d}" / "evaluate"
        confusion = pq.read_table(place / "confusion.parquet").to_pylist()
        right = sum(row["count"] for row in confusion if row["label"] == row["prediction"])
        assert sum(row["count"] for row in confusion) == line["num_test"]
        assert right / line["num_test"] == pytest.approx(line["accuracy"]["mixture"])
        mistakes = pq.read_table(place / "mistakes.parquet")
        assert mistakes.num_rows == line["num_test"] - right
        assert mistakes["thumbnail"].null_count == max(mistakes.num_rows - 12, 0)
        doubtful = pq.read_table(place / "doubtful_labels.parquet")
        assert set(doubtful["sample_id"].to_pylist()) <= set(labels_of(finished.place, number))
        assert sum(slip > 0.5 for slip in doubtful["slip"].to_pylist()) == line["label_doubts"]["num_suspects"] == 0
    page = (finished.place / "report.html").read_text("utf-8")
    for words in (
        "Where the student is wrong",
        "Most confident mistakes",
        "None of 6 training labels looks",
    ):
        assert words in page
    assert all(name in page for name in mistakes["sample_id"].to_pylist()[:12])


def test_a_campaign_that_was_evaluated_before_there_were_these_still_has_its_report(finished, run_job, tmp_path):
    place = Path(shutil.copytree(finished.place, tmp_path / "older"))
    new = ("ece_uncalibrated", "log_loss", "log_loss_uncalibrated", "label_doubts")
    for number in range(2):
        folder = place / f"round_{number:03d}" / "evaluate"
        for name in ("confusion", "mistakes", "doubtful_labels"):
            (folder / f"{name}.parquet").unlink()
        values = json.loads((folder / "metrics.json").read_text())
        values = {key: value for key, value in values.items() if key not in new}
        values["mixture"] = {key: values["mixture"][key] for key in ("ce_weight", "temperature", "reason")}
        (folder / "metrics.json").write_text(json.dumps(values))
    (place / "report.html").unlink()
    again = run_job(finished.settings | {"storage_path": str(place)})
    assert again.code == 0, again.err
    page = (place / "report.html").read_text("utf-8")
    assert "Round 1" in page
    assert "Where the student is wrong" not in page
    assert "Labels worth a second look" not in page


def test_the_report_is_one_page_with_both_rounds(finished):
    page = (finished.place / "report.html").read_text("utf-8")
    for words in ("Round 0", "Round 1", "pcoreset", "red/broken.png", *picks_of(finished.place, 1)):
        assert words in page
    assert page.count("data:image/png;base64,") >= 6


def test_it_ends_with_a_small_table_and_the_reports_path(finished):
    lines = finished.ended.out.strip().splitlines()
    assert lines[0].split()[:4] == ["round", "labels", "validation", "student"]
    assert [line.split()[:3] for line in lines[1:3]] == [["0", "3", "10"], ["1", "6", "10"]]
    assert lines[-1] == f"report: {finished.place / 'report.html'}"


def test_the_ledger_has_each_pick_once_with_the_manifests_label(finished):
    rows = Ledger(Place.of(finished.place) / "ledger").read().to_pylist()
    assert [row["sample_id"] for row in rows] == [*picks_of(finished.place, 0), *picks_of(finished.place, 1)]
    assert len({row["sample_id"] for row in rows}) == 6
    for row in rows:
        assert row["label"] == row["sample_id"].split("/")[0]
        assert (row["outcome"], row["annotator"]) == ("label", "oracle")


def test_a_bad_image_is_neither_picked_nor_predicted(finished):
    for number in range(2):
        ids = table_of(finished.place / f"round_{number:03d}" / "predict")["sample_id"].to_pylist()
        assert len(ids) == len(set(ids)) == 48
        assert "red/broken.png" not in ids
        assert "red/broken.png" not in picks_of(finished.place, number)


def test_the_start_is_one_image_of_each_class(finished):
    assert sorted(name.split("/")[0] for name in picks_of(finished.place, 0)) == ["blue", "green", "red"]


# ---------------------------------------------------------------- picks


def students_space(finished) -> tuple[Rows, Rows]:
    """The pool of the first student as rows in this process: unlabeled, labeled."""
    table = table_of(finished.place / "round_000" / "predict")
    table = table.filter(pc.equal(table["split"], "pool"))
    about = json.loads((finished.place / "round_000" / "student" / "student.json").read_text())["mixture"]
    logits = {name: np.array(table[name].to_pylist()) for name in ("ce_logits", "kd_logits")}
    probs = probabilities(logits, Mixture(**about).uncalibrated)
    labels = labels_of(finished.place)
    ids = table["sample_id"].to_pylist()
    names = ["blue", "green", "red"]
    classes = np.array([names.index(labels[name][1]) if name in labels else -1 for name in ids])
    features = np.array(table["features"].to_pylist(), np.float16)
    rows = Rows(ids, probs, features, classes, probs)
    return rows.take(np.flatnonzero(classes < 0)), rows.take(np.flatnonzero(classes >= 0))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_runs_a_round_and_picks_what_it_picks_without_ray(finished, seeded, strategy):
    from raykd.stages import select

    _, campaign = seeded(f"selection.strategy={strategy}", "selection.shards=2")
    table = select.select(campaign, 1, finished.pool, finished.encoded, finished.teacher, finished.rounds[0]).table
    unlabeled, labeled = students_space(finished)
    expected = pick_in_process(strategy, LocalShards.split(unlabeled, 1), labeled, 3, 0, 1)
    assert table["sample_id"].to_pylist() == list(expected.ids)
    assert table["rank"].to_pylist() == [0, 1, 2]
    assert not set(expected.ids) & set(picks_of(finished.place, 0))


def test_one_two_and_three_shards_give_the_same_picks_and_may_change_during_a_campaign(finished, seeded):
    from raykd.stages import select

    for shards in (2, 3):
        _, campaign = seeded(f"selection.shards={shards}", name=f"shards_{shards}")
        picks = select.select(campaign, 1, finished.pool, finished.encoded, finished.teacher, finished.rounds[0])
        assert picks.table.equals(finished.rounds[1].picks.table)
        assert picks.done.fingerprint == finished.rounds[1].picks.done.fingerprint


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_starts_cold_in_the_teachers_space(finished, seeded, strategy):
    from raykd.stages import select

    _, campaign = seeded("labels.start=none", f"selection.strategy={strategy}")
    ids = select.select(campaign, 0, finished.pool, finished.encoded, finished.teacher, None).ids.to_pylist()
    manifest = manifest_of(finished.place)
    allowed = manifest.filter(pc.equal(manifest["split"], "pool"))["sample_id"].to_pylist()
    assert len(set(ids)) == 3
    assert set(ids) <= set(allowed) - {"red/broken.png"}


def test_a_fixed_mixture_to_select_in_is_part_of_what_the_picks_come_from(finished, seeded):
    from raykd.stages import select

    _, campaign = seeded("selection.mixture=[0.9,2.0]")
    picks = select.select(campaign, 1, finished.pool, finished.encoded, finished.teacher, finished.rounds[0])
    assert picks.done.settings["mixture"] == [0.9, 2.0]
    assert picks.done.fingerprint != finished.rounds[1].picks.done.fingerprint


def test_neither_picks_nor_coverage_look_at_the_calibration(finished, seeded):
    from dataclasses import replace

    from raykd.stages import select
    from raykd.stages.evaluate import covering_radius

    first = finished.rounds[0]
    assert first.deployed.mixture.calibration != 1
    facts = first.deployed.done.facts | {"calibration": 9.0}
    flat = replace(first, deployed=replace(first.deployed, done=replace(first.deployed.done, facts=facts)))
    assert flat.deployed.mixture.calibration == 9
    _, campaign = seeded()
    radius = covering_radius(campaign, finished.pool, finished.teacher, flat)
    picks = select.select(campaign, 1, finished.pool, finished.encoded, finished.teacher, flat)
    assert radius == pytest.approx(lines_of(finished.place)[0]["coverage_radius"], abs=1e-12)
    assert picks.table.equals(finished.rounds[1].picks.table)
    assert picks.done.fingerprint == finished.rounds[1].picks.done.fingerprint


# ---------------------------------------------------------------- run again, stop, resume


def test_run_again_it_repeats_no_stage_and_doubles_nothing(finished, run_job):
    before, page = tree(finished.place), (finished.place / "report.html").read_text("utf-8")
    again = run_job(finished.settings)
    assert again.code == 0
    assert again.out == finished.ended.out
    after = tree(finished.place)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"report.html", "status.json"}
    assert (finished.place / "report.html").read_text("utf-8").count("Round 1") == page.count("Round 1")


def test_a_colleague_who_may_not_write_there_sees_the_table_of_a_finished_one(finished, run_job, monkeypatch):
    def refuses(place):
        raise StorageError(f"storage_path {place} cannot be written to (no permission)")

    monkeypatch.setattr("raykd.stages.campaign.only_job", refuses)
    before = tree(finished.place)
    ended = run_job(finished.settings, "progress=lines")
    assert ended.code == 0
    assert ended.out == finished.ended.out
    assert "cannot be written to, so its figures are shown and nothing else is done" in ended.err
    assert tree(finished.place) == before
    more = run_job(finished.settings, "rounds=3")
    assert more.code == 2
    assert "no permission" in more.err
    assert tree(finished.place) == before


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=1", "seed: was 0, now 1"),
        ("split_seed=3", "split_seed: was 0, now 3"),
        ("test_share=0.1", "test_share: was 0.2, now 0.1"),
        ("pool.limit=30", "pool.limit: was None, now 30"),
    ],
)
def test_what_all_figures_hang_on_is_refused_naming_the_field_and_nothing_is_touched(finished, run_job, override, line):
    before = tree(finished.place)
    ended = run_job(finished.settings, override)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {finished.place} holds a campaign with another config: {line}. ")
    assert f"labels.given: {finished.place}" in ended.err
    assert tree(finished.place) == before


def test_a_folder_that_holds_something_else_is_refused(finished, run_job, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    ended = run_job(finished.settings, f"storage_path={tmp_path}")
    assert ended.code == 2
    assert "is not empty and holds no campaign" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_job_in_the_same_folder_is_refused_naming_the_first_and_nothing_is_touched(finished, run_job):
    with only_job(Place.of(finished.place)) as still_ours:
        before = tree(finished.place)
        ended = run_job(finished.settings)
        assert ended.code == 2
        assert ended.err.startswith(f"error: another job is at work in {finished.place} (pid {os.getpid()} on host ")
        assert tree(finished.place) == before
        still_ours()


def test_a_folder_in_which_a_job_was_killed_before_it_wrote_its_config_is_as_good_as_new(
    finished, run_job, tmp_path, up_to_training
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text('{"pid": 4711}')
    with pytest.raises(Reached):
        run_job(finished.settings | {"storage_path": str(tmp_path / "run")})
    assert (tmp_path / "run" / "campaign.json").exists()
    assert not (tmp_path / "run" / ".lock").exists()


def test_stopped_in_and_after_every_stage_and_resumed_it_ends_where_an_undisturbed_one_does(
    finished, run_job, tmp_path, monkeypatch
):
    """Every stage is stopped when it is complete, some also when they are all but; with one round, then two."""
    place = tmp_path / "run"
    settings = finished.settings | {"storage_path": str(place)}
    in_the_middle = {"pool part_000", "encode", "round 0 select", "round 0 label", "round 0 train", "round 0 predict",
                     "round 1 evaluate"}  # fmt: skip
    original, made = Writing.commit, []

    def commit(out):
        name, folder = out.folder.name, Path(out.folder.place.path)
        if name in in_the_middle:
            in_the_middle.remove(name)
            raise Killed(folder, "in the middle")
        original(out)
        made.append(name)
        raise Killed(folder, "after")

    monkeypatch.setattr(Writing, "commit", commit)
    for rounds in (1, 2):
        for _ in range(30):  # more than there are stops
            try:
                ended = run_job(settings, f"rounds={rounds}")
            except Killed as stop:
                folder, when = stop.args
                assert (folder / MARKER).exists() == (when == "after")
                assert folder.exists() == (when == "after")
                continue
            break
        assert ended.code == 0, ended.err
        assert made == stages_of(rounds)
        assert [line["round"] for line in lines_of(place)] == list(range(rounds))
    assert not in_the_middle
    assert_same_outcome(place, finished, rounds=2)
    assert not [file for file in place.rglob("*") if file.name.endswith(".aside")]
    assert not list((place / "ray_train").iterdir())
    assert "Round 1" in (place / "report.html").read_text("utf-8")


def test_stopped_while_its_teacher_learns_it_ends_as_if_it_had_not_been(seeded, run_job, tmp_path, monkeypatch):
    """At the fit, at the opinion and at its score, before and after each is complete."""
    settings, _ = seeded("teacher.rule=gda", "rounds=1", name="undisturbed")
    assert run_job(settings).code == 0
    original, left = Writing.commit, {(name, when) for name in ("fit", "part", "score") for when in ("before", "after")}

    def commit(out):
        path, name = out.folder.place.path, "other"
        if "/round_000/teacher/" in path:
            name = "fit" if path.endswith("/fit") else "score" if "/scores/" in path else "part"
        for when in ("before", "after"):
            if (name, when) in left:
                left.remove((name, when))
                if when == "after":
                    original(out)
                raise Killed(name, when)
        return original(out)

    monkeypatch.setattr(Writing, "commit", commit)
    stopped, _ = seeded("teacher.rule=gda", "rounds=1", name="stopped")
    for _ in range(6):
        with pytest.raises(Killed):
            run_job(stopped)
    assert not left
    assert run_job(stopped).code == 0
    for key, value in outcome_of(tmp_path / "undisturbed", 1).items():
        assert outcome_of(tmp_path / "stopped", 1)[key] == value, key
    assert not [file for file in (tmp_path / "stopped").rglob("*") if file.name.endswith(".aside")]


def test_with_a_table_for_a_teacher_no_model_is_needed(finished, run_job, tmp_path):
    """A whole round from a list of probabilities; the student learns from it as from any teacher."""
    ids = [name for name in manifest_of(finished.place)["sample_id"].to_pylist() if name != "red/broken.png"]
    names = ["blue", "green", "red"]
    probs = np.array([0.05 + 0.85 * (np.array(names) == name.split("/")[0]) for name in ids])
    table = pa.table({"sample_id": ids, **{name: probs[:, c] for c, name in enumerate(names)}})
    pq.write_table(table, tmp_path / "mine.parquet")
    place = tmp_path / "run"
    settings = finished.settings | {"storage_path": str(place)}
    settings |= {"teacher": {"rule": "table", "table": str(tmp_path / "mine.parquet")}}
    ended = run_job(settings, "rounds=1", "labels.start=none")
    assert ended.code == 0, ended.err
    assert lines_of(place)[0]["accuracy"]["teacher"] == 1
    assert lines_of(place)[0]["teacher_fit"] is None
    assert not (place / "teacher_model").exists()
    assert not list(place.glob("encode/*/*.parquet"))
    assert "table mine.parquet" in (place / "report.html").read_text("utf-8")


@pytest.mark.xfail(strict=True, reason="a table says of no image whether it can be read, and training stops at it")
def test_a_broken_image_that_has_a_row_in_the_teachers_table_stops_nothing(finished, run_job, tmp_path):
    ids = manifest_of(finished.place)["sample_id"].to_pylist()
    assert "red/broken.png" in ids
    pq.write_table(pa.table({"sample_id": ids, "probs": [[0.2, 0.3, 0.5]] * len(ids)}), tmp_path / "mine.parquet")
    settings = finished.settings | {"storage_path": str(tmp_path / "run")}
    settings |= {"teacher": {"rule": "table", "table": str(tmp_path / "mine.parquet")}}
    ended = run_job(settings, "rounds=1", "student.batch_unlabeled=29")
    assert ended.code == 0, ended.err


def processes_with(mark: str) -> list[int]:
    """The processes whose environment holds a text that nobody else's does."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


SLOW = """
import sys, time
from raykd.models import training
from raykd.stages import train_loop

ticking = train_loop.ticking
train_loop.ticking = lambda ticker: lambda step: (time.sleep(1), ticking(ticker)(step))
sys.path.insert(0, sys.argv.pop(1))
import active_round

active_round.main()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds Ray's processes through /proc")
def test_a_driver_killed_for_real_in_its_training_goes_on_to_the_same_picks_and_labels(
    finished, seeded, run_job, tmp_path
):
    """kill -9 of a job in its own process, when a checkpoint is there; then the same job in this one."""
    place, config, mark = tmp_path / "run", tmp_path / "campaign.yaml", uuid.uuid4().hex
    settings = seeded()[0] | {"rounds": 1}
    config.write_text(yaml.safe_dump(settings))
    environment = os.environ | {"RAYKD_TEST": mark, "PYTHONPATH": str(ROOT)}
    slowly = [sys.executable, "-c", SLOW, str(ROOT / "jobs"), str(config)]
    driver = subprocess.Popen(slowly, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not list(place.glob("ray_train/round-000-*/*.pt")):
            assert driver.poll() is None, driver.stdout.read()
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
        for pid in processes_with(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not (place / "round_000" / "train").exists()
    ended = run_job(settings)
    assert ended.code == 0, ended.err
    assert_same_outcome(place, finished, rounds=1)


# ---------------------------------------------------------------- labels from people


@pytest.fixture
def waiting(finished, seeded, run_job):
    """A campaign with people that has come to its first labels: settings, its folder, the picks, how the job ended."""
    settings, campaign = seeded("labels.oracle=people", "labels.start=none")
    ended = run_job(settings)
    place = Path(campaign.place.path)
    return settings, place, picks_of(place, 0), ended


def test_with_people_it_writes_tasks_and_ends_well_with_one_line_that_says_what_to_do(waiting):
    _, place, picks, ended = waiting
    assert (ended.code, ended.err) == (0, "")
    (line,) = ended.out.splitlines()
    tasks = place / "round_000" / "tasks.csv"
    assert line == (
        f"3 of 3 images of round 0 wait for a label: fill the label column of {tasks} (or put CSV, JSONL or Parquet "
        f"files with sample_id and label into {place / 'answers'}) and run the same command again"
    )
    with open(tasks, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sample_id"] for row in rows] == picks
    assert [row["rank"] for row in rows] == ["0", "1", "2"]
    assert all(Path(row["uri"]).is_file() for row in rows)
    assert {row["label"] for row in rows} == {""}
    status = json.loads((place / "status.json").read_text())
    assert (status["state"], status["round"], status["rounds_done"]) == ("waiting", 0, 0)
    assert status["waiting_for"] == {
        "what": "labels", "count": 3, "enough": 3, "of": 3, "words": line,
        "where": {"tasks": str(tasks), "answers": str(place / "answers")},
    }  # fmt: skip
    assert all(row[f"guess_{n}"].split(" (")[0] in ("red", "green", "blue") for row in rows for n in (1, 2, 3))
    assert not (place / "round_000" / "label").exists()
    page = html.unescape((place / "report.html").read_text("utf-8"))
    for words in ("Waiting for 3 labels<", str(tasks), str(place / "answers"), shlex.join(sys.orig_argv)):
        assert words in page


def test_answers_given_in_part_are_kept_and_it_still_waits_for_the_rest(waiting, run_job, up_to_training):
    settings, place, picks, _ = waiting
    tasks = place / "round_000" / "tasks.csv"
    fill(tasks, {picks[0]: "red", picks[1]: "green"})
    filled = tasks.read_bytes()
    for _ in range(2):
        ended = run_job(settings)
        assert ended.code == 0
        assert ended.out.startswith("1 of 3 images of round 0 wait for a label")
        assert tasks.read_bytes() == filled
        assert len(Ledger(Place.of(place) / "ledger").read()) == 2
        page = (place / "report.html").read_text("utf-8")  # of that same run: it has what was answered by then
        assert "Waiting for 1 label<" in page
        assert "2 of 3 have an answer." in page
    with pytest.raises(Reached):
        run_job(settings, "labels.min_answered=0.6")
    assert labels_of(place) == {picks[0]: ("label", "red"), picks[1]: ("label", "green")}


def test_job_and_report_say_how_many_more_would_do(waiting, run_job):
    settings, place, picks, _ = waiting
    fill(place / "round_000" / "tasks.csv", {picks[0]: "red"})
    ended = run_job(settings, "labels.min_answered=0.6")
    assert ended.out.startswith("2 of 3 images of round 0 wait for a label (1 more would do, by labels.min_answered)")
    page = (place / "report.html").read_text("utf-8")
    assert "Waiting for 2 labels, 1 of them would do<" in page
    assert "1 of 3 have an answer; 1 more would do." in page


def test_when_no_answer_names_a_class_it_waits_for_one_that_does(waiting, run_job, up_to_training):
    settings, place, picks, _ = waiting
    fill(place / "round_000" / "tasks.csv", dict.fromkeys(picks, "unsure"))
    ended = run_job(settings)
    assert ended.code == 0
    assert ended.out.startswith("no answer names a class yet")
    assert "Waiting for an answer that names a class<" in (place / "report.html").read_text("utf-8")
    (place / "answers").mkdir()
    pool = manifest_of(place).filter(pc.field("split") == "pool")
    name = next(each for each in pool["sample_id"].to_pylist() if each not in picks)
    (place / "answers" / "more.csv").write_text(f"sample_id,label\n{name},red\n")
    with pytest.raises(Reached):
        run_job(settings)
    assert labels_of(place)[name] == ("label", "red")
    page = (place / "report.html").read_text("utf-8")
    assert "Round 0 under way<" in page
    assert "What to do now" not in page


def test_answered_in_any_kind_of_file_it_goes_on_to_the_training(waiting, run_job, up_to_training):
    settings, place, picks, _ = waiting
    fill(place / "round_000" / "tasks.csv", {picks[0]: "Blue"})
    answers = place / "answers"
    answers.mkdir()
    (answers / "anna.csv").write_text(f"sample_id;label;annotator\n{picks[1]};unsure;anna\n")
    (answers / "ben.jsonl").write_text(json.dumps({"sample_id": picks[2], "label": 1}) + "\n")
    for _ in range(2):
        with pytest.raises(Reached):
            run_job(settings)
        expected = {picks[0]: ("label", "blue"), picks[1]: ("unsure", None), picks[2]: ("label", "green")}
        assert labels_of(place) == expected
        assert len(Ledger(Place.of(place) / "ledger").read()) == 3
    facts = json.loads((place / "round_000" / "label" / MARKER).read_text())["facts"]
    assert facts["outcomes"] == {"label": 2, "unsure": 1, "cannot_label": 0, "none_of_the_classes": 0}
    assert facts["num_labeled"] == 2


def test_an_unknown_class_in_a_label_file_is_an_error_with_file_and_line_and_none_of_it_counts(waiting, run_job):
    settings, place, picks, _ = waiting
    (place / "answers").mkdir()
    file = place / "answers" / "anna.csv"
    file.write_text(f"sample_id,label\n{picks[0]},red\n{picks[1]},gren\n")
    ended = run_job(settings)
    assert ended.code == 2
    assert ended.out == ""
    assert str(file) in ended.err
    assert "line 3: unknown label 'gren'; did you mean 'green'?" in ended.err
    assert "Traceback" not in ended.err
    assert len(Ledger(Place.of(place) / "ledger").read()) == 0
    file.write_text(file.read_text().replace("gren\n", "green\n"))
    assert run_job(settings).out.startswith("1 of 3 images")


def test_an_image_of_the_test_split_cannot_be_labeled(waiting, run_job):
    settings, place, _, _ = waiting
    manifest = manifest_of(place)
    held_out = manifest.filter(pc.equal(manifest["split"], "test"))["sample_id"][0].as_py()
    (place / "answers").mkdir()
    (place / "answers" / "anna.csv").write_text(f"sample_id,label\n{held_out},red\n")
    ended = run_job(settings)
    assert ended.code == 2
    assert held_out in ended.err
    assert "test" in ended.err


# ---------------------------------------------------------------- other starts


def test_a_cold_start_with_a_simulated_oracle_labels_what_pcoreset_picks_in_the_teachers_space(
    finished, seeded, run_job, up_to_training
):
    settings, campaign = seeded("labels.start=none")
    with pytest.raises(Reached):
        run_job(settings)
    place = Path(campaign.place.path)
    (file,) = place.glob("teacher/*/*/logits.parquet")
    table = pq.read_table(file)
    table = table.filter(pc.and_(pc.equal(table["split"], "pool"), pc.is_null(table["error"]))).sort_by("sample_id")
    probs = probabilities({"logits": np.array(table["logits"].to_pylist())})
    rows = Rows(table["sample_id"].to_pylist(), probs, None, np.full(len(probs), -1))
    expected = pick_in_process("pcoreset", LocalShards.split(rows, 1), rows.take(np.arange(0)), 3, 0, 0)
    assert picks_of(place, 0) == list(expected.ids)
    names = {name: name.split("/")[0] for name in expected.ids}
    assert labels_of(place) == {key: ("label", name) for key, name in names.items()}


def test_given_labels_are_the_start_and_nothing_is_asked(finished, seeded, run_job, up_to_training, tmp_path):
    rows = manifest_of(finished.place)
    ids = rows.filter(pc.equal(rows["split"], "pool"))["sample_id"].to_pylist()[:4]
    file = tmp_path / "given.csv"
    file.write_text("sample_id,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in ids))
    settings, campaign = seeded("labels.oracle=people", "labels.start=given", f"labels.given={file}")
    for _ in range(2):
        with pytest.raises(Reached):
            run_job(settings)
    place = Path(campaign.place.path)
    assert labels_of(place) == {name: ("label", name.split("/")[0]) for name in ids}
    assert picks_of(place, 0) == []
    assert not (place / "round_000" / "tasks.csv").exists()
    assert len(Ledger(Place.of(place) / "ledger").read()) == 4


def test_given_labels_of_an_unknown_class_are_an_error_with_file_and_line(finished, seeded, run_job, tmp_path):
    file = tmp_path / "given.csv"
    file.write_text(f"sample_id,label\n{picks_of(finished.place, 1)[0]},purple\n")
    settings, _ = seeded("labels.oracle=people", "labels.start=given", f"labels.given={file}")
    ended = run_job(settings)
    assert ended.code == 2
    assert str(file) in ended.err
    assert "line 2: unknown label 'purple'" in ended.err


# ---------------------------------------------------------------- refused before any work


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selection.strategy=pcorset", "unknown strategy 'pcorset'; did you mean 'pcoreset'?"),
        ("student.backbone=resnet19", "student.backbone: timm has no model 'resnet19'; did you mean 'resnet1"),
        ("teacher.model=ViT-B-23", "unknown teacher.model 'ViT-B-23'; did you mean 'ViT-B-32"),
        ("teacher.templates=simpel", "unknown template set 'simpel'; did you mean 'simple'?"),
        ("selection.budgt=3", "selection.budgt: unknown key; did you mean 'budget'?"),
        ("student.pretrained=nowhere.pth", f"student.pretrained: no file '{Path.cwd()}/nowhere.pth'"),
        (f"labels.answers={__file__}", f"labels.answers: '{__file__}' is a file; give a folder"),
    ],
)
def test_what_does_not_exist_is_refused_by_name_before_anything_is_written(
    finished, run_job, tmp_path, override, words
):
    ended = run_job(finished.settings, f"storage_path={tmp_path / 'run'}", override)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.num_gpus=7", "teacher asks for 7 GPUs"),
        ("student.num_cpus=50", "train asks for 50 CPUs, the local Ray has 4"),
        ("selection.shards=99", "selection asks for 9.9 CPUs"),
    ],
)
def test_what_this_machine_cannot_give_is_refused_at_once_and_not_waited_for(
    finished, run_job, tmp_path, override, words
):
    ended = run_job(finished.settings, f"storage_path={tmp_path / 'run'}", override)
    assert ended.code == 2
    assert words in ended.err


def test_a_pool_that_is_not_there_is_one_message_and_may_be_mended_in_the_same_folder(
    finished, run_job, tmp_path, monkeypatch
):
    from raykd.stages import encode

    def stop(campaign, pool):
        raise Reached

    monkeypatch.setattr(encode, "encode", stop)
    settings = finished.settings | {"storage_path": str(tmp_path / "run")}
    ended = run_job(settings, "pool.path=/nowhere/at/all")
    assert ended.code == 2
    assert ended.err.startswith("error: pool: nothing at '/nowhere/at/all'")
    assert not list((tmp_path / "run" / "pool").iterdir())
    with pytest.raises(Reached):
        run_job(settings)
    assert (tmp_path / "run" / "pool" / "part_000" / MARKER).exists()


def test_a_student_that_can_no_longer_read_an_image_is_told_and_the_others_are_scored(finished, seeded, tmp_path):
    """An image that goes away after the teacher's pass is left out of the predictions."""
    from dataclasses import replace

    from raykd.stages import evaluate, predict

    _, campaign = seeded("max_bad_share=0.1")  # it may be one of the ten of val
    table = finished.pool.manifest
    uris = [uri.replace("green/004", "green/gone") for uri in table["uri"].to_pylist()]
    manifest = tmp_path / "moved" / "manifest.parquet"
    Place.of(manifest).write_table(table.set_column(1, "uri", pa.array(uris)))
    pool = replace(finished.pool, parts=(replace(finished.pool.parts[0], place=Place.of(manifest.parent)),))
    predictions = predict.predict(campaign, 0, pool, finished.encoded, finished.rounds[0].trained)
    rows = {row["sample_id"]: row for part in predictions.parts for row in part.place.read_table().to_pylist()}
    assert len(rows) == 48
    assert [name for name, row in rows.items() if row["error"]] == ["green/004.png"]
    assert np.isnan(rows["green/004.png"]["ce_logits"]).all()
    assert len(predictions.ids) == 47
    done = replace(finished.rounds[0], predictions=predictions)
    test = predictions.split("test", pool)
    values = evaluate.figures(campaign, pool, finished.teacher, done, test, None)
    assert np.isfinite(values["coverage_radius"])
    for split in ("val", "test"):
        _, logits, _ = predictions.split(split, pool)
        assert all(np.isfinite(part).all() for part in logits.values())
    assert "1 images can no longer be read" in campaign.progress.stream.getvalue()
    campaign.open_shards.close()


def test_a_split_that_went_away_after_the_teacher_stops_the_predictions(finished, seeded, tmp_path):
    from dataclasses import replace

    from raykd.stages import predict

    _, campaign = seeded("max_bad_share=0.2")
    rows = finished.pool.manifest.to_pylist()
    for row in [row for row in rows if row["split"] == "val"][:4]:
        row["uri"] += ".moved"
    manifest = tmp_path / "moved" / "manifest.parquet"
    Place.of(manifest).write_table(pa.Table.from_pylist(rows, finished.pool.manifest.schema))
    pool = replace(finished.pool, parts=(replace(finished.pool.parts[0], place=Place.of(manifest.parent)),))
    with pytest.raises(ValueError, match=r"round 0 predict: 4 of \d+ val images cannot be read now"):
        predict.predict(campaign, 0, pool, finished.encoded, finished.rounds[0].trained)
    assert not list((Path(campaign.place.path) / "round_000" / "predict").iterdir())


def test_the_change_since_a_round_is_paired_by_image_and_by_name_whatever_became_of_either(finished):
    """The same students, with classes in another order, renamed, merged, one gone, and images that can't be read."""
    from dataclasses import replace

    from raykd.stages.advice import change_since, measured_images, what_it_says

    first, second = finished.rounds
    labels = dict(zip(*(finished.pool.split("test")[name].to_pylist() for name in ("sample_id", "label")), strict=True))

    def found_in(done, pool=finished.pool):
        return measured_images(None, pool, done, what_it_says(done, None))

    def right(done, pool=finished.pool):
        """By id, of a round's own students."""
        found = found_in(done, pool)
        return dict(zip(found.ids.to_pylist(), found.right(found.say, pool).tolist(), strict=True))

    def change(before):
        return change_since(finished.pool, before, what_it_says(before, None), found_in(second))

    now = right(second)
    assert now.keys() == labels.keys()
    assert np.mean(list(now.values())) == pytest.approx(lines_of(finished.place)[1]["accuracy"]["mixture"])
    same = change(second)
    assert (same["gain"], same["won"], same["num_test"]) == (0, 0, 10)

    turned = replace(first.predictions, classes=("green", "red", "blue"))  # as if these had been its names
    swapped = replace(first, predictions=turned)
    was = right(swapped)
    assert change(swapped)["won"] == sum(now[name] and not was[name] for name in now)

    renamed = replace(finished.pool, renamed={"red": "warm", "green": "warm"})
    guesses = {}
    for part in first.predictions.parts:
        for row in part.place.read_table().to_pylist():
            logits = {name: np.array([row[name]]) for name in first.predictions.columns}
            guesses[row["sample_id"]] = first.predictions.classes[
                probabilities(logits, first.deployed.mixture).argmax()
            ]
    merged = {"red": "warm", "green": "warm", "blue": "blue"}
    assert right(first, renamed) == {name: merged[guesses[name]] == merged[labels[name]] for name in labels}

    fewer = replace(first, predictions=replace(first.predictions, classes=("blue", "green", "other")))
    known = sum(label != "red" for label in labels.values())
    assert change(fewer)["num_test"] == known
    assert change(replace(first, predictions=replace(turned, classes=("a", "b", "c")))) is None
