"""A campaign without test images: some of each round's labels measure the student, and nothing learns from them."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from campaigns import fill, lines_of, manifest_of, picks_of, table_of
from fakes import killed_after, write_images

from raykd.algo.audit import audit_order, audited_accuracy
from raykd.algo.heads import probabilities
from raykd.algo.keyed import hash_ids
from raykd.algo.statistics import paired_change
from raykd.labels.ledger import Ledger
from raykd.models.student import Student
from raykd.store.place import Place

ROUNDS, BUDGET, AUDITS = 3, 5, 2


@pytest.fixture
def untested(settings):
    """Nothing is split off; heads alone, so that a round takes no time."""
    student = {"backbone": "frozen", "steps": 20, "batch_labeled": 4, "batch_unlabeled": 8, "learning_rate": 0.01}
    selection = settings["selection"] | {"budget": BUDGET}
    labels = {"oracle": "simulated", "start": "none", "audit_share": 0.4}
    changes = {"test_share": 0, "val_share": 0, "rounds": ROUNDS, "student": student}
    return settings | changes | {"selection": selection, "labels": labels}


def asked(place, number):
    return pq.read_table(place / f"round_{number:03d}" / "select" / "picks.parquet").to_pylist()


def audits(place, rounds=ROUNDS):
    return [row["sample_id"] for r in range(rounds) for row in asked(place, r) if row["role"] == "audit"]


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def done(untested, run_job, tmp_path, kept):
    """A finished campaign; only for looking at."""
    if not kept:
        ended = run_job(untested, "progress=lines")
        assert ended.code == 0, ended.err
        kept |= {"place": tmp_path / "run", "said": ended.err + ended.out}
    return kept["place"]


def test_each_round_asks_for_the_next_images_of_one_random_order_that_no_strategy_is_offered(done):
    ids = manifest_of(done)["sample_id"].to_pylist()
    order = [ids[i] for i in audit_order(hash_ids(ids), 0)]
    assert audits(done) == [name for name in order[: ROUNDS * AUDITS] if name in audits(done)]
    assert set(audits(done)) == set(order[: ROUNDS * AUDITS])
    aside = order[: json.loads((done / "audit" / "_DONE.json").read_text())["facts"]["set_aside"]]
    for r in range(ROUNDS):
        rows = asked(done, r)
        assert [row["rank"] for row in rows] == list(range(BUDGET))
        assert [row["role"] for row in rows].count("audit") == AUDITS
        assert not {row["sample_id"] for row in rows if row["role"] == "train"} & set(aside)
    assert len({tuple(row["role"] for row in asked(done, r)) for r in range(ROUNDS)}) > 1  # no place gives it away


def test_what_measures_is_learned_from_by_nothing_and_counted_apart(done):
    ledger = Ledger(Place.of(done) / "ledger").read()
    roles = dict(zip(ledger["sample_id"].to_pylist(), ledger["role"].to_pylist(), strict=True))
    assert {name for name, role in roles.items() if role == "audit"} == set(audits(done))
    for r, line in enumerate(lines_of(done)):
        train, audit = (r + 1) * (BUDGET - AUDITS), (r + 1) * AUDITS
        assert line["labels_spent"] == {"training": train, "audit": audit, "validation": 0}
        assert (line["num_labeled"], sum(line["labels_C"])) == (train, train)
        facts = json.loads((done / f"round_{r:03d}" / "train" / "_DONE.json").read_text())["facts"]
        assert facts["num_labeled"] == train


def test_training_sees_an_audited_image_as_it_sees_one_without_a_label(done):
    from raykd.stages.train import samples
    from raykd.store.outputs import read_labels

    labels = read_labels(Place.of(done) / f"round_{ROUNDS - 1:03d}")
    ids, labels_L = samples(manifest_of(done)["sample_id"], labels, ("blue", "green", "red"), {})
    assert len(labels_L) == ROUNDS * (BUDGET - AUDITS)
    assert set(audits(done)) <= set(ids[len(labels_L) :].to_pylist())


def test_the_figures_are_of_the_audited_images_by_the_student_that_is_deployed(done):
    lines = lines_of(done)
    manifest = manifest_of(done)
    labels = dict(zip(manifest["sample_id"].to_pylist(), manifest["label"].to_pylist(), strict=True))
    before = None
    for r, line in enumerate(lines):
        names = audits(done, r + 1)
        student = Student.load(done / f"round_{r:03d}" / "student")
        table = table_of(done / f"round_{r:03d}" / "predict")
        rows = pc.index_in(pa.array(names), value_set=table["sample_id"].combine_chunks()).to_pylist()
        logits = {name: np.array(table[name].to_pylist())[rows] for name in ("ce_logits", "kd_logits")}
        probs = probabilities(logits, student.mixture)
        right = np.array([student.classes[i] for i in probs.argmax(axis=1)]) == [labels[name] for name in names]
        found = audited_accuracy(right)
        assert (line["measured_on"], line["num_measured"], line["num_test"]) == ("audit", len(names), 0)
        assert {name: line["audit"][name] for name in found} == found
        assert line["accuracy"]["mixture"] == found["accuracy"]
        assert line["interval"] == [found["low"], found["high"]]
        assert 0 <= line["at_least"] <= found["low"]
        assert line["audit"]["num_choosing"] == line["audit"]["num_unanswered"] == 0
        if before is not None:
            change = paired_change(before, right[: len(before)]) if len(before) == len(right) else None
            assert change is None or line["change"] == change
            assert line["change"]["num_test"] == len(names)  # today's images, by the student before, too
        before = right


def test_report_status_and_log_say_how_sure_it_is(done, kept):
    page = (done / "report.html").read_text("utf-8")
    assert "How sure is that, and do more labels pay?" in page
    assert f"of {ROUNDS * AUDITS} audited images" in page
    assert "test images" not in re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    status = json.loads((done / "status.json").read_text())
    assert status["figures"]["measured_on"] == "audit"
    assert status["figures"]["at_least"] == lines_of(done)[-1]["at_least"]
    assert status["figures"]["words"][0].startswith("at least ")
    assert "images are set aside, by chance" in kept["said"]


def test_killed_while_it_sets_aside_and_while_labels_settle_it_ends_the_same(done, untested, run_job, tmp_path):
    settings = untested | {"storage_path": str(tmp_path / "killed")}
    for stage in ("audit", "round 1 label"):
        with killed_after(0, stage):
            run_job(settings)
    ended = run_job(settings)
    assert ended.code == 0, ended.err
    place = tmp_path / "killed"
    assert [picks_of(place, r) for r in range(ROUNDS)] == [picks_of(done, r) for r in range(ROUNDS)]
    both = ([{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(each)] for each in (place, done))
    assert next(both) == next(both)


# ---------------------------------------------------------------- people


def test_audits_without_an_answer_are_said_and_asked_for_again(untested, run_job, tmp_path):
    people = untested["labels"] | {"oracle": "people", "min_answered": 0.6}
    settings, place = untested | {"labels": people, "rounds": 2}, tmp_path / "run"
    assert run_job(settings).code == 0
    manifest = manifest_of(place)
    labels = dict(zip(manifest["sample_id"].to_pylist(), manifest["label"].to_pylist(), strict=True))
    first = asked(place, 0)
    skipped = [row["sample_id"] for row in first if row["role"] == "audit"]
    fill(place / "round_000" / "tasks.csv", {row["sample_id"]: labels[row["sample_id"]] for row in first
                                             if row["role"] == "train"})  # fmt: skip
    assert "role" not in (place / "round_000" / "tasks.csv").read_text().splitlines()[0]
    assert run_job(settings).code == 0
    (line,) = lines_of(place)
    assert (line["measured_on"], line["accuracy"], line["audit"]) == (None, None, None)
    again = asked(place, 1)
    assert [row["sample_id"] for row in again if row["role"] == "audit"] == skipped
    fill(place / "round_001" / "tasks.csv", {row["sample_id"]: labels[row["sample_id"]] for row in again[:4]}
         | {skipped[0]: labels[skipped[0]], skipped[1]: "cannot label"})  # fmt: skip
    assert run_job(settings).code == 0
    line = lines_of(place)[1]
    assert line["num_measured"] == line["audit"]["num_audited"] == 1
    assert line["audit"]["num_without_class"] == 1
    assert line["audit"]["num_unanswered"] == 0


def test_an_image_that_was_set_aside_and_labeled_unasked_is_learned_from_and_measures_nothing(
    untested, run_job, tmp_path
):
    place = tmp_path / "run"
    people = untested | {"labels": untested["labels"] | {"oracle": "people"}, "rounds": 2}
    assert run_job(people).code == 0
    manifest = manifest_of(place)
    ids = manifest["sample_id"].to_pylist()
    labels = dict(zip(ids, manifest["label"].to_pylist(), strict=True))
    order = [ids[i] for i in audit_order(hash_ids(ids), 0)]
    mine = order[AUDITS]  # the next that would be audited
    (place / "answers").mkdir()
    names = [mine, *picks_of(place, 0)]
    (place / "answers" / "a.csv").write_text("\n".join(["sample_id,label", *(f"{i},{labels[i]}" for i in names)]))
    assert run_job(people).code == 0
    roles = {row["sample_id"]: row["role"] for row in Ledger(Place.of(place) / "ledger").current().to_pylist()}
    assert roles[mine] == "train"
    assert [roles[name] for name in picks_of(place, 0)] == [row["role"] for row in asked(place, 0)]
    (line,) = lines_of(place)
    assert line["labels_spent"] == {"training": BUDGET - AUDITS + 1, "audit": AUDITS, "validation": 0}
    assert {row["sample_id"] for row in asked(place, 1) if row["role"] == "audit"} == set(order[AUDITS + 1 :][:AUDITS])


def test_labels_that_measured_elsewhere_are_learned_from_here_and_that_is_said(done, untested, run_job, tmp_path):
    labels = {"oracle": "simulated", "start": "given", "given": str(done), "audit_share": 0.4}
    settings = untested | {"labels": labels, "storage_path": str(tmp_path / "other"), "rounds": 1}
    ended = run_job(settings, "progress=lines")
    assert ended.code == 0, ended.err
    count = ROUNDS * AUDITS
    assert f"{count} of them measured a student there; here they are learned from" in ended.out + ended.err
    (line,) = lines_of(tmp_path / "other")
    assert line["labels_spent"] == {"training": ROUNDS * BUDGET, "audit": 0, "validation": 0}
    assert line["accuracy"] is None


# ---------------------------------------------------------------- what is refused, and what is not


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["labels.audit_share=0.95"], "is 5, and nothing is left to learn from: lower it, or raise selection.budget"),
        (
            ["labels.audit_aside=0.02"],
            "labels.audit_aside: 0.02 sets 1 of 48 images aside, and the rounds to come",
        ),
        (["labels.audit_aside=0.95"], "labels.audit_aside: 0.95 sets 46 of 48 images aside"),
        (["labels.audit_share=1"], "labels.audit_share"),
        (["labels.audit_share=0", "mixture.objective=log_loss"], "mixture.objective says how to choose a mixture, and"),
        (["labels.audit_share=0", "mixture.search=random"], "give val or val_share, or labels.audit_share"),
    ],
)
def test_a_share_that_cannot_be_is_refused_before_anything_is_encoded(untested, run_job, tmp_path, changes, problem):
    ended = run_job(untested, *changes)
    assert ended.code != 0
    assert problem in ended.err + ended.out
    assert not (tmp_path / "run" / "encode").exists()


def test_with_test_images_nothing_is_audited_unless_it_is_asked_for(untested, run_job, tmp_path):
    labels = {name: value for name, value in untested["labels"].items() if name != "audit_share"}
    settings = untested | {"test_share": 0.2, "labels": labels, "rounds": 1}
    assert run_job(settings).code == 0
    assert audits(tmp_path / "run", 1) == []
    assert lines_of(tmp_path / "run")[0]["measured_on"] == "test"
    assert lines_of(tmp_path / "run")[0]["audit"] is None
    assert not (tmp_path / "run" / "audit").exists()
    asked_for = settings | {"storage_path": str(tmp_path / "both"), "labels": untested["labels"]}
    assert run_job(asked_for).code == 0
    line = lines_of(tmp_path / "both")[0]
    assert (line["measured_on"], line["audit"]["num_audited"]) == ("test", AUDITS)


def test_without_test_images_a_fifth_is_audited_and_one_label_a_round_is_learned_from(untested, run_job, tmp_path):
    labels = {name: value for name, value in untested["labels"].items() if name != "audit_share"}
    assert run_job(untested | {"labels": labels, "rounds": 1}).code == 0
    assert len(audits(tmp_path / "run", 1)) == 1
    single = untested | {"labels": labels, "rounds": 1, "storage_path": str(tmp_path / "single")}
    assert run_job(single, "selection.budget=1").code == 0
    assert audits(tmp_path / "single", 1) == []


@pytest.mark.parametrize("strategy", ["random", "pcoreset"])
def test_the_ledger_has_the_probability_of_each_pick_that_was_drawn(untested, run_job, tmp_path, strategy):
    assert run_job(untested, f"selection.strategy={strategy}", "rounds=2").code == 0
    ledger = Ledger(Place.of(tmp_path / "run") / "ledger").read().to_pylist()
    chances = {row["sample_id"]: row["probability"] for row in ledger}
    aside = json.loads((tmp_path / "run" / "audit" / "_DONE.json").read_text())["facts"]["set_aside"]
    left = len(manifest_of(tmp_path / "run")) - aside
    for row in (row for r in range(2) for row in asked(tmp_path / "run", r)):
        drawn = strategy == "random" and row["role"] == "train"
        assert chances[row["sample_id"]] == (pytest.approx(1 / left) if drawn else None)
        left -= drawn


def test_new_images_are_set_aside_in_the_same_share(untested, run_job, tmp_path, image_folder):
    import shutil

    pool = shutil.copytree(image_folder, tmp_path / "pool")
    settings = untested | {"pool": untested["pool"] | {"path": str(pool)}, "rounds": 1}
    assert run_job(settings).code == 0
    write_images(tmp_path / "more", 8, seed=11)
    for file in (tmp_path / "more").rglob("*.png"):
        shutil.copy(file, pool / file.parent.name / f"new_{file.name}")
    assert run_job(settings, "rounds=2").code == 0
    facts = json.loads((tmp_path / "run" / "audit" / "_DONE.json").read_text())["facts"]
    parts = [pq.read_table(file) for file in sorted((tmp_path / "run" / "pool").glob("*/manifest.parquet"))]
    ids = [name for part in parts for name in part["sample_id"].to_pylist()]
    from raykd.algo.audit import is_aside

    aside = {name for name, held in zip(ids, is_aside(hash_ids(ids), 0, facts["last"]), strict=True) if held}
    assert any("new_" in name for name in aside)
    second = asked(tmp_path / "run", 1)
    assert {row["sample_id"] for row in second if row["role"] == "train"}.isdisjoint(aside)
    assert {row["sample_id"] for row in second if row["role"] == "audit"} <= aside
